"""The server's own rules of turns, room, time and rates on a made-up clock, over a device that is two numbers."""

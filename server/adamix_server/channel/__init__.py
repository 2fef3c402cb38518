"""What passes between the processes of one server: frames, their bytes, the sockets and pipes they go through."""

"""How fast decoders write for many at once: this server's engine, and others, on the same requests."""

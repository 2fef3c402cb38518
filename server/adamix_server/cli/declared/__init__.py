"""What should be on a server, as a file says it: reading it, comparing it with what is there, and carrying it out."""

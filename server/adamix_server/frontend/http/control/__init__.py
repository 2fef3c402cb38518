"""The control plane over HTTP: tasks, their versions and their traffic, and what a server is."""

"""The `adamix` command of the server: `serve`, the verbs of a client, and the plugins."""

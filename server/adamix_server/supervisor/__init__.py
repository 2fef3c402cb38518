"""The process that starts, watches, replaces and ends the others."""

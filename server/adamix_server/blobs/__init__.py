"""Adapter files by their digest, on disk. Knows no catalog."""

"""The client for event loops: `AsyncClient`. What it does is written once, in the modules of the same names above."""

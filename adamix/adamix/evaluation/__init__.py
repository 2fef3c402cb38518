"""How good an adapter is on labelled rows."""

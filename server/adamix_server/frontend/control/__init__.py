"""The control plane: registering, versions, traffic, pins, watching, reclaiming."""

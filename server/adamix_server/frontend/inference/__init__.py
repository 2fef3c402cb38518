"""The data plane: texts in, answers out, one call or a stream."""

"""Limits of the server that a client keeps to. The server's own tables take them from here."""

MAX_MESSAGE_BYTES = 4 << 20
MAX_METADATA_BYTES = 16 << 10
MAX_INPUTS_PER_CALL = 64
# Of a call that sets no deadline, and the longest that there is.
DEFAULT_TIMEOUT_S = 60.0
MAX_TIMEOUT_S = 600.0

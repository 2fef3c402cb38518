"""The limits that the boundary keeps, as one value that a test can make smaller."""

from dataclasses import dataclass

from adamix_server.limits.calls import (
    FIRST_MESSAGE_S,
    MAX_BYTES_IN_FLIGHT,
    MAX_CALLS,
    MAX_IDLE_STREAMS,
    MAX_IDLE_UPLOADS,
    MAX_KEPT_CALLS,
    MAX_READING,
    MAX_READING_KEPT,
    MAX_READING_UPLOADS,
    MAX_STUCK_CALLS,
    MAX_UNSENT_BYTES,
    READING_WAIT_S,
    SLOW_READER_S,
)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much of everything callers may hold of one front end, and for how long.

    Attributes:
        calls: that run at once; a connection may hold a quarter of what is free of this, and of everything below.
        kept_calls: beside them, for what operators ask.
        reading: messages that are received at once; those of operators' calls and of uploads have places of their own.
        seats: streams whose next message is waited for; each may turn out to be a whole message.
        message_s: for the first message of a call to come.
        turn_s: to wait for a place to receive a message in.
        patience_s: after this a call without its message ends if others wait for its place.
        kept_patience_s: as `patience_s`, of what operators ask: probes come over new connections and wait for a second.
        late_s: so long a connection whose message did not come is served after the others.
        message_bytes: in all messages received and not done with; each counts three times while it is read.
        bytes_s: to wait for room among them.
        write_s: for a reader to take a message, or the end of its call.
        unsent_bytes: in large answers that their readers have not taken.
        stuck_calls: of one connection that ended because nobody read them, and that grpc could not drop yet.
    """

    calls: int = MAX_CALLS
    kept_calls: int = MAX_KEPT_CALLS
    reading: int = MAX_READING
    reading_uploads: int = MAX_READING_UPLOADS
    reading_kept: int = MAX_READING_KEPT
    seats: int = MAX_IDLE_STREAMS
    upload_seats: int = MAX_IDLE_UPLOADS
    message_s: float = FIRST_MESSAGE_S
    turn_s: float = READING_WAIT_S
    patience_s: float = 1.0
    kept_patience_s: float = 0.25
    late_s: float = 10.0
    message_bytes: int = MAX_BYTES_IN_FLIGHT
    bytes_s: float = 1.0
    write_s: float = SLOW_READER_S
    unsent_bytes: int = MAX_UNSENT_BYTES
    stuck_calls: int = MAX_STUCK_CALLS


# Of a server; tests have smaller ones.
BOUNDS = Bounds()

# Up to this size a message gives its place back before it is parsed, and an answer is not counted among the unsent.
SMALL_BYTES = 64 << 10
# Received, as Python's bytes, and parsed.
COPIES = 3
# A message up to this size may consist of fields that this server does not know: newer clients send a few.
UNKNOWN_FLOOR_BYTES = 4 << 10

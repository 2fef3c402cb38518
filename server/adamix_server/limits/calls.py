"""What calls and connections may take of one front end."""

from adamix.errors import Code
from adamix_server.limits.table import Chapter

chapter = Chapter()

MAX_CALLS = chapter.limit(
    10_000,
    "",
    "calls at once; a connection a quarter of what is free, the connections of one address a half (off loopback, and "
    "not from a `--trusted-proxy`; a unix socket has no shares)",
    Code.RESOURCE_EXHAUSTED,
    "CALLS_FULL",
    note="RetryInfo",
    proof="server/frontend/boundary/test_receiving.py::test_calls_at_once",
)
MAX_KEPT_CALLS = chapter.limit(
    32,
    "",
    "calls beside them of health `Check`, `GetLoad`, `GetServerInfo`, `ServerLive`, `ServerReady`",
    Code.RESOURCE_EXHAUSTED,
    "CALLS_FULL",
    note="RetryInfo",
    proof="server/frontend/boundary/test_receiving.py::test_room_is_kept_for_signs_of_life",
)
MAX_OTHER_CALLS_PER_S = chapter.limit(
    30,
    "",
    "calls of one connection that are no predictions, a second, while predictions run",
    None,
    note="the others wait; not over a unix socket",
    proof="server/frontend/boundary/test_pace.py::test_so_many_at_once_and_then_at_a_steady_rate",
)
MAX_READING = chapter.limit(
    64,
    "",
    "messages received at once, in shares as calls; half of them only for connections whose last message was small",
    None,
    note="the others wait, and connections take turns",
    proof="server/frontend/boundary/test_places.py::test_places_and_shares",
)
MAX_READING_UPLOADS = chapter.limit(
    16,
    "",
    "messages of uploads received at once, beside them",
    None,
    note="as above",
    proof="server/frontend/boundary/test_places.py::test_places_and_shares",
)
MAX_READING_KEPT = chapter.limit(
    32,
    "",
    "messages received at once of the calls for which there is kept room",
    None,
    note="as above",
    proof="server/frontend/boundary/test_places.py::test_places_and_shares",
)
MAX_IDLE_STREAMS = chapter.limit(
    512,
    "",
    "streams (64 uploads) that wait for their next message and keep no place: at once where the connection's last one "
    "was small, else after a second",
    None,
    note="further ones keep their place",
    proof="server/frontend/boundary/test_places.py::test_a_stream_that_waits_moves_to_a_seat",
)
MAX_IDLE_UPLOADS = 64
FIRST_MESSAGE_S = chapter.limit(
    10.0,
    "s",
    "first message of a call",
    Code.DEADLINE_EXCEEDED,
    "MESSAGE_LATE",
    note="after 1 s, if others wait for its place; health `Check` and the like after 0.25 s",
    proof="server/frontend/boundary/test_receiving.py::test_the_first_message_has_a_time",
)
READING_WAIT_S = chapter.limit(
    10.0,
    "s",
    "waiting for a place to be received in",
    Code.RESOURCE_EXHAUSTED,
    "READING_FULL",
    note="RetryInfo",
    proof="server/frontend/boundary/test_places.py::test_who_waits_too_long_is_refused",
)
MAX_BYTES_IN_FLIGHT = chapter.limit(
    256 << 20,
    "bytes",
    "messages that calls work on; each counts three times while it is read; shares as of calls",
    Code.RESOURCE_EXHAUSTED,
    "BYTES_IN_FLIGHT",
    note="RetryInfo, after 1 s",
    proof="server/frontend/boundary/test_receiving.py::test_bytes_in_flight",
)
chapter.said(
    "calls, and bytes of messages, of one tenant while others have any",
    "a quarter of all of them",
    Code.RESOURCE_EXHAUSTED,
    "BYTES_IN_FLIGHT",
    note="of calls `CALLS_FULL`; RetryInfo",
    proof="server/frontend/boundary/test_receiving.py::test_a_tenants_share_of_bytes_and_of_calls",
)
chapter.said(
    "fields that this server does not know, in a message over 4 KiB",
    "half of its bytes",
    Code.INVALID_ARGUMENT,
    "TOO_MANY_UNKNOWN_FIELDS",
    proof="server/frontend/boundary/test_receiving.py::test_unknown_fields",
)
SLOW_READER_S = chapter.limit(
    30.0,
    "s",
    "for a client to take what is sent to it",
    Code.RESOURCE_EXHAUSTED,
    "SLOW_READER",
    note="if it reads on",
    proof="server/frontend/boundary/test_sending.py::test_a_stream_that_nobody_reads_ends",
)
MAX_UNSENT_BYTES = chapter.limit(
    64 << 20,
    "bytes",
    "answers over 64 KiB that their clients have not taken, in shares as calls",
    Code.RESOURCE_EXHAUSTED,
    "SLOW_READER",
    note="after 30 s",
    proof="server/frontend/boundary/test_sending.py::test_unsent_answers_have_room",
)
MAX_STUCK_CALLS = chapter.limit(
    16,
    "",
    "calls of one connection that ended because nobody read them, until it reads on or ends",
    Code.RESOURCE_EXHAUSTED,
    "SLOW_READER",
    note="of further calls on it",
    proof="server/frontend/boundary/test_sending.py::test_a_connection_that_never_reads_gets_no_more",
)
MAX_CONNECTIONS = chapter.limit(
    1024,
    "",
    "connections",
    None,
    note="further ones are closed by the transport",
    proof="server/frontend/test_connections.py::test_options_of_connections",
)
MAX_CONNECTION_STREAMS = chapter.limit(
    128,
    "",
    "calls at once on one connection",
    None,
    note="further ones wait in the client",
    proof="server/frontend/test_connections.py::test_options_of_connections",
)
CONNECTION_AGE_S = chapter.limit(
    1800.0,
    "s",
    "age of a connection; what runs on it then has 60 s",
    Code.UNAVAILABLE,
    note="by the transport, without details; new calls go over a new connection",
    proof="server/frontend/test_connections.py::test_options_of_connections",
)
CONNECTION_GRACE_S = 60.0
MIN_PING_INTERVAL_S = chapter.limit(
    10.0,
    "s",
    "shortest time between a client's pings",
    None,
    note="the connection is closed (`too_many_pings`)",
    proof="server/frontend/test_connections.py::test_a_client_that_pings_every_20_s_is_welcome",
)

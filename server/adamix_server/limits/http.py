"""What one request and one connection may be over HTTP, beside what bounds every call."""

from adamix.errors import Code
from adamix_server.limits.calls import FIRST_MESSAGE_S
from adamix_server.limits.table import Chapter, to_text

chapter = Chapter()

MAX_BODY_BYTES = chapter.limit(
    4 << 20,
    "bytes",
    "body of a request over HTTP (an adapter file has its own limit)",
    Code.RESOURCE_EXHAUSTED,
    "BODY_TOO_LARGE",
    note="HTTP 413",
    proof="server/frontend/http/test_limits.py::test_a_body",
)
MAX_BODY_ITEMS = chapter.limit(
    1024,
    "",
    "items of one list, or of one object with names of the caller's choice, in a body of the control plane or of the "
    "Open Inference Protocol",
    Code.INVALID_ARGUMENT,
    "FIELD_INVALID",
    note="HTTP 400; of fewer the call says what it takes",
    proof="server/frontend/http/test_tensor_bodies.py::test_lists_are_only_so_long",
)
MAX_HEADER_BYTES = chapter.limit(
    8 << 10,
    "bytes",
    "first line and headers of a request over HTTP; its trailers again as much",
    Code.RESOURCE_EXHAUSTED,
    "HEADERS_TOO_LARGE",
    note="HTTP 431, and the connection ends",
    proof="server/frontend/http/test_limits.py::test_headers",
)
MAX_HTTP_CONNECTIONS = chapter.limit(
    1024,
    "",
    "connections over HTTP, beside those of gRPC",
    Code.UNAVAILABLE,
    "CONNECTIONS_FULL",
    note="HTTP 503 at once, and the connection ends",
    proof="server/frontend/http/test_limits.py::test_connections",
)
IDLE_S = chapter.limit(
    60.0,
    "s",
    "a connection over HTTP on which nothing is asked",
    None,
    note="it ends",
    proof="server/frontend/http/test_limits.py::test_an_idle_connection_ends",
)
chapter.said(
    "first line and headers of a request over HTTP, from its first byte",
    to_text(FIRST_MESSAGE_S, "s"),
    Code.DEADLINE_EXCEEDED,
    "MESSAGE_LATE",
    note="HTTP 504, and the connection ends; the body then has the time of a call's first message",
    proof="server/frontend/http/test_limits.py::test_slow_headers_end",
)
LINGER_S = chapter.limit(
    2.0,
    "s",
    "rest of a body over HTTP that was answered before it had come",
    None,
    note="it is dropped as it comes, and then the connection ends",
    proof="server/frontend/http/test_limits.py::test_the_rest_of_a_refused_body_is_dropped",
)
MAX_PIPELINED = chapter.limit(
    32,
    "",
    "requests on one connection over HTTP that wait for the answer to an earlier one",
    None,
    note="the connection ends",
    proof="server/frontend/http/test_limits.py::test_pipelined_requests",
)

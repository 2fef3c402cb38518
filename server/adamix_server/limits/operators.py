"""What probes, scrapes and the log may take."""

from adamix.errors import Code
from adamix_server.limits.table import Chapter, to_text

chapter = Chapter()

MAX_PROBE_CONNECTIONS = chapter.limit(
    64,
    "",
    "connections to `--metrics-listen`",
    None,
    note="the one that has kept the server waiting for longest is closed",
    proof="server/telemetry/test_page_server.py::test_the_oldest_silent_connection_makes_room",
)
MAX_PROBE_HEAD_BYTES = chapter.limit(
    8 << 10,
    "bytes",
    "request line and headers of a probe or a scrape",
    None,
    note="HTTP 431, and the connection ends",
    proof="server/telemetry/test_page_server.py::test_a_head_of_the_most_bytes_is_read_and_one_more_is_not",
)
PROBE_HEAD_S = chapter.limit(
    5.0,
    "s",
    "a probe or a scrape on its way to the server, all of it",
    None,
    note="the connection ends",
    proof="server/telemetry/test_page_server.py::test_a_request_that_drips_in_ends_in_time",
)
PROBE_ANSWER_S = chapter.limit(
    10.0,
    "s",
    "an answer to a probe or a scrape on its way to a caller who does not read",
    None,
    note="the connection ends",
    proof="server/telemetry/test_page_server.py::test_a_caller_who_does_not_read_is_left",
)
PROBE_REST_S = chapter.limit(
    75.0,
    "s",
    "a connection to `--metrics-listen` between two requests",
    None,
    note="the connection ends",
    proof="server/telemetry/test_page_server.py::test_a_connection_rests_for_so_long_between_requests",
)

MAX_WAITING_LOG_BYTES = 4 << 20
MAX_WAITING_LOG_RECORDS = chapter.limit(
    10_000,
    "",
    "log records that wait for a reader of stderr who does not read, in one process",
    None,
    more=f", or {to_text(MAX_WAITING_LOG_BYTES, 'bytes')}",
    note="dropped: counted by `adamix_log_records_dropped_total`, and said once in the log",
    proof="server/telemetry/test_log_writer.py::test_so_many_records_wait_and_no_more",
)

MAX_TRUST_FILE_BYTES = chapter.limit(
    1 << 20,
    "bytes",
    "a file of certificates, keys or an issuer's keys (`--tls-cert`, `--tls-key`, `--client-ca`, `--jwt-jwks`)",
    Code.INVALID_ARGUMENT,
    "TRUST_FILE_INVALID",
    note="at the start; of one that is exchanged later the last one stays in force, and the log says so",
    proof="server/trust/test_files.py::test_a_file_of_the_most_bytes_is_read_and_one_more_is_not",
)

"""Every limit the server sets, each said once: its value, what is refused beyond it, and the test that meets it.

They bound the memory and the time that one caller, one connection or one file can take, so they are constants and no
settings; where a setting decides, the line says which. `docs/limits.md` is written from here
(`python -m adamix_server.limits > docs/limits.md`). A line is written where its constant is made, so that no number
can be in force and not in the table. Knows no module that keeps a limit.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

from adamix import texts
from adamix.errors import Code
from adamix.files.adapter_file import MAX_ADAPTER_RANK
from adamix.files.manifest import MAX_LABELS, MAX_NEW_MANIFEST_BYTES
from adamix.files.tensors import MAX_FILE_BYTES, MAX_HEADER_BYTES, MAX_TENSORS

Unit = Literal["", "bytes", "s"]
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Limit:
    """One line of the table.

    Attributes:
        what: is limited.
        text: the limit, for people.
        code, reason: what is answered beyond it; no code where the transport or nobody answers.
        proof: the test that meets it exactly, as `path below tests/::test_function`.
        note: what else a reader must know; stands after the reason.
    """

    what: str
    text: str
    code: Code | None
    reason: str
    proof: str
    note: str

    @property
    def beyond(self) -> str:
        """What is answered beyond the limit, for people."""
        answer = "" if self.code is None else self.code.name
        if self.reason not in ("", answer):
            answer += f" `{self.reason}`"
        return "; ".join(part for part in (answer, self.note) if part)


TABLE: list[Limit] = []


def _text(value: float, unit: Unit) -> str:
    if unit == "bytes":
        for size, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
            if value % size == 0:
                return f"{int(value) // size:,} {name}"
    return f"{int(value) if value == int(value) else value:,} {unit}".rstrip()


def _said(what: str, text: str, code: Code | None, reason: str = "", *, proof: str, note: str = "") -> None:
    """A line for a limit that is not one number, or whose constant belongs to a lower floor."""
    TABLE.append(Limit(what, text, code, reason, proof, note))


def _limit(
    value: N, unit: Unit, what: str, code: Code | None, reason: str = "", *, proof: str, note: str = "", more: str = ""
) -> N:
    """A line, and its value as the constant; `more` is said after the number."""
    _said(what, _text(value, unit) + more, code, reason, proof=proof, note=note)
    return value


# One call.
MAX_MESSAGE_BYTES = _limit(
    4 << 20,
    "bytes",
    "message, request or answer (64 answers of a head with 4,096 labels are more)",
    Code.RESOURCE_EXHAUSTED,
    note="by the transport, without details",
    proof="server/frontend/test_limits.py::test_a_message",
)
MAX_METADATA_BYTES = _limit(
    16 << 10,
    "bytes",
    "metadata of a call, each entry with 32 bytes more than its name and value",
    Code.RESOURCE_EXHAUSTED,
    note="by the transport, without details",
    proof="server/frontend/test_limits.py::test_metadata",
)
MAX_INPUTS_PER_CALL = _limit(
    64,
    "",
    "inputs of one `Predict`, texts of one `ModelInfer`",
    Code.INVALID_ARGUMENT,
    "INPUT_COUNT",
    proof="server/frontend/test_limits.py::test_inputs_of_a_call",
)
MAX_STREAM_INPUTS = _limit(
    256,
    "",
    "inputs under way on one `PredictStream`",
    None,
    more=f", or {_text(MAX_MESSAGE_BYTES, 'bytes')} that wait to be tokenised",
    note="the server stops reading until one is answered",
    proof="server/frontend/inference/test_stream.py::test_reading_stops_while_256_inputs_are_unanswered",
)
MAX_STREAM_ID_BYTES = _limit(
    64,
    "bytes",
    "id of a stream's input, which is not empty and unlike those not answered yet",
    Code.INVALID_ARGUMENT,
    "ID_INVALID",
    note="of that input",
    proof="server/frontend/inference/test_stream.py::test_a_bad_input_fails_alone",
)
DEFAULT_TIMEOUT_S = _limit(
    60.0,
    "s",
    "deadline of a call, or of a stream's input, that sets none",
    Code.DEADLINE_EXCEEDED,
    "DEADLINE_EXCEEDED",
    proof="server/frontend/boundary/test_boundary.py::test_the_servers_own_time_limit",
)
MAX_TIMEOUT_S = _limit(
    600.0,
    "s",
    "longest deadline of a call",
    Code.DEADLINE_EXCEEDED,
    "DEADLINE_EXCEEDED",
    note="a stream's input that asks for more: INVALID_ARGUMENT `TIMEOUT_INVALID`",
    proof="server/frontend/inference/test_stream.py::test_a_bad_input_fails_alone",
)
STREAM_IDLE_S = _limit(
    300.0,
    "s",
    "a `PredictStream` without a message and with nothing under way",
    Code.DEADLINE_EXCEEDED,
    "STREAM_IDLE",
    proof="server/frontend/inference/test_stream.py::test_an_idle_stream_ends",
)
MAX_TEXT_BYTES = _limit(
    texts.MAX_TEXT_BYTES,
    "bytes",
    "one text, whatever its tokens",
    Code.INVALID_ARGUMENT,
    "TEXT_TOO_LARGE",
    note="with truncation RIGHT it is cut instead, as in training",
    proof="server/frontend/test_limits.py::test_a_text",
)
_said(
    "tokens of one text",
    "the task's `max_length`",
    Code.INVALID_ARGUMENT,
    "TEXT_TOO_LONG",
    note="with truncation RIGHT it is cut instead",
    proof="server/frontend/test_limits.py::test_tokens_of_a_text",
)
MAX_PENDING_TEXT_BYTES = _limit(
    32 << 20,
    "bytes",
    "texts that wait to be tokenised, in one front end",
    Code.RESOURCE_EXHAUSTED,
    "OVERLOADED",
    note="RetryInfo, at once",
    proof="server/frontend/inference/test_tokenization.py::test_more_waiting_text_than_fits_is_refused_at_once",
)
_said(
    "queue of the engine; each of F front ends may fill 1/F of it",
    "4,096 inputs and 262,144 tokens (`max_queue_inputs`, `max_queue_tokens`)",
    Code.RESOURCE_EXHAUSTED,
    "OVERLOADED",
    note="RetryInfo, at once",
    proof="server/frontend/inference/test_predict.py::test_overload_refuses_exactly_what_exceeds_the_credit",
)
_said(
    "the engine without the end of a step",
    "`--engine-stall-s`, 10 s; after three times that it is replaced",
    Code.UNAVAILABLE,
    "ENGINE_STALLED",
    note="RetryInfo, at once",
    proof="server/supervisor/test_engine_watch.py::"
    "test_an_engine_is_stalled_after_so_long_and_lost_after_three_times_that",
)

# Calls and connections; of one front end.
MAX_CALLS = _limit(
    10_000,
    "",
    "calls at once; a connection a quarter of what is free, the connections of one address a half (off loopback, and "
    "not from a `--trusted-proxy`; a unix socket has no shares)",
    Code.RESOURCE_EXHAUSTED,
    "CALLS_FULL",
    note="RetryInfo",
    proof="server/frontend/boundary/test_receiving.py::test_calls_at_once",
)
MAX_KEPT_CALLS = _limit(
    32,
    "",
    "calls beside them of health `Check`, `GetLoad`, `GetServerInfo`, `ServerLive`, `ServerReady`",
    Code.RESOURCE_EXHAUSTED,
    "CALLS_FULL",
    note="RetryInfo",
    proof="server/frontend/boundary/test_receiving.py::test_room_is_kept_for_signs_of_life",
)
MAX_READING = _limit(
    64,
    "",
    "messages received at once, in shares as calls; half of them only for connections whose last message was small",
    None,
    note="the others wait, and connections take turns",
    proof="server/frontend/boundary/test_places.py::test_places_and_shares",
)
MAX_READING_UPLOADS = _limit(
    16,
    "",
    "messages of uploads received at once, beside them",
    None,
    note="as above",
    proof="server/frontend/boundary/test_places.py::test_places_and_shares",
)
MAX_READING_KEPT = _limit(
    32,
    "",
    "messages received at once of the calls for which there is kept room",
    None,
    note="as above",
    proof="server/frontend/boundary/test_places.py::test_places_and_shares",
)
MAX_IDLE_STREAMS = _limit(
    512,
    "",
    "streams (64 uploads) whose next message has not come for a second and that keep no place",
    None,
    note="further ones keep their place",
    proof="server/frontend/boundary/test_places.py::test_a_stream_that_waits_moves_to_a_seat",
)
MAX_IDLE_UPLOADS = 64
FIRST_MESSAGE_S = _limit(
    10.0,
    "s",
    "first message of a call",
    Code.DEADLINE_EXCEEDED,
    "MESSAGE_LATE",
    note="after 1 s, if others wait for its place",
    proof="server/frontend/boundary/test_receiving.py::test_the_first_message_has_a_time",
)
READING_WAIT_S = _limit(
    10.0,
    "s",
    "waiting for a place to be received in",
    Code.RESOURCE_EXHAUSTED,
    "READING_FULL",
    note="RetryInfo",
    proof="server/frontend/boundary/test_places.py::test_who_waits_too_long_is_refused",
)
MAX_BYTES_IN_FLIGHT = _limit(
    256 << 20,
    "bytes",
    "messages that calls work on; each counts three times while it is read; shares as of calls",
    Code.RESOURCE_EXHAUSTED,
    "BYTES_IN_FLIGHT",
    note="RetryInfo, after 1 s",
    proof="server/frontend/boundary/test_receiving.py::test_bytes_in_flight",
)
_said(
    "fields that this server does not know, in a message over 4 KiB",
    "half of its bytes",
    Code.INVALID_ARGUMENT,
    "TOO_MANY_UNKNOWN_FIELDS",
    proof="server/frontend/boundary/test_receiving.py::test_unknown_fields",
)
SLOW_READER_S = _limit(
    30.0,
    "s",
    "for a client to take what is sent to it",
    Code.RESOURCE_EXHAUSTED,
    "SLOW_READER",
    note="if it reads on",
    proof="server/frontend/boundary/test_sending.py::test_a_stream_that_nobody_reads_ends",
)
MAX_UNSENT_BYTES = _limit(
    64 << 20,
    "bytes",
    "answers over 64 KiB that their clients have not taken, in shares as calls",
    Code.RESOURCE_EXHAUSTED,
    "SLOW_READER",
    note="after 30 s",
    proof="server/frontend/boundary/test_sending.py::test_unsent_answers_have_room",
)
MAX_STUCK_CALLS = _limit(
    16,
    "",
    "calls of one connection that ended because nobody read them, until it reads on or ends",
    Code.RESOURCE_EXHAUSTED,
    "SLOW_READER",
    note="of further calls on it",
    proof="server/frontend/boundary/test_sending.py::test_a_connection_that_never_reads_gets_no_more",
)
MAX_CONNECTIONS = _limit(
    1024,
    "",
    "connections",
    None,
    note="further ones are closed by the transport",
    proof="server/frontend/test_connections.py::test_options_of_connections",
)
MAX_CONNECTION_STREAMS = _limit(
    128,
    "",
    "calls at once on one connection",
    None,
    note="further ones wait in the client",
    proof="server/frontend/test_connections.py::test_options_of_connections",
)
CONNECTION_AGE_S = _limit(
    1800.0,
    "s",
    "age of a connection; what runs on it then has 60 s",
    Code.UNAVAILABLE,
    note="by the transport, without details; new calls go over a new connection",
    proof="server/frontend/test_connections.py::test_options_of_connections",
)
CONNECTION_GRACE_S = 60.0
MIN_PING_INTERVAL_S = _limit(
    10.0,
    "s",
    "shortest time between a client's pings",
    None,
    note="the connection is closed (`too_many_pings`)",
    proof="server/frontend/test_connections.py::test_a_client_that_pings_every_20_s_is_welcome",
)

# Names.
_said(
    "task and tenant ids",
    "63 characters of `a-z 0-9 . _ -`",
    Code.INVALID_ARGUMENT,
    "ID_INVALID",
    proof="server/frontend/test_limits.py::test_ids",
)
_said(
    "request id of a registration",
    "64 characters of `A-Z a-z 0-9 . _ -`; remembered 24 h",
    Code.INVALID_ARGUMENT,
    "REQUEST_ID_INVALID",
    proof="server/frontend/test_limits.py::test_request_ids",
)
MAX_REQUEST_IDS_PER_TENANT = _limit(
    10_000,
    "",
    "request ids remembered for a tenant",
    None,
    note="the oldest are forgotten",
    proof="server/catalog/test_retries.py::test_only_so_many_answers_of_a_tenant_are_kept",
)
MAX_FILE_NAME_BYTES = _limit(
    512,
    "bytes",
    "name of a file below `--adapter-root`",
    Code.INVALID_ARGUMENT,
    "FILE_INVALID",
    proof="server/frontend/test_limits.py::test_name_of_a_file",
)

# Adapters.
MAX_ADAPTER_BYTES = _limit(
    MAX_FILE_BYTES,
    "bytes",
    "adapter file",
    Code.INVALID_ARGUMENT,
    "TOO_LARGE",
    proof="server/frontend/test_limits.py::test_bytes_of_a_file",
)
_said(
    "header of an adapter file",
    _text(MAX_HEADER_BYTES, "bytes"),
    Code.INVALID_ARGUMENT,
    "HEADER_TOO_LARGE",
    proof="adamix/files/test_limits.py::test_header",
)
_said(
    "tensors of an adapter file",
    _text(MAX_TENSORS, ""),
    Code.INVALID_ARGUMENT,
    "TOO_LARGE",
    proof="adamix/files/test_limits.py::test_tensors",
)
_said(
    "manifest of an adapter, as JSON",
    _text(MAX_NEW_MANIFEST_BYTES, "bytes"),
    Code.INVALID_ARGUMENT,
    "MANIFEST_TOO_LARGE",
    note="nor does `adamix` write a larger one; those stored before go on",
    proof="server/frontend/control/test_large_manifests.py::test_a_manifest_is_registered_up_to_its_limit",
)
_said(
    "rank of an adapter",
    _text(MAX_ADAPTER_RANK, ""),
    Code.INVALID_ARGUMENT,
    "TOO_LARGE",
    proof="adamix/files/test_limits.py::test_rank",
)
_said(
    "labels of a head",
    _text(MAX_LABELS, ""),
    Code.INVALID_ARGUMENT,
    "MANIFEST_INVALID",
    proof="adamix/files/test_limits.py::test_labels",
)
MAX_REMEMBERED_FAILURES = _limit(
    10_000,
    "",
    "adapters of which a front end remembers that they cannot be loaded",
    None,
    note="never an error: of the oldest, `ModelReady` and `unavailable_reason` are silent until they are called again",
    proof="server/frontend/test_availability.py::test_only_so_many_failures_are_remembered",
)
_said(
    "memory that one adapter takes, in the type that the engine computes in",
    "`--arena-mib`",
    Code.INVALID_ARGUMENT,
    "ADAPTER_TOO_LARGE_FOR_SERVER",
    proof="server/frontend/test_readiness_of_tasks.py::test_what_could_never_be_loaded_is_refused_before_it_is_stored",
)

# Registrations.
MAX_CHUNK_BYTES = _limit(
    1 << 20,
    "bytes",
    "upload chunk",
    Code.INVALID_ARGUMENT,
    "CHUNK_TOO_LARGE",
    proof="server/frontend/test_limits.py::test_a_chunk",
)
MIN_UPLOAD_BYTES_PER_S = _limit(
    64 << 10,
    "bytes",
    "slowest upload, over ten seconds",
    Code.DEADLINE_EXCEEDED,
    "UPLOAD_TOO_SLOW",
    more=" a second",
    note="at once where all places are taken; `--max-upload-seconds` is for all of it",
    proof="server/frontend/control/test_upload_places.py::test_the_minimum_rate_is_met_exactly",
)
UPLOAD_GRACE_S = _limit(
    10.0,
    "s",
    "an upload that may be slower at its beginning",
    None,
    proof="server/frontend/control/test_upload_places.py::test_nobody_is_too_slow_within_the_grace",
)
UPLOAD_IDLE_S = _limit(
    30.0,
    "s",
    "a registration without a message, where none of its bytes are due: before its header, after the name of a file",
    Code.DEADLINE_EXCEEDED,
    "UPLOAD_IDLE",
    proof="server/frontend/control/test_registration.py::test_an_upload_that_stands_still_is_ended",
)
MAX_UPLOADS = _limit(
    16,
    "",
    "registrations at once, in one front end, of which 64 KiB or all bytes have come",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_UPLOADS",
    note="RetryInfo",
    proof="server/frontend/control/test_upload_places.py::test_so_many_have_a_place_and_no_more",
)
MAX_WAITING_UPLOADS = _limit(
    128,
    "",
    "registrations of which less has come, half of them of one connection",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_UPLOADS",
    note="RetryInfo",
    proof="server/frontend/control/test_upload_places.py::test_so_many_wait_for_a_place",
)
# No line of its own: it decides which of the two above counts.
MAX_WAITING_UPLOAD_BYTES = 64 << 10
VALIDATION_TIMEOUT_S = _limit(
    30.0,
    "s",
    "checking one adapter file, of which two are checked at once",
    Code.INVALID_ARGUMENT,
    "VALIDATOR_TIMEOUT",
    proof="server/frontend/control/validation/test_validation.py::test_a_child_that_hangs_is_a_timeout",
)
MAX_TRAFFIC_SHARES = _limit(
    16,
    "",
    "versions that share a task's traffic",
    Code.INVALID_ARGUMENT,
    "TRAFFIC_INVALID",
    proof="server/frontend/test_limits.py::test_shares_of_a_tasks_traffic",
)
MAX_TRAFFIC_WEIGHT = _limit(
    1_000_000,
    "",
    "weight of a share, at least 1",
    Code.INVALID_ARGUMENT,
    "TRAFFIC_INVALID",
    proof="server/frontend/test_limits.py::test_weight_of_a_share",
)
MAX_EARLIER = _limit(
    32,
    "",
    "earlier traffic of a task that `Rollback` knows",
    None,
    note="never an error: the oldest is forgotten",
    proof="server/catalog/test_pointer.py::test_only_so_many_earlier_splits_are_kept",
)
_said(
    "pinned versions",
    "half of `--slots`, half of `--arena-mib`",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_PINNED",
    note="without RetryInfo",
    proof="server/engine/residency/test_slots.py::test_at_most_half_of_the_slots_and_half_of_the_arena",
)

# Lists and watches.
MAX_PAGE_SIZE = _limit(
    1000,
    "",
    "page of `ListTasks` and `ListVersions` (100 if the client says nothing)",
    None,
    note="never an error: a page is shorter than asked for",
    proof="server/frontend/test_limits.py::test_a_page",
)
MAX_PAGE_BYTES = _limit(
    1 << 20,
    "bytes",
    "page of a list, or one row if that is larger",
    None,
    note="never an error: a page is shorter than asked for",
    proof="server/catalog/test_paging.py::test_a_page_ends_where_its_bytes_are_full",
)
MAX_CONTROL_CALLS = _limit(
    8,
    "",
    "calls of `AdapterService` at work at once, in one front end, half of them of one connection; "
    "as many more that load, unload, pin or register, and may wait for the engine",
    None,
    note="others wait, within their deadlines",
    proof="server/frontend/control/test_shares.py::test_so_many_are_at_work_and_half_of_them_are_of_one_connection",
)
MAX_WAITING_CONTROL_CALLS = _limit(
    64,
    "",
    "calls that wait for that, half of them of one connection",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_CONTROL_CALLS",
    note="RetryInfo",
    proof="server/frontend/control/test_shares.py::test_beyond_those_that_may_wait_calls_are_refused",
)
MAX_WATCHERS = _limit(
    64,
    "",
    "`WatchTasks` streams, in one front end",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_WATCHERS",
    note="RetryInfo",
    proof="server/frontend/control/test_watch.py::test_only_so_many_watch",
)
# A front end reads at every change, at the latest every second, and is replaced when it has said nothing for 20 s; a
# disk syncs some hundred changes a second. To follow so many rows costs about what reading everything does, and the
# log stays below two megabytes.
MAX_LOGGED_REVISIONS = _limit(
    10_000,
    "",
    "changes that the change log holds",
    None,
    note="never an error: a front end that is further behind reads the whole catalog",
    proof="server/catalog/test_change_log.py::"
    "test_the_log_does_not_grow_for_ever_and_who_is_too_far_behind_reads_everything",
)

# Probes and scrapes.
MAX_PROBE_CONNECTIONS = _limit(
    64,
    "",
    "connections to `--metrics-listen`",
    None,
    note="the one that has kept the server waiting for longest is closed",
    proof="server/telemetry/test_page_server.py::test_the_oldest_silent_connection_makes_room",
)
MAX_PROBE_HEAD_BYTES = _limit(
    8 << 10,
    "bytes",
    "request line and headers of a probe or a scrape",
    None,
    note="HTTP 431, and the connection ends",
    proof="server/telemetry/test_page_server.py::test_a_head_of_the_most_bytes_is_read_and_one_more_is_not",
)
PROBE_HEAD_S = _limit(
    5.0,
    "s",
    "a probe or a scrape on its way to the server, all of it",
    None,
    note="the connection ends",
    proof="server/telemetry/test_page_server.py::test_a_request_that_drips_in_ends_in_time",
)
PROBE_ANSWER_S = _limit(
    10.0,
    "s",
    "an answer to a probe or a scrape on its way to a caller who does not read",
    None,
    note="the connection ends",
    proof="server/telemetry/test_page_server.py::test_a_caller_who_does_not_read_is_left",
)
PROBE_REST_S = _limit(
    75.0,
    "s",
    "a connection to `--metrics-listen` between two requests",
    None,
    note="the connection ends",
    proof="server/telemetry/test_page_server.py::test_a_connection_rests_for_so_long_between_requests",
)

# Logs.
MAX_WAITING_LOG_BYTES = 4 << 20
MAX_WAITING_LOG_RECORDS = _limit(
    10_000,
    "",
    "log records that wait for a reader of stderr who does not read, in one process",
    None,
    more=f", or {_text(MAX_WAITING_LOG_BYTES, 'bytes')}",
    note="dropped: counted by `adamix_log_records_dropped_total`, and said once in the log",
    proof="server/telemetry/test_log_writer.py::test_so_many_records_wait_and_no_more",
)


_INTRODUCTION = """\
# Limits

What the server refuses to exceed. They bound the memory and time that one caller or one file can take, so they are constants, not settings, unless a
flag is named. This page is written from `S/limits.py` (`python -m adamix_server.limits > docs/limits.md`), which also names the test of each.

| what | limit | beyond it |
|---|---|---|
"""  # noqa: E501 - lines of the page


def page() -> str:
    """`docs/limits.md`."""
    return _INTRODUCTION + "".join(f"| {limit.what} | {limit.text} | {limit.beyond} |\n" for limit in TABLE)


if __name__ == "__main__":
    print(page(), end="")

"""What one message, one text and one name may be."""

from adamix import texts
from adamix.errors import Code
from adamix_client import bounds
from adamix_server.limits.table import Chapter, to_text

chapter = Chapter()

MAX_MESSAGE_BYTES = chapter.limit(
    bounds.MAX_MESSAGE_BYTES,
    "bytes",
    "message, request or answer (64 answers of a head with 4,096 labels are more)",
    Code.RESOURCE_EXHAUSTED,
    note="by the transport, without details",
    proof="server/frontend/test_limits.py::test_a_message",
)
MAX_METADATA_BYTES = chapter.limit(
    bounds.MAX_METADATA_BYTES,
    "bytes",
    "metadata of a call, each entry with 32 bytes more than its name and value",
    Code.RESOURCE_EXHAUSTED,
    note="by the transport, without details",
    proof="server/frontend/test_limits.py::test_metadata",
)
MAX_CREDENTIAL_BYTES = chapter.limit(
    8 << 10,
    "bytes",
    "the metadata entry `authorization`, of which a call has one",
    Code.UNAUTHENTICATED,
    "KEY_INVALID",
    proof="server/frontend/boundary/identity/test_identity.py::test_a_credential_of_the_most_bytes_is_read",
)
MAX_INPUTS_PER_CALL = chapter.limit(
    bounds.MAX_INPUTS_PER_CALL,
    "",
    "inputs of one `Predict`, texts of one `ModelInfer`",
    Code.INVALID_ARGUMENT,
    "INPUT_COUNT",
    proof="server/frontend/test_limits.py::test_inputs_of_a_call",
)
MAX_STREAM_INPUTS = chapter.limit(
    256,
    "",
    "inputs under way on one `PredictStream`",
    None,
    more=f", or {to_text(MAX_MESSAGE_BYTES, 'bytes')} that wait to be tokenised",
    note="the server stops reading until one is answered",
    proof="server/frontend/inference/test_stream.py::test_reading_stops_while_256_inputs_are_unanswered",
)
MAX_STREAM_ID_BYTES = chapter.limit(
    64,
    "bytes",
    "id of a stream's input, which is not empty and unlike those not answered yet",
    Code.INVALID_ARGUMENT,
    "ID_INVALID",
    note="of that input",
    proof="server/frontend/inference/test_stream.py::test_a_bad_input_fails_alone",
)
DEFAULT_TIMEOUT_S = chapter.limit(
    bounds.DEFAULT_TIMEOUT_S,
    "s",
    "deadline of a call, or of a stream's input, that sets none",
    Code.DEADLINE_EXCEEDED,
    "DEADLINE_EXCEEDED",
    proof="server/frontend/boundary/test_boundary.py::test_the_servers_own_time_limit",
)
MAX_TIMEOUT_S = chapter.limit(
    bounds.MAX_TIMEOUT_S,
    "s",
    "longest deadline of a call",
    Code.DEADLINE_EXCEEDED,
    "DEADLINE_EXCEEDED",
    note="a stream's input that asks for more: INVALID_ARGUMENT `TIMEOUT_INVALID`",
    proof="server/frontend/inference/test_stream.py::test_a_bad_input_fails_alone",
)
STREAM_IDLE_S = chapter.limit(
    300.0,
    "s",
    "a `PredictStream` without a message and with nothing under way",
    Code.DEADLINE_EXCEEDED,
    "STREAM_IDLE",
    proof="server/frontend/inference/test_stream.py::test_an_idle_stream_ends",
)
MAX_TEXT_BYTES = chapter.limit(
    texts.MAX_TEXT_BYTES,
    "bytes",
    "one text, whatever its tokens",
    Code.INVALID_ARGUMENT,
    "TEXT_TOO_LARGE",
    note="with truncation RIGHT it is cut instead, as in training",
    proof="server/frontend/test_limits.py::test_a_text",
)
chapter.said(
    "tokens of one text",
    "the task's `max_length`",
    Code.INVALID_ARGUMENT,
    "TEXT_TOO_LONG",
    note="with truncation RIGHT it is cut instead",
    proof="server/frontend/test_limits.py::test_tokens_of_a_text",
)
MAX_PENDING_TEXT_BYTES = chapter.limit(
    32 << 20,
    "bytes",
    "texts that wait to be tokenised, in one front end",
    Code.RESOURCE_EXHAUSTED,
    "OVERLOADED",
    note="RetryInfo, at once",
    proof="server/frontend/inference/test_tokenization.py::test_more_waiting_text_than_fits_is_refused_at_once",
)
chapter.said(
    "what a tenant has in its front end's part of the queue, where there are several tenants",
    "its weight (8 at most) times what is free of it, of tokens and of inputs; `batch` tenants together half of it",
    Code.RESOURCE_EXHAUSTED,
    "TENANT_QUEUE_FULL",
    note="RetryInfo, at once; one input finds room as long as there is any",
    proof="server/frontend/test_queue_room.py::test_the_share_of_a_tenant_is_met_exactly",
)
MAX_WAITING_INPUTS = chapter.limit(
    1024,
    "",
    "inputs of calls that have several, and of streams, which wait for room in the queue, in one front end; "
    "shares as of the queue, and 64 as long as there is any",
    Code.RESOURCE_EXHAUSTED,
    "OVERLOADED",
    note="or `TENANT_QUEUE_FULL`; RetryInfo, at once. A stream waits instead",
    proof="server/frontend/inference/test_feeding.py::test_so_many_inputs_wait_and_no_more",
)
chapter.said(
    "the deadline of an input",
    "one and a half times what is before it in the queue by the engine's rate, and of a full batch",
    Code.DEADLINE_EXCEEDED,
    "DEADLINE_UNREACHABLE",
    note="RetryInfo, at once. An engine that has nothing to do tries it all the same",
    proof="server/frontend/inference/test_feeding.py::test_a_deadline_that_can_be_met_exactly_is_admitted",
)
chapter.said(
    "queue of the engine; each of F front ends may fill 1/F of it",
    "8 s of work as measured, an eighth of its tokens in inputs; no more than 4,096 inputs and 262,144 tokens "
    "(`max_queue_inputs`, `max_queue_tokens`), and no less than one text of full length",
    Code.RESOURCE_EXHAUSTED,
    "OVERLOADED",
    note="RetryInfo, at once",
    proof="server/frontend/inference/test_predict.py::test_overload_refuses_exactly_what_exceeds_the_credit",
)
chapter.said(
    "the engine without the end of a step",
    "`--engine-stall-s`, 10 s; after three times that it is replaced",
    Code.UNAVAILABLE,
    "ENGINE_STALLED",
    note="RetryInfo, at once",
    proof="server/supervisor/test_engine_watch.py::"
    "test_an_engine_is_stalled_after_so_long_and_lost_after_three_times_that",
)

chapter.said(
    "task and tenant ids",
    "63 characters of `a-z 0-9 . _ -`",
    Code.INVALID_ARGUMENT,
    "ID_INVALID",
    proof="server/frontend/test_limits.py::test_ids",
)
chapter.said(
    "request id of a registration",
    "64 characters of `A-Z a-z 0-9 . _ -`; remembered 24 h",
    Code.INVALID_ARGUMENT,
    "REQUEST_ID_INVALID",
    proof="server/frontend/test_limits.py::test_request_ids",
)
MAX_REQUEST_IDS_PER_TENANT = chapter.limit(
    10_000,
    "",
    "request ids remembered for a tenant",
    None,
    note="the oldest are forgotten",
    proof="server/catalog/test_retries.py::test_only_so_many_answers_of_a_tenant_are_kept",
)
MAX_FILE_NAME_BYTES = chapter.limit(
    512,
    "bytes",
    "name of a file below `--adapter-root`",
    Code.INVALID_ARGUMENT,
    "FILE_INVALID",
    proof="server/frontend/test_limits.py::test_name_of_a_file",
)

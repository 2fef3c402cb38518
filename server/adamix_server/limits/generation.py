"""What one `Generate` may ask for."""

from adamix.errors import Code
from adamix_server.limits.messages import MAX_TIMEOUT_S
from adamix_server.limits.table import Chapter, to_text

chapter = Chapter()

_FIELDS = "server/frontend/inference/test_generate_fields.py::"
DEFAULT_NEW_TOKENS = 64
chapter.said(
    "`max_new_tokens`",
    f"1 to the backbone's window; {DEFAULT_NEW_TOKENS} if not given, and no more than fit behind the prompt",
    Code.INVALID_ARGUMENT,
    "OUT_OF_RANGE",
    proof=_FIELDS + "test_new_tokens",
)
chapter.said(
    "tokens of a prompt and its answer together",
    "the backbone's window",
    Code.INVALID_ARGUMENT,
    "PROMPT_TOO_LONG",
    proof="server/frontend/inference/test_generation_refusals.py::test_a_prompt_and_its_answer_fill_the_window_exactly",
)
chapter.said(
    "tokens of a prompt and its answer together",
    "all pages of the engine (`--kv-bytes`)",
    Code.RESOURCE_EXHAUSTED,
    "KV_TOO_SMALL",
    note="at once, and never otherwise",
    proof="server/frontend/inference/test_generation_refusals.py::test_a_prompt_and_its_answer_fill_all_pages_exactly",
)
MAX_STOPS = chapter.limit(
    8, "", "`stop` of one request", Code.INVALID_ARGUMENT, "STOP_INVALID", proof=_FIELDS + "test_stops"
)
MAX_STOP_BYTES = chapter.limit(
    64,
    "bytes",
    "one `stop`, which is not empty",
    Code.INVALID_ARGUMENT,
    "STOP_INVALID",
    proof=_FIELDS + "test_stops",
)
MAX_STOP_TOKENS = chapter.limit(
    64,
    "",
    "`stop_token_ids` of one request",
    Code.INVALID_ARGUMENT,
    "STOP_INVALID",
    proof=_FIELDS + "test_stop_tokens",
)
MAX_LOGPROBS = chapter.limit(
    20,
    "",
    "`logprobs`: alternatives reported of a token",
    Code.INVALID_ARGUMENT,
    "OUT_OF_RANGE",
    proof=_FIELDS + "test_a_value_out_of_range_is_refused_by_its_name",
)
MAX_BEAMS = chapter.limit(
    16,
    "",
    "`num_beams`; more than 1 are not served",
    Code.INVALID_ARGUMENT,
    "OUT_OF_RANGE",
    note="2 to 16: FAILED_PRECONDITION `BEAMS_NOT_SERVED`",
    proof=_FIELDS + "test_a_value_out_of_range_is_refused_by_its_name",
)
MAX_MESSAGES = chapter.limit(
    256,
    "",
    "messages of a `chat`, of which there is at least one",
    Code.INVALID_ARGUMENT,
    "CHAT_INVALID",
    proof="server/frontend/inference/test_generation_refusals.py::test_messages_of_a_chat",
)
MAX_CHAT_BYTES = chapter.limit(
    64 << 10,
    "bytes",
    "roles and contents of a chat's messages together",
    Code.INVALID_ARGUMENT,
    "TEXT_TOO_LARGE",
    proof="server/frontend/inference/test_generation_refusals.py::test_text_of_a_chat",
)
chapter.said(
    "a `Generate`, from its arrival to its last token",
    f"its deadline; {to_text(MAX_TIMEOUT_S, 's')} if it has none, or a later one",
    Code.DEADLINE_EXCEEDED,
    "DEADLINE_EXCEEDED",
    note="what was sent before stays",
    proof="server/frontend/inference/test_generation_ends.py::test_a_deadline_that_passes_in_the_middle",
)
MAX_EVENTS_PER_MESSAGE = chapter.limit(
    512,
    "",
    "steps of the engine whose tokens are in one message of an answer",
    None,
    note="those that came while the client did not read are sent together",
    proof="server/frontend/inference/test_generation.py::test_what_a_client_does_not_read_comes_together",
)
chapter.said(
    "versions whose texts run at once while another one waits for a slot",
    "half of `--slots`, one at least",
    None,
    note="never an error: the others' texts wait",
    proof="server/engine/test_decoding.py::test_texts_hold_half_of_the_slots_while_another_adapter_waits",
)
chapter.said(
    "texts that run at once",
    "`--max-running`, half of `--max-batch-tokens` at most",
    None,
    note="never an error: the others wait",
    proof="server/engine/test_decoding.py::test_a_text_that_nobody_waits_for_ends_within_one_step",
)

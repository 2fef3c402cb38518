"""What one request of OpenAI's routes may ask for, beside what the calls may that it becomes."""

from adamix.errors import Code
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL
from adamix_server.limits.table import Chapter

chapter = Chapter()

_ASKING = "server/frontend/http/open_ai/test_asking.py::"
MAX_PROMPTS = chapter.limit(
    64,
    "",
    "prompts of one `/v1/completions`, each of which is a `Generate`",
    Code.INVALID_ARGUMENT,
    "INPUT_COUNT",
    proof=_ASKING + "test_so_many_prompts_and_no_more",
)
MAX_EMBEDDED_INPUTS = chapter.limit(
    2_048,
    "",
    "texts of one `/v1/embeddings` or `/classify`, which become a `Predict` for each "
    f"{MAX_INPUTS_PER_CALL} of them, one after the other",
    Code.INVALID_ARGUMENT,
    "INPUT_COUNT",
    proof=_ASKING + "test_so_many_inputs_and_no_more",
)
_ROOM = "server/frontend/http/open_ai/test_answer_room.py::"
MAX_ANSWER_BYTES = chapter.limit(
    16 << 20,
    "bytes",
    "answer of `/v1/embeddings` or `/classify` (12 bytes a value: 2,048 texts in 682 dimensions), and of a text that "
    "is not streamed with `logprobs` (128 bytes for each that is told of a token)",
    Code.INVALID_ARGUMENT,
    "ANSWER_TOO_LARGE",
    proof=_ROOM + "test_so_large_an_answer_and_no_larger",
)
ANSWERS_BYTES = chapter.limit(
    128 << 20,
    "bytes",
    "such answers together, until their clients have read them, and the texts of all calls of their requests but the "
    "first, in one front end; half of it of one tenant",
    Code.RESOURCE_EXHAUSTED,
    "BYTES_IN_FLIGHT",
    note="RetryInfo, at once",
    proof=_ROOM + "test_so_much_room_a_tenant_has_and_all_of_them_together",
)
MAX_LISTED_MODELS = chapter.limit(
    10_000,
    "",
    "models of one `/v1/models`",
    None,
    note="`has_more` is true; a task that is not listed is found by its name",
    proof="server/frontend/http/open_ai/test_listing.py::test_so_many_models_are_listed_and_no_more",
)

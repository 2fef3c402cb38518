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
MAX_ANSWERED_VALUES = chapter.limit(
    1 << 20,
    "",
    "values of all answers to one `/v1/embeddings` or `/classify` (2,048 texts in 512 dimensions)",
    Code.INVALID_ARGUMENT,
    "INPUT_COUNT",
    proof="server/frontend/http/open_ai/test_inputs.py::test_so_many_values_and_no_more",
)
MAX_LISTED_MODELS = chapter.limit(
    10_000,
    "",
    "models of one `/v1/models`",
    None,
    note="`has_more` is true; a task that is not listed is found by its name",
    proof="server/frontend/http/open_ai/test_listing.py::test_so_many_models_are_listed_and_no_more",
)

"""What a chat template may be and take."""

from adamix.errors import Code
from adamix.files.manifest import MAX_CHAT_TEMPLATE_BYTES
from adamix.prompts.chat import COMPILE_S, MAX_OUTPUT_BYTES, MAX_REST_S, MAX_RESTING, RENDER_S, REST_S
from adamix_server.limits.table import Chapter, to_text

chapter = Chapter()

_PROOF = "adamix/prompts/test_chat_limits.py::"
chapter.said(
    "chat template, of an adapter or of the backbone",
    to_text(MAX_CHAT_TEMPLATE_BYTES, "bytes"),
    Code.INVALID_ARGUMENT,
    "MANIFEST_INVALID",
    note="when it is registered; a longer one of the backbone is as good as none",
    proof=_PROOF + "test_a_template_of_the_largest_size_is_rendered",
)
chapter.said(
    "text that a chat template makes",
    to_text(MAX_OUTPUT_BYTES, "bytes"),
    Code.INVALID_ARGUMENT,
    "CHAT_INVALID",
    proof=_PROOF + "test_texts_of_the_largest_size_are_made",
)
chapter.said(
    "CPU time of a chat template for one chat, and 256 MiB of memory",
    f"{round(1000 * RENDER_S)} ms",
    Code.INVALID_ARGUMENT,
    "CHAT_INVALID",
    note="an adapter's template, or one that ended what renders it, is then not tried again for the same tenant for "
    f"{to_text(REST_S, 's')}, each time in a row for twice as long, {to_text(MAX_REST_S, 's')} at most",
    proof=_PROOF + "test_what_never_ends_is_ended",
)
chapter.said(
    "CPU time to compile a chat template, once",
    f"{round(1000 * COMPILE_S)} ms",
    Code.FAILED_PRECONDITION,
    "CHAT_TEMPLATE_INVALID",
    note="as above",
    proof=_PROOF + "test_what_never_ends_is_ended",
)
chapter.said(
    "chat templates that a front end keeps compiled",
    "64, and 256 KiB of text",
    None,
    note="never an error: those that were used last",
    proof=_PROOF + "test_templates_that_were_used_last_stay_compiled",
)
chapter.said(
    "chat templates of which a front end remembers that they are not tried again yet",
    to_text(MAX_RESTING, ""),
    None,
    note="never an error: the oldest are tried again",
    proof=_PROOF + "test_only_so_many_templates_rest",
)
chapter.said(
    "chats of one tenant that a front end renders at once",
    "1",
    None,
    note="never an error: the others wait",
    proof="server/frontend/inference/test_prompting.py::test_the_chats_of_one_tenant_are_rendered_one_after_the_other",
)

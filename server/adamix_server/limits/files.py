"""What a command may take of a file of rows."""

from adamix.errors import Code
from adamix_server.limits.table import Chapter

chapter = Chapter()

MAX_ROW_BYTES = chapter.limit(
    16 << 20,
    "bytes",
    "one row of a CSV, TSV or JSONL file given to `predict --file`",
    Code.INVALID_ARGUMENT,
    "INVALID_DATA",
    note="before anything is asked; a file may have any number of them",
    proof="server/cli/rows/test_formats.py::test_a_row_of_the_most_bytes_is_read_and_one_more_is_not",
)
MAX_CONCURRENCY = chapter.limit(
    64,
    "",
    "calls of one `predict --file` that are under way at once (`--concurrency`)",
    Code.INVALID_ARGUMENT,
    "INVALID_CONFIG",
    proof="server/cli/test_predict_files.py::test_so_many_calls_are_under_way_and_no_more",
)

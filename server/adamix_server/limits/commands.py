"""What the commands take that ask a server: files that say what should be there, and its page of metrics."""

from adamix_server.limits.table import Chapter

chapter = Chapter()

MAX_DECLARATION_BYTES = chapter.limit(
    4 << 20,
    "bytes",
    "file of `adamix apply -f` or `register --all`",
    None,
    note="the command says so, exit code 2",
    proof="server/cli/declared/test_yaml_nodes.py::test_a_file_of_the_most_bytes_is_read_and_one_more_is_not",
)
MAX_DECLARATION_DEPTH = chapter.limit(
    16,
    "",
    "levels of such a file",
    None,
    note="the command says so, exit code 2",
    proof="server/cli/declared/test_yaml_nodes.py::test_so_many_levels_are_read_and_one_more_is_not",
)
MAX_METRICS_PAGE_BYTES = chapter.limit(
    32 << 20,
    "bytes",
    "page of metrics that `adamix top` reads",
    None,
    note="the command goes on without it, and says so",
    proof="server/cli/test_metrics_page.py::test_a_page_of_the_most_bytes_is_read_and_one_more_is_not",
)

"""What the control plane may take: registrations, traffic, lists and watches."""

from adamix.errors import Code
from adamix_server.limits.table import Chapter

chapter = Chapter()

MAX_CHUNK_BYTES = chapter.limit(
    1 << 20,
    "bytes",
    "upload chunk",
    Code.INVALID_ARGUMENT,
    "CHUNK_TOO_LARGE",
    proof="server/frontend/test_limits.py::test_a_chunk",
)
MIN_UPLOAD_BYTES_PER_S = chapter.limit(
    64 << 10,
    "bytes",
    "slowest upload, over ten seconds",
    Code.DEADLINE_EXCEEDED,
    "UPLOAD_TOO_SLOW",
    more=" a second",
    note="at once where all places are taken; `--max-upload-seconds` is for all of it",
    proof="server/frontend/control/test_upload_places.py::test_the_minimum_rate_is_met_exactly",
)
UPLOAD_GRACE_S = chapter.limit(
    10.0,
    "s",
    "an upload that may be slower at its beginning",
    None,
    proof="server/frontend/control/test_upload_places.py::test_nobody_is_too_slow_within_the_grace",
)
UPLOAD_IDLE_S = chapter.limit(
    30.0,
    "s",
    "a registration that has named a file of the server, and is not ended by its caller",
    Code.DEADLINE_EXCEEDED,
    "UPLOAD_IDLE",
    proof="server/frontend/control/test_registration.py::test_an_upload_that_stands_still_is_ended",
)
MAX_UPLOADS = chapter.limit(
    16,
    "",
    "registrations at once, in one front end, of which 64 KiB or all bytes have come; a tenant has no more than are "
    "free",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_UPLOADS",
    note="RetryInfo",
    proof="server/frontend/control/test_upload_places.py::test_so_many_have_a_place_and_no_more",
)
MAX_WAITING_UPLOADS = chapter.limit(
    128,
    "",
    "registrations of which less has come, half of them of one connection; a tenant has no more than are free",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_UPLOADS",
    note="RetryInfo",
    proof="server/frontend/control/test_upload_places.py::test_so_many_wait_for_a_place",
)
# No line of its own: it decides which of the two above counts.
MAX_WAITING_UPLOAD_BYTES = 64 << 10
VALIDATION_TIMEOUT_S = chapter.limit(
    30.0,
    "s",
    "processor time to check one adapter file, of which two are checked at once",
    Code.INVALID_ARGUMENT,
    "VALIDATOR_TIMEOUT",
    note="after 120 s by the clock UNAVAILABLE `VALIDATION_INTERRUPTED`",
    proof="server/frontend/control/validation/test_validation.py::test_a_child_has_so_much_processor_time",
)
MAX_TRAFFIC_SHARES = chapter.limit(
    16,
    "",
    "versions that share a task's traffic",
    Code.INVALID_ARGUMENT,
    "TRAFFIC_INVALID",
    proof="server/frontend/test_limits.py::test_shares_of_a_tasks_traffic",
)
MAX_TRAFFIC_WEIGHT = chapter.limit(
    1_000_000,
    "",
    "weight of a share, at least 1",
    Code.INVALID_ARGUMENT,
    "TRAFFIC_INVALID",
    proof="server/frontend/test_limits.py::test_weight_of_a_share",
)
MAX_EARLIER = chapter.limit(
    32,
    "",
    "earlier traffic of a task that `Rollback` knows",
    None,
    note="never an error: the oldest is forgotten",
    proof="server/catalog/test_pointer.py::test_only_so_many_earlier_splits_are_kept",
)
chapter.said(
    "pinned versions",
    "half of `--slots`, half of `--arena-mib`",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_PINNED",
    note="without RetryInfo",
    proof="server/engine/residency/test_slots.py::test_at_most_half_of_the_slots_and_half_of_the_arena",
)

MAX_PAGE_SIZE = chapter.limit(
    1000,
    "",
    "page of a list (100 if the client says nothing)",
    None,
    note="never an error: a page is shorter than asked for",
    proof="server/frontend/test_limits.py::test_a_page",
)
MAX_PAGE_BYTES = chapter.limit(
    1 << 20,
    "bytes",
    "page of a list, or one row if that is larger",
    None,
    note="never an error: a page is shorter than asked for",
    proof="server/catalog/test_paging.py::test_a_page_ends_where_its_bytes_are_full",
)
MAX_CONTROL_CALLS = chapter.limit(
    8,
    "",
    "calls of `AdapterService` and `AdminService` at work at once, in one front end, half of them of one tenant (with "
    "`--auth none`: of one connection); "
    "as many more that load, unload, pin or register, and may wait for the engine",
    None,
    note="others wait, within their deadlines",
    proof="server/frontend/control/test_shares.py::test_so_many_are_at_work_and_half_of_them_are_of_one_connection",
)
MAX_WAITING_CONTROL_CALLS = chapter.limit(
    64,
    "",
    "calls that wait for that; a tenant has as many of them as are free, and a quarter are of one connection (with "
    "`--auth none`: half)",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_CONTROL_CALLS",
    note="RetryInfo",
    proof="server/frontend/control/test_shares.py::test_beyond_those_that_may_wait_calls_are_refused",
)
MAX_WATCHERS = chapter.limit(
    64,
    "",
    "`WatchTasks` streams, in one front end; a tenant has no more than are free",
    Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_WATCHERS",
    note="RetryInfo",
    proof="server/frontend/control/test_watch.py::test_only_so_many_watch",
)
# A front end reads at every change, at the latest every second, and is replaced when it has said nothing for 20 s; a
# disk syncs some hundred changes a second. To follow so many rows costs about what reading everything does, and the
# log stays below two megabytes.
MAX_LOGGED_REVISIONS = chapter.limit(
    10_000,
    "",
    "changes that the change log holds",
    None,
    note="never an error: a front end that is further behind reads the whole catalog",
    proof="server/catalog/test_change_log.py::"
    "test_the_log_does_not_grow_for_ever_and_who_is_too_far_behind_reads_everything",
)

"""What an adapter file may be."""

from adamix.errors import Code
from adamix.files.adapter_file import MAX_ADAPTER_RANK
from adamix.files.manifest import MAX_LABELS, MAX_NEW_MANIFEST_BYTES
from adamix.files.tensors import MAX_FILE_BYTES, MAX_HEADER_BYTES, MAX_TENSORS
from adamix_server.limits.table import Chapter, to_text

chapter = Chapter()

MAX_ADAPTER_BYTES = chapter.limit(
    MAX_FILE_BYTES,
    "bytes",
    "adapter file",
    Code.INVALID_ARGUMENT,
    "TOO_LARGE",
    proof="server/frontend/test_limits.py::test_bytes_of_a_file",
)
chapter.said(
    "header of an adapter file",
    to_text(MAX_HEADER_BYTES, "bytes"),
    Code.INVALID_ARGUMENT,
    "HEADER_TOO_LARGE",
    proof="adamix/files/test_limits.py::test_header",
)
chapter.said(
    "tensors of an adapter file",
    to_text(MAX_TENSORS, ""),
    Code.INVALID_ARGUMENT,
    "TOO_LARGE",
    proof="adamix/files/test_limits.py::test_tensors",
)
chapter.said(
    "manifest of an adapter, as JSON",
    to_text(MAX_NEW_MANIFEST_BYTES, "bytes"),
    Code.INVALID_ARGUMENT,
    "MANIFEST_TOO_LARGE",
    note="nor does `adamix` write a larger one; those stored before go on",
    proof="server/frontend/control/test_large_manifests.py::test_a_manifest_is_registered_up_to_its_limit",
)
chapter.said(
    "rank of an adapter",
    to_text(MAX_ADAPTER_RANK, ""),
    Code.INVALID_ARGUMENT,
    "TOO_LARGE",
    proof="adamix/files/test_limits.py::test_rank",
)
chapter.said(
    "labels of a head",
    to_text(MAX_LABELS, ""),
    Code.INVALID_ARGUMENT,
    "MANIFEST_INVALID",
    proof="adamix/files/test_limits.py::test_labels",
)
MAX_REMEMBERED_FAILURES = chapter.limit(
    10_000,
    "",
    "adapters of which a front end remembers that they cannot be loaded",
    None,
    note="never an error: of the oldest, `ModelReady` and `unavailable_reason` are silent until they are called again",
    proof="server/frontend/test_availability.py::test_only_so_many_failures_are_remembered",
)
FAILURES_TO_QUARANTINE = chapter.limit(
    3,
    "",
    "failures in ten minutes by which a version's inputs are no longer run: its adapter raises, or gives values that "
    "are not finite",
    Code.FAILED_PRECONDITION,
    "ADAPTER_QUARANTINED",
    note="for the tenant whose inputs failed, until `LoadVersion` or a restart of the engine",
    proof="server/engine/test_quarantine.py::test_three_failures_in_ten_minutes_and_not_two",
)
QUARANTINE_WINDOW_S = 600.0
MAX_QUARANTINED = chapter.limit(
    1024,
    "",
    "quarantined versions of an engine, and those of whose failures it knows",
    None,
    note="never an error: the oldest are tried again",
    proof="server/engine/test_quarantine.py::test_only_so_many_are_remembered",
)
chapter.said(
    "memory that one adapter takes, in the type that the engine computes in",
    "`--arena-mib`",
    Code.INVALID_ARGUMENT,
    "ADAPTER_TOO_LARGE_FOR_SERVER",
    proof="server/frontend/test_readiness_of_tasks.py::test_what_could_never_be_loaded_is_refused_before_it_is_stored",
)

"""What speaks against versions: of each one that cannot be answered, the reason that a `Predict` or `Generate` would be
given.

Known without asking the engine: how much of its arena an adapter takes, looked up once for those that might be too
large; which files were missing or cut short when this front end started; what the engine last said of loading one. The
last two are only told, never enforced: a call asks the engine all the same, and when that loads the adapter, or its
bytes are put anew, what was held against it is forgotten.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from adamix.errors import AdamixError, Code, DataLoss
from adamix.files.tensors import MAX_HEADER_BYTES, MAX_TENSORS, read_sizes
from adamix_server.api.answers import PREDICT_HEADS
from adamix_server.blobs.local import BlobStore
from adamix_server.blobs.packed_size import packed_bytes, padded, too_large_for_server
from adamix_server.catalog.rows import Snapshot, TaskRow, VersionRow
from adamix_server.limits.adapters import MAX_REMEMBERED_FAILURES
from adamix_server.names import adapter_quarantined

log = logging.getLogger(__name__)

_ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of a file, the fewest bytes that a value takes.
_SMALLEST_VALUE_BYTES = 2
_LENGTH_BYTES = 8
# How many of the blobs that were missing or damaged are looked at again in one turn.
_LOOKS = 256
# What the engine says of an adapter's bytes: they are not the ones, or it cannot take them. The fault of a call's own
# input has the same code, and names its field.
_ABOUT_THE_BYTES = frozenset({Code.DATA_LOSS, Code.INVALID_ARGUMENT})

# Of these, what the files now are says more than what was said of them.
_OF_BLOBS = frozenset({"BLOB_MISSING", DataLoss.default_reason})


@dataclass
class _Failure:
    """`identity`: of a damaged blob, once it has been looked up."""

    reason: str
    identity: tuple[int, int, int] | None = None


class Availability:
    """What is known against the versions of one front end. `learn` and `look_again` block: call them from a thread.

    Args:
        arena_bytes: what all adapters of the engine share.
        dtype: that it computes in.
        generates: whether the backbone can write texts.
        quarantined: by (tenant, digest), what the engine does not run now, and the reason of its last failure.
    """

    def __init__(
        self,
        blobs: BlobStore,
        arena_bytes: int,
        dtype: str,
        quarantined: Callable[[], Mapping[tuple[str, str], str]] = dict,
        *,
        generates: bool = False,
    ) -> None:
        self._quarantined = quarantined
        self._heads = PREDICT_HEADS | {"causal_lm"} if generates else PREDICT_HEADS
        self._blobs = blobs
        self._arena_bytes = arena_bytes
        self._itemsize = _ITEMSIZES[dtype]
        # A file of so many bytes fits, whatever its tensors: those of others are looked up.
        values = arena_bytes // self._itemsize - MAX_TENSORS * padded(1, self._itemsize)
        self._surely_fit_bytes = values * _SMALLEST_VALUE_BYTES
        # By digest, what it needs. Only what was registered while the arena was larger, so there are few.
        self._too_large: dict[str, int] = {}
        # The oldest first.
        self._failures: OrderedDict[str, _Failure] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_clean(self) -> bool:
        """Whether no failure is remembered: most servers, at most times."""
        return not self._failures

    def quarantine_reason(self, version: VersionRow, tenant: str = "") -> str:
        """By what failure a version is quarantined for a tenant, or else for its own; empty if it is not."""
        return self._quarantined().get((tenant or version.tenant, version.digest), "")

    def quarantined_for(self, tenants: Iterable[str], digest: str) -> list[str]:
        """Those of the tenants for whom these bytes are quarantined."""
        quarantined = self._quarantined()
        return [tenant for tenant in tenants if (tenant, digest) in quarantined]

    def reason(self, version: VersionRow, tenant: str = "") -> str:
        """Why a version of this backbone cannot be answered; empty if nothing is known against it.

        Args:
            tenant: who asks, if not its own tenant.
        """
        if self.quarantine_reason(version, tenant):
            return "ADAPTER_QUARANTINED"
        if version.head.type not in self._heads:
            return "WRONG_HEAD"
        if version.digest in self._too_large:
            return "ADAPTER_TOO_LARGE_FOR_SERVER"
        failure = self._failures.get(version.digest)
        return "" if failure is None else failure.reason

    def reason_of_task(self, row: TaskRow, tenant: str = "") -> str:
        """As `reason`, of a task: nothing is live, or something speaks against all that is."""
        if not row.live:
            return row.unavailable_reason
        reasons = {version.digest: self.reason(version, tenant) for version in row.live}
        return reasons[row.heaviest.digest] if all(reasons.values()) else ""

    def check_quarantine(self, version: VersionRow, tenant: str) -> None:
        """Raises FailedPrecondition (`ADAPTER_QUARANTINED`) of a version that the engine does not run for a tenant."""
        if self.quarantine_reason(version, tenant):
            raise adapter_quarantined()

    def check(self, version: VersionRow) -> None:
        """Raises InvalidAdapter (`ADAPTER_TOO_LARGE_FOR_SERVER`) of a version that this server can never load."""
        if (needed := self._too_large.get(version.digest)) is not None:
            raise too_large_for_server(needed, self._arena_bytes)

    def check_sizes(self, tensor_sizes: Iterable[int]) -> None:
        """Raises InvalidAdapter (`ADAPTER_TOO_LARGE_FOR_SERVER`) if this server could never load such tensors."""
        if (needed := packed_bytes(tensor_sizes, self._itemsize)) > self._arena_bytes:
            raise too_large_for_server(needed, self._arena_bytes)

    def failed(self, digest: str, error: AdamixError) -> None:
        """Remember what the engine said of an adapter, if it is about its bytes."""
        if error.code in _ABOUT_THE_BYTES and error.field is None:
            self._remember(digest, error.reason)

    def loaded(self, digest: str) -> None:
        """The engine has it, or its bytes were stored anew: nothing is held against it any more."""
        if self._failures:
            with self._lock:
                self._failures.pop(digest, None)

    def learn(self, newest: Snapshot, before: Snapshot) -> None:
        """Look up which versions are too large, among those of tasks that have changed."""
        rows: Iterable[TaskRow] = newest.tasks.values()
        if newest.since == before.revision:
            rows = filter(None, map(newest.tasks.get, newest.touched))
        for row in rows:
            for version in row.ready:
                if version.num_bytes > self._surely_fit_bytes and version.digest not in self._too_large:
                    self._learn_size(version.digest)

    def learn_missing(self, snapshot: Snapshot) -> None:
        """Look up whose blobs are gone, or have another size than they were registered with."""
        sizes = self._blobs.sizes()
        for row in snapshot.tasks.values():
            for version in row.ready:
                if (size := sizes.get(version.digest)) != version.num_bytes:
                    self._remember(version.digest, "BLOB_MISSING" if size is None else DataLoss.default_reason)

    def look_again(self) -> None:
        """Forget what was held against blobs that have been put anew. Raises Unavailable (`STORE_LOST`)."""
        with self._lock:
            some = [(digest, failure) for digest, failure in self._failures.items() if failure.reason in _OF_BLOBS]
        for digest, failure in some[:_LOOKS]:
            identity = self._blobs.identity(digest)
            with self._lock:
                if self._failures.get(digest) is not failure:
                    continue
                if identity is None:
                    self._failures[digest] = _Failure("BLOB_MISSING")
                elif failure.reason == "BLOB_MISSING" or failure.identity not in (None, identity):
                    del self._failures[digest]
                    continue
                else:
                    failure.identity = identity
                self._failures.move_to_end(digest)

    def _remember(self, digest: str, reason: str) -> None:
        with self._lock:
            known = self._failures.get(digest)
            if known is None or known.reason != reason:
                self._failures[digest] = _Failure(reason)
            if len(self._failures) > MAX_REMEMBERED_FAILURES:
                self._failures.popitem(last=False)

    def _learn_size(self, digest: str) -> None:
        try:
            needed = packed_bytes(
                read_sizes(self._blobs.start(digest, _LENGTH_BYTES + MAX_HEADER_BYTES)), self._itemsize
            )
        except AdamixError:
            # Gone, damaged, or not to be reached now: that is what a call will be told, and by it this front end.
            return
        if needed > self._arena_bytes:
            log.warning(
                "a registered adapter is too large for this server; raise --arena-mib",
                extra={"digest": digest, "num_bytes": needed, "arena_bytes": self._arena_bytes},
            )
            self._too_large[digest] = needed

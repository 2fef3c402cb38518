"""What the catalog answers with: immutable values, complete in themselves, safe to hand to any thread.

A server has tens of thousands of tasks and every front end keeps a row of each, so rows are small: no dict of their
own, no header for the garbage collector (a row refers to nothing that refers back), and what many rows say alike is
one object for all of them (`reading.py`, `heads.py`). What only a list of versions tells stays on the disk.
"""

from bisect import bisect, bisect_left
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from operator import attrgetter
from typing import Generic, Literal, TypeVar

import msgspec

from adamix.errors import FailedPrecondition
from adamix.files.manifest import HeadSpec, PromptForm
from adamix_server.catalog.access import NO_ACCESS, Access
from adamix_server.catalog.lifecycle import State
from adamix_server.names import task_not_found, version_not_found

Row = TypeVar("Row")
# (tenant, task)
Name = tuple[str, str]
UnavailableReason = Literal["", "BACKBONE_CHANGED", "NO_LIVE_VERSION"]
Action = Literal[
    "register",
    "set_traffic",
    "rollback",
    "delete_task",
    "delete_version",
    "pin",
    "unpin",
    "create_tenant",
    "update_tenant",
    "delete_tenant",
    "create_key",
    "revoke_key",
    "add_grant",
    "remove_grant",
]

# Heads whose labels are part of the answer.
_LABELLED = frozenset({"classification", "multilabel"})

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_digest_of = attrgetter("digest")


class Writing(msgspec.Struct, frozen=True, weakref=True):
    """How a version that generates text is asked, as its manifest says: the form of a prompt, and its chat template."""

    prompt_form: PromptForm
    chat_template: str | None


class VersionRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One version of one task: what a call needs to know of it.

    `head` and `max_length` (in tokens) are the manifest's, and so is `writing` of a version that generates. `live`: it
    takes part in the task's traffic on this server's backbone. `pinned`: it is to be kept on the device.
    """

    tenant: str
    task: str
    digest: str
    state: State
    create_time_us: int
    num_bytes: int
    backbone_fingerprint: str
    head: HeadSpec
    max_length: int
    live: bool
    pinned: bool = False
    writing: Writing | None = None

    @property
    def create_time(self) -> datetime:
        """UTC."""
        return to_datetime(self.create_time_us)


class VersionRecord(VersionRow, frozen=True, kw_only=True):
    """A version with all that is stored of it, for those who ask what versions there are. No snapshot holds one."""

    manifest_json: str


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What is to become a version of a task: a validated adapter whose blob is stored.

    Attributes:
        backbone_fingerprint: of the backbone in the manifest; the pointer of that backbone is the one set.
        make_live: let this version alone answer the task.
        request_id: the caller's id for this request; empty for none. A request whose id is known changes nothing and is
            answered as it was the first time.
    """

    tenant: str
    task: str
    digest: str
    manifest_json: str
    num_bytes: int
    backbone_fingerprint: str
    make_live: bool = True
    request_id: str = ""


class Traffic(msgspec.Struct, frozen=True):
    """One version's relative share of a task's requests; shares need not sum to anything."""

    digest: str
    weight: int


class TaskRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One task, as seen from this server's backbone.

    Attributes:
        etag: changes with every change of the task, and is never the same for two tasks of one name.
        unavailable_reason: BACKBONE_CHANGED if it has versions, but none fits this backbone; else
            NO_LIVE_VERSION if none is live; empty exactly if something is live.
        ready: every READY version in the order of digests, those of other backbones too.
        live: those of them that answer now, in the order of digests.
        weights: of `live`, one each.
    """

    tenant: str
    task: str
    etag: str
    create_time_us: int
    update_time_us: int
    unavailable_reason: UnavailableReason
    ready: tuple[VersionRow, ...]
    live: tuple[VersionRow, ...]
    weights: tuple[int, ...]

    @property
    def create_time(self) -> datetime:
        """UTC."""
        return to_datetime(self.create_time_us)

    @property
    def update_time(self) -> datetime:
        """UTC."""
        return to_datetime(self.update_time_us)

    @property
    def traffic(self) -> tuple[Traffic, ...]:
        """What answers now, in the order of digests."""
        return tuple(Traffic(row.digest, weight) for row, weight in zip(self.live, self.weights, strict=True))

    @property
    def versions(self) -> Mapping[str, VersionRow]:
        """Every READY version by digest, those of other backbones too."""
        return {row.digest: row for row in self.ready}

    @property
    def heaviest(self) -> VersionRow:
        """The live version with the largest share; of several, the first. There must be one."""
        return max(zip(self.weights, self.live, strict=True), key=lambda pair: pair[0])[1]

    def pick(self, draw: Callable[[], float]) -> VersionRow:
        """A live version, each as often as its weight says. There must be one.

        Args:
            draw: gives a number of [0, 1), evenly distributed; not called where there is nothing to choose.
        """
        live = self.live
        if len(live) == 1:
            return live[0]
        # Of the numbers below the sum of all weights, where each live version's end.
        bounds = tuple(accumulate(self.weights))
        return live[bisect(bounds, int(draw() * bounds[-1]))]

    def version(self, digest: str) -> VersionRow:
        """The READY version with this digest. Raises NotFound."""
        at = bisect_left(self.ready, digest, key=_digest_of)
        if at == len(self.ready) or self.ready[at].digest != digest:
            raise version_not_found()
        return self.ready[at]


class Page(msgspec.Struct, Generic[Row], frozen=True):
    """Some rows of a list, and the token that continues it (empty at the end)."""

    rows: tuple[Row, ...]
    next_page_token: str


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The whole catalog at one revision, by (tenant, task).

    Attributes:
        access: who may call, and what for.
        since: the revision of the snapshot it was made from; None if it was read as a whole.
        touched: the tasks that were read again since then, or are gone.
    """

    revision: int
    tasks: Mapping[Name, TaskRow]
    access: Access = NO_ACCESS
    since: int | None = field(default=None, compare=False)
    touched: Set[Name] = field(default=frozenset(), compare=False)

    def task(self, tenant: str, task: str) -> TaskRow:
        """Raises NotFound, the same for what does not exist and for what another tenant has."""
        try:
            return self.tasks[tenant, task]
        except KeyError:
            raise task_not_found() from None

    def touched_since(self, older: "Snapshot") -> Set[Name]:
        """All tasks that are not the very same rows in an older snapshot, and perhaps others."""
        if older.revision == self.since:
            return self.touched
        return older.tasks.keys() | self.tasks.keys()

    def gone_since(self, older: "Snapshot") -> Set[Name]:
        """The tasks of an older snapshot that are no more."""
        return {name for name in self.touched_since(older) if name in older.tasks and name not in self.tasks}


def check_same_form(versions: Iterable[VersionRow]) -> None:
    """Versions that share a task's traffic must answer alike, or a client could not read the answers.

    Raises:
        FailedPrecondition: another head type, other labels or another dimension (`HEADS_DIFFER`).
    """
    heads = [version.head for version in versions]
    forms = {(head.type, head.labels if head.type in _LABELLED else (), head.dim) for head in heads}
    if len(forms) > 1:
        raise FailedPrecondition(
            "these versions answer with different heads or labels; only versions that answer alike can share traffic",
            reason="HEADS_DIFFER",
        )


def to_datetime(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)


def to_us(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)

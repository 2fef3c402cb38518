"""What the catalog answers with: immutable values, complete in themselves, safe to hand to any thread."""

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import accumulate
from typing import Generic, Literal, TypeVar

import msgspec

from adamix.errors import FailedPrecondition
from adamix.manifest import Manifest
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.names import task_not_found, version_not_found

Row = TypeVar("Row")
UnavailableReason = Literal["", "BACKBONE_CHANGED", "NO_LIVE_VERSION"]
Action = Literal["register", "set_traffic", "rollback", "delete_task", "delete_version", "pin", "unpin", "fail"]

# Heads whose labels are part of the answer.
_LABELLED = frozenset({"classification", "multilabel"})

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class VersionRow(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One version of one task.

    `live`: it takes part in the task's traffic on this server's backbone. `pinned`: it is to be kept on the device.
    """

    tenant: str
    task: str
    digest: str
    state: State
    create_time_us: int
    num_bytes: int
    backbone_fingerprint: str
    manifest_json: str
    live: bool
    pinned: bool = False

    @property
    def create_time(self) -> datetime:
        """UTC."""
        return to_datetime(self.create_time_us)

    @cached_property
    def manifest(self) -> Manifest:
        """Parsed when first asked for: a server of 20,000 tasks looks at few of them in its first second."""
        return Manifest.from_json(msgspec.json.decode(self.manifest_json))


class Traffic(msgspec.Struct, frozen=True):
    """One version's relative share of a task's requests; shares need not sum to anything."""

    digest: str
    weight: int


class TaskRow(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One task, as seen from this server's backbone.

    Attributes:
        etag: changes with every change of the task, and is never the same for two tasks of one name.
        traffic: what answers now; empty exactly if `unavailable_reason` is not.
        unavailable_reason: BACKBONE_CHANGED if it has versions, but none fits this backbone; else
            NO_LIVE_VERSION if none is live.
        versions: every READY version by digest, those of other backbones too.
    """

    tenant: str
    task: str
    etag: str
    create_time_us: int
    update_time_us: int
    traffic: tuple[Traffic, ...]
    unavailable_reason: UnavailableReason
    versions: Mapping[str, VersionRow]

    @property
    def create_time(self) -> datetime:
        """UTC."""
        return to_datetime(self.create_time_us)

    @property
    def update_time(self) -> datetime:
        """UTC."""
        return to_datetime(self.update_time_us)

    @cached_property
    def live(self) -> tuple[VersionRow, ...]:
        """The versions of `traffic`, in its order."""
        return tuple(self.versions[share.digest] for share in self.traffic)

    @property
    def heaviest(self) -> VersionRow:
        """The live version with the largest share; of several, the first. There must be one."""
        return max(zip(self.traffic, self.live, strict=True), key=lambda pair: pair[0].weight)[1]

    def pick(self, draw: Callable[[], float]) -> VersionRow:
        """A live version, each as often as its weight says. There must be one.

        Args:
            draw: gives a number of [0, 1), evenly distributed; not called where there is nothing to choose.
        """
        live = self.live
        if len(live) == 1:
            return live[0]
        bounds = self._bounds
        return live[bisect(bounds, int(draw() * bounds[-1]))]

    @cached_property
    def _bounds(self) -> tuple[int, ...]:
        """Of the numbers below the sum of all weights, where each live version's end."""
        return tuple(accumulate(share.weight for share in self.traffic))

    def version(self, digest: str) -> VersionRow:
        """The READY version with this digest. Raises NotFound."""
        try:
            return self.versions[digest]
        except KeyError:
            raise version_not_found() from None


class Page(msgspec.Struct, Generic[Row], frozen=True):
    """Some rows of a list, and the token that continues it (empty at the end)."""

    rows: tuple[Row, ...]
    next_page_token: str


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. `detail` is a reason or the traffic that was set."""

    time_us: int
    revision: int
    tenant: str
    task: str
    action: Action
    digest: str | None
    detail: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole catalog at one revision, by (tenant, task)."""

    revision: int
    tasks: Mapping[tuple[str, str], TaskRow]

    def task(self, tenant: str, task: str) -> TaskRow:
        """Raises NotFound, the same for what does not exist and for what another tenant has."""
        try:
            return self.tasks[tenant, task]
        except KeyError:
            raise task_not_found() from None


def check_same_form(versions: Iterable[VersionRow]) -> None:
    """Versions that share a task's traffic must answer alike, or a client could not read the answers.

    Raises:
        FailedPrecondition: another head type, other labels or another dimension (`HEADS_DIFFER`).
    """
    heads = [version.manifest.head for version in versions]
    forms = {(head.type, head.labels if head.type in _LABELLED else (), head.dim) for head in heads}
    if len(forms) > 1:
        raise FailedPrecondition(
            "these versions answer with different heads or labels; only versions that answer alike can share traffic",
            reason="HEADS_DIFFER",
        )


def to_datetime(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)

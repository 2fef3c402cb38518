"""What the catalog answers with: immutable values, complete in themselves, safe to hand to any thread."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Generic, Literal, TypeVar

import msgspec

from adamix.errors import NotFound
from adamix.manifest import Manifest
from adamix_server.catalog.lifecycle import State

Row = TypeVar("Row")
UnavailableReason = Literal["", "BACKBONE_CHANGED", "NO_LIVE_VERSION"]
Action = Literal["register", "set_traffic", "rollback", "delete_task", "delete_version", "fail"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class VersionRow(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One version of one task. `live`: it takes part in the task's traffic on this server's backbone."""

    tenant: str
    task: str
    digest: str
    state: State
    create_time_us: int
    num_bytes: int
    backbone_fingerprint: str
    manifest_json: str
    live: bool

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

    @property
    def live(self) -> tuple[VersionRow, ...]:
        """The versions of `traffic`, in its order."""
        return tuple(self.versions[share.digest] for share in self.traffic)

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


def to_datetime(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)


def task_not_found() -> NotFound:
    return NotFound("task not found")


def version_not_found() -> NotFound:
    return NotFound("version not found")

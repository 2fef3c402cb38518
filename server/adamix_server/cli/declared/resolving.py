"""What is declared, by digest: files are read for theirs, and beginnings of digests found among the server's versions.

Asks a server for what it has; changes nothing.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from adamix.errors import InvalidConfig, InvalidData, NotFound
from adamix_server.cli.declared.declaration import DeclaredTask
from adamix_server.cli.declared.plan import ActualTask, WantedTask
from adamix_server.cli.task_call import match

if TYPE_CHECKING:
    from adamix_client import Client

_READERS = 4


def digest_of(path: Path) -> str:
    """The sha256 of a file in hex. Raises InvalidData: it is none, or cannot be read."""
    try:
        # Not of a device or a pipe, which may never end.
        if not path.is_file():
            raise InvalidData(f"{path}: there is no such file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidData(f"{path}: {error.strerror}") from None


def digests_of(paths: Iterable[Path]) -> dict[Path, str]:
    """Those of many, each read once. Raises InvalidData as `digest_of`."""
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(distinct, pool.map(digest_of, distinct), strict=True))


def observe(
    client: "Client", declared: Sequence[DeclaredTask], digests: Mapping[Path, str], *, prune: bool
) -> dict[str, ActualTask]:
    """All tasks of the caller's tenant by id; versions, pins and grants of those that are declared, where it matters.

    The list of the tasks says what is live. Only a task that declares more than that is asked for its versions, so that
    thousands of tasks that are as they should be are one look.
    """
    tasks = {task.task: task for task in client.tasks()}
    ours = [
        task.task
        for task in declared
        if task.task in tasks and (prune or not _is_told(task, digests, dict(tasks[task.task].traffic)))
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        versions = dict(zip(ours, pool.map(client.versions, ours), strict=True))
    grants: dict[str, set[str]] = {}
    if any(task.grants is not None for task in declared):
        for grant in client.grants():
            grants.setdefault(grant.task, set()).add(grant.tenant)
    return {
        name: ActualTask(
            versions=frozenset((*dict(task.traffic), *(version.digest for version in versions.get(name, ())))),
            traffic=dict(task.traffic),
            pins=frozenset(version.digest for version in versions.get(name, ()) if version.pinned),
            grants=frozenset(grants.get(task.name, ())),
            etag=task.etag,
        )
        for name, task in tasks.items()
    }


def _is_told(task: DeclaredTask, digests: Mapping[Path, str], live: Mapping[str, int]) -> bool:
    """Whether all that is declared of a task can be seen in what is live of it."""
    named = task.versions or {}
    return (
        task.pins is None
        and all(name in named for name in task.traffic or ())
        and all(digests[path] in live for path in named.values())
    )


def resolve(declared: DeclaredTask, actual: ActualTask | None, digests: Mapping[Path, str]) -> WantedTask:
    """A declared task with digests for names.

    Args:
        actual: what the server has of it; None if nothing.
        digests: of all its files.

    Raises:
        InvalidConfig: two names are for the same bytes, or a digest is that of several versions; with the line.
        NotFound: the server has no such task or version, and no file is named for it.
    """
    where = declared.where
    named = {name: digests[path] for name, path in (declared.versions or {}).items()}
    by_digest: dict[str, str] = {}
    for name, digest in named.items():
        if (other := by_digest.setdefault(digest, name)) != name:
            raise InvalidConfig(f"{where}: {other[:64]!r} and {name[:64]!r} are the same bytes", field="file")
    if actual is None and not named:
        raise NotFound(f"{where}: there is no task {declared.task}, and no file is declared for it")
    there = sorted((actual or ActualTask()).versions)

    def find(name: str) -> str:
        if name in named:
            return named[name]
        try:
            # Also a version that is about to be registered.
            return match(name, sorted({*there, *named.values()}), declared.task)
        except (InvalidConfig, NotFound) as error:
            raise type(error)(f"{where}: {error.message}", reason=error.reason) from None

    traffic: dict[str, int] | None = None
    if declared.traffic is not None:
        traffic = {}
        for name, weight in declared.traffic.items():
            if (digest := find(name)) in traffic:
                raise InvalidConfig(f"{where}: traffic names one version twice, as {name[:64]!r}", field="file")
            traffic[digest] = weight
    pins = None if declared.pins is None else frozenset(map(find, declared.pins))
    return WantedTask(
        task=declared.task,
        files={named[name]: path for name, path in (declared.versions or {}).items()},
        versions=None if declared.versions is None else frozenset({*named.values(), *(traffic or ()), *(pins or ())}),
        traffic=traffic,
        pins=pins,
        grants=None if declared.grants is None else frozenset(declared.grants),
    )

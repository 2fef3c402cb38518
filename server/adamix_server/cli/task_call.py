"""What commands about one task share: the connection, the nearest names where there is no such task, and digests.

A person types the beginning of a digest; the server takes whole ones. Only where less than a whole one was typed are
the versions asked for.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from adamix.cli.terminal import exit_codes
from adamix.errors import AdamixError, InvalidConfig, NotFound
from adamix_server.cli.connecting import connect
from adamix_server.names import is_digest

if TYPE_CHECKING:
    from adamix_client import Client

MIN_PREFIX_CHARS = 6
_PREFIX = re.compile(r"[0-9a-f]{1,64}")
_MOST_CANDIDATES = 5
_CANDIDATE_CHARS = 16
_MOST_NEAREST = 3


@contextmanager
def task_call(task: str, server: str, api_key_file: Path | None) -> "Iterator[Client]":
    """A client, in a with-block that ends the command as `exit_codes` does, and offers the nearest tasks."""
    with exit_codes(), connect(server, api_key_file) as client, offering(client, task):
        yield client


@contextmanager
def offering(client: "Client", task: str) -> Iterator[None]:
    """Where the block finds no such task, say the names nearest to it that the caller may see."""
    try:
        yield
    except NotFound as error:
        if error.reason != NotFound.default_reason or "/" in task:
            raise
        try:
            names = [found.task for found in client.tasks()]
        except AdamixError:
            # Who may not list the tasks is told what the server said.
            raise error from None
        if task in names:
            raise
        raise NotFound(f"there is no task {task[:64]!r}{_did_you_mean(task, names)}") from None


def nearest(word: str, known: Sequence[str]) -> str:
    """`: did you mean a or b?`, or nothing where none is near."""
    found = difflib.get_close_matches(word[:64], known, _MOST_NEAREST, cutoff=0.6)
    return f": did you mean {' or '.join(found)}?" if found else ""


def _did_you_mean(task: str, names: Sequence[str]) -> str:
    if not names:
        return ": this server has none that you may see"
    return nearest(task, names) or "; `adamix tasks` lists those there are"


def split_target(target: str) -> tuple[str, str]:
    """`TASK@DIGEST` -> (task, digest); the digest is empty if none is said. Raises InvalidConfig."""
    task, at, digest = target.partition("@")
    if not task or (at and not digest):
        raise InvalidConfig(f"{target[:80]!r} is neither TASK nor TASK@DIGEST", field="task")
    return task, digest


def find_version(client: "Client", task: str, prefix: str) -> str:
    """The digest of the one version of a task that begins so. Raises as `find_versions`."""
    return find_versions(client, task, [prefix])[0]


def find_versions(client: "Client", task: str, prefixes: Sequence[str]) -> list[str]:
    """The digests that begin as these; the task's versions are listed at most once.

    Raises:
        InvalidConfig: one is no beginning of a digest, too short, or that of several versions.
        NotFound: one is the beginning of none.
    """
    wanted = [_checked(prefix) for prefix in prefixes]
    if all(is_digest(prefix) for prefix in wanted):
        return wanted
    digests = [version.digest for version in client.versions(task)]
    return [prefix if is_digest(prefix) else match(prefix, digests, task) for prefix in wanted]


def match(prefix: str, digests: Sequence[str], task: str) -> str:
    """The one digest that begins with `prefix`. Raises as `find_versions`."""
    found = [digest for digest in digests if digest.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidConfig(f"{prefix} begins several versions of {task}: {_candidates(found)}", field="digest")
    there = f"it has {_candidates(digests)}" if digests else "it has none"
    raise NotFound(f"no version of {task} begins with {prefix}; {there}", reason="VERSION_NOT_FOUND")


def _checked(prefix: str) -> str:
    prefix = prefix.removeprefix("sha256:").lower()
    if _PREFIX.fullmatch(prefix) is None:
        raise InvalidConfig(f"{prefix[:80]!r} is no digest of a version, nor the beginning of one", field="digest")
    if len(prefix) < MIN_PREFIX_CHARS:
        raise InvalidConfig(
            f"{prefix} is too short: say at least {MIN_PREFIX_CHARS} digits of the digest", field="digest"
        )
    return prefix


def _candidates(digests: Sequence[str]) -> str:
    told = [digest[:_CANDIDATE_CHARS] for digest in digests[:_MOST_CANDIDATES]]
    return ", ".join([*told, "…"] if len(digests) > _MOST_CANDIDATES else told)

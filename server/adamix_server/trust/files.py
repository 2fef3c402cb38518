"""Small files of an operator that may change while the server runs: whether they have, and what is in them."""

from collections.abc import Iterable
from pathlib import Path

from adamix.errors import InvalidConfig
from adamix_server.limits.operators import MAX_TRUST_FILE_BYTES

# Of each file what changes with it; None where there is none.
Stamp = tuple[tuple[int, int, int] | None, ...]


def stamp(paths: Iterable[Path]) -> Stamp:
    """What differs once one of the files was written or exchanged. Links are followed."""
    return tuple(map(_stamp_of, paths))


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read(path: Path, flag: str) -> bytes:
    """The bytes of a file that a flag names. Raises InvalidConfig with what to do."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRUST_FILE_BYTES + 1)
    except FileNotFoundError:
        raise wrong(flag, f"{path} does not exist") from None
    except OSError as error:
        raise wrong(flag, f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_TRUST_FILE_BYTES:
        raise wrong(flag, f"{path} has more than {MAX_TRUST_FILE_BYTES:,} bytes")
    return data


def wrong(flag: str, what: str) -> InvalidConfig:
    """The error for a file that a flag names."""
    return InvalidConfig(
        f"{flag}: {what}", reason="TRUST_FILE_INVALID", field=flag.removeprefix("--").replace("-", "_")
    )

"""`store.json`, beside the catalog: which store this is, and how far its catalog has come.

Written after every commit that changes what is served, so that a start can tell a catalog that was lost, or an older
one that was put back, from the store's own. A catalog ahead of the file is normal: a process may end between the two,
and the disk may be full. One behind it is not, so the number in the file never falls. Knows no tables.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from adamix_server.blobs.directories import replace_file

log = logging.getLogger(__name__)

STORE_FILE = "store.json"
# Another process has it for less than a millisecond; one that was stopped meanwhile is not waited for.
_PATIENCE_S = 1.0
_POLL_S = 0.01

# No catalog comes so far, and SQLite has room for what is added.
Revision = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
StoreId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class StoreFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says: the revision is one that the catalog of this store has reached."""

    format: Literal["adamix-store/1"] = "adamix-store/1"
    store_id: StoreId
    revision: Revision


_decoder = msgspec.json.Decoder(StoreFile)


def read_store_file(store: Path) -> StoreFile | None:
    """None if there is none, or none that can be read (which the log says)."""
    try:
        return _decoder.decode((store / STORE_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("store.json cannot be read and is taken for lost: %s", error)
        return None


def write_store_file(store: Path, content: StoreFile) -> None:
    """Replace the file, whatever it said. Raises OSError."""
    with _alone(store):
        replace_file(store / STORE_FILE, msgspec.json.encode(content) + b"\n")


class Progress:
    """Keeps the file of one store up with its catalog. For any number of threads and processes at once."""

    def __init__(self, store: Path, store_id: str) -> None:
        self._store = store
        self._store_id = store_id

    def reached(self, revision: int) -> None:
        """Note a revision that is committed. It stays committed whether or not that can be written down."""
        try:
            with _alone(self._store):
                known = read_store_file(self._store)
                if known is not None and known.store_id != self._store_id:
                    log.error("store.json is another store's: it was exchanged while a server used the store")
                elif known is None or known.revision < revision:
                    content = StoreFile(store_id=self._store_id, revision=revision)
                    replace_file(self._store / STORE_FILE, msgspec.json.encode(content) + b"\n")
        except OSError as error:
            log.warning("store.json stays behind the catalog: %s", error.strerror, extra={"revision": revision})


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """Exclude all others who write the file. Raises TimeoutError (an OSError)."""
    directory = os.open(store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(None, "another process keeps it") from None
                time.sleep(_POLL_S)
            else:
                break
        yield
    finally:
        os.close(directory)

"""The first key of an operator: made where a server asks for keys, and nobody has one that may make others.

It is written for its owner alone to read, before it counts; its path is logged, never the key.
"""

import logging
import os
from pathlib import Path

from adamix.errors import StoreFull
from adamix_server.access import api_keys
from adamix_server.access.rights import ROLES
from adamix_server.catalog.store import Catalog
from adamix_server.config import DEFAULT_TENANT

log = logging.getLogger(__name__)

FILE = "operator.key"
# Keys are the same from everywhere.
_NO_BACKBONE = "0" * 64


def ensure_operator_key(store: Path) -> None:
    """Make a key of the role operator if there is none in force.

    Raises:
        StoreFull: there is no room for it.
        AdamixError: as the catalog does.
    """
    catalog = Catalog(store, backbone_fingerprint=_NO_BACKBONE, make=False)
    try:
        if catalog.keys.has_operator():
            return
        text, key = api_keys.make()
        path = store / FILE
        try:
            _write(path, text + "\n")
        except OSError as error:
            raise StoreFull(f"{path} cannot be written: {error.strerror}") from None
        # In this order: a kill in between leaves a key that nobody knows, and the next start makes another.
        catalog.keys.create(DEFAULT_TENANT, key, rights=ROLES["operator"], display_name="first operator key")
    finally:
        catalog.close()
    log.warning("made the first operator key; keep its file safe", extra={"path": str(path), "key": key.id})


def _write(path: Path, text: str) -> None:
    """In place of whatever is there, whole or not at all; readable for the owner of the process alone."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

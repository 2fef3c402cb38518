"""The first key of an operator: made where a server asks for keys, and nobody has one that may make others.

It is written for its owner alone to read, before it counts; its path is logged, never the key.
"""

import logging
import os
from pathlib import Path
from typing import Any, Protocol

from adamix.errors import StoreFull
from adamix_server.access import api_keys
from adamix_server.access.principal import SERVER, Actor
from adamix_server.access.rights import ROLES, Right
from adamix_server.config import DEFAULT_TENANT

log = logging.getLogger(__name__)

FILE = "operator.key"


class Keys(Protocol):
    """What the catalog knows of keys."""

    def has_operator(self) -> bool: ...

    def create(
        self, tenant: str, key: api_keys.ApiKey, *, rights: frozenset[Right], display_name: str, by: Actor
    ) -> Any: ...


def ensure_operator_key(store: Path, keys: Keys) -> bool:
    """Make a key of the role operator if there is none; whether one was made.

    Raises:
        StoreFull: the file cannot be written.
        AdamixError: as the catalog does.
    """
    if keys.has_operator():
        return False
    text, key = api_keys.make()
    path = store / FILE
    try:
        _write(path, text + "\n")
    except OSError as error:
        raise StoreFull(f"{path} cannot be written: {error.strerror}") from None
    # In this order: a kill in between leaves a key that nobody knows, and the next start makes another.
    keys.create(DEFAULT_TENANT, key, rights=ROLES["operator"], display_name="first operator key", by=SERVER)
    log.warning("made the first operator key; keep its file safe", extra={"path": str(path), "key": key.id})
    return True


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

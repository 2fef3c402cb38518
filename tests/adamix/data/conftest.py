from collections.abc import Callable

import pytest

from adamix import data, hub
from adamix.errors import InvalidData


@pytest.fixture(autouse=True)
def _hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its client, or the library `datasets`, then gives is played."""
    monkeypatch.setattr(hub, "unreachable", lambda: None)


@pytest.fixture
def everything() -> Callable[..., list[data.Example]]:
    """Loads all splits of a source in one list; a split of a tiny source may be empty."""

    def load(source: str) -> list[data.Example]:
        found: list[data.Example] = []
        for split in data.SPLITS:
            try:
                found += data.load(source, split=split).examples
            except InvalidData as error:
                if error.reason != "SPLIT_EMPTY":
                    raise
        return found

    return load

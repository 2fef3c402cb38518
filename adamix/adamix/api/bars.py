"""Progress as notebooks and terminals show it: the bars of tqdm, as transformers and datasets have them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Says how far something is."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total`; `note` stands behind the bar."""


@contextmanager
def progress_bar(description: str, *, shown: bool) -> Iterator[Advance]:
    """A bar that appears with the first call, so that an early error stands alone; nothing if it is not to be shown."""
    from tqdm.auto import tqdm

    bar: tqdm | None = None

    def advance(done: int, total: int, note: str = "") -> None:
        nonlocal bar
        if not shown:
            return
        if bar is None:
            bar = tqdm(desc=description, total=total)
        bar.total = total
        bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()

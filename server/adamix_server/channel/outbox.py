"""Frames that wait for a reader who does not read now.

Whoever reads late wants to know how things stand, not how they came to: of each kind of frame only the newest waits,
so that what waits is bounded by the number of kinds. Frames of different kinds keep their order. A frame that says what
has happened, and not how things stand, says itself what it and an earlier one are together (`Sum`). Pure.
"""

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

F = TypeVar("F")


@runtime_checkable
class Sum(Protocol):
    """A frame that does not take the place of an earlier one of its kind, but takes it in."""

    def over(self, earlier: Any) -> Any:
        """Both as one frame."""


class Outbox(Generic[F]):
    """The newest frame of each kind, in the order in which they were last put. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[type, Callable[[], F]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, frame: F) -> None:
        """Take the place of one of this kind that waits, at the end: it may speak of others that were put since."""
        if (waiting := self._waiting.get(type(frame))) is not None and isinstance(frame, Sum):
            frame = frame.over(waiting())
        self._place(type(frame), lambda: frame)

    def put_made(self, kind: type, make: Callable[[], F]) -> None:
        """As `put`, of a frame that is made only when it is taken: what is gathered until then is in it."""
        self._place(kind, make)

    def take(self) -> F | None:
        """The next frame, or None."""
        if not self._waiting:
            return None
        return self._waiting.pop(next(iter(self._waiting)))()

    def clear(self) -> None:
        self._waiting.clear()

    def _place(self, kind: type, make: Callable[[], F]) -> None:
        self._waiting.pop(kind, None)
        self._waiting[kind] = make

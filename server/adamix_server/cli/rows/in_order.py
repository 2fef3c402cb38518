"""Work that is done several pieces at a time, with results in the order of the pieces. Knows nothing of the work."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

_TURN_S = 0.2

PieceT = TypeVar("PieceT")
ResultT = TypeVar("ResultT")


def in_order(
    pieces: Iterable[PieceT],
    work: Callable[[PieceT], ResultT],
    *,
    at_once: int,
    window: int,
    leave: Callable[[], None],
) -> Generator[tuple[PieceT, Callable[[], ResultT]], None, None]:
    """Each piece, and what gives its result or raises its error, as soon as it is there.

    To be closed, as by `contextlib.closing`: what is under way is waited for then.

    Args:
        pieces: taken as there is room for them.
        work: called in a thread.
        at_once: pieces that are worked on.
        window: pieces that may be done or under way before the one whose turn it is.
        leave: called when this ends before its time, Ctrl-C included, to end what is under way.
    """
    pending: deque[tuple[PieceT, Future[ResultT]]] = deque()

    def next_one() -> tuple[PieceT, Callable[[], ResultT]]:
        piece, future = pending.popleft()
        # In short turns: Ctrl-C that comes as a wait begins is only seen when it ends.
        while not future.done():
            wait((future,), _TURN_S)
        return piece, future.result

    with ThreadPoolExecutor(at_once) as pool:
        try:
            for piece in pieces:
                pending.append((piece, pool.submit(work, piece)))
                if len(pending) == window:
                    yield next_one()
            while pending:
                yield next_one()
        except BaseException:
            leave()
            for _, future in pending:
                future.cancel()
            raise

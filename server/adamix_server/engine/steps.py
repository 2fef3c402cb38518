"""What the engine's loop asks of a kind of backbone, and the boundary around what one request has computed.

A step chooses some of what is queued or runs, computes it and ends what is finished. How that is done is the matter of
encoders (`encoding.py`) and decoders (`decoding.py`); the loop (`engine.py`) knows neither.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from adamix.errors import AdamixError, InternalError, Overloaded
from adamix_server import retry
from adamix_server.channel.engine_frames import Row
from adamix_server.engine.desk import Desk, Queue, Runner
from adamix_server.engine.request import Request
from adamix_server.engine.residency.loader import AdapterLoader
from adamix_server.engine.token_rate import TokenRate
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes:
        num_requests: that were computed in it, as a whole or in part.
        num_tokens: that were computed.
        is_full: it shows how fast the engine is when it has enough to do, however few tokens these are.
    """

    num_requests: int
    num_tokens: int
    is_full: bool


class Steps(Protocol):
    """How one kind of backbone answers."""

    @property
    def queue(self) -> Queue: ...
    @property
    def runner(self) -> Runner: ...

    @property
    def num_queued(self) -> int:
        """Requests that do not run yet."""

    @property
    def used_pages(self) -> int:
        """Pages that hold something that is needed now."""

    def refusal(self, row: Row) -> AdamixError | None:
        """Why a row can never be answered."""

    def add(self, request: Request) -> None:
        """Queue a request that is not refused."""

    def cancel(self, request: Request, desk: Desk) -> None:
        """End a request that nobody waits for any more."""

    def expire(self, request: Request, desk: Desk) -> None:
        """End a request whose deadline has passed."""

    def kept(self) -> Collection[str]:
        """The adapters whose slots are needed until something that runs has ended, which nobody can hasten."""

    def arrange(self, order: list[str], adapters: AdapterLoader, /) -> list[str]:
        """In which order adapters get slots, where those are too few. May make some give way.

        Args:
            order: as tenants' turns are. Here and in the result an empty one is that in which they were asked for.
        """

    def take(self, desk: Desk, rate: TokenRate) -> Step | None:
        """Take one step; None if nothing can run.

        Args:
            desk: what ends goes over it.
            rate: at which tokens are computed.
        """

    def leaving_per_s(self, rate: TokenRate, /) -> float:
        """Tokens that leave the queue in a second while it has some."""

    def report(self, recorder: Recorder) -> None:
        """Record the gauges of this kind. Asked about once a second."""


def compute(
    run: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    alone: Callable[[Item, Exception], AdamixError],
    progress: Callable[[], None],
) -> list[Result | AdamixError]:
    """Run some things together. If that fails, run their halves, so that only those that fail alone fail.

    Args:
        alone: what one that failed alone is told; raises if nothing more can be computed.
        progress: called after each part.
    """
    try:
        return list(run(items))
    except Exception as error:  # noqa: BLE001 - `alone` tells or raises it
        # The boundary around one request's computation: whatever is raised inside belongs to that request alone.
        if len(items) == 1:
            return [alone(items[0], error)]
    # Each part is a step forward.
    progress()
    middle = len(items) // 2
    return [
        *compute(run, items[:middle], alone, progress),
        *compute(run, items[middle:], alone, progress),
    ]


def failed_alone(request: Request, error: Exception, runner: Runner, retry_after_s: float) -> AdamixError:
    """What a request is told whose computing raised `error`.

    Args:
        retry_after_s: when what takes the memory now will have been computed.
    """
    if _is_out_of_memory(error):
        return Overloaded("not enough memory for this request now", retry_after_s=retry.within(retry_after_s))
    log.error("a request failed", exc_info=error, extra={"request": request.row.id})
    # Some device errors end the device's context. Then this raises, too: better a new engine than one that answers
    # INTERNAL for ever.
    runner.check_device()
    return InternalError("internal error")


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory was short, of the device or of the host: torch says the second by words alone."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)

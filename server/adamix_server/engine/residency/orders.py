"""What operators ask of the loader besides requests: load, activate, pin, unpin, unload; each is answered once.

An order is answered when its goal is reached or has failed, which may be many steps of the engine later. Belongs to
the engine's thread. Knows nothing of frames; a caller is only a name on the answer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from adamix.errors import Aborted, AdamixError
from adamix_server.channel.channel import Peer
from adamix_server.engine.residency.loader import AdapterLoader

# A front end, and what it calls its question.
Caller = tuple[Peer, int]

Kind = Literal["load", "activate", "pin", "unpin", "unload"]


@dataclass(frozen=True)
class Answer:
    """The end of one order: where the adapter is now (`device`, `host`, `store`), and what went wrong."""

    caller: Caller
    residency: str
    error: AdamixError | None = None


@dataclass(frozen=True)
class _Order:
    kind: Kind
    digest: str
    caller: Caller
    refusal: AdamixError | None


class Orders:
    """The orders of one engine that are not answered yet."""

    def __init__(self, adapters: AdapterLoader) -> None:
        self._adapters = adapters
        self._open: list[_Order] = []

    def place(self, kind: Kind, digest: str, caller: Caller) -> None:
        """Begin what is asked; `settle` answers it."""
        refusal: AdamixError | None = None
        try:
            self._begin(kind, digest)
        except AdamixError as error:
            refusal = error
        self._open.append(_Order(kind, digest, caller, refusal))

    def settle(self, failed: Mapping[str, AdamixError]) -> list[Answer]:
        """The answers to all orders that have come to an end.

        Args:
            failed: what `AdapterLoader.advance` has just returned.
        """
        if not self._open:
            return []
        refused = self._adapters.settle_pins(failed)
        orders, self._open = self._open, []
        return list(self._settled(orders, failed, {**failed, **refused}))

    def _begin(self, kind: Kind, digest: str) -> None:
        match kind:
            case "load":
                if self._adapters.residency(digest) == "store":
                    self._adapters.prefetch(digest)
            case "activate":
                self._adapters.activate(digest)
            case "pin":
                self._adapters.pin(digest)
            case "unpin":
                self._adapters.unpin(digest)
            case "unload":
                self._adapters.unload(digest)

    def _settled(
        self, orders: list[_Order], failed: Mapping[str, AdamixError], not_pinned: Mapping[str, AdamixError]
    ) -> Iterator[Answer]:
        for order in orders:
            error, residency = order.refusal, self._adapters.residency(order.digest)
            if error is None and order.kind in ("load", "activate") and residency == "store":
                # In host memory, an adapter that has failed only lacks a slot.
                error = failed.get(order.digest)
            elif error is None and order.kind == "pin":
                error = not_pinned.get(order.digest)
                if error is None and not self._adapters.is_pinned(order.digest):
                    error = Aborted("the version was unpinned meanwhile", reason="UNPINNED")
            if error is None and self._is_under_way(order):
                self._open.append(order)
            else:
                yield Answer(order.caller, residency, error)

    def _is_under_way(self, order: _Order) -> bool:
        match order.kind:
            case "load":
                return self._adapters.is_reading(order.digest)
            case "activate":
                return self._adapters.is_wanted(order.digest)
            case "pin":
                return not self._adapters.has_pinned_slot(order.digest)
            case _:
                return False

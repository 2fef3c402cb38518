"""Where requests end, and what their front ends are told in one step: events, and the credit that comes back.

Each request ends here once: its hold is given back, and its final event is on its way. What several events of one step
have in common goes into one frame a front end. Knows neither how answers come about nor when a step ends.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adamix.errors import AdamixError
from adamix_server.access.quotas import Shares
from adamix_server.channel.channel import Peer
from adamix_server.channel.engine_frames import Emit, Event, Finish, Hello, QueueState, WireError
from adamix_server.engine.credit import QueueRoom
from adamix_server.engine.isolation import Isolation
from adamix_server.engine.request import Request
from adamix_server.engine.residency.loader import AdapterLoader
from adamix_server.telemetry.metrics import Recorder

# What a request was answered with, all at once.
Outcome = NDArray[np.float32] | AdamixError


class Queue(Protocol):
    """What the loop asks of a scheduler; see `scheduler.Scheduler`."""

    @property
    def queued_tokens(self) -> int: ...
    @property
    def is_shared(self) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]: ...
    def can_run(self, is_ready: Callable[[str], bool]) -> bool: ...
    def find(self, peer: Peer, request_id: int) -> Request | None: ...
    def of(self, digest: str) -> list[Request]: ...
    def tenants_of(self, digest: str) -> Collection[str]: ...
    def weight_of(self, tenant: str) -> float: ...
    def tokens_by_tenant(self) -> dict[str, int]: ...
    def state(self, peer: Peer, tokens_per_s: float, changed: Iterable[str] = ()) -> QueueState: ...
    def set_shares(self, shares: Mapping[str, Shares]) -> None: ...
    def end(self, request: Request) -> None: ...
    def expired(self, now: float) -> list[Request]: ...


class Runner(Protocol):
    """What the loop asks of whatever computes."""

    def is_finite_without_adapter(self, request: Request, progress: Callable[[], None]) -> bool:
        """Whether the bare backbone has finite values for what a request has failed with.

        Args:
            progress: called after each part of that.
        """

    def check_device(self) -> None:
        """Raise the device's own error if it can no longer compute."""


@dataclass(eq=False, slots=True)
class _Parcel:
    """What one front end is told in one step.

    Attributes:
        inputs, tokens: that are no longer its, `tenants` whose they were.
    """

    events: list[Event] = field(default_factory=list)
    inputs: int = 0
    tokens: int = 0
    tenants: set[str] = field(default_factory=set)


class Desk:
    """See the module's docstring.

    Attributes:
        adapters: what requests hold.
        recorder: of what is measured of steps.
        progress: called whenever a part of a step is done.
    """

    def __init__(
        self,
        queue: Queue,
        adapters: AdapterLoader,
        runner: Runner,
        room: QueueRoom,
        isolation: Isolation,
        recorder: Recorder,
        progress: Callable[[], None],
    ) -> None:
        self.adapters = adapters
        self.recorder = recorder
        self.progress = progress
        self._queue = queue
        self._runner = runner
        self._room = room
        self._isolation = isolation
        self._parcels: dict[Peer, _Parcel] = {}

    def __len__(self) -> int:
        """The front ends that something waits to be sent to."""
        return len(self._parcels)

    def end(self, request: Request, outcome: Outcome) -> None:
        """End a request that was queued, with its whole answer or an error."""
        number, timing = request.num_events, request.timing
        if isinstance(outcome, AdamixError):
            self._end(request, Event(id=request.row.id, seq=number, error=WireError.of(outcome), timing=timing))
        else:
            payload = outcome.astype("<f4").tobytes()
            self._end(request, Event(id=request.row.id, seq=number, payload=payload, timing=timing))

    def end_text(self, request: Request, finish: Finish, tokens: bytes = b"", logprobs: bytes = b"") -> None:
        """End a request whose text is complete, with what is new of it."""
        number, timing = request.num_events, request.timing
        self._end(
            request,
            Event(id=request.row.id, seq=number, tokens=tokens, logprobs=logprobs, finish=finish, timing=timing),
        )

    def go_on(self, request: Request, tokens: bytes, logprobs: bytes) -> None:
        """Say what is new of a text that goes on."""
        self._put(
            request,
            Event(id=request.row.id, seq=request.num_events, final=False, tokens=tokens, logprobs=logprobs),
        )

    def refuse(self, request: Request, error: AdamixError) -> None:
        """Answer a request that was never queued and holds nothing."""
        self._put(request, Event(id=request.row.id, error=WireError.of(error)))

    def judge(self, requests: Sequence[Request], outcomes: Sequence[Outcome]) -> None:
        """Hold failures against their adapters, and end what waits for one that is quarantined since."""
        for digest in self._isolation.judge(requests, outcomes, self._is_finite_without_adapter):
            for request in self._queue.of(digest):
                if (refusal := self._isolation.error(request.row.tenant, digest)) is not None:
                    self.end(request, refusal)

    def parcels(self, hello: Hello, tokens_per_s: float) -> Iterator[tuple[Peer, Emit]]:
        """Hand out what waits to be sent, one frame a front end."""
        parcels, self._parcels = self._parcels, {}
        for peer, parcel in parcels.items():
            inputs, tokens = self._room.give_back(peer, parcel.inputs, parcel.tokens)
            emit = Emit(
                generation=hello.generation,
                engine_id=hello.engine_id,
                events=parcel.events,
                credit_inputs=inputs,
                credit_tokens=tokens,
                queue=self._queue.state(peer, tokens_per_s, parcel.tenants),
            )
            yield peer, emit

    def _is_finite_without_adapter(self, request: Request) -> bool:
        return self._runner.is_finite_without_adapter(request, self.progress)

    def _end(self, request: Request, event: Event) -> None:
        self._queue.end(request)
        self.adapters.release(request.hold)
        self._put(request, event)

    def _put(self, request: Request, event: Event) -> None:
        parcel = self._parcels.setdefault(request.peer, _Parcel())
        parcel.events.append(event)
        parcel.tenants.add(request.row.tenant)
        # Who has an answer's beginning no longer waits: its tokens take no room in the queue.
        if not request.num_events:
            parcel.tokens += request.num_tokens
        parcel.inputs += event.final
        request.num_events += 1

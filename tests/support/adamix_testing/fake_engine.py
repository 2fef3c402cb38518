"""An engine that is played: a front end's partner on a channel without a socket, whose numbers are made up."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adamix.errors import AdamixError, Overloaded
from adamix.files.manifest import BackboneSpec
from adamix_server.channel.codec import FromEngine, ToEngine
from adamix_server.channel.engine_frames import (
    Cancel,
    Control,
    Credit,
    Emit,
    EngineLoad,
    Event,
    Finish,
    Hello,
    Limits,
    Quarantined,
    QuarantinedVersion,
    QueueState,
    Reply,
    Row,
    Submit,
    TenantShares,
    Timing,
    Value,
    WireError,
)
from adamix_server.channel.supervisor_frames import EngineUp

ENGINE_ID = "engine-0"


Ending = Literal["eos", "stop", "length", "cancelled"]


@dataclass(frozen=True)
class Said:
    """One event of a row that is generated; with `finish` or `error` its last."""

    tokens: Sequence[int] = ()
    logprobs: bytes = b""
    finish: Ending | None = None
    error: AdamixError | None = None


Script = Callable[[Row], Iterable[Said]]


def echo(row: Row) -> list[Said]:
    """The tokens of its prompt, one by one, as far as they may go."""
    assert row.generate is not None
    tokens = np.frombuffer(row.token_ids, dtype="<i4").tolist()
    most = row.generate.max_new_tokens
    ends: Ending = "length" if len(tokens) >= most else "eos"
    return [*(Said([token]) for token in tokens[:most]), Said(finish=ends)]


class FakeEngine:
    """The engine's part of the conversation, on a channel of its own.

    Answers every row with `width` logits `0, 1, 2, …` times the number of tokens, and one that is to be generated as
    `script` says, unless `hold` is set; then rows wait in `held`. A front end gets `credit` once, and back what each
    event used. An engine of an encoder has no pages.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        self.spec = spec
        self.generation = 0
        self.load = EngineLoad(queued_inputs=0, queued_tokens=0, running_inputs=0, resident_adapters=0, slots=4)
        self.credit = (1000, 100_000)
        self.tokens_per_s = 1000.0
        self.pages, self.page_tokens = 0, 16
        self.script: Script = echo
        self.cached_tokens = 0
        # Whether tokens that come with the end are a part of the text.
        self.counts_the_end = True
        # Of rows that are held: how many events of each have been sent, and tokens in them.
        self._sent: dict[int, tuple[int, int]] = {}
        self.arena_bytes = 1 << 30
        self.widths: dict[str, int] = {}
        self.fail: Callable[[Row], AdamixError | None] = lambda row: None
        self.hold = False
        self.held: list[Row] = []
        self.submits: list[Submit] = []
        self.cancelled: list[int] = []
        self.controls: list[Control] = []
        self.shares: list[TenantShares] = []
        self.control_error: AdamixError | None = None
        self.in_use: set[str] = set()
        self.on_device: set[str] = set()
        self.pinned: set[str] = set()
        self.most_pinned = 2
        # By (tenant, digest), the reason of the last failure. A front end is told by `tell_quarantined`.
        self.quarantined: dict[tuple[str, str], str] = {}
        # What is not answered until the test calls `reply`.
        self.silent_on: set[str] = set()
        self.channel: FakeChannel | None = None

    def up(self) -> EngineUp:
        """A new generation of this engine."""
        self.generation += 1
        self.held.clear()
        self._sent.clear()
        self.on_device.clear()
        self.pinned.clear()
        self.quarantined.clear()
        hello = Hello(
            engine_id=ENGINE_ID,
            generation=self.generation,
            spec=self.spec,
            limits=Limits(
                max_batch_tokens=64,
                max_queue_inputs=1000,
                max_queue_tokens=100_000,
                slots=4,
                arena_bytes=self.arena_bytes,
                pages=self.pages,
                page_tokens=self.page_tokens if self.pages else 0,
                max_running=4 if self.pages else 0,
            ),
            dtype="float32",
            device="cpu",
        )
        return EngineUp(address="ipc:///nowhere", hello=hello)

    async def connect(self, address: str, generation: int, engine_id: str) -> "FakeChannel":
        self.channel = FakeChannel(self)
        await self.channel.frames.put(
            Credit(
                engine_id=ENGINE_ID,
                generation=generation,
                inputs=self.credit[0],
                tokens=self.credit[1],
                queue=self.queue(),
            )
        )
        return self.channel

    def take(self, frame: ToEngine) -> None:
        match frame:
            case Submit():
                self.submits.append(frame)
                self.held.extend(frame.rows)
                if not self.hold:
                    self.answer_all()
            case Cancel():
                self.cancelled.extend(frame.ids)
                rows = [row for row in self.held if row.id in frame.ids]
                for row in rows:
                    if row.generate is not None:
                        self.say(row, finish="cancelled")
                self.answer([row for row in rows if row.generate is None])
            case TenantShares():
                self.shares.append(frame)
            case Control():
                # Asked every second, whatever else happens.
                if frame.op != "pins":
                    self.controls.append(frame)
                if frame.op not in self.silent_on:
                    self.reply(frame)

    def reply(self, control: Control) -> None:
        """Do what a control call asks, and answer it."""
        error: AdamixError | None
        value: Value
        if control.op == "pins":
            error, value = None, sorted(self.pinned)
        elif control.op == "pin" and control.digest not in self.pinned and len(self.pinned) >= self.most_pinned:
            error, value = Overloaded("too many are pinned", reason="TOO_MANY_PINNED"), None
        else:
            error, value = self.control_error, self._act(control)
        wire = None if error is None else WireError.of(error)
        self.emit(Reply(engine_id=ENGINE_ID, generation=self.generation, call=control.call, value=value, error=wire))

    def _act(self, control: Control) -> Value:
        digest = control.digest
        if self.control_error is None and control.op in ("activate", "pin"):
            self.on_device.add(digest)
        match control.op:
            case "pin" if self.control_error is None:
                self.pinned.add(digest)
            case "unpin":
                self.pinned.discard(digest)
            case "unload":
                if not control.is_kept:
                    self.on_device.discard(digest)
                return "store"
            case "residencies":
                return ["device" if asked in self.on_device else "host" for asked in control.digests]
            case "in_use":
                return [asked for asked in control.digests if asked in self.in_use]
            case "report":
                return self.load
            case "lift":
                self.quarantined.pop((control.tenant, digest), None)
                self.tell_quarantined()
        return "device" if digest in self.on_device else "host"

    def tell_quarantined(self) -> None:
        """Say to the front end what is quarantined now."""
        versions = [
            QuarantinedVersion(tenant=tenant, digest=digest, reason=reason)
            for (tenant, digest), reason in self.quarantined.items()
        ]
        self.emit(Quarantined(engine_id=ENGINE_ID, generation=self.generation, versions=versions))

    def answer_all(self) -> None:
        self.answer(list(self.held))

    def answer(self, rows: list[Row]) -> None:
        for row in rows:
            if row.generate is not None:
                for said in self.script(row):
                    self.say(row, *said.tokens, logprobs=said.logprobs, finish=said.finish, error=said.error)
        rows = [row for row in rows if row.generate is None]
        self.held = [row for row in self.held if row not in rows]
        if rows:
            self.emit(
                Emit(
                    engine_id=ENGINE_ID,
                    generation=self.generation,
                    events=[self._event(row, len(rows)) for row in rows],
                    credit_inputs=len(rows),
                    credit_tokens=_num_tokens(rows),
                    queue=self.queue(),
                )
            )

    def say(
        self,
        row: Row,
        *tokens: int,
        logprobs: bytes = b"",
        finish: Ending | None = None,
        error: AdamixError | None = None,
    ) -> None:
        """One event of a held row: tokens, and with `finish` or `error` its end. The first brings the credit of its
        prompt back, the last that of its input.
        """
        seq, num_tokens = self._sent.pop(row.id, (0, 0))
        num_tokens += len(tokens) if finish is None or self.counts_the_end else 0
        is_final = finish is not None or error is not None
        if is_final:
            self.held = [held for held in self.held if held.id != row.id]
        else:
            self._sent[row.id] = seq + 1, num_tokens
        seed = row.generate.sampling.seed if row.generate is not None else None
        ended = (
            None
            if finish is None
            else Finish(reason=finish, num_tokens=num_tokens, cached_tokens=self.cached_tokens, seed=seed or 0)
        )
        event = Event(
            id=row.id,
            seq=seq,
            final=is_final,
            tokens=np.asarray(tokens, dtype="<i4").tobytes(),
            logprobs=logprobs,
            finish=ended,
            error=None if error is None else WireError.of(error),
        )
        self.emit(
            Emit(
                engine_id=ENGINE_ID,
                generation=self.generation,
                events=[event],
                credit_inputs=int(is_final),
                credit_tokens=0 if seq else _num_tokens([row]),
                queue=self.queue(),
            )
        )

    def queue(self) -> QueueState:
        """What waits, as if every tenant were of weight 1 and interactive."""
        tenants: dict[str, int] = {}
        for row in self.held:
            tenants[row.tenant] = tenants.get(row.tenant, 0) + _num_tokens([row])
        return QueueState(
            tokens_per_s=self.tokens_per_s,
            queued_tokens=sum(tenants.values()),
            active_weight=len(tenants),
            tenants=tenants,
        )

    def emit(self, frame: FromEngine) -> None:
        assert self.channel is not None
        self.channel.frames.put_nowait(frame)

    def _event(self, row: Row, num_rows: int) -> Event:
        error = self.fail(row)
        if error is not None:
            return Event(id=row.id, error=WireError.of(error))
        logits = np.arange(self.widths.get(row.digest, 3), dtype="<f4") * (len(row.token_ids) // 4)
        timing = Timing(queue_s=0.001, compute_s=0.002, batch_requests=num_rows, batch_tokens=7, batch_tasks=1)
        return Event(id=row.id, payload=logits.tobytes(), timing=timing)


def _num_tokens(rows: list[Row]) -> int:
    return sum(len(row.token_ids) // 4 for row in rows)


class FakeChannel:
    """The front end's end. A frame that is an exception is raised: the connection breaks."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.frames: asyncio.Queue[FromEngine | Exception] = asyncio.Queue()
        self.closed = False

    async def send(self, frame: ToEngine) -> None:
        self._engine.take(frame)

    async def receive(self) -> FromEngine:
        frame = await self.frames.get()
        if isinstance(frame, Exception):
            raise frame
        return frame

    def close(self) -> None:
        self.closed = True

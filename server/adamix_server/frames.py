"""The frames that pass between processes: plain data, tagged, msgpack on the wire.

Front end <-> engine: `Hello Submit Cancel Emit Credit Control Reply`. Child <-> supervisor: `Start Ready Fatal EngineUp
EngineDown Seen Refresh Agreed DrainWanted Drain Drained Stats`. A request ends with exactly one event that is `final`;
that event is the only way back up. Times are seconds on CLOCK_MONOTONIC, which all processes of one host share.
"""

from pathlib import Path
from typing import Literal

import msgspec

from adamix.errors import AdamixError, Code
from adamix.manifest import BackboneSpec
from adamix_server.config import EngineSettings, FrontEndSettings, LogLevel


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Root of all frames; the class name is the tag."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine can take at once."""

    max_batch_tokens: int
    max_queue_inputs: int
    max_queue_tokens: int
    slots: int


class Hello(Frame, frozen=True):
    """Engine -> front end, first: who I am. A new generation means every request of the old one is lost."""

    engine_id: str
    generation: int
    spec: BackboneSpec
    limits: Limits
    dtype: str
    device: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One input of one request, tokenised. `token_ids` and `type_ids` are little-endian int32 bytes."""

    id: int
    tenant: str
    digest: str
    token_ids: bytes
    deadline: float
    type_ids: bytes | None = None


class Submit(Frame, frozen=True, kw_only=True):
    """Front end -> engine: all rows that arrived since the last turn of the loop."""

    generation: int
    engine_id: str
    rows: list[Row]


class Cancel(Frame, frozen=True, kw_only=True):
    """Front end -> engine: nobody waits for these any more. Their final event still comes."""

    generation: int
    engine_id: str
    ids: list[int]


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Where one request's time went in the engine, and the batch that answered it."""

    queue_s: float = 0.0
    load_s: float = 0.0
    compute_s: float = 0.0
    batch_requests: int = 0
    batch_tokens: int = 0
    batch_tasks: int = 0


class WireError(msgspec.Struct, frozen=True, kw_only=True):
    """An error of the tree in `adamix.errors`, as data."""

    code: int
    reason: str
    message: str
    field: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: AdamixError) -> "WireError":
        return cls(
            code=int(error.code),
            reason=error.reason,
            message=error.message,
            field=error.field,
            retry_after_s=error.retry_after_s,
        )

    def to_error(self) -> AdamixError:
        error = AdamixError(self.message, reason=self.reason, field=self.field, retry_after_s=self.retry_after_s)
        error.code = Code(self.code)
        return error


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One step of one request's answer: fp32 logits (little-endian bytes) or an error."""

    id: int
    final: bool = True
    payload: bytes = b""
    error: WireError | None = None
    timing: Timing = Timing()


class Emit(Frame, frozen=True, kw_only=True):
    """Engine -> front end: everything one step finished for this front end, and the credit it gives back."""

    generation: int
    engine_id: str
    events: list[Event]
    credit_inputs: int = 0
    credit_tokens: int = 0


class Credit(Frame, frozen=True, kw_only=True):
    """Engine -> front end: how much more may be submitted. Added to what the front end has."""

    generation: int
    engine_id: str
    inputs: int
    tokens: int


# What a front end may ask an engine, besides answers:
#   hello       who are you? Sent once by `channel.connect`, answered by `Hello` and the first `Credit`
#   load        bring an adapter to host memory, and answer when it is there
#   activate    bring it into a slot if one can be had for nothing, and answer where it has come to
#   pin, unpin  pin it in a slot (answers when it is there); unpin it
#   unload      take it out of its slot and out of host memory
#   pins        which adapters are pinned in slots? A list of digests
#   residency   where is it? "store" | "host" | "device"; also the answer of all of the above but `pins`
#   in_use      does any request hold it? A bool
#   report      how busy are you? An `EngineLoad`
Op = Literal["hello", "load", "activate", "pin", "unpin", "unload", "pins", "residency", "in_use", "report"]


class Control(Frame, frozen=True, kw_only=True):
    """Front end -> engine: something other than a request. Answered by the `Reply` with the same `call`."""

    generation: int
    engine_id: str
    call: int
    op: Op
    digest: str = ""


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How busy an engine is. `running_inputs` is the largest batch of the last second."""

    queued_inputs: int
    queued_tokens: int
    running_inputs: int
    resident_adapters: int
    slots: int


Value = str | bool | EngineLoad | list[str] | None


class Reply(Frame, frozen=True, kw_only=True):
    """Engine -> front end. `value` is what `Op` promises, or None."""

    generation: int
    engine_id: str
    call: int
    value: Value = None
    error: WireError | None = None


class Start(Frame, frozen=True, kw_only=True):
    """Supervisor -> child, first: what it needs to know beside its settings.

    `tokenizer` is the path of the `tokenizer.json` without truncation and padding, which the engine writes and front
    ends read.
    """

    store: Path
    tokenizer: Path
    log_level: LogLevel


class StartEngine(Start, frozen=True, kw_only=True):
    """`address` is where to answer, `front_ends` among how many the queue's room is shared."""

    settings: EngineSettings
    engine_id: str
    generation: int
    address: str
    front_ends: int


class StartFrontEnd(Start, frozen=True, kw_only=True):
    """`name` stands in its log lines; `shares_port` says that others bind `listen` too, by SO_REUSEPORT."""

    settings: FrontEndSettings
    name: str
    listen: str
    reflection: bool
    shares_port: bool


class Ready(Frame, frozen=True):
    """Child -> supervisor: I serve. The engine sends its Hello, a front end the address it bound."""

    address: str = ""
    hello: Hello | None = None


class Fatal(Frame, frozen=True):
    """Child -> supervisor: I cannot start, and starting me again will not help. Shown to the operator."""

    message: str


class EngineUp(Frame, frozen=True):
    """Supervisor -> front end: connect here. Sent at start and after every engine restart."""

    address: str
    hello: Hello


class EngineDown(Frame, frozen=True):
    """Supervisor -> front end: this generation of this engine is gone; fail what waits for it."""

    generation: int
    engine_id: str


class Seen(Frame, frozen=True, kw_only=True):
    """Front end -> supervisor: the catalog revision it serves, and the oldest that a running call of it still uses.

    The first one makes a front end a party to every agreement; it is sent before the port is bound.
    """

    revision: int
    oldest: int


class Refresh(Frame, frozen=True, kw_only=True):
    """Supervisor -> front end: the catalog has reached this revision; read it and say `Seen`."""

    revision: int


class Agreed(Frame, frozen=True, kw_only=True):
    """Supervisor -> front end: the smallest `revision` and the smallest `oldest` among all live front ends."""

    revision: int
    oldest: int


class DrainWanted(Frame, frozen=True):
    """Front end -> supervisor: an operator asked this server to drain and end."""


class Drain(Frame, frozen=True):
    """Supervisor -> child: stop taking new work, finish what runs, say `Drained`, exit.

    A front end reports itself unhealthy at once, goes on for `delay_s` (so that load balancers look elsewhere), then
    refuses new calls and gives running ones `grace_s`.
    """

    delay_s: float
    grace_s: float


class Drained(Frame, frozen=True):
    """Child -> supervisor: nothing is left running here."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One metric's change since the last Stats: an increment, a new gauge value, or new observations."""

    name: str
    labels: tuple[str, ...]
    values: list[float]


class Stats(Frame, frozen=True):
    """Child -> supervisor, every second: metric samples. Also the heartbeat of the child's main loop."""

    samples: list[Sample]


AnyFrame = (
    Hello
    | Submit
    | Cancel
    | Emit
    | Credit
    | Control
    | Reply
    | StartEngine
    | StartFrontEnd
    | Ready
    | Fatal
    | EngineUp
    | EngineDown
    | Seen
    | Refresh
    | Agreed
    | DrainWanted
    | Drain
    | Drained
    | Stats
)


def _to_plain(value: object) -> str:
    """Paths travel as text."""
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError


def _from_plain(kind: type, value: str) -> object:
    return kind(value)


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_plain)
_decoder: msgspec.msgpack.Decoder[AnyFrame] = msgspec.msgpack.Decoder(AnyFrame, dec_hook=_from_plain)


def encode(frame: AnyFrame) -> bytes:
    return _encoder.encode(frame)


def decode(data: bytes) -> AnyFrame:
    """Raises msgspec.DecodeError or ValidationError on bytes that are no frame."""
    return _decoder.decode(data)

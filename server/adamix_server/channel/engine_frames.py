"""The frames between a front end and an engine: plain data, tagged, msgpack on the wire.

A request ends with exactly one event that is `final`; that event is the only way back up. Times are seconds on
CLOCK_MONOTONIC, which all processes of one host share. Which frames go which way is said in `codec.py`.
"""

from typing import Literal

import msgspec

from adamix.errors import AdamixError, Code
from adamix.files.manifest import BackboneSpec
from adamix.generation.sampling import GREEDY, Sampling


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Root of all frames; the class name is the tag."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine can take at once. `arena_bytes`: of all adapters together, so of the largest one, too.

    Of a decoder: it keeps keys and values in `pages` of `page_tokens` tokens each (both 0 on an encoder), and generates
    for at most `max_running` requests at once.
    """

    max_batch_tokens: int
    max_queue_inputs: int
    max_queue_tokens: int
    slots: int
    arena_bytes: int = 1 << 40
    pages: int = 0
    page_tokens: int = 0
    max_running: int = 0


class Hello(Frame, frozen=True):
    """Engine -> front end, first: who I am. A new generation means every request of the old one is lost."""

    engine_id: str
    generation: int
    spec: BackboneSpec
    limits: Limits
    dtype: str
    device: str
    quantize: str = "none"


class GenerateParams(msgspec.Struct, frozen=True, kw_only=True):
    """How a row is gone on with. The front end has checked that all of it is in range.

    Attributes:
        max_new_tokens: with the row's tokens no more than fit into the window and into all pages together.
        sampling: without a seed the engine draws one.
        eos_ids: tokens that end the text, and are no part of it; `stop_ids` those of this request alone.
        ignore_eos: go on behind a token of `eos_ids`.
        logprobs: how many alternatives are reported of each token; None reports no probabilities at all.
    """

    max_new_tokens: int
    sampling: Sampling = GREEDY
    eos_ids: list[int] = []
    stop_ids: list[int] = []
    ignore_eos: bool = False
    logprobs: int | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One input of one request, tokenised. `token_ids` and `type_ids` are little-endian int32 bytes.

    With `generate` it is answered by tokens, else by its head's outputs. An empty `digest` is the backbone alone.
    """

    id: int
    tenant: str
    digest: str
    token_ids: bytes
    deadline: float
    type_ids: bytes | None = None
    generate: GenerateParams | None = None


class TenantShare(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant is among others, as in `access.quotas.Shares`."""

    tenant: str
    weight: int
    service_class: Literal["interactive", "batch"]


class TenantShares(Frame, frozen=True, kw_only=True):
    """Front end -> engine: all tenants that are not of weight 1 and interactive. Replaces what was said before."""

    generation: int
    engine_id: str
    shares: list[TenantShare]


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


class QueueState(msgspec.Struct, frozen=True, kw_only=True):
    """What waits in the engine, of all front ends, and how fast it gets done: for estimates of how long that takes.

    Attributes:
        tokens_per_s: by the engine's own measurement; 0 if it has not measured yet.
        queued_tokens: all of them.
        batch_tokens: those of tenants of the class `batch`.
        active_weight: of all tenants that have something queued, together.
        tenants: queued tokens of each tenant that this front end has rows of; if there are many, only of those of which
            some have just ended.
    """

    tokens_per_s: float = 0.0
    queued_tokens: int = 0
    batch_tokens: int = 0
    active_weight: float = 0.0
    tenants: dict[str, int] = {}


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """How a text ended.

    Attributes:
        reason: at an end of text, at a token of `stop_ids`, at `max_new_tokens`, or because nobody waits.
        num_tokens: generated, the token that ended it not included.
        cached_tokens: of the prompt, that had been computed before.
        seed: by which it was drawn.
    """

    reason: Literal["eos", "stop", "length", "cancelled"]
    num_tokens: int
    cached_tokens: int
    seed: int


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One step of one request's answer: fp32 logits (little-endian bytes), tokens, or an error.

    Attributes:
        seq: counts the events of a row from 0.
        final: nothing comes after it for this row. Of a row that is not generated, every event is.
        tokens: generated since the last event, little-endian int32.
        logprobs: if asked for, (1 + alternatives) pairs of little-endian (int32 token, fp32 logarithm of its
            probability) for each of them: the token itself, then the likeliest ones.
        finish: in the final event of a text.
    """

    id: int
    seq: int = 0
    final: bool = True
    payload: bytes = b""
    tokens: bytes = b""
    logprobs: bytes = b""
    finish: Finish | None = None
    error: WireError | None = None
    timing: Timing = Timing()


class Emit(Frame, frozen=True, kw_only=True):
    """Engine -> front end: everything one step finished for this front end, and the credit it gives back."""

    generation: int
    engine_id: str
    events: list[Event]
    credit_inputs: int = 0
    credit_tokens: int = 0
    queue: QueueState = QueueState()


class QuarantinedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that is not run for a tenant, and the reason of its last failure."""

    tenant: str
    digest: str
    reason: str


class Quarantined(Frame, frozen=True, kw_only=True):
    """Engine -> front end: all that is quarantined. Sent before the first credit, and whenever it changes."""

    generation: int
    engine_id: str
    versions: list[QuarantinedVersion]


class Credit(Frame, frozen=True, kw_only=True):
    """Engine -> front end: how much more may be submitted. Added to what the front end has."""

    generation: int
    engine_id: str
    inputs: int
    tokens: int
    queue: QueueState = QueueState()


# What a front end may ask an engine, besides answers:
#   hello       who are you? Sent once by `channel.connect`, answered by `Hello` and the first `Credit`
#   load        bring an adapter to host memory, and answer when it is there
#   activate    bring it into a slot if one can be had for nothing, and answer where it has come to
#   pin, unpin  pin it in a slot (answers when it is there); unpin it
#   unload      take it out of its slot and out of host memory; for a tenant, unless another one needs it (`is_kept`, or
#               by what is queued), which changes nothing in the answer
#   pins        which adapters are pinned in slots? A list of digests
#   residencies where is each of `digests`, as far as the tenant knows it by what it did? "store" | "host" | "device" in
#               their order; one of these is also the answer of all of the above but `pins`
#   in_use      which of `digests` does any request hold? A list of digests
#   lift        end the quarantine of an adapter for the tenant, if there is one
#   report      how busy are you? An `EngineLoad`
Op = Literal["hello", "load", "activate", "pin", "unpin", "unload", "pins", "residencies", "in_use", "lift", "report"]


class Control(Frame, frozen=True, kw_only=True):
    """Front end -> engine: something other than a request. Answered by the `Reply` with the same `call`.

    What is asked of many adapters is one question, since each frame costs the engine a part of a step. `tenant` is who
    asks, for its version with the bytes; empty for the server itself. `is_kept` is for `unload` alone.
    """

    generation: int
    engine_id: str
    call: int
    op: Op
    digest: str = ""
    digests: list[str] = []
    tenant: str = ""
    is_kept: bool = False


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How busy an engine is. `running_inputs` is the largest batch of the last second, `used_pages` those that hold
    something that is needed now."""

    queued_inputs: int
    queued_tokens: int
    running_inputs: int
    resident_adapters: int
    slots: int
    used_pages: int = 0


Value = str | bool | EngineLoad | list[str] | None


class Reply(Frame, frozen=True, kw_only=True):
    """Engine -> front end. `value` is what `Op` promises, or None."""

    generation: int
    engine_id: str
    call: int
    value: Value = None
    error: WireError | None = None

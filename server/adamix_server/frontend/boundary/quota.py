"""A tenant's quotas of what flows: what runs at once, registrations a minute, tokens a second.

Asked of a call before a byte of its message is read, and of its inputs once their tokens are counted. A tenant without
such a quota costs two look-ups. What there is of each, `access/borrowing.py` knows, alone or with a lender. Belongs to
one event loop.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from adamix.errors import QuotaExceeded
from adamix_server import retry
from adamix_server.access.borrowing import Holder, Limit, Part, Refusal, Waiting
from adamix_server.access.leases import Flow, Key
from adamix_server.access.quotas import NO_QUOTAS, Quotas
from adamix_server.access.rights import NEEDS

CALLS, STREAMS, UPLOADS = "concurrent_calls", "concurrent_streams", "concurrent_uploads"
REGISTRATIONS, INPUT_TOKENS, GENERATED_TOKENS = (
    "registrations_per_minute",
    "input_tokens_per_s",
    "generated_tokens_per_s",
)
_MINUTE_S = 60.0
# Of a rate of tokens, what may be taken at once, if nobody said it.
_BURST_S = 1
# What a call takes, until some have been measured; and how much of that is of the newest.
_CALL_S, _NEWEST = 0.1, 0.05

_STREAM_METHODS = (
    "/adamix.v1.InferenceService/PredictStream",
    "/adamix.v1.InferenceService/Generate",
    "/adamix.v1.AdapterService/WatchTasks",
)
_UPLOAD_METHODS = ("/adamix.v1.AdapterService/RegisterAdapter",)
# What methods are charged whose inputs are one admission: while the tenant is in debt with any of it, their messages
# need not be read.
_CHARGES: Mapping[str, tuple[str, ...]] = {
    "/adamix.v1.InferenceService/Predict": (INPUT_TOKENS,),
    "/adamix.v1.InferenceService/Generate": (INPUT_TOKENS, GENERATED_TOKENS),
    "/inference.GRPCInferenceService/ModelInfer": (INPUT_TOKENS,),
}
# Of a tenant's own work. Probes, identities and operators are not counted: no quota locks them out.
_COUNTED_RIGHTS = ("infer", "read", "register", "operate")
_ADMIN = "/adamix.v1.AdminService/"


def _kind(method: str) -> str:
    if method in _UPLOAD_METHODS:
        return UPLOADS
    return STREAMS if method in _STREAM_METHODS else CALLS


# Method -> the quota that it counts as one of.
COUNTED: Mapping[str, str] = {
    method: _kind(method) for method, need in NEEDS.items() if need in _COUNTED_RIGHTS and not method.startswith(_ADMIN)
}


def no_quotas(_tenant: str) -> Quotas:
    """Where nobody has any."""
    return NO_QUOTAS


def nobody() -> None:
    """Where nobody is to be told."""


class Seat:
    """A call that is counted, until it is given back."""

    __slots__ = ("key", "since")

    def __init__(self, key: Key, since: float) -> None:
        self.key = key
        self.since = since


class Reservation:
    """Tokens that a generation may still make.

    Attributes:
        unused: of those that were reserved.
    """

    __slots__ = ("unused",)

    def __init__(self, tokens: int) -> None:
        self.unused = tokens

    def made(self, tokens: int) -> None:
        """So many have come."""
        self.unused = max(self.unused - tokens, 0)


class Quota:
    """What tenants take of their quotas in this front end.

    Args:
        quotas: of a tenant, as they are now.
        holder: what there is of each.
        poke: called after everything that `holder` was asked: it may have something to say.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        quotas: Callable[[str], Quotas] = no_quotas,
        holder: Holder | None = None,
        poke: Callable[[], None] = nobody,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quotas = quotas
        self._holder: Holder = Part() if holder is None else holder
        self._poke = poke
        self._clock = clock
        self._typical_s = dict.fromkeys((CALLS, STREAMS, UPLOADS), _CALL_S)

    async def enter(self, method: str, tenant: str) -> Seat | None:
        """Count a call in.

        Returns:
            what `leave` takes; None where nothing is counted.

        Raises:
            QuotaExceeded: the tenant has as many as it may, or is in debt with its tokens.
        """
        quotas = self._quotas(tenant)
        if quotas is NO_QUOTAS or (counted := COUNTED.get(method)) is None:
            return None
        for name in _CHARGES.get(method, ()):
            self._check(tenant, name, quotas)
        limit: int | None = getattr(quotas, counted)
        seat = None
        if limit is not None:
            key = tenant, counted
            await self._take(key, limit, 1.0, limit)
            seat = Seat(key, self._clock())
        if counted == UPLOADS and (rate := _flow(REGISTRATIONS, quotas)) is not None:
            try:
                await self._take((tenant, REGISTRATIONS), rate, 1.0, quotas.registrations_per_minute or 0)
            except BaseException:
                self.leave(seat, is_refused=True)
                raise
        return seat

    def leave(self, seat: Seat | None, *, is_refused: bool = False) -> None:
        """Count a call out that `enter` let in. One that was refused all the same does not tell how long calls take."""
        if seat is None:
            return
        now, counted = self._clock(), seat.key[1]
        if not is_refused:
            self._typical_s[counted] += _NEWEST * (now - seat.since - self._typical_s[counted])
        self._holder.give(seat.key, 1.0, now)
        self._poke()

    def is_charged(self, tenant: str) -> bool:
        """Whether input tokens of a tenant are to be charged."""
        return self._quotas(tenant).input_tokens_per_s is not None

    async def charge(self, tenant: str, tokens: int) -> None:
        """Charge the inputs of one call, or one of a stream. Raises QuotaExceeded."""
        quotas = self._quotas(tenant)
        if tokens and (rate := _flow(INPUT_TOKENS, quotas)) is not None:
            await self._take((tenant, INPUT_TOKENS), rate, tokens, quotas.input_tokens_per_s or 0)

    def refund(self, tenant: str, tokens: int) -> None:
        """Inputs that were charged were not admitted after all."""
        if tokens and self.is_charged(tenant):
            self._holder.give((tenant, INPUT_TOKENS), tokens, self._clock())
            self._poke()

    @asynccontextmanager
    async def reserved(self, tenant: str, tokens: int) -> AsyncIterator[Reservation]:
        """Charge as many generated tokens as there may be; at the end of the block, what is unused is put back.

        Raises:
            QuotaExceeded: the tenant is in debt with them.
        """
        quotas, key, reservation = self._quotas(tenant), (tenant, GENERATED_TOKENS), Reservation(tokens)
        if (rate := _flow(GENERATED_TOKENS, quotas)) is None:
            yield reservation
            return
        await self._take(key, rate, tokens, quotas.generated_tokens_per_s or 0)
        self._holder.reserve(key, tokens)
        try:
            yield reservation
        finally:
            self._holder.settle(key, tokens, reservation.unused, self._clock())
            self._poke()

    async def _take(self, key: Key, limit: Limit, units: float, quota: int) -> None:
        """Raises QuotaExceeded, of a quota of this number."""
        turn = _Turn()
        outcome = self._holder.take(key, limit, units, self._clock(), turn)
        self._poke()
        if outcome is turn:
            outcome = await self._settled(key, units, turn)
        if isinstance(outcome, Refusal):
            raise self._exceeded(key, limit, quota, outcome)

    async def _settled(self, key: Key, units: float, turn: "_Turn") -> Refusal | None:
        """What a lender says. If the caller goes meanwhile, nothing is taken."""
        try:
            await turn.wait()
        except asyncio.CancelledError:
            if not turn.is_settled:
                self._holder.withdraw(key, turn)
            elif turn.outcome is None:
                self._holder.give(key, units, self._clock())
                self._poke()
            raise
        return turn.outcome

    def _check(self, tenant: str, name: str, quotas: Quotas) -> None:
        """Raises QuotaExceeded if nothing is left of a rate, as far as that is known."""
        if (rate := _flow(name, quotas)) is not None:
            key = tenant, name
            refusal = self._holder.look(key, rate, self._clock())
            self._poke()
            if refusal is not None:
                raise self._exceeded(key, rate, getattr(quotas, name), refusal)

    def _exceeded(self, key: Key, limit: Limit, quota: int, refusal: Refusal) -> QuotaExceeded:
        tenant, name = key
        after_s = refusal.retry_after_s
        if after_s is not None and not isinstance(limit, Flow):
            # Nobody knows when one of those that run will end.
            after_s = retry.within(self._typical_s[name])
        used = round(quota * refusal.used)
        return QuotaExceeded.of(name, tenant, limit=quota, used=used, retry_after_s=after_s)


class _Turn(Waiting):
    """A coroutine that waits for a lender."""

    def __init__(self) -> None:
        super().__init__()
        self.is_settled = False
        self.outcome: Refusal | None = None
        # Most turns come at once, and wait for nobody.
        self._settled: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Until it is settled."""
        if not self.is_settled:
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled

    def settle(self, refusal: Refusal | None) -> None:
        self.is_settled, self.outcome = True, refusal
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)


def _flow(name: str, quotas: Quotas) -> Flow | None:
    """A quota that is a rate, as units a second and at once."""
    limit: int | None = getattr(quotas, name)
    if limit is None:
        return None
    if name == REGISTRATIONS:
        return Flow(limit / _MINUTE_S, float(limit), 1.0)
    burst_s = _BURST_S if quotas.burst_s is None else quotas.burst_s
    return Flow(float(limit), float(limit) * burst_s)

"""A front end's part of the engine's queue, and who may have how much of it.

Dynamic thresholds (Choudhury and Hahne 1998): a tenant may hold at most its weight times what is free *then*. Alone it
holds half of the room, of n alike each 1/(n + 1), so whoever comes new finds some, and nobody needs to know who is
active. What it asks for counts as held, since a call may be as large as the room. The shares are kept within one front
end's own credit: thresholds over all of a room whose credit is split would let a flood hold all the credit of the front
end that it comes by.

Pure: knows neither the engine nor a clock. Every amount is in tokens and in inputs, and both have to fit.
"""

from typing import Literal

from adamix_server.access.quotas import Shares

# Heavier tenants would leave newcomers no free room.
MOST_WEIGHT = 8

# That there is no credit for it, whosever it is; or that its tenant or the class of that has its share of the room.
Lack = Literal["", "credit", "share"]


class _Held:
    """What one tenant holds."""

    __slots__ = ("inputs", "is_batch", "tokens")

    def __init__(self) -> None:
        self.tokens = self.inputs = 0
        self.is_batch = False


_NOTHING = _Held()


class Room:
    """Credit that was granted, and what of it is held by whom.

    What is granted is free until it is taken. What is taken ends, and is free again only when it is granted again: who
    grants may keep it, and the room is smaller then.

    Args:
        least_tokens, least_inputs: so much a tenant that holds nothing may always have, if it is free.

    Attributes:
        free_tokens, free_inputs: that nobody holds.
        tokens, inputs: that are held.
    """

    __slots__ = (
        "_batch",
        "_holders",
        "_least_inputs",
        "_least_tokens",
        "free_inputs",
        "free_tokens",
        "inputs",
        "tokens",
    )

    def __init__(self, least_tokens: int, least_inputs: int = 1) -> None:
        self.free_tokens = self.free_inputs = 0
        self.tokens = self.inputs = 0
        self._least_tokens = least_tokens
        self._least_inputs = least_inputs
        # Only those that hold something.
        self._holders: dict[str, _Held] = {}
        # What the tenants of the class `batch` hold together.
        self._batch = _Held()

    def grant(self, tokens: int, inputs: int) -> None:
        """There is so much more room."""
        self.free_tokens += tokens
        self.free_inputs += inputs

    def tokens_of(self, tenant: str) -> int:
        """What a tenant holds."""
        return self._holders.get(tenant, _NOTHING).tokens

    def inputs_of(self, tenant: str) -> int:
        return self._holders.get(tenant, _NOTHING).inputs

    def lack(self, tenant: str, shares: Shares, tokens: int, inputs: int = 1, *, is_shared: bool = True) -> Lack:
        """Why so much more does not fit; empty if it does.

        Args:
            is_shared: whether there is anybody to leave something to. A tenant that is the only one a server knows may
                have all of it: for whom half of it would be kept cannot come.
        """
        free_tokens, free_inputs = self.free_tokens, self.free_inputs
        if tokens > free_tokens or inputs > free_inputs:
            return "credit"
        if not is_shared:
            return ""
        held = self._holders.get(tenant, _NOTHING)
        if not held.inputs and tokens <= self._least_tokens and inputs <= self._least_inputs:
            return ""
        weight = min(shares.weight, MOST_WEIGHT)
        if held.tokens + tokens > weight * (free_tokens - tokens) or held.inputs + inputs > weight * (
            free_inputs - inputs
        ):
            return "share"
        if shares.service_class == "batch" and not self._has_batch_room():
            return "share"
        return ""

    def take(self, tenant: str, shares: Shares, tokens: int, inputs: int = 1) -> None:
        """A tenant holds so much more, which must be free; or less, which is free then, but not nothing."""
        self.free_tokens -= tokens
        self.free_inputs -= inputs
        self.tokens += tokens
        self.inputs += inputs
        if (held := self._holders.get(tenant)) is None:
            held = self._holders[tenant] = _Held()
        is_batch = shares.service_class == "batch"
        if held.is_batch is not is_batch:
            # Its class was changed while it held something.
            sign = 1 if is_batch else -1
            self._batch.tokens += sign * held.tokens
            self._batch.inputs += sign * held.inputs
            held.is_batch = is_batch
        held.tokens += tokens
        held.inputs += inputs
        if is_batch:
            self._batch.tokens += tokens
            self._batch.inputs += inputs

    def end(self, tenant: str, tokens: int, inputs: int = 1) -> None:
        """A tenant holds so much less; whether that is free again, `grant` says."""
        self.tokens -= tokens
        self.inputs -= inputs
        held = self._holders[tenant]
        held.tokens -= tokens
        held.inputs -= inputs
        if held.is_batch:
            self._batch.tokens -= tokens
            self._batch.inputs -= inputs
        if not held.inputs:
            del self._holders[tenant]

    def put_back(self, tenant: str, tokens: int, inputs: int = 1) -> None:
        """What was taken is not used: it is free again."""
        self.end(tenant, tokens, inputs)
        self.grant(tokens, inputs)

    def _has_batch_room(self) -> bool:
        """Whether the class holds less than half of the room. Counting all that is held would shut it out whenever
        there is much to do.
        """
        all_tokens, all_inputs = self.free_tokens + self.tokens, self.free_inputs + self.inputs
        # A room of inputs alone has no tokens of which anybody could hold half.
        return (2 * self._batch.tokens < all_tokens or not all_tokens) and 2 * self._batch.inputs < all_inputs

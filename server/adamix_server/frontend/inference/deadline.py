"""How long an input will wait for its answer: whether its deadline can be met, and when to come again if not.

Pure: numbers in, seconds out. Knows neither frames nor a clock.
"""

import msgspec

# Whoever comes after it and goes before it makes it longer than what waits now says.
MARGIN = 1.5
# The rest of the batch that runs, and its own.
BATCHES = 1.5


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """What is before one tenant's next input, in tokens.

    Attributes:
        queued: that wait, of all whose turn may come before this tenant's.
        before: of those, what has its turn before all of this tenant's class.
        own: of those, the tenant's.
        busy: that wait or run, of everybody.
        batch: of a full batch.
        active_weight: of all tenants that have something queued, this one among them or not.
        weight: of this one.
        tokens_per_s: what is computed in a second; 0 if nobody knows.
    """

    queued: float
    before: float = 0.0
    own: float
    busy: float
    batch: float
    active_weight: float
    weight: float
    tokens_per_s: float

    @property
    def ahead(self) -> float:
        """Tokens that are computed before the next one of this tenant.

        Its own, and what the others are given while those are computed; never more than there is. Its own and its
        share of the queue ("own + queued / tenants") would be far too much for who asks for little: beside a flood of
        eight seconds, every call that has one second would be refused, each of which is answered after two batches.
        """
        return min(self.queued, self.before + self.own * max(self.active_weight / self.weight, 1.0))

    def wait_s(self, size: float) -> float | None:
        """Seconds until an input of `size` tokens, or the last of inputs of so many, is answered; None if unknown.

        Of the batches' time no more than there is work for: who finds nothing to wait for is answered in a batch of
        its own size.
        """
        if self.tokens_per_s <= 0:
            return None
        batches = BATCHES * min(self.batch, self.busy + size)
        return (MARGIN * (self.ahead + size) + batches) / self.tokens_per_s

    def drained_s(self, tokens: float) -> float | None:
        """Seconds until so many tokens less of this tenant's wait; None if unknown."""
        if self.tokens_per_s <= 0:
            return None
        return tokens * max(self.active_weight / self.weight, 1.0) / self.tokens_per_s

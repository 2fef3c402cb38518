"""Two service classes share a device: `batch` takes what `interactive` leaves, and is owed a part of all tokens. Pure.

In a batch, what the batch class is owed comes first, then interactive work, then the batch class again. While
interactive work came lately, batches end where they are still short, so that what comes next waits little.
"""

from collections.abc import Callable

from adamix_server.engine.fair import Chosen, FairQueue

# While interactive work came lately, a batch of the batch class has so many tokens, and up to half as many where
# interactive work is in it. So a call that comes now waits about one batch of 256 tokens longer than alone; with 256 in
# both cases it was half as long again.
BETWEEN_TOKENS = 256
BESIDE_TOKENS = BETWEEN_TOKENS // 2
# What the batch class is owed of all tokens, while it has something to do. It is promised a twentieth; since it gets
# that in pieces, a little more keeps the promise also in a few seconds.
OWED = 0.055
# What is owed is given in pieces of so many tokens: one short text of one more adapter in every batch would cost more.
_OWED_PIECE = 64


class ServiceClasses:
    """The requests of both classes that could run now."""

    def __init__(self) -> None:
        self.interactive, self.batch = FairQueue(), FairQueue()
        # To the batch class: given as soon as it is a piece, so that it never becomes a burst; nothing while none of it
        # could run. Below 0: a piece was longer than what was owed.
        self._owed = 0.0

    def fill(self, chosen: Chosen, budget: int, *, is_interactive_lately: bool) -> None:
        """Fill an empty batch with up to `budget` tokens of both classes.

        Args:
            is_interactive_lately: interactive work has arrived within the last second.
        """

        def fill(queue: FairQueue, limit: int, budget: int) -> int:
            queue.fill(chosen, limit, budget)
            return chosen.tokens

        self.divide(fill, budget, is_interactive_lately=is_interactive_lately)

    def divide(
        self,
        fill: Callable[[FairQueue, int, int], int],
        budget: int,
        *,
        is_interactive_lately: bool,
        begun: tuple[int, int] = (0, 0),
    ) -> None:
        """Fill a batch with up to `budget` tokens of both classes, in turns of `fill`.

        Args:
            fill: takes out of one queue until the batch has `limit` tokens, and no more than `budget`; called with
                both. The tokens that the batch has then.
            is_interactive_lately: interactive work has arrived within the last second.
            begun: tokens of interactive work, and of the batch class, that the batch has before.
        """
        filled = sum(begun)
        if not self.batch.is_active:
            filled = fill(self.interactive, budget, budget)
            self._owed = min(self._owed + OWED * filled, 0.0)
            return
        self._owed = max(self._owed - begun[1], min(self._owed, 0.0))
        if self._owed >= _OWED_PIECE:
            before = filled
            filled = fill(self.batch, min(before + int(self._owed), budget), budget)
            self._owed -= filled - before
        before = filled
        filled = fill(self.interactive, budget, budget)
        if filled > before:
            budget = min(budget, BESIDE_TOKENS)
        elif is_interactive_lately:
            budget = min(budget, BETWEEN_TOKENS)
        before = filled
        filled = fill(self.batch, budget, budget)
        # What nobody else wanted pays a debt off, and makes none.
        self._owed = max(self._owed - (filled - before), min(self._owed, 0.0)) + OWED * filled

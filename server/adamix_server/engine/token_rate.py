"""How many tokens a second an engine computes, by what its batches took. Pure: no clock, no device.

Kept as the seconds of one token, because waits are sums of those: an average over tokens of their seconds is what a
queue of tokens will take, which an average of rates is not.
"""

# Of most engines.
HALF_LIFE_TOKENS = 8192


class TokenRate:
    """The rate of one engine when it has enough to do.

    Args:
        tokens_per_s: the first value; what a warm-up has shown. Above 0.
        full_tokens: of a full batch. One less than half full says little of how fast the engine is when it has enough
            to do, and is left out, unless there was more to do.
        half_life_tokens: after so many what was measured before them counts half.
    """

    def __init__(self, tokens_per_s: float, full_tokens: int, half_life_tokens: int = HALF_LIFE_TOKENS) -> None:
        if not tokens_per_s > 0:
            raise ValueError(f"an engine that computes {tokens_per_s} tokens a second computes none")
        self._token_s = 1.0 / tokens_per_s
        self._half_full = full_tokens / 2
        self._half_life_tokens = half_life_tokens
        # Of steps by which no token left the queue, though some waited there.
        self._empty_s = 0.0

    @property
    def tokens_per_s(self) -> float:
        return 1.0 / self._token_s

    def add(self, num_tokens: int, seconds: float, *, is_behind: bool = False) -> None:
        """A batch of `num_tokens` took `seconds` from one step's begin to its end.

        `is_behind`: more could have run, and was left for the next batch. Then a step of no tokens at all, in which
        others went on, made it wait, too.
        """
        if (num_tokens < self._half_full and not is_behind) or seconds <= 0:
            self._empty_s = 0.0
            return
        if not num_tokens:
            self._empty_s += seconds
            return
        seconds, self._empty_s = seconds + self._empty_s, 0.0
        kept = 0.5 ** (num_tokens / self._half_life_tokens)
        self._token_s = kept * self._token_s + (1.0 - kept) * (seconds / num_tokens)

    def seconds(self, num_tokens: int) -> float:
        """What so many tokens take."""
        return num_tokens * self._token_s

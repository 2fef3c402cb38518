"""How much front ends may have queued: some seconds of measured work, granted as credit. Pure: no clock, no channel.

What an engine gets done in a second is found out while it runs, so credit follows it: of what comes back with answers
some is withheld, or more is given. Changes that are small beside what there is are not followed.
"""

from adamix_server.channel.channel import Peer

# So many seconds of work may be queued. More would only let callers wait for longer; less would be empty between two
# turns of the front ends.
ROOM_S = 8.0
# An input counts as so many tokens at least: of shorter ones it is their number that takes the time.
TOKENS_PER_INPUT = 8
# A room that would change by less than this share stays as it is.
_SMALL_CHANGE = 0.1
# Front ends that went away are not heard of again, and are forgotten when there are so many that were heard of later.
_MOST_PEERS = 256


class QueueRoom:
    """The room of one engine's queue, shared out evenly.

    Args:
        max_inputs: the most, however fast the engine is, and `max_tokens`. Of all front ends together.
        max_text_tokens: of one text. A front end that could not send one would refuse it for ever.
        front_ends: how many share the room.
        tokens_per_s: measured.
        max_running: inputs that run for long, and have no tokens in the queue by then. There is room for as many behind
            them, whatever their tokens are, or a slow text would keep places from others that are free.
    """

    def __init__(
        self,
        *,
        max_inputs: int,
        max_tokens: int,
        max_text_tokens: int,
        front_ends: int,
        tokens_per_s: float,
        max_running: int = 0,
    ) -> None:
        self._max_inputs = max_inputs
        self._max_tokens = max_tokens
        self._max_text_tokens = max_text_tokens
        self._front_ends = front_ends
        self._max_running = max_running
        self._tokens = self._wanted(tokens_per_s)
        # Inputs and tokens that each front end may have queued, by what it was told.
        self._granted: dict[Peer, tuple[int, int]] = {}

    @property
    def part(self) -> tuple[int, int]:
        """The inputs and tokens that one front end may have queued."""
        queued = max(int(self._tokens / TOKENS_PER_INPUT), self._max_running)
        inputs = min(self._max_running + queued, self._max_inputs) // self._front_ends
        return max(inputs, 1), max(int(self._tokens) // self._front_ends, self._max_text_tokens)

    def follow(self, tokens_per_s: float) -> None:
        """The engine is so fast now."""
        wanted = self._wanted(tokens_per_s)
        if abs(wanted - self._tokens) > _SMALL_CHANGE * self._tokens:
            self._tokens = wanted

    def grant(self, peer: Peer) -> tuple[int, int]:
        """The first credit of a front end: inputs and tokens."""
        self._granted[peer] = self.part
        if len(self._granted) > _MOST_PEERS:
            del self._granted[next(iter(self._granted))]
        return self._granted[peer]

    def give_back(self, peer: Peer, inputs: int, tokens: int) -> tuple[int, int]:
        """The credit that goes back to a front end for so much that is no longer queued or running."""
        if (granted := self._granted.get(peer)) is None:
            return inputs, tokens
        part = self.part
        now = _towards(granted[0], part[0], inputs), _towards(granted[1], part[1], tokens)
        # To the end: who is heard of is not the one to be forgotten.
        del self._granted[peer]
        self._granted[peer] = now
        return inputs + now[0] - granted[0], tokens + now[1] - granted[1]

    def _wanted(self, tokens_per_s: float) -> float:
        return min(ROOM_S * tokens_per_s, float(self._max_tokens))


def _towards(granted: int, wanted: int, back: int) -> int:
    """What is granted after `back` of it has come back: no more than that can be withheld."""
    return max(wanted, granted - back)

"""Room for answers that are put together from several calls, or kept whole while they are generated.

What one call takes and answers the boundary bounds; here is what of them is kept until the last has been read by its
client, with what the calls that are still to be made will take. No tenant has more than half of it. Knows sizes and
tenants; neither calls nor requests.
"""

from collections import Counter
from collections.abc import Callable

from adamix.errors import InvalidRequest, Overloaded
from adamix_server import retry
from adamix_server.limits.calls import SLOW_READER_S
from adamix_server.limits.open_ai import ANSWERS_BYTES, MAX_ANSWER_BYTES

# Of a value as JSON, and of the probability of a token with its name.
VALUE_BYTES = 12
LOGPROB_BYTES = 128


def no_room() -> None:
    """Gives back what was never taken."""


class AnswerRoom:
    """The room of one front end. Belongs to one event loop."""

    def __init__(self, most: int = ANSWERS_BYTES) -> None:
        self._most = most
        self._held: Counter[str] = Counter()

    def take(self, tenant: str, num_bytes: int, instead: str, field: str, asked: int = 0) -> Callable[[], None]:
        """Room for an answer; what is returned gives it back, once.

        Args:
            asked: bytes of what is kept of the request until its calls are made, which take room as well.
            instead: what one may ask for in place of a larger one.
            field: to blame for it.

        Raises:
            InvalidRequest: no answer is as large (`ANSWER_TOO_LARGE`).
            Overloaded: others have the room now (`BYTES_IN_FLIGHT`).
        """
        if num_bytes > MAX_ANSWER_BYTES:
            raise InvalidRequest(
                f"the answer may have {num_bytes >> 20} MiB, and no answer has more than {MAX_ANSWER_BYTES >> 20}; "
                f"{instead}",
                reason="ANSWER_TOO_LARGE",
                field=field,
            )
        num_bytes += asked
        if self._held[tenant] + num_bytes > self._most // 2 or self._held.total() + num_bytes > self._most:
            raise Overloaded(
                "too many large answers are on their way; try again, or ask for smaller ones",
                reason="BYTES_IN_FLIGHT",
                retry_after_s=retry.within(SLOW_READER_S),
            )
        self._held[tenant] += num_bytes
        left = [num_bytes]

        def give() -> None:
            if left:
                self._held[tenant] -= left.pop()
                if not self._held[tenant]:
                    del self._held[tenant]

        return give

"""Texts that end an answer: what comes before the first of them may be said, it itself and what follows may not.

Texts come in parts, cut anywhere. Of each part what could still be the beginning of a stop is kept back until more is
known. Knows neither tokens nor requests.
"""

from collections.abc import Sequence


class Stops:
    """One text and what ends it.

    The stop that counts is the one that is complete first; of several that are complete with the same character, the
    longest. So a text ends at the same place however it was cut.

    Attributes:
        is_hit: a stop has come; nothing is said any more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.is_hit = False
        self._stops = tuple(stops)
        self._beginnings = frozenset(stop[:length] for stop in stops for length in range(1, len(stop)))
        self._longest = max((len(stop) for stop in stops), default=1) - 1
        self._kept = ""

    def feed(self, text: str) -> str:
        """What may be said, now that this has come."""
        if not self._stops or self.is_hit:
            return "" if self.is_hit else text
        text = self._kept + text
        # Where each stop ends, and where it begins.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.is_hit, self._kept = True, ""
            return text[: min(found)[1]]
        said = len(text)
        for length in range(min(self._longest, said), 0, -1):
            if text[said - length :] in self._beginnings:
                said -= length
                break
        self._kept = text[said:]
        return text[:said]

    def rest(self) -> str:
        """What was kept back, now that nothing more comes."""
        kept, self._kept = self._kept, ""
        return kept

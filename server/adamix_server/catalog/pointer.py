"""What answers a task now, and what answered it before: plain values, no database.

A *split* is the set of versions that share a task's traffic, with their weights; most splits hold one version.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Self

import msgspec

from adamix.errors import FailedPrecondition, InvalidRequest
from adamix_server.limits.control import MAX_EARLIER, MAX_TRAFFIC_SHARES, MAX_TRAFFIC_WEIGHT
from adamix_server.names import check_digest

Split = tuple[tuple[str, int], ...]

_encoder = msgspec.json.Encoder()
_split_decoder = msgspec.json.Decoder(Split)
_earlier_decoder = msgspec.json.Decoder(tuple[Split, ...])


def check_split(shares: Iterable[tuple[str, int]]) -> Split:
    """The split in its one order (by digest). Raises InvalidRequest unless it has 1..16 versions, each once."""
    # A message holds two million: no more are looked at than it takes to see that there are too many.
    split = tuple(islice(shares, MAX_TRAFFIC_SHARES + 1))
    if not 1 <= len(split) <= MAX_TRAFFIC_SHARES:
        raise InvalidRequest(
            f"traffic must name 1 to {MAX_TRAFFIC_SHARES} versions", reason="TRAFFIC_INVALID", field="traffic"
        )
    for index, (digest, weight) in enumerate(split):
        check_digest(digest, f"traffic[{index}].digest")
        if not 1 <= weight <= MAX_TRAFFIC_WEIGHT:
            raise InvalidRequest(
                f"a traffic weight must be in 1..{MAX_TRAFFIC_WEIGHT}, not {weight}",
                reason="TRAFFIC_INVALID",
                field=f"traffic[{index}].weight",
            )
        if any(digest == other for other, _ in split[:index]):
            raise InvalidRequest(
                "traffic names a version twice", reason="TRAFFIC_INVALID", field=f"traffic[{index}].digest"
            )
    return tuple(sorted(split))


@dataclass(frozen=True)
class Pointer:
    """The live split (empty: nothing is live) and the ones before it, oldest first, at most 32."""

    current: Split = ()
    earlier: tuple[Split, ...] = ()

    def set(self, split: Split) -> "Pointer":
        """Make `split` live. The same split again is the same pointer."""
        if split == self.current:
            return self
        earlier = (*self.earlier, self.current) if self.current else self.earlier
        return Pointer(split, earlier[-MAX_EARLIER:])

    def back(self) -> "Pointer":
        """Undo the last `set`. Raises FailedPrecondition (`NOTHING_EARLIER`)."""
        if not self.earlier:
            raise FailedPrecondition(
                "no earlier version to go back to; set the traffic instead", reason="NOTHING_EARLIER"
            )
        return Pointer(self.earlier[-1], self.earlier[:-1])

    def names(self, digest: str) -> bool:
        """Whether `digest` is live here."""
        return any(name == digest for name, _ in self.current)

    def without(self, digest: str) -> "Pointer":
        """Forget every split that names `digest`; if the live one does, everything.

        An earlier split never becomes live by itself, and two equal neighbours become one, so that `back` always
        changes something.
        """
        if self.names(digest):
            return Pointer()
        kept: list[Split] = []
        for split in self.earlier:
            if all(name != digest for name, _ in split) and kept[-1:] != [split]:
                kept.append(split)
        if kept[-1:] == [self.current]:
            kept.pop()
        return Pointer(self.current, tuple(kept))

    def to_json(self) -> tuple[str, str]:
        """(current, earlier) as the columns of `traffic` hold them."""
        return _encoder.encode(self.current).decode(), _encoder.encode(self.earlier).decode()

    @classmethod
    def from_json(cls, current: str, earlier: str) -> Self:
        return cls(_split_decoder.decode(current), _earlier_decoder.decode(earlier))


def read_split(text: str) -> Split:
    """One split from the column `traffic.current`."""
    return _split_decoder.decode(text)

"""Who has the next slot where tenants ask for more adapters than there are slots. Pure: digests and tenants, no slots.

A tenant with requests for many adapters would fill every slot and the line in front of them, and another's one adapter
would wait for all that the first has queued. So the next slot is for the tenant that has the fewest by its weight; and
if another has so many that it keeps as many as that one will have then, it gives one up at once: its requests wait for
their adapter again.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import chain


def seating(
    waiting: Sequence[str],
    held: Sequence[str],
    tenants_of: Callable[[str], Collection[str]],
    weight_of: Callable[[str], float],
    kept: Collection[str] = (),
) -> tuple[list[str], str | None]:
    """In which order adapters get slots, and which of those that have one gives it up for the first of them, if any.

    Args:
        waiting: adapters without a slot, in the order in which they were asked for. For one tenant it stays that.
        held: those that have a slot, and may lose it; least recently used first.
        tenants_of: who has requests for an adapter. What nobody has requests for is pinned, and comes first.
        kept: those of `held` that are computed with now, and are not given up.
    """
    seats = Counter(chain.from_iterable(map(tenants_of, held)))
    counted, places = seats.copy(), dict[str, float]()
    for digest in waiting:
        place, who = math.inf, None
        for tenant in tenants_of(digest):
            if (next_seat := (counted[tenant] + 1) / weight_of(tenant)) < place:
                place, who = next_seat, tenant
        if who is not None:
            counted[who] += 1
            places[digest] = place
    order = sorted(waiting, key=lambda digest: places.get(digest, 0.0))
    giving_way = None
    if order and (most := places.get(order[0])) is not None:
        for digest in held:
            if digest in kept:
                continue
            # What is left, to whichever of them has the fewest: nobody is to have less than who gets it.
            left = min(((seats[tenant] - 1) / weight_of(tenant) for tenant in tenants_of(digest)), default=-1.0)
            if left > most or (left == most and giving_way is None):
                most, giving_way = left, digest
    return order, giving_way

"""Turns on a made-up clock: a device that takes so long for each batch, and tenants that ask when they would.

Waits are from a call's arrival to the end of its batch.
"""

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from adamix_server.access.quotas import Shares
from adamix_server.channel.engine_frames import Row
from adamix_server.engine.request import Request
from adamix_server.engine.residency.slots import Hold
from adamix_server.engine.scheduler import Scheduler
from adamix_server.engine.token_rate import TokenRate

FULL = 1024
# A batch takes so long, and so much longer for each token: 7,500 tokens a second if it is full.
BATCH_S = 0.005
TOKEN_S = 0.0001285
KNEE = FULL / (BATCH_S + FULL * TOKEN_S)


@dataclass(frozen=True)
class Asker:
    """A tenant that asks as chance has it, from `begin` to `end`.

    `own_room`: as many tokens of it may be queued; what finds no room is refused. `burst`: inputs of a call.
    """

    tenant: str
    tokens_per_s: float
    begin: float = 0.0
    end: float = 30.0
    own_room: int = 10**9
    burst: int = 1
    adapters: int = 1
    sizes: tuple[int, int] = (8, 56)

    def calls(self, rng: random.Random) -> Iterator[tuple[float, str, str, list[int]]]:
        now, size = self.begin, (self.sizes[0] + self.sizes[1]) / 2 * self.burst
        while (now := now + rng.expovariate(self.tokens_per_s / size)) < self.end:
            digest = f"{self.tenant}-{rng.randrange(self.adapters)}"
            yield now, self.tenant, digest, [rng.randint(*self.sizes) for _ in range(self.burst)]


class Device:
    """Runs batches one after another until everything is answered."""

    def __init__(self, *askers: Asker, seed: int = 0) -> None:
        self.scheduler = Scheduler(FULL)
        self.rate = TokenRate(KNEE, FULL)
        # By tenant: (arrival, wait); tokens and when they were done.
        self.waits: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.done: list[tuple[float, str, int]] = []
        # An adapter is not ready before.
        self.ready_at: dict[str, float] = {}
        # Weights and classes from a time on.
        self.shares: list[tuple[float, dict[str, Shares]]] = []
        rng = random.Random(seed)
        self._arriving = heapq.merge(*(asker.calls(random.Random(rng.random())) for asker in askers))
        self._now = 0.0
        self._room = {asker.tenant: asker.own_room for asker in askers}

    def run(self) -> "Device":
        ids = itertools.count()
        arriving = next(self._arriving, None)
        while arriving is not None or len(self.scheduler):
            while arriving is not None and arriving[0] <= self._now:
                at, tenant, digest, sizes = arriving
                if self.scheduler.tokens_by_tenant().get(tenant, 0) + sum(sizes) <= self._room[tenant]:
                    for size in sizes:
                        row = Row(id=next(ids), tenant=tenant, digest=digest, token_ids=bytes(4 * size), deadline=1e9)
                        self.scheduler.add(Request(row, b"peer", arrived=at, hold=Hold(digest, since=at)))
                arriving = next(self._arriving, None)
            while self.shares and self.shares[0][0] <= self._now:
                self.scheduler.set_shares(self.shares.pop(0)[1])
            batch = self.scheduler.next_batch(self._is_ready, self._now, self.rate.tokens_per_s)
            if batch is None:
                self._now = max(self._now + 0.001, min(arriving[0] if arriving else self._now, self._now + 0.05))
                continue
            seconds = BATCH_S + TOKEN_S * batch.num_tokens
            self.rate.add(batch.num_tokens, seconds, is_behind=self.scheduler.is_behind)
            self._now += seconds
            for request in batch.requests:
                self.scheduler.end(request)
                self.waits[request.row.tenant].append((request.arrived, self._now - request.arrived))
                self.done.append((self._now, request.row.tenant, request.num_tokens))
        return self

    def _is_ready(self, digest: str) -> bool:
        return self.ready_at.get(digest, 0.0) <= self._now

    def p99(self, tenant: str, begin: float = 0.0, end: float = 1e9) -> float:
        waits = sorted(wait for at, wait in self.waits[tenant] if begin <= at < end)
        return waits[int(0.99 * len(waits))]

    def longest(self, tenant: str, begin: float = 0.0, end: float = 1e9) -> float:
        return max(wait for at, wait in self.waits[tenant] if begin <= at < end)

    def tokens(self, tenant: str | None = None, begin: float = 0.0, end: float = 1e9) -> int:
        return sum(tokens for at, name, tokens in self.done if begin <= at < end and tenant in (None, name))


VICTIM = Asker("victim", 0.2 * KNEE)


@pytest.mark.parametrize("adapters", [1, 1000])
def test_a_victim_beside_a_flood_waits_two_and_a_half_short_batches_longer(adapters: int) -> None:
    flood = Asker("flood", 10 * KNEE, own_room=30_000, burst=64, adapters=adapters)
    alone, beside = Device(VICTIM).run(), Device(VICTIM, flood).run()
    assert beside.p99("victim") <= alone.p99("victim") + 2.5 * 0.04
    assert beside.tokens("victim", 5, 30) >= 0.98 * alone.tokens("victim", 5, 30)
    assert beside.tokens(None, 5, 30) >= 0.9 * 25 * KNEE


def test_tenants_with_a_backlog_get_their_weights_in_every_five_seconds() -> None:
    askers = [Asker(tenant, 2 * KNEE, own_room=15_000, burst=8, adapters=5) for tenant in ("a", "b", "c")]
    device = Device(*askers)
    device.shares = [(0.0, {"c": Shares(weight=2)})]
    device.run()
    for begin in range(1, 25):
        total = device.tokens(None, begin, begin + 5)
        for tenant, share in (("a", 0.25), ("b", 0.25), ("c", 0.5)):
            assert device.tokens(tenant, begin, begin + 5) == pytest.approx(share * total, rel=0.05)


def test_the_batch_class_has_its_part_of_an_overload_and_interactive_calls_hardly_notice() -> None:
    interactive = Asker("interactive", 5 * KNEE, own_room=20_000, burst=8)
    nightly = Asker("nightly", 5 * KNEE, own_room=20_000, burst=8, sizes=(8, 128))
    device = Device(interactive, nightly)
    device.shares = [(0.0, {"nightly": Shares(service_class="batch")})]
    device.run()
    for begin in range(1, 25):
        assert device.tokens("nightly", begin, begin + 5) >= 0.045 * device.tokens(None, begin, begin + 5)
    assert device.tokens("interactive", 1, 30) >= 0.94 * device.tokens(None, 1, 30)
    # And of a light load it takes what is left.
    light = Asker("interactive", 0.1 * KNEE)
    alone, beside = Device(light).run(), Device(light, nightly)
    beside.shares = [(0.0, {"nightly": Shares(service_class="batch")})]
    beside.run()
    batch_s = BATCH_S + 256 * TOKEN_S
    assert beside.p99("interactive") <= alone.p99("interactive") + batch_s
    assert beside.tokens("nightly", 1, 30) >= 0.5 * 29 * KNEE


# Three tenants that use four fifths of the device between them, one of which then does something.
OTHERS = (Asker("a", 0.25 * KNEE), Asker("b", 0.25 * KNEE))


def longest_of_others(device: Device) -> dict[str, float]:
    return {asker.tenant: device.longest(asker.tenant) for asker in OTHERS}


def test_an_adapter_that_loads_for_two_seconds_makes_nobody_else_wait() -> None:
    loads = Asker("loads", 0.2 * KNEE)
    usual = Device(*OTHERS, loads).run()
    device = Device(*OTHERS, loads)
    device.ready_at["loads-0"] = 2.0
    device.run()
    for tenant, wait in longest_of_others(device).items():
        assert wait <= longest_of_others(usual)[tenant] + 0.5
    # Its own wait for it, and then for what has gathered meanwhile.
    assert device.longest("loads") <= 2.0 + 1.5


def test_a_tenant_that_comes_back_after_a_minute_makes_nobody_wait() -> None:
    back = Asker("back", 3 * KNEE, begin=62.0, end=70.0, own_room=20_000, burst=8)
    others = [Asker(asker.tenant, asker.tokens_per_s, end=70.0) for asker in OTHERS]
    first = Asker("back", 0.5 * KNEE, end=2.0)
    usual, device = Device(*others, first).run(), Device(*others, first, back).run()
    for tenant in ("a", "b"):
        assert device.longest(tenant, 60.0) <= usual.longest(tenant) + 0.5


def test_a_weight_that_rises_a_thousandfold_makes_nobody_wait_who_asks_for_no_more_than_its_share() -> None:
    heavy = Asker("heavy", 0.35 * KNEE, burst=8)
    usual = Device(*OTHERS, heavy).run()
    device = Device(*OTHERS, heavy)
    device.shares = [(10.0, {"heavy": Shares(weight=1000)}), (20.0, {})]
    device.run()
    for tenant, wait in longest_of_others(device).items():
        assert wait <= longest_of_others(usual)[tenant] + 0.5
    assert device.longest("heavy") <= usual.longest("heavy") + 0.5

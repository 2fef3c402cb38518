"""The supervisor lends quotas to front ends, and has back what one held that has ended."""

import asyncio

import pytest

from adamix_server.access.leases import Ask, Flow, Loan
from adamix_server.channel.supervisor_frames import Asks, Loans
from adamix_server.supervisor.lending import Lending
from adamix_testing.stage import Played, StartStage


def slot(number: int = 0, returned: float = 0.0, recalled: int = 0) -> Asks:
    word = Ask(
        tenant="acme",
        quota="concurrent_calls",
        limit=1,
        number=number,
        first=float(number > 0),
        returned=returned,
        recalled=recalled,
    )
    return Asks(asks=[word])


def loans(child: Played) -> list[Loan]:
    return [loan for frame in child.heard if isinstance(frame, Loans) for loan in frame.loans]


async def test_a_slot_goes_from_one_front_end_to_another_and_back_from_one_that_was_killed(
    start_stage: StartStage,
) -> None:
    stage = await start_stage(front_ends=3)
    await stage.until(stage.serving.is_set)
    first, second, third = (stage.children[f"frontend-{number}"][0] for number in range(3))
    first.says.put_nowait(slot(1))
    await stage.until(lambda: bool(loans(first)))
    assert loans(first)[0].lent == 1.0
    # Called back from the first, which has it in use; so nobody has one for the second.
    second.says.put_nowait(slot(2))
    await stage.until(lambda: len(loans(first)) == 2)
    assert loans(first)[1].recall == 1
    first.says.put_nowait(slot(recalled=1))
    await stage.until(lambda: bool(loans(second)))
    assert (loans(second)[0].number, loans(second)[0].lent) == (2, 0.0)
    assert loans(second)[0].opens_at > 0
    # Given back while somebody waits: it is his.
    second.says.put_nowait(slot(3))
    first.says.put_nowait(slot(returned=1.0))
    await stage.until(lambda: len(loans(second)) == 2)
    assert loans(second)[1].lent == 1.0
    second.die()
    third.says.put_nowait(slot(4))
    await stage.until(lambda: bool(loans(third)))
    if not loans(third)[0].lent:  # Asked before the other had ended for certain.
        await stage.until(lambda: len(stage.children["frontend-1"]) == 2)
        third.says.put_nowait(slot(5))
        await stage.until(lambda: len(loans(third)) == 2)
    assert loans(third)[-1].lent == 1.0
    stage.supervisor.stop()
    await stage.ended()


async def test_front_ends_know_which_of_how_many_they_are(start_stage: StartStage) -> None:
    stage = await start_stage(front_ends=2)
    await stage.until(stage.serving.is_set)
    for number in range(2):
        start = stage.children[f"frontend-{number}"][0].start_frame
        assert (start.number, start.front_ends) == (number, 2)  # type: ignore[union-attr] # not of the engine
    one = stage.children["frontend-0"][0]
    rate = Ask(tenant="acme", quota="input_tokens_per_s", limit=Flow(10.0, 10.0), number=1, first=50.0, more=1.0)
    one.says.put_nowait(Asks(asks=[rate, slot(1).asks[0]]))
    await stage.until(lambda: bool(loans(one)))
    # What is said in one turn is one frame.
    assert [loan.lent for loan in loans(one)] == [50.0, 1.0]
    assert sum(isinstance(frame, Loans) for frame in one.heard) == 1
    stage.supervisor.stop()
    await stage.ended()


async def test_what_is_said_of_many_tenants_costs_each_only_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def key(loan: Loan) -> tuple[str, str]:
        nonlocal looks
        looks += 1
        return loan.tenant, loan.quota

    monkeypatch.setattr(Loan, "key", property(key))
    sent: list[tuple[str, Loans]] = []
    lending, number = Lending(lambda name, loans: sent.append((name, loans))), 500
    asks = [
        Ask(tenant=f"t{n}", quota="input_tokens_per_s", limit=Flow(100.0, 100.0), number=1, first=10.0)
        for n in range(number)
    ]
    for _ in range(2):
        lending.take("frontend-0", Asks(asks=asks))
    await asyncio.sleep(0)
    ((name, loans),) = sent
    assert name == "frontend-0"
    assert [(loan.tenant, loan.lent) for loan in loans.loans] == [(f"t{n}", 20.0) for n in range(number)]
    assert looks <= 4 * number

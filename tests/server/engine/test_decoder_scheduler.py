"""A decoder's scheduler: every text comes out as if it were alone, nothing leaks, nothing waits for nothing.

`FakeDecoder` computes what the scheduler says, and checks before each step that it may: see its module.
"""

import random

import pytest

from adamix.errors import InternalError
from adamix_server.access.quotas import Shares
from adamix_server.engine.request import Request, Status
from adamix_testing.paged_texts import PEER, FakeDecoder, text_alone, text_request


def assert_nothing_is_left(decoder: FakeDecoder) -> None:
    scheduler, running = decoder.scheduler, decoder.scheduler._running
    assert len(scheduler) == scheduler.num_running == scheduler.queued_tokens == 0
    assert decoder.pages.num_referenced == 0
    assert not scheduler._sequences
    assert not scheduler._prepared
    assert not scheduler._parked
    assert not scheduler._seatless
    assert not scheduler._classes.interactive.counters
    assert not scheduler._classes.batch.counters
    assert not any((running.seats, running.page_counts, running._sizes, running._by_digest, running.num_seats))
    assert not running.text_adapters


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_each_text_is_what_it_is_alone(seed: int) -> None:
    rng = random.Random(seed)
    ready = {"", "x"}
    decoder = FakeDecoder(
        rng.choice([12, 16, 24, 64, 200]),
        budget=rng.choice([8, 16, 64]),
        max_running=rng.choice([1, 3, 8]),
        chunk=rng.choice([2, 8, 16]),
        is_ready=ready.__contains__,
    )
    decoder.scheduler.max_adapters = rng.choice([None, 1])
    prefix = [rng.randrange(90) for _ in range(12)]
    requests: dict[int, Request] = {}
    for number in range(90):
        prompt = prefix[: rng.randint(0, 12)] + [rng.randrange(90) for _ in range(rng.randint(1, 12))]
        request = text_request(
            number,
            prompt,
            rng.choice([None, 1, 4, 12]),
            tenant=rng.choice("abc"),
            digest=rng.choice(["", "x", "y"]),
            deadline=rng.choice([1e9, rng.uniform(0, 60)]),
        )
        requests[number] = request
        decoder.add(request)
        if rng.random() < 0.5:
            decoder.step()
        decoder.now += 0.5
        gone = decoder.scheduler.expired(decoder.now)
        if rng.random() < 0.2:
            gone += [each for each in [rng.choice(list(requests.values()))] if each not in gone]
        for each in gone:
            if each.status is not Status.ENDED:
                found = decoder.scheduler.find(PEER, each.row.id)
                assert found is each
                decoder.scheduler.end(each)
                del requests[each.row.id]
        if rng.random() < 0.1:
            ready ^= {"x"}
            service_class = rng.choice(("interactive", "batch"))
            decoder.scheduler.set_shares({"a": Shares(weight=rng.randint(1, 9), service_class=service_class)})
    ready |= {"x", "y"}
    decoder.run()
    for number, request in requests.items():
        if request.row.generate is None:
            assert number in decoder.answered
        else:
            assert decoder.texts[number] == text_alone(request)
    assert_nothing_is_left(decoder)


def test_the_mixes_above_meet_what_they_are_to_meet() -> None:
    # What the test above says is worth something only if all of it occurs.
    decoder = FakeDecoder(16, budget=64, max_running=8, chunk=8)
    for number in range(12):
        decoder.add(text_request(number, [*range(12), number], 12, tenant="ab"[number % 2], eos_ids=()))
    decoder.run()
    assert decoder.scheduler.num_preempted > 0
    assert decoder.scheduler.num_cached > 0


@pytest.mark.parametrize("num_texts", [2, 5])
def test_a_pool_too_small_for_all_is_enough_for_each(num_texts: int) -> None:
    decoder = FakeDecoder(pages=11, page_tokens=4, max_running=8)  # one text of 40 tokens
    requests = [text_request(number, [number] * 20, 21, eos_ids=()) for number in range(num_texts)]
    decoder.add(*requests)
    decoder.run()
    assert decoder.scheduler.num_preempted > 0
    assert all(decoder.texts[request.row.id] == text_alone(request) for request in requests)
    assert_nothing_is_left(decoder)


def test_the_oldest_never_gives_way() -> None:
    decoder = FakeDecoder(pages=11, page_tokens=4, max_running=8)
    requests = [text_request(number, [number] * 12, 29, eos_ids=()) for number in range(6)]
    decoder.add(*requests)
    while len(decoder.scheduler):
        oldest = next(iter(decoder.scheduler))
        decoder.step()
        assert oldest.status is not Status.QUEUED
    assert decoder.scheduler.num_preempted > 0


def test_the_oldest_gives_way_to_nobody_s_share() -> None:
    decoder = FakeDecoder(pages=11, page_tokens=4, max_running=8)
    requests = [text_request(number, [number] * 30, 4, tenant=f"t{number}", eos_ids=()) for number in range(2)]
    decoder.add(requests[0])
    decoder.step()
    decoder.add(requests[1])
    decoder.run()
    assert decoder.scheduler.num_preempted == 0
    assert list(decoder.texts) == [0, 1]


def test_pages_are_not_taken_back_as_soon_as_they_were_given() -> None:
    decoder = FakeDecoder(pages=51, page_tokens=4, max_running=8)
    decoder.add(*(text_request(number, [number] * 20, 60, eos_ids=()) for number in range(12)))
    decoder.run()
    assert decoder.scheduler.num_preempted <= 26


def test_what_gave_way_comes_next_among_its_tenant_s() -> None:
    decoder = FakeDecoder(pages=11, page_tokens=4, max_running=2)
    requests = [text_request(number, [number] * 16, 20, eos_ids=()) for number in range(4)]
    decoder.add(*requests)
    decoder.run()
    assert decoder.scheduler.num_preempted > 0
    assert list(decoder.texts) == [0, 1, 2, 3]


def test_a_text_that_does_not_fit_into_all_pages_is_not_taken() -> None:
    decoder = FakeDecoder(pages=5, page_tokens=4)
    scheduler = decoder.scheduler
    assert scheduler.fits(12, 5)  # the last token of a text is never computed
    assert not scheduler.fits(12, 6)
    assert scheduler.fits(16, 0)
    assert not scheduler.fits(17, 0)
    with pytest.raises(InternalError, match="longer than all pages"):
        decoder.add(text_request(0, [1] * 12, 6))
    decoder.add(text_request(1, [1] * 12, 5, eos_ids=()), text_request(2, [1] * 16, None))
    decoder.run()
    assert len(decoder.texts[1]) == 5
    assert decoder.answered == {2}


@pytest.mark.parametrize(
    ("tenant", "digest", "max_new_tokens", "cached"),
    [("t", "d", 4, 8), ("u", "d", 4, 0), ("t", "e", 4, 0), ("t", "", 4, 0), ("t", "d", None, 0)],
)
def test_an_equal_beginning_is_found_by_the_same_tenant_under_the_same_adapter(
    tenant: str, digest: str, max_new_tokens: int | None, cached: int
) -> None:
    decoder = FakeDecoder(page_tokens=4, chunk=64)
    decoder.add(text_request(0, range(11), 4, tenant="t", digest="d"))
    decoder.run()
    decoder.add(text_request(1, [*range(8), 50, 51], max_new_tokens, tenant=tenant, digest=digest))
    [work] = decoder.step()
    assert work.sequence.num_cached == decoder.scheduler.num_cached == cached
    assert work.num_new == 10 - cached


def test_the_last_token_is_always_computed() -> None:
    decoder = FakeDecoder(page_tokens=4, chunk=64)
    for number in range(2):
        decoder.add(text_request(number, range(8), 1))
        [work] = decoder.step()
    assert (work.sequence.num_cached, work.num_new) == (4, 4)


def test_what_was_generated_is_found_again_as_a_prompt() -> None:
    decoder = FakeDecoder(page_tokens=4, chunk=64)
    decoder.add(text_request(0, range(6), 10, eos_ids=()))
    decoder.run()
    decoder.add(text_request(1, [*range(6), *decoder.texts[0], 1], 4))
    [work] = decoder.step()
    assert work.sequence.num_cached == 12  # of 15 tokens that were computed


def test_who_gave_way_was_not_given_what_it_had_computed_itself() -> None:
    decoder = FakeDecoder(pages=64, page_tokens=4, max_running=1, chunk=64)
    request = text_request(0, range(16), 30, tenant="b", eos_ids=())
    decoder.scheduler.set_shares({"b": _batch()})
    decoder.add(text_request(9, [5], 40, tenant="b", eos_ids=()))  # the oldest
    decoder.scheduler._running.max_seats = 2
    decoder.add(request)
    for _ in range(3):
        decoder.step()
    decoder.add(text_request(1, [1, 2, 3], 3, tenant="i", eos_ids=()))
    decoder.step()
    assert request.status is Status.QUEUED
    decoder.run()
    assert decoder.scheduler.num_cached == 0
    assert decoder.texts[0] == text_alone(request)


def test_a_text_that_failed_leaves_nothing_to_be_found() -> None:
    decoder = FakeDecoder(page_tokens=4, budget=4)
    scheduler = decoder.scheduler
    request = text_request(0, range(11), 4)
    decoder.add(request)
    for _ in range(3):
        works = scheduler.next_step(decoder.is_ready, 0.0, 1e6)
        scheduler.take_in(works, {})
    assert works[-1].sequence.num_computed == 11
    scheduler.end(request)
    assert decoder.pages.num_idle == 0
    assert_nothing_is_left(decoder)


def test_what_nobody_references_is_kept_until_its_room_is_needed() -> None:
    decoder = FakeDecoder(pages=9, page_tokens=4, chunk=64)
    decoder.add(text_request(0, range(16), 1))
    decoder.run()
    assert decoder.pages.num_idle == 4
    decoder.add(text_request(1, range(50, 74), 1))  # six pages of eight
    decoder.run()
    decoder.add(text_request(2, [*range(16), 20], 1))
    [work] = decoder.step()
    # The end of what was there is gone, not its beginning, without which nothing is found.
    assert work.sequence.num_cached == 8


@pytest.mark.parametrize("is_running", [False, True])
def test_a_text_can_be_ended_and_expire_at_any_time(is_running: bool) -> None:
    decoder = FakeDecoder()
    requests = [text_request(number, range(9), 20, deadline=5.0 + number, eos_ids=()) for number in range(3)]
    decoder.add(*requests)
    if is_running:
        decoder.step()
    scheduler = decoder.scheduler
    assert scheduler.find(PEER, 1) is requests[1]
    assert (scheduler.sequence_of(requests[1]) is not None) == is_running
    scheduler.end(requests[1])
    assert scheduler.find(PEER, 1) is None
    assert scheduler.sequence_of(requests[1]) is None
    with pytest.raises(InternalError, match="ended twice"):
        scheduler.end(requests[1])
    assert scheduler.expired(4.0) == []
    assert scheduler.expired(10.0) == [requests[0], requests[2]]
    assert scheduler.expired(10.0) == []
    assert [each.row.id for each in scheduler] == [0, 2]
    for request in (requests[0], requests[2]):
        scheduler.end(request)
    assert_nothing_is_left(decoder)


def test_what_runs_counts_and_is_not_queued() -> None:
    decoder = FakeDecoder(max_running=1)
    decoder.add(text_request(0, range(9), 20, digest="d"), text_request(1, range(5), 20, tenant="u", digest="d"))
    scheduler = decoder.scheduler
    assert scheduler.can_run(decoder.is_ready)
    assert (len(scheduler), scheduler.num_running, scheduler.queued_tokens) == (2, 0, 14)
    decoder.step()
    assert (len(scheduler), scheduler.num_running, scheduler.queued_tokens) == (2, 1, 5)
    assert scheduler.tokens_by_tenant() == {"u": 5}
    assert [each.row.id for each in scheduler.of("d")] == [1]
    assert scheduler.tenants_of("d") == {"t", "u"}
    assert scheduler.is_shared
    assert scheduler.can_run(lambda _: False)


def test_adapters_that_are_not_ready_are_waited_for_without_holding_anybody_up() -> None:
    ready: set[str] = set()
    decoder = FakeDecoder(is_ready=ready.__contains__)
    decoder.add(text_request(0, [1], 2, digest="x", eos_ids=()), text_request(1, [1], 2, eos_ids=()))
    assert [work.sequence.request.row.id for work in decoder.step()] == [1]
    decoder.step()
    assert not decoder.step()
    assert not decoder.scheduler.can_run(decoder.is_ready)
    ready.add("x")
    decoder.run()
    assert set(decoder.texts) == {0, 1}


def test_works_of_one_adapter_lie_together() -> None:
    decoder = FakeDecoder()
    decoder.add(*(text_request(number, [1], 3, digest="xyz"[number % 3], eos_ids=()) for number in range(8)))
    for _ in range(2):
        digests = [work.sequence.request.row.digest for work in decoder.step()]
        assert digests == sorted(digests, key="xyz".index)


def test_texts_hold_no_more_adapters_than_they_may() -> None:
    decoder = FakeDecoder(max_running=8)
    decoder.scheduler.max_adapters = 2
    decoder.add(*(text_request(number, [1], 6, digest="xyzx"[number], eos_ids=()) for number in range(4)))
    decoder.add(text_request(4, [1], 6, eos_ids=()))
    digests = {work.sequence.request.row.digest for work in decoder.step()}
    assert digests == {"x", "y", ""}
    decoder.run()
    assert len(decoder.texts) == 5


def test_a_step_with_texts_is_bounded_and_one_without_is_not() -> None:
    decoder = FakeDecoder(pages=2000, page_tokens=16, budget=1024, max_running=64, chunk=64)
    decoder.add(*(text_request(number, [1] * 200, None) for number in range(20)))
    assert sum(work.num_new for work in decoder.step()) == 1024
    decoder.add(text_request(100, [1] * 60, 4, tenant="u", eos_ids=()))
    works = decoder.step()
    assert sum(work.num_new for work in works) == 256
    assert (100, 60) in {(work.sequence.request.row.id, work.num_new) for work in works}
    works = decoder.step()
    assert sum(work.num_new for work in works) == 256
    assert max(work.num_new for work in works) == 64


def test_a_long_prompt_comes_in_chunks_and_shorter_ones_beside_others() -> None:
    decoder = FakeDecoder(pages=200, page_tokens=16, budget=1024, max_running=64, chunk=64)
    decoder.add(text_request(0, [1] * 600, 9, eos_ids=()))
    assert [[work.num_new for work in decoder.step()] for _ in range(4)] == [[256], [256], [88], [1]]
    decoder.add(text_request(1, [2] * 100, 9, eos_ids=()))
    assert [[work.num_new for work in decoder.step()] for _ in range(3)] == [[1, 64], [1, 36], [1, 1]]


def test_a_change_of_class_moves_prompts_that_are_begun() -> None:
    decoder = FakeDecoder(budget=8, chunk=4)
    requests = [text_request(number, range(20), None, tenant="t") for number in range(3)]
    decoder.add(*requests)
    decoder.step()
    for request in requests[1:]:
        decoder.scheduler.end(request)
    decoder.now = 100.0  # the tenant has nothing queued for long, and is forgotten
    decoder.step()
    decoder.scheduler.set_shares({"t": Shares(service_class="batch")})
    assert not decoder.scheduler._classes.interactive.is_active
    decoder.run()
    assert_nothing_is_left(decoder)


def test_a_change_of_class_moves_what_gave_way() -> None:
    decoder = FakeDecoder(pages=11, page_tokens=4)
    requests = [text_request(number, [number] * 12, 29, eos_ids=()) for number in range(3)]
    decoder.add(*requests)
    while not decoder.scheduler.num_preempted:
        decoder.step()
    (waiting,) = (each for each in requests if each.status is Status.QUEUED)
    decoder.now = 100.0  # the tenant has nothing queued that never ran for long, and is forgotten
    decoder.scheduler._tenants.forget(decoder.now)
    decoder.scheduler.set_shares({"t": Shares(service_class="batch")})
    assert not decoder.scheduler._classes.interactive.is_active
    decoder.scheduler.end(waiting)
    decoder.run()
    assert_nothing_is_left(decoder)


def test_what_heads_answer_counts_not_among_the_adapters_of_texts() -> None:
    decoder = FakeDecoder(budget=16, chunk=8)
    decoder.scheduler.max_adapters = 1
    decoder.add(text_request(0, [1] * 40, None, digest="read"))
    decoder.step()
    decoder.add(text_request(1, [2] * 3, 4, digest="written"))
    for number in range(2, 12):
        decoder.add(text_request(number, [number] * 40, None, digest="read"))
    decoder.run()
    assert decoder.first_step[1] <= decoder.first_step[0] + 1
    assert_nothing_is_left(decoder)


def test_a_short_budget_still_gives_every_text_its_token() -> None:
    decoder = FakeDecoder(budget=4, max_running=64, pages=200)
    decoder.add(*(text_request(number, [number, 3], 5, eos_ids=()) for number in range(12)))
    while len(decoder.scheduler):
        texts = [each for each in decoder.scheduler if decoder.scheduler.sequence_of(each)]
        begun = {each.row.id for each in texts if decoder.scheduler.sequence_of(each).num_generated}  # type: ignore[union-attr]
        works = decoder.step()
        assert sum(work.num_new for work in works) <= 4
        assert begun <= {work.sequence.request.row.id for work in works}
    assert len(decoder.texts) == 12


def _batch() -> Shares:
    return Shares(service_class="batch")

"""Tenants beside each other on a decoder: seats, pages and tokens by share, nobody waits for another's long texts."""

import random
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from adamix_server.access.quotas import ServiceClass, Shares
from adamix_server.engine.fair import FairQueue
from adamix_server.engine.precedence import TURN_TOKENS
from adamix_server.engine.prompt_turns import MOST_MISSES, PROMPT_TURN
from adamix_server.engine.request import Request, Status
from adamix_server.engine.sequence import Work
from adamix_server.engine.service_classes import BESIDE_TOKENS, ServiceClasses
from adamix_server.engine.step import MOST_PASSED
from adamix_testing.paged_texts import FakeDecoder, text_request

SEATS = 64
STEP = 256


class Crowd:
    """A decoder of usual size, and tenants that keep so many requests queued as they are told."""

    def __init__(self, pages: int = 4000, max_running: int = SEATS) -> None:
        self.decoder = FakeDecoder(pages, 16, budget=1024, max_running=max_running, chunk=64, is_thorough=False)
        self.random = random.Random(0)
        self.num_requests = 0

    @property
    def seats(self) -> Counter[str]:
        return self.decoder.scheduler._running.seats

    @property
    def page_counts(self) -> Counter[str]:
        return self.decoder.scheduler._running.page_counts

    def add(self, tenant: str, num_prompt: int, num_new: int | None) -> Request:
        prompt = [self.random.randrange(1 << 30) for _ in range(num_prompt)]
        request = text_request(self.num_requests, prompt, num_new, tenant=tenant, eos_ids=(), arrived=self.decoder.now)
        self.num_requests += 1
        self.decoder.add(request)
        return request

    def keep(self, tenant: str, queued: int, make: Callable[[], tuple[int, int | None]]) -> None:
        waiting = sum(each.row.tenant == tenant and each.status is Status.QUEUED for each in self.decoder.scheduler)
        for _ in range(queued - waiting):
            self.add(tenant, *make())

    def step(self, times: int = 1) -> list[Work]:
        works: list[Work] = []
        for _ in range(times):
            self.decoder.now += 0.1
            works = self.decoder.step()
        return works

    def steps_to_first_token(self, request: Request, most: int) -> int:
        began = self.decoder.steps
        while request.row.id not in self.decoder.first_step:
            self.step()
            assert self.decoder.steps - began <= most
        return self.decoder.steps - began

    def share(self, **weights: int) -> None:
        self.decoder.scheduler.set_shares({tenant: Shares(weight=weight) for tenant, weight in weights.items()})

    def classes(self, **classes: ServiceClass) -> None:
        self.decoder.scheduler.set_shares({name: Shares(service_class=each) for name, each in classes.items()})


@pytest.mark.parametrize(
    ("num_prompt", "num_new", "most"),
    [
        (100, 2000, 1),  # all seats are taken, for very long
        (3000, 2000, 1 + PROMPT_TURN // STEP),  # prompts that are begun take every step, for very long
        (200, None, 1),
    ],
)
def test_a_newcomer_has_its_first_token_at_once_beside_a_tenant_that_has_everything(
    num_prompt: int, num_new: int | None, most: int
) -> None:
    crowd = Crowd()
    for _ in range(2 * SEATS):
        crowd.add("hog", num_prompt, num_new)
    crowd.step(40)
    assert crowd.steps_to_first_token(crowd.add("new", 50, 20), most) <= most
    # And it is never put off again.
    began = crowd.decoder.steps
    while len(crowd.decoder.texts.get(crowd.num_requests - 1, [])) < 20:
        crowd.step()
    assert crowd.decoder.steps - began <= 20


def test_a_newcomer_beside_tenants_with_one_long_text_each_waits_for_a_turn_and_not_for_a_text() -> None:
    crowd = Crowd(max_running=8)
    for number in range(8):
        crowd.add(f"t{number}", 20, 4000)
    crowd.step(5)
    first = crowd.add("new", 20, 4000)
    most = TURN_TOKENS // 2 + 2
    assert crowd.steps_to_first_token(first, most) > 1
    # Who gave way has its seat again after a turn of another one.
    gone = next(each for each in crowd.decoder.scheduler if each.status is Status.QUEUED)
    for _ in range(most):
        crowd.step()
        if gone.status is Status.RUNNING:
            break
    assert gone.status is Status.RUNNING
    assert crowd.decoder.scheduler.num_preempted == 2


def test_seats_go_to_and_fro_no_more_once_they_are_shared() -> None:
    crowd = Crowd()
    crowd.share(b=3)
    for tenant in "ab":
        for _ in range(2 * SEATS):
            crowd.add(tenant, 20, 1500)
        crowd.step(30)
    assert crowd.seats == {"a": 16, "b": 48}
    before = crowd.decoder.scheduler.num_preempted
    crowd.step(100)
    assert crowd.seats == {"a": 16, "b": 48}
    assert crowd.decoder.scheduler.num_preempted == before == 48


@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_shared_by_weight_among_tenants_that_want_more(seed: int) -> None:
    rng, crowd = random.Random(seed), Crowd()
    weights = {f"t{number}": rng.choice((1, 1, 2, 4)) for number in range(rng.randint(2, 4))}
    makes: dict[str, Callable[[], tuple[int, int | None]]] = {
        tenant: rng.choice(
            (
                lambda: (rng.randint(16, 112), rng.randint(4, 24)),
                lambda: (rng.randint(16, 400), None),
                lambda: (rng.randint(200, 900), rng.randint(4, 12)),
            )
        )
        for tenant in weights
    }
    crowd.share(**weights)
    before: Counter[str] = Counter()
    for number in range(160):
        for tenant, make in makes.items():
            crowd.keep(tenant, 8, make)
        crowd.step()
        if number == 40:
            before = crowd.decoder.given.copy()
    given = crowd.decoder.given - before
    for tenant, weight in weights.items():
        share = given.total() * weight / sum(weights.values())
        assert abs(given[tenant] - share) <= 2 * PROMPT_TURN + STEP


def test_generated_tokens_count_twice_those_of_a_prompt() -> None:
    crowd = Crowd()
    before: Counter[str] = Counter()
    for number in range(160):
        crowd.keep("reader", 8, lambda: (100, None))
        crowd.keep("writer", 8, lambda: (20, 12))
        crowd.step()
        if number == 40:
            before = crowd.decoder.given.copy()
    given = crowd.decoder.given - before
    assert abs(given["reader"] - given["writer"]) <= PROMPT_TURN + 2 * STEP


def test_pages_are_a_tenant_s_share_and_somebody_else_s_while_it_wants_none() -> None:
    crowd = Crowd(pages=401)
    for _ in range(SEATS):
        crowd.add("hog", 120, 200)
    crowd.step(60)
    assert crowd.page_counts["hog"] > 380
    crowd.share(new=3)
    first = crowd.add("new", 50, 400)
    assert crowd.steps_to_first_token(first, 1) == 1
    for _ in range(SEATS):
        crowd.add("new", 120, 300)
    crowd.step(60)
    # A text of the hog's has 20 pages at most: its share is 100, and texts grow until they end.
    assert crowd.page_counts["new"] > 220
    assert crowd.page_counts["hog"] < 160
    for request in [each for each in crowd.decoder.scheduler if each.row.tenant == "new"]:
        crowd.decoder.scheduler.end(request)
    crowd.step(30)
    assert crowd.page_counts["hog"] > 350


def test_the_class_batch_fills_what_interactive_texts_leave_and_is_not_shut_out() -> None:
    crowd = Crowd()
    crowd.classes(batch="batch")
    for _ in range(3 * SEATS):
        crowd.add("batch", 40, 2000)
    crowd.step(30)
    assert crowd.seats == {"batch": SEATS}
    assert crowd.steps_to_first_token(crowd.add("one", 50, 40), 1) == 1
    for _ in range(3 * SEATS):
        crowd.add("many", 40, 2000)
    crowd.step(30)
    before = crowd.decoder.given.copy()
    crowd.step(80)
    # Some few seats stay, one of them the oldest text's.
    assert 3 <= crowd.seats["batch"] <= 5
    given = crowd.decoder.given - before
    assert 0.045 <= given["batch"] / given.total() <= 0.075


def test_the_class_batch_gets_the_few_seats_that_it_is_owed() -> None:
    crowd = Crowd()
    crowd.classes(batch="batch")
    for _ in range(2 * SEATS):
        crowd.add("many", 40, 3000)
    crowd.step(30)
    assert crowd.seats == {"many": SEATS}
    crowd.add("batch", 20, 200)
    # A piece of what is owed has to come together before.
    crowd.step(30)
    assert crowd.seats["batch"] == 1


def test_requests_that_need_no_seat_pass_those_of_many_tenants_that_wait_for_one() -> None:
    crowd = Crowd(max_running=8)
    for number in range(MOST_MISSES + 50):
        crowd.add(f"t{number}", 20, 1000)
    crowd.step(5)
    assert crowd.decoder.scheduler.num_running == 8
    for _ in range(3):
        crowd.add("classifier", 100, None)
    for _ in range(3):
        crowd.add("t5", 20, None)
    crowd.step(3)
    assert len(crowd.decoder.answered) == 6


def test_prompts_that_are_begun_come_to_their_end_beside_very_many_tenants() -> None:
    crowd = Crowd()
    for number in range(400):
        crowd.add(f"t{number}", 100, 300)
    crowd.step(SEATS * 100 // 100)
    assert len(crowd.decoder.first_step) == SEATS


def test_what_needs_more_pages_than_others_is_not_passed_over_for_ever() -> None:
    decoder = FakeDecoder(pages=9, page_tokens=4, budget=64, max_running=8, chunk=64)
    for number in range(1, 30 + MOST_PASSED):
        # One page each, and never are all of them idle.
        for more in range(2):
            decoder.add(text_request(number + 1000 * more, [number], 3 + more, tenant=f"t{number % 3}", eos_ids=()))
        decoder.step()
        if number == 20:
            decoder.add(text_request(0, range(32), 1, tenant="large", eos_ids=()))
        if number > 20 + MOST_PASSED + 4:
            assert 0 in decoder.texts
    decoder.run()


def test_who_has_its_share_of_pages_does_not_take_those_that_another_waits_for() -> None:
    decoder = FakeDecoder(pages=14, page_tokens=4, budget=64, max_running=8, chunk=64)
    decoder.add(text_request(0, [1] * 32, 8, tenant="hog", eos_ids=()))
    decoder.step()
    # It needs five pages, and four are left beside one for what runs.
    decoder.add(text_request(1, [2] * 20, 2, tenant="new", eos_ids=()))
    decoder.add(*(text_request(number, [number], 40, tenant="hog", eos_ids=()) for number in range(2, 9)))
    decoder.step()
    assert decoder.scheduler.num_running == 1
    decoder.run()
    assert list(decoder.texts)[:2] == [0, 1]


def test_short_texts_beside_long_ones_find_a_seat_without_taking_one_every_time() -> None:
    crowd = Crowd()
    for _ in range(2 * SEATS):
        crowd.add("long", 20, 3000)
    crowd.step(20)
    for _ in range(100):
        crowd.keep("short", 2, lambda: (20, 4))
        crowd.step()
    assert len(crowd.decoder.texts) > 100
    assert crowd.decoder.scheduler.num_preempted < 40


def test_long_prompts_beside_long_texts_find_pages_without_taking_some_every_time() -> None:
    crowd = Crowd(pages=401)
    for _ in range(100):
        crowd.keep("long", 20, lambda: (20, 600))
        crowd.keep("reader", 4, lambda: (400, 4))
        crowd.step()
    # A half, and what texts have grown since they began.
    assert crowd.page_counts["long"] <= 256
    assert crowd.decoder.scheduler.num_preempted < 30


def test_the_first_prompts_are_done_before_the_last_are_begun() -> None:
    crowd = Crowd()
    for number in range(30):
        crowd.add(f"t{number}", 220, 40)
    crowd.step(30)
    assert len(crowd.decoder.first_step) == 30
    assert sum(crowd.decoder.first_step.values()) / 30 < 20


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_idle_while_something_could_run(seed: int) -> None:
    rng = random.Random(seed)
    decoder = _Busy(rng.choice([12, 40, 200]), 4, budget=32, max_running=rng.choice([2, 8]), chunk=8)
    for number in range(80):
        prompt = [rng.randrange(90) for _ in range(rng.randint(1, 20))]
        decoder.add(text_request(number, prompt, rng.choice([None, 4, 12]), tenant=rng.choice("abc"), eos_ids=()))
        if rng.random() < 0.5:
            decoder.step()
    decoder.run()
    assert decoder.num_checked > 0


class _Busy(FakeDecoder):
    """Looks after each step whether it left something that it could have begun with."""

    num_checked = 0

    def check(self, works: Iterable[Work]) -> None:
        works = list(works)
        super().check(works)
        if sum(work.num_new for work in works) >= 32:
            return
        running, pages = self.scheduler._running, self.pages
        spare = (pages.num_available - len(running)) * pages.page_tokens
        if any(request.passed for request in self.scheduler):
            return  # it waits for pages that others may not have before it
        for request in self.scheduler:
            if request.status is not Status.QUEUED or self.scheduler.sequence_of(request) is not None:
                continue
            self.num_checked += 1
            has_seat = request.row.generate is None or running.num_seats < running.max_seats
            assert not has_seat or spare < min(request.num_tokens, 8)


def test_what_the_class_batch_generates_counts_as_what_it_is_owed() -> None:
    def num_pieces(begun: tuple[int, int]) -> int:
        classes, pieces, tokens = ServiceClasses(), 0, 0
        classes.batch.add(text_request(0, [1], 4))

        def fill(queue: FairQueue, limit: int, budget: int) -> int:
            nonlocal pieces, tokens
            if queue is classes.interactive:
                tokens = max(tokens, 200)
            elif limit not in (BESIDE_TOKENS, STEP):
                tokens, pieces = limit, pieces + 1
            return tokens

        for _ in range(100):
            tokens = sum(begun)
            classes.divide(fill, STEP, is_interactive_lately=True, begun=begun)
        return pieces

    assert num_pieces((60, 0)) > 10
    assert num_pieces((40, 20)) == 0

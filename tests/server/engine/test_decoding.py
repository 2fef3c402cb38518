"""A decoder's engine: tokens stream out, what ends gives everything back, and what fails fails alone."""

import random
import threading
import time
from collections import Counter

import pytest

from adamix.errors import Code
from adamix.generation.sampling import Sampling
from adamix_server.channel.engine_frames import EngineLoad
from adamix_testing.paged_texts import EOS, text_alone, text_request
from adamix_testing.text_engine import BROKEN, NOT_FINITE, PEER, TOO_LARGE, Answer, TextEngine

OTHER = b"another front end"
UNREADABLE = "unreadable"


def alone(prompt: list[int], max_new_tokens: int = 8, *, digest: str = "a", tenant: str = "t") -> list[int]:
    """The text without the token that ends it."""
    tokens = text_alone(text_request(0, prompt, max_new_tokens, tenant=tenant, digest=digest))
    return tokens[:-1] if tokens[-1] == EOS else tokens


def prompt_of(seed: int, length: int = 6) -> list[int]:
    """One whose text has a few tokens at least."""
    found = random.Random(seed)
    while True:
        tokens = [found.randrange(80) for _ in range(length)]
        if len(alone(tokens)) > 4:
            return tokens


def test_each_step_gives_a_text_one_token_more() -> None:
    engine, prompt = TextEngine(), prompt_of(0)
    answer = engine.ask(prompt, 5)
    for number in range(1, 6):
        engine.step()
        assert answer.tokens == alone(prompt, 5)[:number]
        assert answer.is_over is (number == 5)
    finish = answer.finish
    assert (finish.reason, finish.num_tokens, finish.seed) == ("length", 5, 1)
    assert all(event.final is (event is answer.events[-1]) for event in answer.events)
    timing = answer.events[-1].timing
    assert timing.batch_requests == timing.batch_tokens == timing.batch_tasks == 1
    assert timing.compute_s > 0
    engine.settle()


def test_a_long_prompt_comes_in_chunks_beside_texts_that_go_on() -> None:
    engine = TextEngine(max_chunk_tokens=4)
    short = engine.ask(prompt_of(0), 12)
    engine.step()
    long = engine.ask(prompt_of(1, length=16))
    engine.step(3)
    assert (len(short.events), len(long.events)) == (4, 0)
    engine.step()
    assert (len(short.events), len(long.events)) == (5, 1)
    engine.settle()
    assert long.tokens == alone(prompt_of(1, length=16))


def test_the_token_that_ends_a_text_is_no_part_of_it() -> None:
    engine, prompt = TextEngine(), prompt_of(0)
    last = alone(prompt, 8)[3]
    place = alone(prompt, 8).index(last)
    ends = engine.ask(prompt, eos_ids=[last], logprobs=0)
    goes_on = engine.ask(prompt, eos_ids=[last], ignore_eos=True)
    stopped = engine.ask(prompt, stop_ids=[last])
    engine.settle()
    assert (ends.finish.reason, stopped.finish.reason) == ("eos", "stop")
    assert ends.tokens == stopped.tokens == alone(prompt)[:place]
    assert ends.finish.num_tokens == stopped.finish.num_tokens == place
    assert len(b"".join(event.logprobs for event in ends.events)) == 8 * place
    assert goes_on.finish.reason == "length"


def test_a_text_without_a_seed_gets_one_and_is_told() -> None:
    engine = TextEngine()
    answers = [engine.ask(prompt_of(0), 1, sampling=Sampling(temperature=1.0)) for _ in range(2)]
    engine.settle()
    seeds = {answer.finish.seed for answer in answers}
    assert len(seeds) == 2


def test_the_events_of_a_step_travel_in_one_frame_a_front_end() -> None:
    engine = TextEngine()
    for number in range(3):
        engine.ask(prompt_of(number), 4)
        engine.ask(prompt_of(number), 4, peer=OTHER)
    engine.step(4)
    assert Counter(peer for peer, _ in engine.emits) == {PEER: 4, OTHER: 4}
    assert all(len(emit.events) == 3 for _, emit in engine.emits)
    engine.settle()


def test_a_prompts_tokens_come_back_with_the_first_event_and_the_input_with_the_last() -> None:
    engine = TextEngine()
    engine.ask(prompt_of(0, length=6), 3)
    engine.ask([1] * 5, None)
    said = []
    for _ in range(3):
        engine.step()
        said.append((engine.emits[-1][1].credit_inputs, engine.emits[-1][1].credit_tokens))
    assert said == [(1, 11), (0, 0), (1, 0)]
    engine.settle()


def test_texts_and_rows_that_a_head_answers_share_steps() -> None:
    engine = TextEngine()
    texts = [engine.ask(prompt_of(number), digest="ab"[number % 2]) for number in range(4)]
    read = [engine.ask(prompt_of(number, length=12), None, digest="ab"[number % 2]) for number in range(4)]
    engine.step()
    assert any(len({work.sequence.params is None for work in works}) == 2 for works in engine.runner.steps)
    engine.settle()
    for number, text in enumerate(texts):
        assert text.tokens == alone(prompt_of(number), digest="ab"[number % 2])
    assert all(len(answer.events) == 1 and len(answer.events[0].payload) == 8 for answer in read)


def test_the_backbone_alone_needs_no_slot() -> None:
    engine = TextEngine(slots=1)
    held = engine.ask(prompt_of(0), 20, digest="a")
    bare = engine.ask(prompt_of(1), digest="")
    engine.settle()
    assert bare.tokens == alone(prompt_of(1), digest="")
    assert held.tokens == alone(prompt_of(0), 20)


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "digest", "code", "reason"),
    [
        ([], 4, "a", Code.INVALID_ARGUMENT, "TEXT_EMPTY"),
        ([1], None, "", Code.FAILED_PRECONDITION, "FAILED_PRECONDITION"),
        ([1] * 65, 64, "a", Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG"),
        ([1] * 129, None, "a", Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG"),
        # Pages for 80 tokens.
        ([1] * 40, 41, "a", Code.RESOURCE_EXHAUSTED, "KV_TOO_SMALL"),
        ([1] * 81, None, "a", Code.RESOURCE_EXHAUSTED, "KV_TOO_SMALL"),
    ],
)
def test_what_can_never_be_answered_is_refused_at_once(
    prompt: list[int], max_new_tokens: int | None, digest: str, code: Code, reason: str
) -> None:
    engine = TextEngine(pages=20)
    engine.introduce()
    before = Counter(engine.credit[PEER])
    answer = engine.ask(prompt, max_new_tokens, digest=digest)
    engine.step()
    (event,) = answer.events
    assert event.error is not None
    assert (event.error.code, event.error.reason, event.error.retry_after_s) == (code, reason, None)
    assert not engine.runner.steps
    given_back = engine.credit[PEER] - before
    assert (given_back["inputs"], given_back["tokens"]) == (1, len(prompt))
    engine.settle()


@pytest.mark.parametrize(("prompt", "max_new_tokens"), [([1] * 40, 40), ([1] * 80, None)])
def test_what_just_fits_is_answered(prompt: list[int], max_new_tokens: int | None) -> None:
    engine = TextEngine(pages=20)
    answer = engine.ask(prompt, max_new_tokens, eos_ids=[])
    engine.settle()
    assert not answer.reason


def test_a_text_that_nobody_waits_for_ends_within_one_step() -> None:
    engine = TextEngine(max_running=2)
    running, other = engine.ask(prompt_of(0), 50), engine.ask(prompt_of(1), 50)
    queued = engine.ask(prompt_of(2), 50)
    engine.step(3)
    assert len(running.events) == 3
    assert not queued.events
    engine.cancel(running, queued)
    engine.step()
    assert running.finish.reason == "cancelled"
    assert running.finish.num_tokens == len(running.tokens) == 3
    assert queued.reason == "CANCELLED"
    assert len(other.events) == 4
    engine.settle()
    assert other.tokens == alone(prompt_of(1), 50)


def test_what_a_dead_front_end_had_asked_for_leaves_its_seats() -> None:
    engine = TextEngine(max_running=2)
    lost = [engine.ask(prompt_of(number), 50, peer=b"dead") for number in range(3)]
    engine.step(3)
    other = engine.ask(prompt_of(3), 5)
    engine.gone.add(b"dead")
    engine.step(8)
    assert not any(each.is_over for each in lost)
    assert other.tokens == alone(prompt_of(3), 5)
    engine.check_empty()


def test_a_deadline_ends_what_waits_and_what_runs() -> None:
    engine = TextEngine(max_running=1)
    running = engine.ask(prompt_of(0), 50, deadline=time.monotonic() + 0.05)
    queued = engine.ask(prompt_of(1), 50, deadline=time.monotonic() + 0.05)
    engine.step(2)
    told = running.tokens
    assert len(told) == 2
    time.sleep(0.06)
    engine.step()
    assert running.reason == queued.reason == "DEADLINE_EXCEEDED"
    assert running.tokens == told
    engine.check_empty()


def test_what_fails_alone_ends_alone_and_its_neighbours_texts_are_as_without_it() -> None:
    engine = TextEngine()
    texts = [engine.ask(prompt_of(number), 6) for number in range(5)]
    engine.step(2)
    broken = engine.ask([1, BROKEN, 2])
    large = engine.ask([1, TOO_LARGE, 2], None)
    engine.step()
    assert (broken.reason, large.reason) == ("INTERNAL", "OVERLOADED")
    assert large.events[0].error is not None
    assert large.events[0].error.retry_after_s is not None
    assert [len(text.events) for text in texts] == [3] * 5
    engine.settle()
    assert [text.tokens for text in texts] == [alone(prompt_of(number), 6) for number in range(5)]


def test_values_that_are_not_finite_end_their_own_text_alone() -> None:
    engine = TextEngine()
    text, spoilt = engine.ask(prompt_of(0)), engine.ask([*prompt_of(1), NOT_FINITE])
    engine.settle()
    assert spoilt.reason == "NON_FINITE_OUTPUT"
    assert spoilt.events[-1].error is not None
    assert spoilt.events[-1].error.code == Code.FAILED_PRECONDITION
    assert text.tokens == alone(prompt_of(0))


@pytest.mark.parametrize(("token", "reason"), [(BROKEN, "INTERNAL"), (NOT_FINITE, "NON_FINITE_OUTPUT")])
@pytest.mark.parametrize("is_well_without_adapter", [True, False])
def test_a_version_whose_texts_fail_again_and_again_is_quarantined(
    token: int, reason: str, *, is_well_without_adapter: bool
) -> None:
    engine = TextEngine(max_running=1)
    engine.introduce()
    engine.runner.is_well_without_adapter = is_well_without_adapter
    for number in range(3):
        failed = engine.ask([number, token])
        engine.settle()
        assert failed.reason == reason
    assert engine.quarantined == (["a"] if is_well_without_adapter else [])
    after = engine.ask(prompt_of(0))
    other = engine.ask(prompt_of(0), tenant="another")
    engine.settle()
    assert after.reason == ("ADAPTER_QUARANTINED" if is_well_without_adapter else "")
    assert other.tokens == alone(prompt_of(0), tenant="another")


def test_what_waits_for_a_version_ends_with_its_quarantine_and_what_runs_goes_on() -> None:
    engine = TextEngine(max_running=4)
    running = engine.ask(prompt_of(0), 20)
    engine.step()
    failing = [engine.ask([number, NOT_FINITE]) for number in range(3)]
    queued = engine.ask(prompt_of(1))
    engine.step()
    assert [answer.reason for answer in (*failing, queued)] == [*["NON_FINITE_OUTPUT"] * 3, "ADAPTER_QUARANTINED"]
    engine.settle()
    assert running.tokens == alone(prompt_of(0), 20)


def test_the_backbone_alone_is_never_quarantined() -> None:
    engine = TextEngine()
    for number in range(5):
        failed = engine.ask([number, NOT_FINITE], digest="")
        engine.settle()
        assert failed.reason == "NON_FINITE_OUTPUT"


def test_an_adapter_that_cannot_be_read_fails_its_own_requests() -> None:
    engine = TextEngine(is_readable=lambda digest: digest != "gone")
    lost, text = engine.ask(prompt_of(0), digest="gone"), engine.ask(prompt_of(1))
    engine.settle()
    assert lost.events[-1].error is not None
    assert lost.events[-1].error.code == Code.DATA_LOSS
    assert text.tokens == alone(prompt_of(1))


def test_a_text_keeps_its_version_while_others_come_and_go() -> None:
    engine = TextEngine(slots=2)
    old = engine.ask(prompt_of(0), 60, digest="old", eos_ids=[])
    for number in range(10):
        engine.step()
        engine.ask(prompt_of(number), 1, digest=f"new-{number}")
    assert engine.control("unload", "old").error is not None
    engine.settle()
    assert len(old.tokens) == 60
    assert old.tokens == text_alone(text_request(0, prompt_of(0), 60, digest="old", eos_ids=[]))


def test_texts_hold_half_of_the_slots_while_another_adapter_waits() -> None:
    engine = TextEngine(slots=4, max_running=8, resident=("text-0", "text-1"), pages=300)
    texts = [engine.ask(prompt_of(number), 100, digest=f"text-{number}", eos_ids=[]) for number in range(2)]
    engine.step(2)
    texts += [engine.ask(prompt_of(number), 100, digest=f"text-{number}", eos_ids=[]) for number in range(2, 8)]
    engine.step(10)
    # Alone those would have all four slots. What is soon done does not wait until they are complete.
    read = [engine.ask([1] * 5, None, digest=f"read-{number}") for number in range(6)]
    for _ in range(40):
        engine.step()
        assert {each.request.row.digest for each in engine.scheduler.running if each.params} == {"text-0", "text-1"}
    assert all(answer.is_over for answer in read)
    assert not any(text.is_over for text in texts)
    engine.settle()
    assert all(len(text.tokens) == 100 for text in texts)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_texts_of_an_adapter_that_is_always_asked_for_do_not_keep_others_out(slots: int) -> None:
    engine = TextEngine(slots=slots, max_running=8, pages=300, resident=("always",))
    others = []
    for number in range(300):
        engine.ask(prompt_of(0), 10, digest="always", eos_ids=[])
        if number == 20:
            others = [engine.ask(prompt_of(1), 10, digest=f"other-{each}", eos_ids=[]) for each in range(5)]
        engine.step()
    assert all(other.is_over for other in others)
    engine.settle()


def test_texts_have_all_slots_while_nothing_waits_for_one() -> None:
    engine = TextEngine(slots=4, max_running=8, pages=300)
    texts = [engine.ask(prompt_of(number), 100, digest=f"text-{number}", eos_ids=[]) for number in range(4)]
    engine.step(10)
    assert all(text.events for text in texts)


def test_another_tenant_does_not_take_the_slot_of_a_text_that_runs() -> None:
    engine = TextEngine(slots=2)
    texts = [engine.ask(prompt_of(number), 30, digest=f"its-{number}", eos_ids=[]) for number in range(2)]
    engine.step(3)
    other = engine.ask(prompt_of(0), 2, digest="only", tenant="another")
    engine.settle()
    assert all(len(text.tokens) == 30 for text in texts)
    assert not other.reason


def test_who_gives_a_slot_up_for_another_tenant_is_one_that_does_not_run() -> None:
    engine = TextEngine(slots=4, max_running=1, resident=("its-0",), pages=100)
    text = engine.ask(prompt_of(0), 100, digest="its-0", eos_ids=[])
    engine.step(2)
    for number in range(1, 4):
        engine.ask(prompt_of(number), 2, digest=f"its-{number}")
    engine.step(5)
    other = engine.ask([1, 2], None, digest="only", tenant="another")
    engine.step(8)
    assert other.is_over
    assert not text.is_over
    engine.settle()


def test_a_slot_that_a_text_holds_is_not_the_one_to_be_closed_for_who_waits() -> None:
    engine = TextEngine(slots=2, resident=("text", "busy"), pages=100, max_batch_tokens=16)
    text = engine.ask(prompt_of(0), 100, digest="text", eos_ids=[])
    engine.step(2)
    for number in range(60):
        # Always more than a step computes.
        for _ in range(2):
            engine.ask([1] * 8, None, digest="busy")
        if number == 5:
            waiting = engine.ask([1, 2], None, digest="waiting")
        engine.step()
    assert waiting.is_over
    assert not text.is_over
    engine.settle()


def test_a_drained_engine_goes_on_until_its_texts_are_complete() -> None:
    engine = TextEngine()
    answers = [engine.ask(prompt_of(number), 20) for number in range(10)]
    engine.step()
    thread = threading.Thread(target=engine.engine.run)
    engine.engine.drain()
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert [answer.tokens for answer in answers] == [alone(prompt_of(number), 20) for number in range(10)]


def test_an_engine_says_what_it_does() -> None:
    engine = TextEngine(pages=16, max_running=4)
    first = engine.ask(prompt_of(0, length=9), 6, eos_ids=[])
    engine.step(2)
    load = engine.control("report").value
    assert isinstance(load, EngineLoad)
    assert (load.running_inputs, load.queued_inputs, load.queued_tokens) == (1, 0, 0)
    assert load.used_pages == engine.pages.num_referenced == 3
    engine.settle()
    engine.samples()
    # The same prompt again: its full pages are there.
    again = engine.ask(prompt_of(0, length=9), 6, eos_ids=[])
    engine.engine._next_stats = 0.0
    engine.settle()
    assert again.tokens == first.tokens
    assert again.finish.cached_tokens == 8
    samples = engine.samples()
    assert samples["adamix_generated_tokens_total",] == 6
    assert samples["adamix_prefix_tokens_total", "hit"] == 8
    assert samples["adamix_prefix_tokens_total", "miss"] == 1
    assert samples["adamix_kv_pages", "used"] == 3
    assert samples["adamix_kv_pages", "used"] + samples["adamix_kv_pages", "idle"] + samples[
        "adamix_kv_pages", "free"
    ] == pytest.approx(16)
    assert samples["adamix_kv_cache_usage_ratio",] == pytest.approx(3 / 16)
    assert samples["adamix_preemptions_total",] == 0


def test_long_texts_make_the_queue_slow_and_not_what_is_computed() -> None:
    engine = TextEngine(max_running=1)
    for number in range(4):
        engine.ask(prompt_of(number), 100, eos_ids=[])
    engine.step(250)
    said = engine.emits[-1][1].queue
    assert said.queued_tokens == 6
    # Or whoever asks next would be refused for the time that those take.
    assert said.tokens_per_s == pytest.approx(1e6)
    assert engine.decoding.leaving_per_s(engine.engine._rate) < 0.9e6
    engine.settle()


def test_texts_that_lose_their_pages_come_to_the_same_end() -> None:
    engine = TextEngine(pages=14, max_running=6)
    answers = [engine.ask(prompt_of(number, length=7), 20, eos_ids=[]) for number in range(6)]
    engine.settle()
    engine.engine._next_stats = 0.0
    engine.step()
    assert engine.samples()["adamix_preemptions_total",] > 0
    for number, answer in enumerate(answers):
        request = text_request(0, prompt_of(number, length=7), 20, digest="a", eos_ids=[])
        assert answer.tokens == text_alone(request)
        assert len(answer.events) == 20


class Traffic:
    """Random requests of several tenants, front ends, adapters and kinds, many of which nobody waits for to the end."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.engine = TextEngine(
            pages=self.random.choice([33, 48, 96]),
            max_running=self.random.choice([2, 8]),
            max_chunk_tokens=self.random.choice([3, 8]),
            slots=self.random.choice([1, 3, 8]),
            is_readable=lambda digest: digest != UNREADABLE,
        )
        # Each with who asks, and its text as it would be alone; None of what is answered by a head.
        self.asked: dict[Answer, tuple[bytes, list[int] | None]] = {}
        self.sent: Counter[tuple[bytes, str]] = Counter()
        self.num_cancels = 0

    def run(self, num_cancels: int) -> None:
        for peer in (PEER, OTHER):
            self.engine.introduce(peer)
        granted = {peer: Counter(credit) for peer, credit in self.engine.credit.items()}
        while self.num_cancels < num_cancels:
            for _ in range(self.random.randrange(4)):
                self._ask()
            live = [answer for answer in self.asked if not answer.is_over]
            for answer in self.random.sample(live, min(len(live), self.random.randrange(4))):
                self.engine.cancel(answer, peer=self.asked[answer][0])
                self.num_cancels += 1
            self.engine.step(self.random.randrange(1, 5))
        self.engine.settle()
        for answer, (_, expected) in self.asked.items():
            self._check(answer, expected)
        for peer in (PEER, OTHER):
            for what in ("inputs", "tokens"):
                assert self.engine.credit[peer][what] - granted[peer][what] == self.sent[peer, what]

    def _ask(self) -> None:
        choose = self.random.choice
        tenant, digest, peer = choose("tu"), choose(["", "a", "b", "c", UNREADABLE]), choose([PEER, OTHER])
        prompt = [self.random.randrange(3) for _ in range(self.random.randrange(1, 40))]
        prompt += choose([[]] * 12 + [[BROKEN], [TOO_LARGE], [NOT_FINITE]])
        max_new_tokens = self.random.randrange(1, 40) if self.random.random() < 0.8 or not digest else None
        deadline = time.monotonic() + choose([1e6] * 9 + [self.random.random() * 0.05])
        answer = self.engine.ask(prompt, max_new_tokens, tenant=tenant, digest=digest, peer=peer, deadline=deadline)
        text = None
        if max_new_tokens is not None:
            text = text_alone(text_request(0, prompt, max_new_tokens, tenant=tenant, digest=digest))
        self.asked[answer] = peer, text
        self.sent[peer, "inputs"] += 1
        self.sent[peer, "tokens"] += len(prompt)

    def _check(self, answer: Answer, text: list[int] | None) -> None:
        last = answer.events[-1]
        if text is None:
            assert len(answer.events) == 1
            assert bool(last.payload) is (last.error is None)
            return
        assert answer.tokens == text[: len(answer.tokens)], "a token of another text"
        if last.error is None:
            finish = answer.finish
            assert finish.num_tokens == len(answer.tokens)
            if finish.reason != "cancelled":
                assert [*answer.tokens, *([EOS] if finish.reason == "eos" else [])] == text


@pytest.mark.parametrize("seed", range(5))
def test_texts_cancelled_at_random_leave_nothing_behind(seed: int) -> None:
    Traffic(seed).run(num_cancels=200)

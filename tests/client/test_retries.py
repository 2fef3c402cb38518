"""When a client asks again: by its policy, within its budget and its caller's time; with a clock that is played."""

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_client import AsyncClient, Client, RetryPolicy
from adamix_client.errors import (
    AdamixError,
    Code,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    Overloaded,
    QuotaExceeded,
    StoreFull,
    Unavailable,
)
from adamix_client.retries import NEVER_AGAIN, Attempts, RetryBudget, may_pass
from adamix_protos.v1 import adapters_pb2, admin_pb2
from adamix_server.api import status
from adamix_testing.played_server import PlayedServer, classified

POLICIES = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 8),
    first_pause_s=st.floats(0.01, 1),
    longest_pause_s=st.floats(1, 10),
    budget_ratio=st.floats(0, 1),
    budget_reserve=st.floats(0, 20),
)
ADVICE = st.none() | st.floats(0, 30)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def carry_out(attempts: Attempts, clock: Clock, error: AdamixError) -> list[float]:
    """The pauses of a call that always fails so."""
    pauses: list[float] = []
    while (pause := attempts.pause_s(error)) is not None:
        pauses.append(pause)
        clock.now += pause
    return pauses


@given(POLICIES, ADVICE, st.floats(0, 60), st.floats(0, 1))
def test_pauses_are_within_the_policy_the_advice_and_the_callers_time(
    policy: RetryPolicy, advised: float | None, timeout_s: float, drawn: float
) -> None:
    clock = Clock()
    attempts = Attempts(policy, RetryBudget(policy), timeout_s, clock=clock, draw=lambda: drawn)
    pauses = carry_out(attempts, clock, Unavailable("gone", retry_after_s=advised))
    assert len(pauses) < policy.max_attempts
    assert sum(pauses) <= timeout_s
    for number, pause in enumerate(pauses):
        ceiling = min(policy.longest_pause_s, policy.first_pause_s * 2**number)
        assert max(ceiling / 2, advised or 0) <= pause <= max(ceiling, advised or 0)


@given(POLICIES, st.integers(1, 200))
def test_all_retries_of_a_client_are_within_its_budget(policy: RetryPolicy, calls: int) -> None:
    budget, clock = RetryBudget(policy), Clock()
    retries = sum(
        len(carry_out(Attempts(policy, budget, 1e9, clock=clock), clock, Unavailable("gone"))) for _ in range(calls)
    )
    assert retries <= policy.budget_reserve + policy.budget_ratio * calls + 1e-6


@pytest.mark.parametrize("reserve", [0.0, 0.5, 1.0])
def test_without_a_reserve_what_calls_earn_is_kept_for_the_next_retry(reserve: float) -> None:
    policy = RetryPolicy(budget_reserve=reserve)
    budget, clock = RetryBudget(policy), Clock()
    attempts = (Attempts(policy, budget, 1e9, clock=clock) for _ in range(1000))
    retries = sum(len(carry_out(each, clock, Unavailable("gone"))) for each in attempts)
    assert 198 <= retries <= 201


def test_a_client_that_fails_all_the_time_asks_a_fifth_more_in_the_long_run() -> None:
    policy = RetryPolicy()
    budget, clock = RetryBudget(policy), Clock()
    attempts = (Attempts(policy, budget, 1e9, clock=clock) for _ in range(1000))
    retries = sum(len(carry_out(each, clock, Unavailable("gone"))) for each in attempts)
    assert 200 <= retries <= 210


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (Unavailable("no server answers"), True),
        (Unavailable("draining", reason="DRAINING", retry_after_s=1.0), True),
        (Unavailable("its bytes are lost", reason="BLOB_MISSING"), False),
        (Overloaded("full", retry_after_s=0.5), True),
        (Overloaded("too large"), False),
        (QuotaExceeded("spent", retry_after_s=60), True),
        (StoreFull("full"), False),
        (NotFound("no"), False),
        (InvalidRequest("no", retry_after_s=1), False),
    ],
)
def test_what_may_pass(error: AdamixError, passes: bool) -> None:
    assert may_pass(error) is passes
    policy = RetryPolicy()
    assert (Attempts(policy, RetryBudget(policy), 100).pause_s(error) is not None) is passes


def test_what_is_not_safe_or_switched_off_is_not_tried_again() -> None:
    policy, error = RetryPolicy(), Unavailable("gone")
    assert Attempts(policy, RetryBudget(policy), 100, is_safe=False).pause_s(error) is None
    assert Attempts(NEVER_AGAIN, RetryBudget(NEVER_AGAIN), 100).pause_s(error) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"max_attempts": 101},
        {"first_pause_s": 0},
        {"first_pause_s": 9},
        {"budget_ratio": 1.5},
        {"budget_reserve": -1},
        {"budget_reserve": float("nan")},
    ],
)
def test_policies_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidConfig) as said:
        RetryPolicy(**wrong)  # type: ignore[arg-type]
    assert said.value.field == next(iter(wrong))


class Failing:
    """Fails so many times with an error, then answers."""

    def __init__(self, times: int, error: AdamixError, answer: object) -> None:
        self.times = times
        self.error = error
        self.answer = answer

    def __call__(self, request: object) -> object:
        if self.times > 0:
            self.times -= 1
            raise self.error
        return self.answer


BUSY = Overloaded("full", reason="OVERLOADED", retry_after_s=0.01)


def test_a_call_goes_on_over_a_server_that_is_busy_and_no_longer_than_its_time() -> None:
    with PlayedServer(GetTask=Failing(3, BUSY, adapters_pb2.GetTaskResponse())) as server:
        with Client(server.address) as client:
            client.get_task("t")
        assert server.count("GetTask") == 4
        server.methods["GetTask"] = Failing(9, Overloaded("full", retry_after_s=5.0), None)
        with Client(server.address, timeout_s=2) as hasty, pytest.raises(Overloaded):
            hasty.get_task("t")
        assert server.count("GetTask") == 5
        with Client(server.address, retries=None) as once, pytest.raises(Overloaded):
            once.get_task("t")
        assert server.count("GetTask") == 6


def test_attempts_share_the_time_of_their_call() -> None:
    busy = Overloaded("full", retry_after_s=0.1)
    with PlayedServer(GetTask=Failing(2, busy, adapters_pb2.GetTaskResponse())) as server:
        with Client(server.address, timeout_s=5) as client:
            client.get_task("t")
        first, *_, last = [call.left_s or 0.0 for call in server.asked]
    assert 0 < last < first - 0.15 < 5


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("Rollback", lambda client: client.rollback("t")),
        ("CreateKey", lambda client: client.create_key(role="caller")),
        ("DeleteTask", lambda client: client.delete("t")),
        ("DeleteVersion", lambda client: client.delete("t", "ab")),
        ("SetTraffic", lambda client: client.traffic("t", "ab", etag="1")),
        ("CreateTenant", lambda client: client.create_tenant("t")),
        ("GrantTask", lambda client: client.grant_task("t", "other")),
        ("Drain", lambda client: client.drain()),
        ("PredictStream", lambda client: list(client.predict_stream([]))),
    ],
)
def test_what_would_be_done_twice_is_asked_once(method: str, call: object) -> None:
    with PlayedServer(**{method: Failing(9, BUSY, None)}) as server, Client(server.address) as client:
        with pytest.raises(Overloaded):
            call(client)  # type: ignore[operator]
        assert server.count(method) == 1


@pytest.mark.parametrize(
    ("method", "call", "answer"),
    [
        ("SetTraffic", lambda client: client.traffic("t", "ab"), adapters_pb2.SetTrafficResponse()),
        ("PinVersion", lambda client: client.pin("t", "ab"), adapters_pb2.PinVersionResponse()),
        ("ListTenants", lambda client: client.tenants(), admin_pb2.ListTenantsResponse()),
        ("RevokeKey", lambda client: client.revoke_key("k"), admin_pb2.RevokeKeyResponse()),
    ],
)
def test_what_may_be_done_twice_is_asked_again(method: str, call: object, answer: object) -> None:
    with PlayedServer(**{method: Failing(1, BUSY, answer)}) as server, Client(server.address) as client:
        call(client)  # type: ignore[operator]
        assert server.count(method) == 2


def test_each_of_many_calls_is_asked_again_by_itself() -> None:
    failing = iter([False, True, True, False, True])

    def sometimes(request: object) -> object:
        if next(failing, False):
            raise BUSY
        return classified(request)  # type: ignore[arg-type]

    texts = [f"text {number}" for number in range(64 * 5)]
    with PlayedServer(Predict=sometimes) as server, Client(server.address) as client:
        assert [answer.label for answer in client.predict("t", texts)] == texts
        assert server.count("Predict") == 5 + 3


class BusyForSome:
    """Refuses inputs whose texts begin so, each once, and answers the rest of their calls."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.sizes: list[int] = []

    def __call__(self, request: Any) -> Any:
        self.sizes.append(len(request.inputs))
        response = classified(request)
        for item, prediction in zip(request.inputs, response.predictions, strict=True):
            if item.text.startswith("busy") and item.text not in self.refused:
                self.refused.add(item.text)
                prediction.error.CopyFrom(status.to_status(BUSY))
        return response


TEXTS = [*(f"text {number}" for number in range(30)), " ", *(f"busy {number}" for number in range(20)), "last"]


@pytest.mark.parametrize("times", [1, 4], ids=["one call", "several"])
def test_inputs_that_are_refused_for_now_are_asked_again_without_the_others(times: int) -> None:
    texts = [text if text.isspace() else f"{text} of {turn}" for turn in range(times) for text in TEXTS]
    play = BusyForSome()
    with PlayedServer(Predict=play) as server, Client(server.address) as client:
        answers = client.predict("t", texts, on_error="return")
    assert [answer.label if answer.error is None else " " for answer in answers] == texts
    assert {str(answer.error) for answer in answers if answer.error} == {
        f"text {31 + turn * len(TEXTS)} is empty" for turn in range(times)
    }
    assert sum(play.sizes) == len(texts) + 20 * times


async def test_so_are_they_on_an_event_loop() -> None:
    play = BusyForSome()
    with PlayedServer(Predict=play) as server:
        async with AsyncClient(server.address) as client:
            answers = await client.predict("t", TEXTS, on_error="return")
    assert [answer.label if answer.error is None else " " for answer in answers] == TEXTS
    assert play.sizes == [len(TEXTS), 20]


def test_what_is_refused_for_good_keeps_the_answers_beside_it() -> None:
    def full(request: Any) -> Any:
        if len(request.inputs) == 1:
            raise BUSY
        response = classified(request)
        response.predictions[1].error.CopyFrom(status.to_status(BUSY))
        return response

    with PlayedServer(Predict=full) as server:
        with Client(server.address, retries=RetryPolicy(max_attempts=3)) as client:
            answers = client.predict("t", ["a", "b", "c"], on_error="return")
        assert [answer.error and answer.error.reason for answer in answers] == [None, "OVERLOADED", None]
        assert server.count("Predict") == 3
        with Client(server.address, retries=None) as once, pytest.raises(Overloaded):
            once.predict("t", ["a", "b", "c"])
        assert server.count("Predict") == 4


def test_a_slow_reader_of_answers_takes_no_time_of_the_calls_that_run_beside() -> None:
    failed = threading.Event()

    def late_is_refused_once(request: object) -> object:
        if request.inputs[0].text == "late" and not failed.is_set():  # type: ignore[attr-defined]
            failed.set()
            raise BUSY
        return classified(request)  # type: ignore[arg-type]

    texts = [*["soon"] * 64, *["late"] * 64]
    with PlayedServer(Predict=late_is_refused_once) as server, Client(server.address, timeout_s=1) as client:
        answers = client.predict_iter("t", iter(texts))
        assert next(answers).label == "soon"
        assert failed.wait(10)
        time.sleep(1.1)
        assert [answer.label for answer in answers] == texts[1:]
        assert server.count("Predict") == 3


def test_a_forked_process_waits_for_no_lock_of_its_parent() -> None:
    client, reasons = Client("127.0.0.1:1"), []
    calls = client._calls
    calls.connection.leave_to_parent()

    def ask() -> None:
        for call in (client.info, lambda: client.predict("t", ["a"] * 100), lambda: client.predict("t", "a")):
            try:
                call()
            except AdamixError as error:
                reasons.append(error.reason)

    with calls._budget._lock:
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(10)
        assert reasons == ["CLIENT_FORKED"] * 3


def test_a_pause_ends_with_its_client() -> None:
    error = Overloaded("full", retry_after_s=20.0)
    with PlayedServer(GetTask=Failing(9, error, None)) as server:
        client = Client(server.address)
        threading.Timer(0.2, client.close).start()
        began = time.monotonic()
        with pytest.raises(AdamixError) as ended:
            client.get_task("t")
        assert (ended.value.reason, ended.value.code) == ("CLIENT_CLOSED", Code.FAILED_PRECONDITION)
        assert time.monotonic() - began < 15

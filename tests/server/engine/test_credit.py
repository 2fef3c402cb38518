"""What front ends may have queued follows what the engine gets done, and what they were given is never taken away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server.engine.credit import ROOM_S, TOKENS_PER_INPUT, QueueRoom


def room(tokens_per_s: float, *, front_ends: int = 1, inputs: int = 10**6, tokens: int = 10**9) -> QueueRoom:
    return QueueRoom(
        max_inputs=inputs, max_tokens=tokens, max_text_tokens=512, front_ends=front_ends, tokens_per_s=tokens_per_s
    )


@pytest.mark.parametrize(
    ("tokens_per_s", "front_ends", "part"),
    [
        (2500.0, 1, (2500, 20_000)),
        (7500.0, 3, (1365, 20_000)),
        # The settings are the most there is.
        (1e6, 1, (4096, 262_144)),
        # A front end that could not send one text of full length would refuse it for ever.
        (1.0, 4, (1, 512)),
    ],
)
def test_the_room_is_eight_seconds_of_work(tokens_per_s: float, front_ends: int, part: tuple[int, int]) -> None:
    grants = room(tokens_per_s, front_ends=front_ends, inputs=4096, tokens=262_144)
    assert grants.grant(b"one") == grants.grant(b"another") == part


def test_texts_that_run_have_room_and_as_many_behind_them() -> None:
    def inputs(tokens_per_s: float, most: int = 4096, front_ends: int = 1) -> int:
        grants = QueueRoom(
            max_inputs=most,
            max_tokens=262_144,
            max_text_tokens=512,
            front_ends=front_ends,
            tokens_per_s=tokens_per_s,
            max_running=64,
        )
        return grants.grant(b"p")[0]

    assert inputs(1000.0) == 64 + 1000
    # However slow texts are: all seats are taken, and who is next is there.
    assert inputs(0.1) == 128
    assert inputs(0.1, front_ends=2) == 64
    assert inputs(0.1, most=100) == 100


def test_small_changes_of_the_rate_are_not_followed() -> None:
    grants = room(1000.0)
    grants.grant(b"p")
    for tokens_per_s in (1090.0, 910.0, 1050.0):
        grants.follow(tokens_per_s)
        assert grants.give_back(b"p", 3, 50) == (3, 50)
    grants.follow(1200.0)
    assert grants.give_back(b"p", 3, 50) == (3 + 200, 50 + 1600)
    assert grants.give_back(b"p", 3, 50) == (3, 50)


def test_a_room_that_shrinks_takes_back_what_comes_back() -> None:
    grants = room(1000.0)
    grants.grant(b"p")
    grants.follow(500.0)
    back = [grants.give_back(b"p", 100, 1500) for _ in range(6)]
    # 4,000 tokens and 500 inputs of it.
    assert back == [(0, 0), (0, 0), (0, 500), (0, 1500), (0, 1500), (100, 1500)]


def test_a_front_end_that_introduced_itself_to_nobody_gets_back_what_it_sent() -> None:
    grants = room(1000.0)
    grants.follow(1.0)
    assert grants.give_back(b"p", 3, 50) == (3, 50)


def test_front_ends_that_are_gone_are_forgotten() -> None:
    grants = room(1000.0)
    for number in range(10_000):
        grants.grant(number.to_bytes(4))
    assert len(grants._granted) <= 256


def test_one_that_is_heard_of_is_not_forgotten_for_those_that_came_later() -> None:
    grants = room(1000.0)
    grants.grant(b"p")
    grants.follow(2000.0)
    for number in range(10_000):
        # Another connects again and again.
        grants.grant(number.to_bytes(4))
        grants.give_back(b"p", 0, 0)
    grants.follow(4000.0)
    assert grants.give_back(b"p", 3, 50) == (3 + 2000, 50 + 16_000)


@given(st.floats(1.0, 1e5), st.lists(st.tuples(st.floats(1.0, 1e5), st.floats(0.0, 1.0), st.booleans()), max_size=60))
def test_credit_is_never_negative_and_settles_at_a_part_of_the_room(
    first: float, turns: list[tuple[float, float, bool]]
) -> None:
    grants = room(first, front_ends=2)
    credit = list(grants.grant(b"p"))
    queued = [0, 0]

    def send(share: float) -> None:
        for kind in range(2):
            sent = int(credit[kind] * share)
            credit[kind] -= sent
            queued[kind] += sent

    def answer() -> None:
        back = grants.give_back(b"p", *queued)
        for kind in range(2):
            assert back[kind] >= 0
            credit[kind] += back[kind]
            queued[kind] = 0

    for tokens_per_s, share, is_answered in turns:
        grants.follow(tokens_per_s)
        send(share)
        if is_answered:
            answer()
    send(1.0)
    answer()
    assert tuple(credit) == grants.part
    wanted = ROOM_S * (turns[-1][0] if turns else first)
    assert grants.part[1] == pytest.approx(max(wanted / 2, 512), rel=0.12, abs=1)
    assert grants.part[0] == pytest.approx(max(wanted / 2 / TOKENS_PER_INPUT, 1), rel=0.12, abs=1)

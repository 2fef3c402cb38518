"""Turns, medians and targets; and settings that cannot work."""

import pytest

from adamix.errors import InvalidConfig
from adamix_bench.measure import Goal, Spread, in_turns, rates
from adamix_bench.serving.settings import Settings


def test_ways_take_turns_and_the_first_turn_does_not_count() -> None:
    order: list[str] = []
    results = iter(range(100))

    def way(name: str) -> int:
        order.append(name)
        return next(results)

    turns: list[tuple[int, list[int]]] = []
    found = in_turns({"a": lambda: way("a"), "b": lambda: way("b")}, 3, lambda t, f: turns.append((t, list(f["b"]))))
    assert order == ["a", "b"] * 4
    assert turns == [(0, []), (1, []), (2, [3]), (3, [3, 5])]
    assert found == {"a": [2, 4, 6], "b": [3, 5, 7]}


def test_ways_may_go_there_and_back() -> None:
    order: list[str] = []
    ways = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    found = in_turns(ways, 3, lambda *_: None, there_and_back=True)
    assert "".join(order) == "abbaabba"
    assert {name: len(results) for name, results in found.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_turn_by_turn() -> None:
    # Both ways were slow in the second turn: the ratio is not.
    ratio = Spread((8.0, 4.0, 9.0)).over(Spread((10.0, 5.0, 10.0)))
    assert ratio.values == pytest.approx((0.8, 0.8, 0.9))
    assert (ratio.median, ratio.lowest, ratio.highest) == pytest.approx((0.8, 0.8, 0.9))


def test_rates_count_what_was_done_a_second() -> None:
    assert rates(10, [2.0, 5.0]).values == (5.0, 2.0)


def test_a_target_holds_by_its_median() -> None:
    measured = Spread((0.7, 0.9, 1.2))
    assert Goal("a", "", measured, 0.9).holds is True
    assert Goal("a", "", measured, 0.91).holds is False
    assert Goal("a", "", measured, 0.9, at_least=False).holds is True
    assert Goal("a", "", measured, 0.89, at_least=False).holds is False
    assert Goal("a", "", measured).holds is None
    assert Goal("a", "", None, 0.9).holds is None


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"tasks": 0}, "tasks"),
        ({"inputs_per_call": 65}, "inputs_per_call"),
        ({"popularity": "fair"}, "popularity"),
        ({"loop": "open"}, "rate"),
        ({"loop": "open", "rate": float("nan")}, "rate"),
        # What would be passed over in silence.
        ({"loop": "closed", "rate": 10.0}, "rate"),
        ({"loop": "open", "rate": 10.0, "seconds": 5.0}, "seconds"),
        ({"server": "localhost:1", "peers": True}, None),
        ({"server": "localhost:1", "slots": 4}, None),
        ({"slots": 4, "resident_share": 0.5}, "slots"),
        ({"resident_share": 1.5}, "resident_share"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object], field: str | None) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Settings(**wrong)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_slots_can_be_a_share_of_the_tasks() -> None:
    assert Settings(tasks=200, resident_share=0.25).num_slots == 50
    assert Settings(tasks=3, resident_share=0.01).num_slots == 1
    assert Settings(slots=7).num_slots == 7

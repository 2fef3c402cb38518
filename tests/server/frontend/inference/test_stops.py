"""Stops: whatever is cut where, the same is said, nothing of a stop is, and nothing is kept longer than it must be."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server.frontend.inference.stops import Stops

# Few letters, so that stops occur, overlap and begin without ending.
_TEXTS = st.text("ab日🙂", max_size=24)
_STOPS = st.lists(st.text("ab日🙂", min_size=1, max_size=5), max_size=8)


def plain(text: str, stops: list[str]) -> tuple[str, bool]:
    """What is said of a whole text, letter by letter: the first complete stop ends it, the longest of several."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(_TEXTS, _STOPS, st.lists(st.integers(0, 24)))
def test_a_text_ends_at_the_first_stop_however_it_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    parts = [text[begin:end] for begin, end in pairwise(places)]
    found, said, seen = Stops(stops), "", ""
    expected, is_hit = plain(text, stops)
    for part in parts:
        said += found.feed(part)
        seen += part
        assert expected.startswith(said)
        kept = seen[len(said) :]
        if not found.is_hit and kept:
            assert any(stop.startswith(kept) and stop != kept for stop in stops), "kept for nothing"
    assert said + found.rest() == expected
    assert found.is_hit == is_hit


def test_the_longest_beginning_is_kept_and_no_more() -> None:
    stops = Stops(["abcd", "cx"])
    assert stops.feed("zabc") == "z", "`abc`, though `c` would do for the other"
    assert stops.feed("a") == "abc"
    assert stops.feed("bb") == "abb"
    assert stops.rest() == ""


def test_nothing_is_said_behind_a_stop() -> None:
    stops = Stops(["\n\n"])
    assert stops.feed("one\n") == "one"
    assert stops.feed("\ntwo") == ""
    assert stops.is_hit
    assert stops.feed("three") == ""
    assert stops.rest() == ""


def test_without_stops_all_is_said_at_once() -> None:
    assert Stops([]).feed("abc") == "abc"


@pytest.mark.parametrize(("stops", "said"), [(["abcd", "bc"], "a"), (["bc", "abc"], ""), (["d", "abcd"], "")])
def test_of_several_stops_the_one_that_is_complete_first(stops: list[str], said: str) -> None:
    assert Stops(stops).feed("abcd") == said

"""What is left of a text that is too long."""

from hypothesis import given
from hypothesis import strategies as st

from adamix.texts import kept, longest_first


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 80))
def test_a_pair_is_cut_to_the_room_and_the_longer_part_first(first: int, second: int, room: int) -> None:
    left, right = longest_first(first, second, room)
    assert left <= first
    assert right <= second
    assert left + right == min(first + second, room)
    if first + second > room:
        # Neither part is cut while the other is longer by more than the odd token.
        assert left == first or left >= right - 1
        assert right == second or right >= left - 1


@given(st.lists(st.sampled_from([None, 0, 1]), max_size=40), st.integers(0, 40))
def test_special_tokens_remain_and_each_part_loses_its_end(parts: list[int | None], room: int) -> None:
    num_special = parts.count(None)
    places = kept(parts, num_special + room)
    assert len(places) == min(len(parts), num_special + room)
    assert [place for place in places if parts[place] is None] == [p for p, part in enumerate(parts) if part is None]
    for part in (0, 1):
        all_of_it = [place for place, owner in enumerate(parts) if owner == part]
        left = [place for place in places if parts[place] == part]
        assert left == all_of_it[: len(left)]

from collections.abc import Iterator

import pytest

from adamix.errors import FailedPrecondition, InvalidRequest
from adamix_server.catalog.pointer import Pointer, Split, check_split
from adamix_server.limits.control import MAX_EARLIER, MAX_TRAFFIC_SHARES

A, B, C = (((letter * 64, 1),) for letter in "abc")


def digest_of(split: Split) -> str:
    return split[0][0]


def test_of_far_too_many_shares_only_so_many_are_looked_at() -> None:
    looked_at = []

    def shares() -> Iterator[tuple[str, int]]:
        for index in range(1_000):
            looked_at.append(index)
            yield "", 0

    with pytest.raises(InvalidRequest) as caught:
        check_split(shares())
    assert caught.value.reason == "TRAFFIC_INVALID"
    assert len(looked_at) == MAX_TRAFFIC_SHARES + 1


def test_back_undoes_set_step_by_step() -> None:
    pointer = Pointer().set(A).set(B).set(C)
    assert pointer.back().current == B
    assert pointer.back().back() == Pointer().set(A)
    with pytest.raises(FailedPrecondition) as caught:
        Pointer().set(A).back()
    assert caught.value.reason == "NOTHING_EARLIER"


def test_setting_what_is_live_changes_nothing() -> None:
    pointer = Pointer().set(A).set(B)
    assert pointer.set(B) is pointer


def test_only_so_many_earlier_splits_are_kept() -> None:
    pointer = Pointer()
    for i in range(MAX_EARLIER + 10):
        pointer = pointer.set(((f"{i:064x}", 1),))
    assert len(pointer.earlier) == MAX_EARLIER
    assert pointer.earlier[-1] == ((f"{MAX_EARLIER + 8:064x}", 1),)


def test_a_forgotten_version_is_never_gone_back_to() -> None:
    pointer = Pointer().set(A).set(B).set(C)
    assert pointer.without(digest_of(B)) == Pointer().set(A).set(C)
    assert Pointer().set(A).set(B).set(A).set(C).without(digest_of(B)) == Pointer().set(A).set(C)
    assert Pointer().set(A).set(B).set(A).without(digest_of(B)) == Pointer().set(A)


def test_forgetting_the_live_version_brings_no_earlier_one_back() -> None:
    assert Pointer().set(A).set(B).without(digest_of(B)) == Pointer()


def test_a_pointer_survives_its_columns() -> None:
    pointer = Pointer().set(A).set(check_split([("c" * 64, 3), ("b" * 64, 1)]))
    assert Pointer.from_json(*pointer.to_json()) == pointer


@pytest.mark.parametrize(
    "shares",
    [
        [],
        [("a" * 64, 0)],
        [("a" * 64, -1)],
        [("a" * 64, 1_000_001)],
        [("a" * 64, 1), ("a" * 64, 2)],
        [("A" * 64, 1)],
        [("a" * 63, 1)],
        [(f"{i:064x}", 1) for i in range(MAX_TRAFFIC_SHARES + 1)],
    ],
)
def test_a_split_that_cannot_be_served_is_refused(shares: list[tuple[str, int]]) -> None:
    with pytest.raises(InvalidRequest):
        check_split(shares)

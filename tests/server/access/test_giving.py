"""Who may give which rights for which tasks."""

import fnmatch
from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server.access.giving import is_within, may_give, networks_within
from adamix_server.access.principal import Principal
from adamix_server.access.rights import ALL_RIGHTS, RIGHTS, ROLES, Right


def principal(rights: frozenset[Right], task_pattern: str = "") -> Principal:
    return Principal("keys/x", "acme", rights, task_pattern)


@pytest.mark.parametrize("role", ROLES)
def test_only_an_operator_gives_a_right_that_it_lacks(role: str) -> None:
    giver = principal(ROLES[role])
    for rights in chain.from_iterable(combinations(RIGHTS, count) for count in range(len(RIGHTS) + 1)):
        assert may_give(giver, rights) == (role == "operator" or ROLES[role] >= set(rights))


def test_who_has_no_admin_gives_none() -> None:
    assert not may_give(principal(ALL_RIGHTS - {"admin"}), ["admin"])
    assert may_give(principal(ALL_RIGHTS), sorted(ALL_RIGHTS))


@pytest.mark.parametrize("rights", [ROLES["owner"], ROLES["operator"]])
def test_who_was_narrowed_gives_nothing_wider(rights: frozenset[Right]) -> None:
    giver = principal(rights, "support-*")
    for narrower in ("support-*", "support-a", "support-a*", "support-?", "support-*-b*"):
        assert may_give(giver, ["infer"], narrower), narrower
    for wider in ("", "*", "support*", "s*", "a", "[s]upport-*", "*support-*", "?upport-a"):
        assert not may_give(giver, ["infer"], wider), wider


_PATTERNS = st.text("ab*?[]!-", max_size=6)


@given(_PATTERNS, _PATTERNS, st.text("ab-", max_size=6))
def test_what_is_within_a_pattern_matches_it(pattern: str, bounds: str, task: str) -> None:
    if is_within(pattern, bounds):
        given_to = principal(ROLES["caller"], pattern)
        assert not given_to.may_name(task) or principal(ROLES["caller"], bounds).may_name(task)
        assert not pattern or not bounds or not fnmatch.fnmatchcase(task, pattern) or fnmatch.fnmatchcase(task, bounds)


@pytest.mark.parametrize(
    ("networks", "bounds", "is_allowed"),
    [
        ([], [], True),
        (["10.0.0.0/8"], [], True),
        ([], ["10.0.0.0/8"], False),
        (["10.1.0.0/16"], ["10.0.0.0/8"], True),
        (["10.0.0.0/8"], ["10.0.0.0/8"], True),
        (["10.0.0.0/7"], ["10.0.0.0/8"], False),
        (["10.1.0.0/16", "11.0.0.0/8"], ["10.0.0.0/8"], False),
        (["10.1.0.0/16", "11.0.0.0/16"], ["10.0.0.0/8", "11.0.0.0/8"], True),
        (["::/0"], ["0.0.0.0/0"], False),
        (["fd00::/16"], ["10.0.0.0/8", "fd00::/8"], True),
    ],
)
def test_who_counts_in_some_networks_gives_keys_for_these_alone(
    networks: list[str], bounds: list[str], is_allowed: bool
) -> None:
    assert networks_within(networks, bounds) == is_allowed

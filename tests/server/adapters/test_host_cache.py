"""The host cache: bounded bytes, least recently used out first."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from adamix_server.adapters.host_cache import HostCache


@dataclass(frozen=True)
class Item:
    num_bytes: int


def test_the_least_recently_used_is_dropped() -> None:
    cache = HostCache[Item](100)
    cache.put("a", Item(40))
    cache.put("b", Item(40))
    assert cache.get("a") is not None
    cache.put("c", Item(40))
    assert "b" not in cache
    assert cache.get("a") is not None
    assert cache.evictions == 1


def test_a_value_over_the_capacity_is_not_kept_and_drops_nobody() -> None:
    cache = HostCache[Item](100)
    cache.put("a", Item(60))
    cache.put("big", Item(101))
    assert "big" not in cache
    assert "a" in cache


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 60))))
def test_bytes_are_counted_exactly(puts: list[tuple[str, int]]) -> None:
    cache = HostCache[Item](100)
    for name, size in puts:
        cache.put(name, Item(size))
        held = [cache.get(n) for n in "abcdef"]
        assert cache.used_bytes == sum(item.num_bytes for item in held if item is not None) <= 100

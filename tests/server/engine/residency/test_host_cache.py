"""The host cache: bounded bytes, least recently used out first."""

from dataclasses import dataclass
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from adamix_server.engine.residency.host_cache import HostCache
from adamix_server.engine.residency.packing import PackedAdapter


@dataclass(frozen=True)
class Sized:
    """All that the cache looks at."""

    num_bytes: int


def item(num_bytes: int) -> PackedAdapter:
    return cast("PackedAdapter", Sized(num_bytes))


def test_the_least_recently_used_is_dropped() -> None:
    cache = HostCache(100)
    cache.put("a", item(40))
    cache.put("b", item(40))
    assert cache.get("a") is not None
    cache.put("c", item(40))
    assert "b" not in cache
    assert cache.get("a") is not None
    assert cache.evictions == 1


def test_a_value_over_the_capacity_is_not_kept_and_drops_nobody() -> None:
    cache = HostCache(100)
    cache.put("a", item(60))
    cache.put("big", item(101))
    assert "big" not in cache
    assert "a" in cache


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 60))))
def test_bytes_are_counted_exactly(puts: list[tuple[str, int]]) -> None:
    cache = HostCache(100)
    for name, size in puts:
        cache.put(name, item(size))
        held = [cache.get(n) for n in "abcdef"]
        assert cache.used_bytes == sum(item.num_bytes for item in held if item is not None) <= 100

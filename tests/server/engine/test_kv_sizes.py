"""How many pages a decoder gets: what was asked for, or a share of what is free, and never too few for one text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import InvalidConfig
from adamix_server.engine import kv_sizes

PAGE = 1000


def pages(kv_bytes: int, free_bytes: int, *, window: int = 160, is_host: bool = True) -> int:
    return kv_sizes.num_pages(kv_bytes, PAGE, 16, window, free_bytes, is_host=is_host)


def test_what_is_asked_for_is_taken_but_for_the_page_that_is_nobodys() -> None:
    assert pages(50 * PAGE + 999, free_bytes=0) == 49


def test_a_quarter_of_the_host_or_most_of_a_device_is_taken_if_nothing_is_asked_for() -> None:
    assert pages(0, 400 * PAGE) == 99
    assert pages(0, 400 * PAGE, is_host=False) == 319
    assert pages(0, 1 << 40) == (4 << 30) // PAGE - 1
    assert pages(0, 1 << 40, is_host=False) == int(0.8 * (1 << 40)) // PAGE - 1


@given(st.integers(1, 10_000), st.integers(1, 1 << 20))
def test_one_text_of_full_length_always_has_room(window: int, kv_bytes: int) -> None:
    try:
        found = pages(kv_bytes, 0, window=window)
    except InvalidConfig as error:
        # It says what is enough.
        enough = int(error.message.rpartition("--kv-bytes ")[2].split(",")[0])
        assert enough > kv_bytes
        assert pages(enough, 0, window=window) * 16 >= window
    else:
        assert found * 16 >= window


def test_too_little_is_refused_with_what_to_say() -> None:
    with pytest.raises(InvalidConfig, match="--kv-bytes 10999 is less: say --kv-bytes 11000") as said:
        pages(10 * PAGE + 999, free_bytes=1 << 40)
    assert said.value.field == "kv_bytes"
    with pytest.raises(InvalidConfig, match="free now are less: say --kv-bytes 11000"):
        pages(0, free_bytes=40 * PAGE)


def test_a_containers_limit_is_seen(tmp_path: Path) -> None:
    assert kv_sizes._left_to_group(tmp_path) == 1 << 62
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert kv_sizes._left_to_group(tmp_path) == 1 << 62
    (tmp_path / "memory.max").write_text("1000\n")
    assert kv_sizes._left_to_group(tmp_path) == 300
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 250\nactive_file 7\n")
    assert kv_sizes._left_to_group(tmp_path) == 550


def test_what_a_host_has_available_is_read(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       100 kB\nMemFree:         10 kB\nMemAvailable:    40 kB\n")
    assert kv_sizes._available(meminfo) == 40 << 10

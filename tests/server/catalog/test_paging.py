"""Pages end where their rows or their bytes are full; what is known already is not read again."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import InvalidRequest
from adamix_server.catalog import reading
from adamix_server.catalog.paging import count_that_fit, make_token, read_token
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_server.limits.control import MAX_PAGE_BYTES

Add = Callable[..., VersionRow]

ME = "default"


@given(st.lists(st.integers(1, MAX_PAGE_BYTES * 2), max_size=50))
def test_a_page_ends_where_its_bytes_are_full(sizes: list[int]) -> None:
    count = count_that_fit(sizes)
    assert count == 0 if not sizes else count >= 1
    assert count <= 1 or sum(sizes[:count]) <= MAX_PAGE_BYTES
    assert count == len(sizes) or sum(sizes[: count + 1]) > MAX_PAGE_BYTES


def test_a_page_holds_exactly_its_bytes() -> None:
    assert count_that_fit([MAX_PAGE_BYTES - 1, 1, 1]) == 2
    assert count_that_fit([MAX_PAGE_BYTES, 1]) == 1
    assert count_that_fit([MAX_PAGE_BYTES + 1, 1]) == 1


@pytest.mark.parametrize("key", [-1, 1 << 63, 10**30])
def test_a_token_with_an_impossible_id_is_none_of_ours(key: int) -> None:
    with pytest.raises(InvalidRequest):
        read_token(make_token(("versions", ME, "t"), [key]), ("versions", ME, "t"), int)
    assert read_token(make_token(("versions",), [7]), ("versions",), int) == [7]


def test_pages_by_bytes_show_everything_once(catalog: Catalog, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [add("t", f"v{number}".encode()).digest for number in range(7)]
    for number in range(7):
        add(f"other-{number}", b"v0", labels=50)
    monkeypatch.setattr("adamix_server.catalog.store.MAX_PAGE_BYTES", 2_500)
    monkeypatch.setattr("adamix_server.catalog.paging.MAX_PAGE_BYTES", 2_500)
    shown, token, lengths = list[str](), "", list[int]()
    while True:
        page = catalog.list_versions(ME, "t", 1000, token)
        shown += [row.digest for row in page.rows]
        lengths.append(len(page.rows))
        if not (token := page.next_page_token):
            break
    assert shown == digests[::-1]
    assert len(lengths) > 1
    names = list[str]()
    while True:
        tasks = catalog.list_tasks(ME, 1000, token)
        names += [row.task for row in tasks.rows]
        assert 1 <= len(tasks.rows) < 7
        if not (token := tasks.next_page_token):
            break
    assert names == ["other-0", "other-1", "other-2", "other-3", "other-4", "other-5", "other-6", "t"]


def test_only_manifests_that_are_new_are_read(catalog: Catalog, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [add("t", f"v{number}".encode()).digest for number in range(3)]
    catalog.snapshot()
    read: list[str] = []
    served = reading.read_served
    monkeypatch.setattr(reading, "read_served", lambda text: read.append(text) or served(text))
    catalog.set_traffic(ME, "t", [(digests[0], 1)])
    task = catalog.snapshot().task(ME, "t")
    assert [row.digest for row in task.live] == [digests[0]]
    catalog.set_pinned(ME, "t", digests[1], True)
    assert catalog.get_task(ME, "t").version(digests[1]).pinned
    assert catalog.snapshot().task(ME, "t") == catalog.get_task(ME, "t")
    assert read == []
    add("t", b"v3", labels=5)
    assert catalog.snapshot().task(ME, "t").live[0].head.num_labels == 5
    assert len(read) == 2, "once by the registration, once by the snapshot"


def test_a_task_that_did_not_change_is_the_very_same_row(catalog: Catalog, add: Add) -> None:
    add("t", b"v1")
    row = catalog.snapshot().task(ME, "t")
    assert catalog.get_task(ME, "t") is row
    assert catalog.list_tasks(ME).rows[0] is row
    add("t", b"v2")
    assert catalog.get_task(ME, "t") != row

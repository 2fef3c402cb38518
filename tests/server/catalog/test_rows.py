"""Rows as they lie in the memory of every front end: small, shared where they are alike, and never changed."""

import gc
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server.catalog import reading
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.parted_map import PartedMap
from adamix_server.catalog.rows import TaskRow, VersionRow
from adamix_server.catalog.store import Catalog

Add = Callable[..., VersionRow]
ME = "default"
NAMES = st.tuples(st.sampled_from(["one", "two"]), st.sampled_from("abcdefgh"))


def row(name: tuple[str, str], etag: str) -> TaskRow:
    return TaskRow(
        tenant=name[0],
        task=name[1],
        etag=etag,
        create_time_us=0,
        update_time_us=0,
        unavailable_reason="NO_LIVE_VERSION",
        ready=(),
        live=(),
        weights=(),
    )


@given(st.dictionaries(NAMES, st.text(max_size=2)), st.lists(st.dictionaries(NAMES, st.none() | st.text(max_size=2))))
def test_a_changed_map_is_what_a_changed_dict_is(
    first: dict[tuple[str, str], str], changes: list[dict[tuple[str, str], str | None]]
) -> None:
    expected = {name: row(name, etag) for name, etag in first.items()}
    found = PartedMap.of(expected.items())
    for change in changes:
        before, known = found, dict(expected)
        rows = {name: None if etag is None else row(name, etag) for name, etag in change.items()}
        found = found.changed(rows)
        for name, changed in rows.items():
            if changed is None:
                expected.pop(name, None)
            else:
                expected[name] = changed
        assert dict(found) == expected
        assert (found is before) == (not change), "what is made of its keys need not be made anew"
        assert len(found) == len(expected)
        assert all((name in found) == (name in expected) for name in [*change, ("one", "z")])
        assert dict(before) == known, "the one it was made from stays"


def test_what_rows_have_in_common_is_one_object(catalog: Catalog, add: Add) -> None:
    for number in range(3):
        add(f"t{number}", b"v1")
    add("other", b"v2", labels=3)
    catalog.snapshot()
    add("t1", b"v3")
    tasks = catalog.snapshot().tasks
    first, second, third = (tasks[ME, f"t{number}"].live[0] for number in range(3))
    assert first.head is second.head is third.head
    assert first.digest is third.digest
    assert first.backbone_fingerprint is second.backbone_fingerprint
    other = tasks[ME, "other"].live[0]
    assert other.head.num_labels == 3
    assert catalog.get_version(ME, "other", other.digest).head is other.head


def test_rows_are_nothing_to_the_garbage_collector(catalog: Catalog, add: Add) -> None:
    """Else every full collection would walk over all tasks of the server."""
    add("t", b"v1")
    task = catalog.snapshot().tasks[ME, "t"]
    assert not gc.is_tracked(task)
    assert not gc.is_tracked(task.live[0])
    assert not hasattr(task, "__dict__")


def test_a_manifest_is_read_for_those_who_list_versions_and_lies_in_no_snapshot(
    catalog: Catalog, add: Add, here: str, manifest_json: Callable[[str], str]
) -> None:
    version = add("t", b"v1")
    assert catalog.get_version(ME, "t", version.digest).manifest_json == manifest_json(here)
    assert [row.manifest_json for row in catalog.list_versions(ME, "t").rows] == [manifest_json(here)]
    snapshot = catalog.snapshot()
    assert not hasattr(snapshot.tasks[ME, "t"].version(version.digest), "manifest_json")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_tasks_are_read_a_few_at_a_time_and_none_is_missed(
    catalog: Catalog, add: Add, here: str, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(reading, "_TASKS_PER_QUERY", 2)
    names = [f"t{number}" for number in range(count)]
    add("gone", b"v1")
    for name in names:
        add(name, b"v1")
        add(name, b"v2", make_live=False)
    catalog.delete_task(ME, "gone")
    snapshot = catalog.snapshot()
    assert {name for _, name in snapshot.tasks} == set(names)
    assert all(len(task.versions) == 2 and task == catalog.get_task(ME, task.task) for task in snapshot.tasks.values())


def test_a_manifest_that_cannot_be_read_costs_its_own_version_alone(
    catalog: Catalog, add: Add, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = add("t", b"v1"), add("t", b"v2")
    other = add("u", b"v3")
    connection = sqlite3.connect(store / CATALOG_FILE)
    with connection:
        unknown = "UPDATE versions SET manifest_json = replace(manifest_json, 'classification', 'of tomorrow')"
        connection.execute(f"{unknown} WHERE digest = ?", [second.digest])
    connection.close()
    tasks = catalog.snapshot().tasks
    assert tasks[ME, "u"].live == (other,)
    assert (set(tasks[ME, "t"].versions), tasks[ME, "t"].unavailable_reason) == ({first.digest}, "NO_LIVE_VERSION")
    assert [record.digest for record in caplog.records] == [second.digest]
    assert catalog.rollback(ME, "t").live[0].digest == first.digest
    assert [row.digest for row in catalog.list_versions(ME, "t").rows] == [first.digest]

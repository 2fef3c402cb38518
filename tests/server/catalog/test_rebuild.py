"""A catalog made anew of files: what comes back, in which order, and what is said of the rest."""

import hashlib
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from adamix.errors import FailedPrecondition
from adamix_server.catalog import changes
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.rebuild import rebuild
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.rows import TaskRow
from adamix_server.catalog.store import Catalog
from adamix_server.catalog.verification import verify

WRITER = runpy.run_path(str(Path(__file__).with_name("old_stores") / "write_store.py"))
ME = "default"


def digest(seed: int) -> str:
    return hashlib.sha256(WRITER["adapter"](seed)).hexdigest()


@pytest.fixture
def catalog(store: Path, here: str) -> Iterator[Catalog]:
    recover(store)
    catalog = Catalog(store, backbone_fingerprint=here)
    yield catalog
    catalog.close()


def rebuilt(catalog: Catalog, store: Path, here: str) -> dict[tuple[str, str], TaskRow]:
    """What is served after the catalog was lost and made anew."""
    catalog.close()
    (store / CATALOG_FILE).unlink()
    rebuild(store)
    recover(store)
    again = Catalog(store, backbone_fingerprint=here)
    tasks = dict(again.snapshot().tasks)
    again.close()
    return tasks


def test_every_task_and_version_comes_back(catalog: Catalog, store: Path, here: str, elsewhere: str) -> None:
    add = WRITER["add"]
    catalog.tenants.create("other")
    for tenant, task, seed in ((ME, "a", 0), (ME, "b", 2), ("other", "a", 0), (ME, "a", 4)):
        add(catalog, tenant, task, seed)
    add(catalog, ME, "a", 6, make_live=False)
    add(catalog, ME, "a", 8, backbone=elsewhere)
    add(catalog, ME, "gone", 10)
    add(catalog, ME, "b", 12)
    catalog.delete_task(ME, "gone")
    catalog.delete_version(ME, "b", digest(2))
    before = catalog.snapshot().tasks
    after = rebuilt(catalog, store, here)
    assert after.keys() == before.keys()
    tenants = Catalog(store, backbone_fingerprint=here)
    assert [row.tenant for row in tenants.tenants.list().rows] == [ME, "other"]
    tenants.close()
    for name, row in before.items():
        assert after[name].traffic == row.traffic
        assert after[name].ready == row.ready, "with their times, too"
    again = Catalog(store, backbone_fingerprint=here)
    # What was live before comes back as well, and going back is going back to it.
    assert [version.digest for version in again.rollback(ME, "a").live] == [digest(0)]
    again.close()
    assert verify(store).problems == ()


def test_the_last_registered_answers_whatever_the_clock_said(
    catalog: Catalog, store: Path, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_us = changes.now_us()
    for number, seed in enumerate((0, 2, 4)):
        monkeypatch.setattr(changes, "now_us", lambda back=number: clock_us - back * 10**9)
        WRITER["add"](catalog, ME, "a", seed)
    assert [version.digest for version in rebuilt(catalog, store, here)[ME, "a"].live] == [digest(4)]


def test_where_nothing_was_to_answer_the_last_one_does(catalog: Catalog, store: Path, here: str) -> None:
    for seed in (0, 2):
        WRITER["add"](catalog, ME, "a", seed, make_live=False)
    assert [version.digest for version in rebuilt(catalog, store, here)[ME, "a"].live] == [digest(2)]


def test_a_dry_run_says_the_same_and_changes_nothing(catalog: Catalog, store: Path) -> None:
    for seed in (0, 2):
        WRITER["add"](catalog, ME, "a", seed)
    catalog.close()
    (store / CATALOG_FILE).unlink()
    before = sorted(store.rglob("*"))
    found = rebuild(store, dry_run=True)
    assert sorted(store.rglob("*")) == before
    assert found.dry_run
    assert [(version.digest, version.live) for version in found.versions] == [(digest(2), True), (digest(0), False)]
    done = rebuild(store)
    assert (done.versions, done.dry_run) == (found.versions, False)


def test_what_does_not_come_back_is_named(catalog: Catalog, store: Path, here: str) -> None:
    for task, seed in (("a", 0), ("no-origin", 2), ("no-file", 4), ("damaged", 6), ("bad-origin", 8), ("no-zone", 10)):
        WRITER["add"](catalog, ME, task, seed)
    origins, blobs = store / "origins" / ME, catalog.blobs
    (origins / "no-origin" / f"{digest(2)}.json").unlink()
    blobs.delete(digest(4))
    blobs.path(digest(6)).chmod(0o600)
    blobs.path(digest(6)).write_bytes(WRITER["adapter"](100))
    (origins / "bad-origin" / f"{digest(8)}.json").write_text("{")
    # Times with a zone and without one have no order.
    no_zone = origins / "no-zone" / f"{digest(10)}.json"
    no_zone.write_text(no_zone.read_text().replace("Z", ""))
    # A name that is no id is no origin.
    (origins / "Not an id").mkdir()
    (origins / "Not an id" / f"{digest(0)}.json").write_text("{}")
    catalog.close()
    found = rebuild(store)
    assert [(version.task, version.digest) for version in found.versions] == [("a", digest(0))]
    assert found.without_origin == (digest(2),)
    assert found.without_file == ((ME, "no-file", digest(4)),)
    assert {name for name, _ in found.damaged} == {
        digest(6),
        f"{ME}/bad-origin/{digest(8)}",
        f"{ME}/no-zone/{digest(10)}",
    }
    # All of it is still there.
    assert recover(store).orphans == 4


def test_nothing_to_come_back_leaves_the_catalog_that_is_there(catalog: Catalog, store: Path) -> None:
    WRITER["add"](catalog, ME, "a", 0)
    catalog.close()
    (store / "origins" / ME / "a" / f"{digest(0)}.json").unlink()
    assert rebuild(store).versions == ()
    assert verify(store).versions == 1
    with pytest.raises(FailedPrecondition) as caught:
        rebuild(store / "nothing")
    assert caught.value.reason == "STORE_MISSING"


def test_a_store_in_use_is_left_alone(catalog: Catalog, store: Path) -> None:
    WRITER["add"](catalog, ME, "a", 0)
    with StoreLock(store):
        with pytest.raises(FailedPrecondition) as caught:
            rebuild(store)
        assert caught.value.reason == "STORE_LOCKED"
        assert len(rebuild(store, dry_run=True).versions) == 1

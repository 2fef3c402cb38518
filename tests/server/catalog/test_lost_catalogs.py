"""Each way to lose a store, or its catalog: nothing is deleted, the refusal names the ways on, and they work."""

import hashlib
import os
import runpy
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import AdamixError, DataLoss, FailedPrecondition
from adamix_server.blobs.local import BlobStore, Swept
from adamix_server.catalog import recovery, schema
from adamix_server.catalog.backup import backup, restore
from adamix_server.catalog.database import Database, set_schema_version
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.rebuild import rebuild
from adamix_server.catalog.recovery import Recovered, recover
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_server.catalog.store_file import read_store_file
from adamix_server.catalog.verification import verify

STORES = Path(__file__).with_name("old_stores")
WRITER = runpy.run_path(str(STORES / "write_store.py"))
ME = "default"
WAYS_ON = ("`adamix store restore`", "`adamix store rebuild`", "`adamix serve --accept-catalog`")


def digest(seed: int) -> str:
    return hashlib.sha256(WRITER["adapter"](seed)).hexdigest()


def fill(store: Path, here: str, tasks: dict[str, list[int]]) -> None:
    """Register adapters, each a version by its seed, in a store that is left in order."""
    recover(store)
    catalog = Catalog(store, backbone_fingerprint=here)
    for task, seeds in tasks.items():
        for seed in seeds:
            WRITER["add"](catalog, ME, task, seed)
    catalog.close()


def served(store: Path, here: str) -> dict[str, tuple[set[str], list[str]]]:
    """(versions, live ones) by task."""
    catalog = Catalog(store, backbone_fingerprint=here)
    found = {
        name: (set(row.versions), [version.digest for version in row.live])
        for (_, name), row in catalog.snapshot().tasks.items()
    }
    catalog.close()
    return found


def files(store: Path) -> dict[str, bytes]:
    """Everything in a store but its locks and SQLite's own scratch files."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.name not in ("lock", f"{CATALOG_FILE}-shm")
    }


def refused(store: Path) -> AdamixError:
    """The refusal of a start, which leaves everything as it was."""
    before = {name: data for name, data in files(store).items() if not name.startswith(CATALOG_FILE)}
    with pytest.raises(AdamixError) as caught:
        recover(store)
    assert {name: data for name, data in files(store).items() if not name.startswith(CATALOG_FILE)} == before
    assert str(store) not in caught.value.message
    return caught.value


@pytest.fixture
def full(store: Path, here: str) -> Path:
    """Three tasks of one, two and three versions; the first version is shared by all."""
    fill(store, here, {"a": [0], "b": [0, 2], "c": [0, 2, 4]})
    return store


WHOLE = {
    "a": ({digest(0)}, [digest(0)]),
    "b": ({digest(0), digest(2)}, [digest(2)]),
    "c": ({digest(0), digest(2), digest(4)}, [digest(4)]),
}


@pytest.mark.parametrize("empty", [False, True])
def test_the_catalog_was_removed(full: Path, here: str, empty: bool) -> None:
    (full / CATALOG_FILE).unlink()
    if empty:
        (full / CATALOG_FILE).touch()
    error = refused(full)
    assert (type(error), error.reason) == (FailedPrecondition, "CATALOG_MISSING")
    assert all(way in error.message for way in WAYS_ON)
    rebuild(full)
    recover(full)
    assert served(full, here) == WHOLE


def test_no_process_makes_a_new_catalog_where_there_was_one(full: Path, here: str) -> None:
    """A front end that is started anew, say, below a server whose catalog somebody removed."""
    (full / CATALOG_FILE).unlink()
    with pytest.raises(FailedPrecondition) as caught:
        Catalog(full, backbone_fingerprint=here)
    assert caught.value.reason == "CATALOG_MISSING"
    assert not (full / CATALOG_FILE).exists()


def test_what_is_left_without_a_catalog_is_enough_to_refuse(full: Path) -> None:
    """Adapter files alone, or their origins alone: an older adamix wrote no store.json."""
    (full / CATALOG_FILE).unlink()
    (full / "store.json").unlink()
    assert refused(full).reason == "CATALOG_MISSING"
    shutil.rmtree(full / "origins")
    assert refused(full).reason == "CATALOG_MISSING"


def test_a_new_catalog_beside_the_files_of_another(full: Path, tmp_path: Path) -> None:
    recover(tmp_path / "new")
    shutil.copy(tmp_path / "new" / CATALOG_FILE, full / CATALOG_FILE)
    assert refused(full).reason == "CATALOG_MISSING"


def test_a_missing_catalog_accepted_deletes_nothing(full: Path, here: str) -> None:
    (full / CATALOG_FILE).unlink()
    known = read_store_file(full)
    assert known is not None
    assert recover(full, accept_catalog=True).orphans == 3
    assert served(full, here) == {}
    after = read_store_file(full)
    assert after is not None
    assert after.store_id == known.store_id
    assert after.revision > known.revision
    # It is not asked for again, and the way back is still open.
    recover(full)
    assert {version.digest for version in rebuild(full).versions} == {digest(seed) for seed in (0, 2, 4)}
    assert recover(full).orphans == 0
    assert served(full, here) == WHOLE


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_store_was_copied_while_a_server_used_it(full: Path, here: str, tmp_path: Path, checkpointed: bool) -> None:
    """The file alone: what its log held is not in the copy."""
    if not checkpointed:
        shutil.rmtree(full)
    running = Catalog(full, backbone_fingerprint=here)
    WRITER["add"](running, ME, "d", 6)
    copy = tmp_path / "copy"
    shutil.copytree(full, copy, ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    running.close()
    assert refused(copy).reason == ("CATALOG_OLDER" if checkpointed else "CATALOG_MISSING")
    accepted = shutil.copytree(copy, tmp_path / "accepted")
    assert recover(accepted, accept_catalog=True).orphans == 1
    assert served(accepted, here) == (WHOLE if checkpointed else {})
    assert recover(accepted).orphans == 1
    rebuild(copy)
    recover(copy)
    expected = (WHOLE if checkpointed else {}) | {"d": ({digest(6)}, [digest(6)])}
    assert served(copy, here) == expected


def test_an_older_catalog_was_put_back(full: Path, here: str, tmp_path: Path) -> None:
    old = shutil.copy(full / CATALOG_FILE, tmp_path / "old")
    fill(full, here, {"a": [6], "d": [8]})
    shutil.copy(old, full / CATALOG_FILE)
    error = refused(full)
    assert error.reason == "CATALOG_OLDER"
    assert all(way in error.message for way in WAYS_ON)
    assert recover(full, accept_catalog=True).orphans == 2
    assert served(full, here) == WHOLE
    recover(full)
    assert sorted(path.name for path in (full / "blobs" / "orphans").iterdir()) == sorted([digest(6), digest(8)])
    # What it replaced is an older one from now on.
    rebuild(full)
    assert served(full, here) == WHOLE | {
        "a": ({digest(0), digest(6)}, [digest(6)]),
        "d": ({digest(8)}, [digest(8)]),
    }


def test_an_older_catalog_and_an_older_store_json_were_put_back(full: Path, here: str, tmp_path: Path) -> None:
    """From a backup of those two files alone: what was registered since tells."""
    old = [Path(shutil.copy(full / name, tmp_path / name)) for name in (CATALOG_FILE, "store.json")]
    fill(full, here, {"d": [6, 8]})
    for file in old:
        shutil.copy(file, full / file.name)
    assert refused(full).reason == "CATALOG_OLDER"
    rebuild(full)
    recover(full)
    assert served(full, here) == WHOLE | {"d": ({digest(6), digest(8)}, [digest(8)])}


@pytest.mark.parametrize("later", [1, 30])
@pytest.mark.parametrize("between", [0, 1, 20])
def test_an_older_catalog_beside_the_log_of_a_newer_one(
    store: Path, here: str, tmp_path: Path, add: Callable[..., VersionRow], catalog: Catalog, between: int, later: int
) -> None:
    """SQLite reads the log into whatever file it lies beside. All is there, or the start is refused."""
    for number in range(20):
        add(f"old-{number}", b"%d" % number)
    edit(store, "PRAGMA wal_checkpoint(TRUNCATE)")
    old = shutil.copy(store / CATALOG_FILE, tmp_path / "old")
    for number in range(between):
        add(f"between-{number}", b"between %d" % number)
    edit(store, "PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(later):
        add(f"new-{number}", b"new %d" % number)
    copy = tmp_path / "copy"
    shutil.copytree(store, copy, ignore=shutil.ignore_patterns("*-shm"))
    shutil.copy(old, copy / CATALOG_FILE)
    log = (copy / f"{CATALOG_FILE}-wal").read_bytes()
    said = refusal(copy)
    if said is None:
        assert served(copy, here) == served(store, here)
    else:
        assert said.reason in ("CATALOG_OLDER", "CATALOG_CORRUPT")
        assert "`adamix store rebuild`" in said.message
        # Whoever has the right file still can put it back beside it.
        assert (copy / f"{CATALOG_FILE}-wal").read_bytes() == log
        shutil.copy(store / CATALOG_FILE, copy / CATALOG_FILE)
        recover(copy)
        assert served(copy, here) == served(store, here)
    assert (said is None) >= (between == 0)


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for page in range(4096 * 4, len(data), 4096):
        data[page : page + 200] = b"\xff" * 200
    file.write_bytes(data)


@pytest.mark.parametrize("way", ["restore", "rebuild"])
def test_a_page_of_the_catalog_is_damaged(full: Path, here: str, tmp_path: Path, way: str) -> None:
    """With a log beside it, which must not be read into the catalog that takes its place."""
    backup(full, tmp_path / "backup")
    running = Catalog(full, backbone_fingerprint=here)
    WRITER["add"](running, ME, "d", 6)
    logs = {suffix: Path(f"{full / CATALOG_FILE}{suffix}").read_bytes() for suffix in ("-wal", "-shm")}
    running.close()
    damage(full / CATALOG_FILE)
    error = refused(full)
    assert (type(error), error.reason) == (DataLoss, "CATALOG_CORRUPT")
    assert all(command in error.message for command in ("`adamix store restore`", "`adamix store rebuild`"))
    for suffix, data in logs.items():
        Path(f"{full / CATALOG_FILE}{suffix}").write_bytes(data)
    name = restore(full, tmp_path / "backup").set_aside if way == "restore" else rebuild(full).set_aside
    assert {path.name for path in full.glob("*.set-aside-*")} == {name, f"{name}-wal", f"{name}-shm"}
    recovered = recover(full)
    assert served(full, here) == (WHOLE if way == "restore" else WHOLE | {"d": ({digest(6)}, [digest(6)])})
    assert recovered.orphans == (way == "restore")


def test_the_catalog_of_another_store_was_put_there(full: Path, here: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    fill(other, here, {"theirs": list(range(10, 30))})
    shutil.copy(other / CATALOG_FILE, full / CATALOG_FILE)
    assert refused(full).reason == "CATALOG_OLDER"
    recovered = recover(full, accept_catalog=True)
    assert (len(recovered.missing), recovered.orphans) == (20, 3)
    recover(full)
    assert set(served(full, here)) == {"theirs"}


def test_the_catalog_of_an_older_adamix_was_put_back(store: Path, here: str) -> None:
    """`catalog.db.v3`, as the page on going back once said. What it does not name is kept."""
    shutil.copytree(STORES / "schema_3", store)
    recover(store)
    before = served(store, here)
    fill(store, here, {"since": [40, 41]})
    for suffix in ("-wal", "-shm"):
        Path(f"{store / CATALOG_FILE}{suffix}").unlink(missing_ok=True)
    shutil.copy(store / "catalog.db.v3", store / CATALOG_FILE)
    assert refused(store).reason == "CATALOG_OLDER"
    assert edit(store, "PRAGMA user_version") == [(3,)]
    assert recover(store, accept_catalog=True).orphans == 2
    assert served(store, here) == before
    assert recover(store).orphans == 2


def test_the_first_start_writes_what_is_missing(store: Path, here: str) -> None:
    shutil.copytree(STORES / "schema_3", store)
    recover(store)
    before = served(store, here)
    known = read_store_file(store)
    assert known is not None
    assert edit(store, "SELECT store_id, revision FROM identity, catalog_state") == [(known.store_id, known.revision)]
    (store / CATALOG_FILE).unlink()
    rebuild(store)
    recover(store)
    after = served(store, here)
    assert {name: versions for name, (versions, _) in after.items()} == {
        name: versions for name, (versions, _) in before.items()
    }
    # A split has one version now, and what nobody had made live is: a person looks at that.
    assert all(set(after[name][1]) <= set(live) for name, (_, live) in before.items() if live)


def test_a_store_json_that_is_lost_or_damaged_is_written_again(full: Path, here: str) -> None:
    known = read_store_file(full)
    no_revision = (full / "store.json").read_bytes().replace(b"6}", b"%d}" % (2**63 - 1))
    assert no_revision != (full / "store.json").read_bytes()
    for data in (None, b"", b'{"format":"adamix-store/1","store_id":"no","revision":-1}', no_revision):
        (full / "store.json").unlink() if data is None else (full / "store.json").write_bytes(data)
        recover(full)
        assert read_store_file(full) == known
    assert served(full, here) == WHOLE


def test_an_origin_of_an_impossible_revision_is_none(full: Path, here: str) -> None:
    """No catalog could be accepted beside it, or made anew."""
    origins = full / "origins" / ME / "a"
    stray = (origins / f"{digest(0)}.json").read_text().replace(digest(0), "0" * 64)
    (origins / f"{'0' * 64}.json").write_text(stray.replace('"revision":1,', f'"revision":{2**63 - 1},'))
    recover(full)
    assert len(rebuild(full).damaged) == 1
    recover(full)
    assert served(full, here) == WHOLE


def refusal(store: Path) -> AdamixError | None:
    try:
        recover(store)
    except AdamixError as error:
        return error
    return None


def edit(store: Path, statement: str) -> list[Any]:
    connection = sqlite3.connect(store / CATALOG_FILE)
    with connection:
        rows = connection.execute(statement).fetchall()
    connection.close()
    return rows


def test_an_orphan_that_the_right_catalog_names_again_comes_back_however_old_it_is(full: Path, here: str) -> None:
    right = shutil.copy(full / CATALOG_FILE, full.with_name("right"))
    (full / CATALOG_FILE).unlink()
    assert recover(full, accept_catalog=True).orphans == 3
    for path in (full / "blobs" / "orphans").iterdir():
        os.utime(path, (0, 0))
    shutil.copy(right, full / CATALOG_FILE)
    assert recover(full, accept_catalog=True) == Recovered(Swept(), ())
    assert served(full, here) == WHOLE


def test_what_lies_in_a_store_and_is_not_of_it_keeps_no_server_from_starting(full: Path, here: str) -> None:
    (full / "origins" / ME / "a" / f"{'0' * 64}.json").symlink_to("nowhere")
    (full / "origins" / ME / "a" / "x").symlink_to("/")
    (full / "blobs" / "tmp" / "directory").mkdir()
    (full / "blobs" / "sha256" / ".stray").touch()
    recover(full)
    assert served(full, here) == WHOLE
    assert BlobStore(full / "blobs").sizes().keys() == {digest(seed) for seed in (0, 2, 4)}
    assert verify(full).problems == ()


def test_the_next_schema_brings_a_store_up_to_date_that_has_a_store_json(
    full: Path, here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = shutil.copy(full / CATALOG_FILE, tmp_path / "old")
    fill(full, here, {"d": [6]})

    def upgrade(database: Database) -> None:
        with database.alter() as connection:
            set_schema_version(connection, schema.SCHEMA_VERSION)

    monkeypatch.setattr(recovery, "upgrade", upgrade)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    new = shutil.copy(full / CATALOG_FILE, tmp_path / "new")
    shutil.copy(old, full / CATALOG_FILE)
    assert refused(full).reason == "CATALOG_OLDER"
    assert edit(full, "PRAGMA user_version") == [(schema.SCHEMA_VERSION - 1,)], "it is left as it is"
    shutil.copy(new, full / CATALOG_FILE)
    recover(full)
    assert served(full, here) == WHOLE | {"d": ({digest(6)}, [digest(6)])}

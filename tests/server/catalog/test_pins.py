"""Pins: they belong to one version of one task, survive everything but it, and change what readers see."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adamix.errors import AdamixError, FailedPrecondition, InvalidRequest, NotFound
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog

Add = Callable[..., VersionRow]

ME = "default"


def test_a_pin_is_seen_at_once_and_survives_a_restart(catalog: Catalog, add: Add, store: Path, here: str) -> None:
    first, second = add("t", b"1"), add("t", b"2")
    before = catalog.snapshot()
    assert not before.task(ME, "t").version(first.digest).pinned
    assert catalog.set_pinned(ME, "t", first.digest, True).pinned
    after = catalog.snapshot()
    assert after.revision == before.revision + 1
    assert after.task(ME, "t").version(first.digest).pinned
    assert not after.task(ME, "t").version(second.digest).pinned
    assert {v.digest: v.pinned for v in catalog.list_versions(ME, "t").rows} == {
        first.digest: True,
        second.digest: False,
    }
    catalog.close()
    recover(store)
    again = Catalog(store, backbone_fingerprint=here)
    assert again.pinned() == (first.digest,)
    assert again.snapshot().task(ME, "t").version(first.digest).pinned
    again.close()


def test_each_change_is_audited_and_nothing_else(catalog: Catalog, add: Add) -> None:
    digest = add("t", b"1").digest
    etags = [catalog.get_task(ME, "t").etag]
    for pinned in (False, True, True, False, False):
        assert catalog.set_pinned(ME, "t", digest, pinned).pinned == pinned
        etags.append(catalog.get_task(ME, "t").etag)
    assert [(row.action, row.digest) for row in catalog.audit_log.page(ME).rows][:2] == [
        ("unpin", digest),
        ("pin", digest),
    ]
    assert len(catalog.audit_log.page(ME).rows) == 3
    assert len(set(etags)) == 3


def test_the_same_bytes_of_two_tasks_are_one_pin_until_the_last_goes(catalog: Catalog, add: Add) -> None:
    other, digest = add("other", b"0").digest, add("one", b"1").digest
    add("two", b"1", tenant="stranger")
    catalog.set_pinned("stranger", "two", digest, True)
    catalog.set_pinned(ME, "other", other, True)
    catalog.set_pinned(ME, "one", digest, True)
    assert catalog.pinned() == (digest, other), "the longest pinned first"
    catalog.set_pinned("stranger", "two", digest, False)
    assert set(catalog.pinned()) == {digest, other}
    catalog.set_pinned(ME, "one", digest, False)
    assert catalog.pinned() == (other,)


def test_pins_go_with_their_version(catalog: Catalog, add: Add) -> None:
    first, second = add("t", b"1"), add("t", b"2")
    for version in (first, second):
        catalog.set_pinned(ME, "t", version.digest, True)
    catalog.delete_version(ME, "t", first.digest)
    assert catalog.pinned() == (second.digest,)
    assert not add("t", b"1").pinned, "registered again it is not what it was"
    catalog.delete_task(ME, "t")
    assert catalog.pinned() == ()
    add("t", b"2")
    assert catalog.pinned() == ()


def test_what_cannot_be_pinned(catalog: Catalog, add: Add, elsewhere: str) -> None:
    digest = add("t", b"1").digest
    foreign = add("old", b"2", backbone=elsewhere).digest
    refusals: list[tuple[type[AdamixError], str, str]] = [
        (NotFound, "nothing", digest),
        (NotFound, "t", "e" * 64),
        (InvalidRequest, "T", digest),
        (InvalidRequest, "t", "short"),
        (FailedPrecondition, "old", foreign),
    ]
    revision = catalog.snapshot().revision
    for refusal, task, wanted in refusals:
        with pytest.raises(refusal):
            catalog.set_pinned(ME, task, wanted, True)
    with pytest.raises(NotFound):
        catalog.set_pinned("stranger", "t", digest, True)
    assert catalog.pinned() == ()
    assert catalog.snapshot().revision == revision


def test_pins_of_another_backbone_wait_for_it(
    catalog: Catalog, add: Add, store: Path, here: str, elsewhere: str
) -> None:
    digest = add("t", b"1").digest
    catalog.set_pinned(ME, "t", digest, True)
    catalog.close()
    other = Catalog(store, backbone_fingerprint=elsewhere)
    assert other.pinned() == ()
    assert other.snapshot().task(ME, "t").version(digest).pinned
    other.close()
    back = Catalog(store, backbone_fingerprint=here)
    assert back.pinned() == (digest,)
    assert not back.set_pinned(ME, "t", digest, False).pinned
    back.close()

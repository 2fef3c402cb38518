"""A purge that was decided on at one revision, and what has happened since."""

import hashlib
from collections.abc import Callable

import pytest

from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog

Add = Callable[..., VersionRow]
ME = "default"


@pytest.mark.parametrize("deleted_again", [False, True])
def test_bytes_that_were_registered_again_since_stay(catalog: Catalog, add: Add, deleted_again: bool) -> None:
    digest = add("t", b"v1").digest
    catalog.delete_task(ME, "t")
    decided = catalog.revision()
    # A call may resolve this one, also if it is gone again by the time of the purge.
    add("t", b"v1")
    if deleted_again:
        catalog.delete_task(ME, "t")
    assert not catalog.purge(digest, unless_registered_since=decided)
    assert catalog.blobs.exists(digest)
    assert catalog.retired() == (digest,)
    # Decided on anew, it ends what is retired now.
    assert catalog.purge(digest, unless_registered_since=catalog.revision()) is deleted_again
    assert catalog.retired() == ()
    assert catalog.blobs.exists(digest) is not deleted_again


def test_the_bytes_of_a_failed_registration_go_unless_a_version_has_them(catalog: Catalog, add: Add) -> None:
    data = b"v1"
    digest = hashlib.sha256(data).hexdigest()
    catalog.blobs.put(data, digest)
    assert catalog.discard(digest)
    assert not catalog.blobs.exists(digest)
    add("t", data)
    assert not catalog.discard(digest)
    catalog.delete_task(ME, "t")
    # Requests may still need a retired one.
    assert not catalog.discard(digest)
    assert catalog.blobs.exists(digest)


def test_what_else_was_registered_since_does_not_matter(catalog: Catalog, add: Add) -> None:
    digest = add("t", b"v1").digest
    catalog.delete_task(ME, "t")
    decided = catalog.revision()
    add("t", b"v2")
    assert catalog.purge(digest, unless_registered_since=decided)
    assert not catalog.blobs.exists(digest)

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog
from adamix_testing.catalogs import make_manifest_json, make_tenant, registration

HERE, ELSEWHERE = "a" * 64, "b" * 64

Add = Callable[..., VersionRow]


@pytest.fixture
def here() -> str:
    """Fingerprint of the server's backbone."""
    return HERE


@pytest.fixture
def elsewhere() -> str:
    """Fingerprint of another backbone."""
    return ELSEWHERE


@pytest.fixture
def manifest_json() -> Callable[[str], str]:
    return make_manifest_json


@pytest.fixture(scope="session")
def memory() -> str | None:
    """A directory in memory where there is one: a kill does not lose the page cache, so syncs would only cost time."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def store(memory: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory) / "store"


@pytest.fixture
def catalog(store: Path) -> Iterator[Catalog]:
    catalog = Catalog(store, backbone_fingerprint=HERE)
    yield catalog
    catalog.close()


@pytest.fixture
def add(catalog: Catalog) -> Add:
    """Stores bytes and registers them: add("task", b"v1") -> VersionRow."""

    def add(
        task: str,
        data: bytes,
        *,
        make_live: bool = True,
        tenant: str = "default",
        backbone: str = HERE,
        labels: int = 2,
        request_id: str = "",
    ) -> VersionRow:
        digest = hashlib.sha256(data).hexdigest()
        catalog.blobs.put(data, digest)
        manifest_json = make_manifest_json(backbone, labels)
        make_tenant(catalog, tenant)
        return catalog.register(
            registration(tenant, task, digest, manifest_json, len(data), backbone, make_live, request_id)
        )[0]

    return add

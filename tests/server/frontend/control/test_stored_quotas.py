"""Quotas of what is stored, as a caller meets them: the limit and what is used, and nothing left behind."""

import hashlib
from functools import partial
from pathlib import Path

import pytest

from adamix.errors import QuotaExceeded
from adamix.files.manifest import BackboneSpec
from adamix_server.access.quotas import Quotas
from adamix_server.catalog.store import Catalog
from adamix_server.config import FrontEndSettings
from adamix_testing import harness
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import StartServing


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_who_has_all_it_may_have_is_told_and_puts_nobody_out_of_memory(
    seed: Seed, start_serving: StartServing, make_adapter: MakeAdapter, store: Path, spec: BackboneSpec
) -> None:
    first, second = make_adapter(seed=1), make_adapter(seed=2)
    seed("sst2", first)
    catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
    catalog.tenants.update("default", quotas=Quotas(max_stored_bytes=len(first), pinned_versions=0))
    catalog.close()
    serving = await start_serving()
    with pytest.raises(QuotaExceeded) as caught:
        await serving.call(lambda client: client.register("sst2", second))
    error = caught.value
    assert (error.reason, error.limit, error.used) == ("QUOTA_MAX_STORED_BYTES", len(first), len(first))
    assert error.retry_after_s is None
    assert serving.engine.controls == [], "the engine was asked for nothing"
    assert serving.blobs() == [digest_of(first)]
    assert serving.temporaries() == []
    # The same bytes, for another task, take no room.
    assert (await serving.call(lambda client: client.register("imdb", first))).version.digest == digest_of(first)
    with pytest.raises(QuotaExceeded) as caught:
        await serving.call(lambda client: client.pin_version("sst2", digest_of(first)))
    assert (caught.value.reason, caught.value.limit) == ("QUOTA_PINNED_VERSIONS", 0)


async def test_who_has_none_of_its_own_has_those_of_the_server(
    seed: Seed, start_serving: StartServing, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_adapter(seed=1)
    seed("sst2", data)
    settings = partial(FrontEndSettings, default_quotas={"max_tasks": 1})
    monkeypatch.setattr(harness, "FrontEndSettings", settings)
    serving = await start_serving()
    with pytest.raises(QuotaExceeded) as caught:
        await serving.call(lambda client: client.register("imdb", data))
    assert (caught.value.reason, caught.value.limit, caught.value.used) == ("QUOTA_MAX_TASKS", 1, 1)
    assert (await serving.call(lambda client: client.register("sst2", data))).already_exists

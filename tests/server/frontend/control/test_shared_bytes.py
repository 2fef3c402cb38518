"""Two tenants with the same adapter: neither notices the other."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from adamix.files.manifest import BackboneSpec
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import inference_pb2
from adamix_server.access.quotas import Quotas
from adamix_server.catalog.store import Catalog
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed, make_tenant
from adamix_testing.harness import Harness, StartServing, judge_here
from adamix_testing.identities import Callers, of_role, said
from adamix_testing.refusals import failure, refusal

ONE, TWO = "one", "two"
WHO = {tenant: of_role("publisher", tenant) for tenant in (ONE, TWO)}


class Tenant:
    """What a tenant does with its task `t`."""

    def __init__(self, harness: Harness, tenant: str) -> None:
        self._harness = harness
        self._call: dict[str, Any] = {"metadata": said(tenant), "timeout": 30}

    async def register(self, data: bytes, **header: Any) -> pb.RegisterAdapterResponse:
        async def upload() -> AsyncIterator[pb.RegisterAdapterRequest]:
            yield pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task="t", **header))
            yield pb.RegisterAdapterRequest(chunk=data)

        response: pb.RegisterAdapterResponse = await self._harness.adapters.RegisterAdapter(upload(), **self._call)
        return response

    async def unload(self, digest: str) -> Any:
        return await self._harness.adapters.UnloadVersion(
            pb.UnloadVersionRequest(task="t", digest=digest), **self._call
        )

    async def pin(self, digest: str, *, pinned: bool = True, task: str = "t") -> Any:
        return await self._harness.adapters.PinVersion(
            pb.PinVersionRequest(task=task, digest=digest, pinned=pinned), **self._call
        )

    async def versions(self) -> list[pb.Version]:
        response = await self._harness.adapters.ListVersions(pb.ListVersionsRequest(task="t"), **self._call)
        return list(response.versions)

    async def etag(self) -> str:
        response = await self._harness.adapters.GetTask(pb.GetTaskRequest(task="t"), **self._call)
        return str(response.task.etag)

    async def delete_task(self, etag: str = "") -> None:
        await self._harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="t", etag=etag), **self._call)

    async def delete_version(self, digest: str) -> None:
        await self._harness.adapters.DeleteVersion(pb.DeleteVersionRequest(task="t", digest=digest), **self._call)

    async def predict(self) -> str:
        inputs = [inference_pb2.PredictInput(task="t", text="w1")]
        response = await self._harness.inference.Predict(inference_pb2.PredictRequest(inputs=inputs), **self._call)
        return str(response.predictions[0].version)


@pytest.fixture
async def harness(
    start_serving: StartServing, store: Path, spec: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> Harness:
    judge_here(monkeypatch)
    catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
    for tenant in (ONE, TWO):
        make_tenant(catalog, tenant)
    catalog.close()
    return await start_serving(callers=Callers(WHO))


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_a_file_that_another_has_is_new_to_who_registers_it(harness: Harness, make_adapter: MakeAdapter) -> None:
    data, one, two = make_adapter(), Tenant(harness, ONE), Tenant(harness, TWO)
    assert not (await one.register(data, request_id="r")).already_exists
    theirs = await two.register(data, request_id="r", make_live=False)
    assert not theirs.already_exists, "nor is the id of the request known"
    assert not theirs.version.live
    assert (await one.register(data)).already_exists


async def test_an_unload_is_answered_alike_whoever_else_needs_the_bytes(
    harness: Harness, make_adapter: MakeAdapter
) -> None:
    data = make_adapter()
    digest, one, two = digest_of(data), Tenant(harness, ONE), Tenant(harness, TWO)
    await one.register(data)
    alone = await one.unload(digest)
    assert (alone.version.residency, harness.engine.controls[-1].is_kept) == (pb.RESIDENCY_STORE, False)
    await two.register(data, make_live=False)
    assert (await one.unload(digest), harness.engine.controls[-1].is_kept) == (alone, False)
    await two.register(data)
    assert (await one.unload(digest), harness.engine.controls[-1].is_kept) == (alone, True)
    assert harness.engine.controls[-1].tenant == ONE
    await two.delete_task()
    assert (await one.unload(digest), harness.engine.controls[-1].is_kept) == (alone, False)


async def test_a_pin_is_the_tenants_own(harness: Harness, make_adapter: MakeAdapter) -> None:
    data = make_adapter()
    digest, one, two = digest_of(data), Tenant(harness, ONE), Tenant(harness, TWO)
    await one.register(data)
    alone = await one.unload(digest)
    await two.register(data, make_live=False)
    await two.pin(digest)
    assert [version.pinned for version in await one.versions()] == [False]
    assert await one.unload(digest) == alone, "what another has pinned is not said to be"
    assert harness.engine.controls[-1].is_kept
    await one.pin(digest)
    assert await refusal(one.unload(digest)) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_PINNED")
    assert not (await one.pin(digest, pinned=False)).version.pinned
    assert harness.engine.pinned == {digest}, "the other's is left"
    assert [version.pinned for version in await two.versions()] == [True]
    await two.pin(digest, pinned=False)
    assert harness.engine.pinned == set()


async def test_ones_own_other_task_with_the_bytes_keeps_them_and_that_is_said(
    harness: Harness, seed: Seed, make_adapter: MakeAdapter
) -> None:
    data = make_adapter()
    one = Tenant(harness, ONE)
    await one.register(data)
    seed("other", data, tenant=ONE)
    await one.register(make_adapter(seed=1), make_live=False)
    await one.pin(digest_of(data), task="other")
    error = await failure(one.unload(digest_of(data)))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "by another task with the same bytes" in str(error.details())


async def test_who_deletes_deletes_its_own(harness: Harness, make_adapter: MakeAdapter) -> None:
    data, newer = make_adapter(), make_adapter(seed=1)
    digest, one, two = digest_of(data), Tenant(harness, ONE), Tenant(harness, TWO)
    await one.register(data)
    await two.register(data)
    await one.register(newer)
    await one.delete_version(digest)
    assert await refusal(one.unload(digest)) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    # The bytes of the newer one go, by which one sees that there was time for the others.
    await one.delete_task()
    await harness.until(lambda: digest_of(newer) not in harness.blobs())
    assert await two.predict() == digest
    assert harness.blobs() == [digest]
    await two.delete_task()
    await harness.until(lambda: harness.blobs() == [])


async def test_what_one_tenant_was_told_is_worth_nothing_to_another(
    harness: Harness, make_adapter: MakeAdapter
) -> None:
    data, newer = make_adapter(), make_adapter(seed=1)
    one, two = Tenant(harness, ONE), Tenant(harness, TWO)
    for tenant in (one, two):
        await tenant.register(data)
        await tenant.register(newer)
    etag = await one.etag()
    assert await refusal(two.delete_task(etag)) == (grpc.StatusCode.ABORTED, "STALE_ETAG")
    page = await harness.adapters.ListVersions(pb.ListVersionsRequest(task="t", page_size=1), metadata=said(ONE))
    request = pb.ListVersionsRequest(task="t", page_size=1, page_token=page.next_page_token)
    code, _ = await refusal(harness.adapters.ListVersions(request, metadata=said(TWO)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert len((await harness.adapters.ListVersions(request, metadata=said(ONE))).versions) == 1
    assert await asyncio.gather(one.predict(), two.predict()) == [digest_of(newer)] * 2


async def test_a_tenant_that_may_pin_no_more_takes_no_slot_for_it(
    harness: Harness, store: Path, spec: BackboneSpec, make_adapter: MakeAdapter
) -> None:
    catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
    catalog.tenants.update(ONE, quotas=Quotas(pinned_versions=1))
    catalog.close()
    datas = [make_adapter(seed=seed) for seed in (1, 2)]
    one, two = Tenant(harness, ONE), Tenant(harness, TWO)
    for data in datas:
        await one.register(data)
        await two.register(data)
    first, second = map(digest_of, datas)
    await one.pin(first)
    await one.pin(first)
    asked = len(harness.engine.controls)
    assert await refusal(one.pin(second)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_PINNED_VERSIONS")
    assert len(harness.engine.controls) == asked
    await two.pin(second)
    assert harness.engine.pinned == {first, second}, "another's pins are another's matter"

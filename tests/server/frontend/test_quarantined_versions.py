"""A version that the engine does not run any more for a tenant, as that tenant and the others see it."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from adamix.files.manifest import BackboneSpec
from adamix_protos.open_inference import open_inference_pb2 as oip
from adamix_protos.open_inference import open_inference_pb2_grpc
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import inference_pb2
from adamix_server.catalog.store import Catalog
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed, make_tenant
from adamix_testing.harness import Harness, StartServing
from adamix_testing.identities import Callers, of_role, said
from adamix_testing.refusals import refusal

OWNER, GUEST = "owner", "guest"
LENT = f"tenants/{OWNER}/tasks/t"
WHO = {
    "guest": of_role("caller", GUEST),
    "owner": of_role("publisher", OWNER),
    "caller": of_role("caller", OWNER),
    "operator": of_role("operator"),
}
REFUSED = (grpc.StatusCode.FAILED_PRECONDITION, "ADAPTER_QUARANTINED")


@pytest.fixture
def digest(store: Path, spec: BackboneSpec, seed: Seed, make_adapter: MakeAdapter) -> Iterator[str]:
    catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
    for tenant in (OWNER, GUEST):
        make_tenant(catalog, tenant)
    seed("same", make_adapter(), tenant=GUEST)
    seed("well", make_adapter(seed=1), tenant=OWNER)
    digest = seed("t", make_adapter(), tenant=OWNER)
    catalog.grants.add(OWNER, "t", GUEST)
    yield digest
    catalog.close()


async def predict(harness: Harness, task: str, who: str) -> tuple[grpc.StatusCode, str] | str:
    """The refusal, or the empty string for an answer."""
    inputs = [inference_pb2.PredictInput(task=task, text="w1")]
    call = harness.inference.Predict(inference_pb2.PredictRequest(inputs=inputs), metadata=said(who), timeout=30)
    try:
        await call
    except grpc.aio.AioRpcError:
        return await refusal(call)
    return ""


async def shown(harness: Harness, task: str, who: str = "owner") -> tuple[str, bool, str]:
    """`unavailable_reason` of the task; `quarantined` and `quarantine_reason` of its version."""
    found = (await harness.adapters.GetTask(pb.GetTaskRequest(task=task), metadata=said(who))).task
    listed = await harness.adapters.ListVersions(pb.ListVersionsRequest(task=task), metadata=said(who))
    (version,) = listed.versions
    return found.unavailable_reason, version.quarantined, version.quarantine_reason


async def ready(harness: Harness, task: str, who: str) -> bool:
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(harness.channel)
    return bool((await stub.ModelReady(oip.ModelReadyRequest(name=task), metadata=said(who))).ready)


async def quarantine(harness: Harness, *keys: tuple[str, str]) -> None:
    harness.engine.quarantined.update(dict.fromkeys(keys, "NON_FINITE_OUTPUT"))
    harness.engine.tell_quarantined()
    await harness.until(lambda: len(harness.front_end._link.quarantined) == len(harness.engine.quarantined))


async def test_it_is_refused_before_the_engine_is_asked_and_shown_wherever_versions_are(
    start_serving: StartServing, digest: str
) -> None:
    harness = await start_serving(callers=Callers(WHO))
    assert await shown(harness, "t") == ("", False, "")
    await quarantine(harness, (OWNER, digest))
    assert await predict(harness, "t", "owner") == REFUSED
    assert not harness.engine.submits
    assert await shown(harness, "t") == ("ADAPTER_QUARANTINED", True, "NON_FINITE_OUTPUT")
    assert not await ready(harness, "t", "owner")
    # Another task of the tenant, and the same bytes of another tenant.
    assert await predict(harness, "well", "owner") == ""
    assert await shown(harness, "well") == ("", False, "")
    assert await predict(harness, "same", "guest") == ""
    assert await ready(harness, "same", "guest")
    assert await shown(harness, f"tenants/{GUEST}/tasks/same", "operator") == ("", False, "")


async def test_what_a_guests_inputs_brought_about_is_the_guests_matter_alone(
    start_serving: StartServing, digest: str
) -> None:
    harness = await start_serving(callers=Callers(WHO))
    await quarantine(harness, (GUEST, digest))
    assert await predict(harness, LENT, "guest") == REFUSED
    assert not await ready(harness, LENT, "guest")
    assert await predict(harness, "t", "owner") == ""
    assert await ready(harness, "t", "owner")
    assert await shown(harness, "t") == ("", False, "")


async def test_whoever_may_operate_lifts_it_by_loading_the_version(start_serving: StartServing, digest: str) -> None:
    harness = await start_serving(callers=Callers(WHO))
    await quarantine(harness, (OWNER, digest), (GUEST, digest), ("stranger", digest))
    request = pb.LoadVersionRequest(task="t", digest=digest)
    assert await refusal(harness.adapters.LoadVersion(request, metadata=said("caller"))) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "RIGHT_MISSING",
    )
    assert await predict(harness, "t", "owner") == REFUSED
    version = (await harness.adapters.LoadVersion(request, metadata=said("owner"))).version
    assert not version.quarantined
    assert await predict(harness, "t", "owner") == ""
    assert await predict(harness, LENT, "guest") == "", "the task is lent to it"
    assert set(harness.engine.quarantined) == {("stranger", digest)}


async def test_another_version_that_goes_live_is_answered(
    start_serving: StartServing, digest: str, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("t", make_adapter(seed=2), tenant=OWNER)
    harness = await start_serving(callers=Callers(WHO))
    await quarantine(harness, (OWNER, digest))
    assert await predict(harness, "t", "owner") == ""


async def test_a_new_engine_begins_anew(start_serving: StartServing, digest: str) -> None:
    harness = await start_serving(callers=Callers(WHO))
    await quarantine(harness, (OWNER, digest))
    harness.kill_engine()
    await harness.until(lambda: not harness.front_end._link.is_up)
    harness.start_engine()
    await harness.until(lambda: harness.front_end._link.is_up)
    assert await predict(harness, "t", "owner") == ""

"""A task that is lent is answered for the tenant that it is lent to, at that tenant's expense, and nothing more."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from adamix.files.manifest import BackboneSpec
from adamix_protos.open_inference import open_inference_pb2 as oip
from adamix_protos.open_inference import open_inference_pb2_grpc
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import inference_pb2
from adamix_server.catalog.store import Catalog
from adamix_server.channel.supervisor_frames import Refresh
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed, make_tenant
from adamix_testing.harness import Harness, StartServing, judge_here
from adamix_testing.identities import Callers, of_role, said
from adamix_testing.refusals import details, reason, refusal

OWNER, GUEST = "owner", "guest"
LENT = f"tenants/{OWNER}/tasks/lent"
WHO = {
    "guest": of_role("caller", GUEST),
    "narrowed": of_role("caller", GUEST, "other-*"),
    "owner": of_role("publisher", OWNER),
    "operator": of_role("operator"),
}
MISSING = (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


@pytest.fixture
def catalog(store: Path, spec: BackboneSpec, seed: Seed, make_adapter: MakeAdapter) -> Catalog:
    """The store's, beside the front end's own."""
    catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
    for tenant in (OWNER, GUEST, "stranger"):
        make_tenant(catalog, tenant)
    seed("lent", make_adapter(), tenant=OWNER)
    seed("kept", make_adapter(), tenant=OWNER)
    seed("lent", make_adapter(seed=1), tenant=GUEST)
    catalog.grants.add(OWNER, "lent", GUEST)
    return catalog


@pytest.fixture
async def harness(
    start_serving: StartServing, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Harness]:
    judge_here(monkeypatch)
    yield await start_serving(callers=Callers(WHO))
    catalog.close()


def predict(harness: Harness, task: str, who: str) -> Any:
    inputs = [inference_pb2.PredictInput(task=task, text="w1")]
    return harness.inference.Predict(inference_pb2.PredictRequest(inputs=inputs), metadata=said(who), timeout=30)


async def all_see(harness: Harness, change: Callable[[], object]) -> None:
    """Make a change that the front end was not asked for, and wait until it knows."""
    await asyncio.to_thread(change)
    view = harness.front_end._agreement
    before = view.seen.revision
    harness.supervisor.tell(Refresh(revision=before + 1))
    await harness.until(lambda: view.seen.revision > before)


async def test_the_guest_pays_and_the_task_counts(harness: Harness) -> None:
    response = await predict(harness, LENT, "guest")
    assert response.predictions[0].task == LENT
    (row,) = harness.engine.submits[-1].rows
    assert row.tenant == GUEST
    counted = {
        sample.labels
        for sample in harness.front_end._recorder.drain()
        if sample.name == "adamix_task_requests_total" and any(sample.values)
    }
    assert counted == {(OWNER, "lent")}
    # A bare name is one's own task.
    own = await predict(harness, "lent", "guest")
    assert own.predictions[0].version != response.predictions[0].version


async def test_every_way_of_asking_takes_a_lent_task(harness: Harness) -> None:
    model = open_inference_pb2_grpc.GRPCInferenceServiceStub(harness.channel)
    call: Any = {"metadata": said("guest"), "timeout": 30}
    assert (await model.ModelReady(oip.ModelReadyRequest(name=LENT), **call)).ready
    metadata = await model.ModelMetadata(oip.ModelMetadataRequest(name=LENT), **call)
    assert metadata.name == LENT, "by which it may be asked for"
    request = oip.ModelInferRequest(model_name=LENT, model_version=metadata.versions[0])
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"w1")
    assert (await model.ModelInfer(request, **call)).model_name == LENT
    assert harness.engine.submits[-1].rows[0].tenant == GUEST

    async def inputs() -> AsyncIterator[inference_pb2.PredictStreamRequest]:
        for task in (LENT, f"tenants/{OWNER}/tasks/kept"):
            message = inference_pb2.PredictInput(task=task, text="w1")
            yield inference_pb2.PredictStreamRequest(id=task, input=message)

    found = {}
    async for response in harness.inference.PredictStream(inputs(), **call):
        found[response.id] = response.prediction
    assert not found[LENT].HasField("error")
    assert reason(found[f"tenants/{OWNER}/tasks/kept"].error) == "NOT_FOUND"
    info = details(found[f"tenants/{OWNER}/tasks/kept"].error)["ResourceInfo"]
    assert (info.resource_type, info.resource_name) == ("adamix.v1/Task", f"tenants/{OWNER}/tasks/kept")


async def test_a_key_for_some_tasks_does_not_reach_another_that_is_lent(harness: Harness) -> None:
    assert await refusal(predict(harness, LENT, "narrowed")) == MISSING


async def test_a_grant_that_ends_ends_at_once_also_for_an_open_stream(harness: Harness, catalog: Catalog) -> None:
    await predict(harness, LENT, "guest")
    stream = harness.inference.PredictStream(metadata=said("guest"), timeout=30)
    message = inference_pb2.PredictInput(task=LENT, text="w1")
    await stream.write(inference_pb2.PredictStreamRequest(id="before", input=message))
    assert not (await stream.read()).prediction.HasField("error")
    await all_see(harness, lambda: catalog.grants.remove(OWNER, "lent", GUEST))
    assert await refusal(predict(harness, LENT, "guest")) == MISSING
    await stream.write(inference_pb2.PredictStreamRequest(id="after", input=message))
    assert reason((await stream.read()).prediction.error) == "NOT_FOUND"
    await stream.done_writing()
    await predict(harness, LENT, "owner")


async def test_a_task_that_is_made_anew_is_not_lent(harness: Harness, seed: Seed, make_adapter: MakeAdapter) -> None:
    await harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="lent"), metadata=said("owner"))
    assert await refusal(predict(harness, LENT, "guest")) == MISSING
    await all_see(harness, lambda: seed("lent", make_adapter(), tenant=OWNER))
    await predict(harness, LENT, "owner")
    assert await refusal(predict(harness, LENT, "guest")) == MISSING


async def test_a_tenant_that_is_made_anew_was_lent_nothing(harness: Harness, catalog: Catalog) -> None:
    await all_see(harness, lambda: catalog.tenants.delete(GUEST, force=True))
    assert await refusal(predict(harness, LENT, "guest")) == MISSING
    await all_see(harness, lambda: make_tenant(catalog, GUEST))
    assert await refusal(predict(harness, LENT, "guest")) == MISSING


async def test_an_operator_acts_for_a_tenant_by_the_full_name_and_pays_itself(
    harness: Harness, make_adapter: MakeAdapter
) -> None:
    async def upload(task: str) -> AsyncIterator[pb.RegisterAdapterRequest]:
        yield pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task=task))
        yield pb.RegisterAdapterRequest(chunk=make_adapter(seed=5))

    call: Any = {"metadata": said("operator"), "timeout": 30}
    for task, full in (("new", "tenants/default/tasks/new"), (f"tenants/{GUEST}/tasks/new",) * 2):
        response = await harness.adapters.RegisterAdapter(upload(task), **call)
        assert response.version.name == f"{full}/versions/{response.version.digest}"
    await predict(harness, f"tenants/{GUEST}/tasks/new", "operator")
    assert harness.engine.submits[-1].rows[0].tenant == "default"
    await predict(harness, "new", "guest")
    listed = await harness.adapters.ListTasks(pb.ListTasksRequest(), **call)
    assert [task.name for task in listed.tasks] == ["tenants/default/tasks/new"]
    missing = await refusal(harness.adapters.RegisterAdapter(upload("tenants/nobody/tasks/new"), **call))
    assert missing == (grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND")

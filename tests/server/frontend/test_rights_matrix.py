"""Every method, asked by every kind of caller for a task of its own, of another tenant, lent to it, and there not.

The methods are those of the descriptors, what they need is read from the table: one that is added without a row there,
or without a request here, fails.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from adamix.errors import Code
from adamix.files.manifest import BackboneSpec
from adamix_protos.open_inference import open_inference_pb2 as oip
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import admin_pb2, inference_pb2, server_pb2
from adamix_server.access.rights import NEEDS, ROLES
from adamix_server.catalog.store import Catalog
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import make_manifest_json, make_tenant, registration
from adamix_testing.harness import Harness, StartServing
from adamix_testing.identities import Callers, of_role, said
from adamix_testing.refusals import details, reason, status_of

ME, OTHER, THIRD = "acme", "other", "third"
# By the word that they say. Nobody says none that is known.
WHO = {
    "caller": of_role("caller", ME),
    "publisher": of_role("publisher", ME),
    "owner": of_role("owner", ME),
    "narrowed": of_role("publisher", ME, "own-*"),
    "operator": of_role("operator"),
}
NOBODY = "nobody"
# (tenant, task) that there are, all with the same bytes; of those of OTHER some are lent to ME.
TASKS = {(ME, "own-a"), (ME, "plain-b"), ("default", "own-a"), (OTHER, "own-theirs"), (OTHER, "own-lent")}
TASKS |= {(OTHER, "plain-lent")}
LENT = {(OTHER, "own-lent"), (OTHER, "plain-lent")}
NAMES = [
    "own-a",
    "plain-b",
    "own-nothing",
    "own-theirs",
    *(f"tenants/{tenant}/tasks/{task}" for tenant, task in sorted(TASKS)),
    f"tenants/{ME}/tasks/own-nothing",
    f"tenants/{OTHER}/tasks/own-nothing",
    "tenants/nobody/tasks/own-a",
]
DIGEST = "d" * 64

Request = Callable[[str], Sequence[Message]]


def _inference(name: str) -> inference_pb2.PredictInput:
    return inference_pb2.PredictInput(task=name, text="w1")


def _tensors(name: str) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=name)
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"w1")
    return request


# What is sent for a task. Etags are stale: nothing is changed by who may change it.
OF_TASKS: dict[str, Request] = {
    "/inference.GRPCInferenceService/ModelMetadata": lambda name: [oip.ModelMetadataRequest(name=name)],
    "/inference.GRPCInferenceService/ModelReady": lambda name: [oip.ModelReadyRequest(name=name)],
    "/adamix.v1.AdapterService/RegisterAdapter": lambda name: [
        pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task=name, expected_digest="none"))
    ],
    "/adamix.v1.AdapterService/GetTask": lambda name: [pb.GetTaskRequest(task=name)],
    "/adamix.v1.AdapterService/ListVersions": lambda name: [pb.ListVersionsRequest(task=name)],
    "/adamix.v1.AdapterService/DeleteTask": lambda name: [pb.DeleteTaskRequest(task=name, etag="stale")],
    "/adamix.v1.AdapterService/DeleteVersion": lambda name: [
        pb.DeleteVersionRequest(task=name, digest=DIGEST, etag="stale")
    ],
    "/adamix.v1.AdapterService/SetTraffic": lambda name: [pb.SetTrafficRequest(task=name, etag="stale")],
    "/adamix.v1.AdapterService/Rollback": lambda name: [pb.RollbackRequest(task=name, etag="stale")],
    # No digest: what is wrong with the rest is said only of a task that the caller sees.
    "/adamix.v1.AdapterService/LoadVersion": lambda name: [pb.LoadVersionRequest(task=name)],
    "/adamix.v1.AdapterService/UnloadVersion": lambda name: [pb.UnloadVersionRequest(task=name)],
    "/adamix.v1.AdapterService/PinVersion": lambda name: [pb.PinVersionRequest(task=name)],
    "/adamix.v1.AdminService/GrantTask": lambda name: [admin_pb2.GrantTaskRequest(task=name, tenant=THIRD)],
    "/adamix.v1.AdminService/RevokeGrant": lambda name: [admin_pb2.RevokeGrantRequest(task=name, tenant=THIRD)],
    # Last, since beside them all others are made to wait.
    "/adamix.v1.InferenceService/Predict": lambda name: [inference_pb2.PredictRequest(inputs=[_inference(name)])],
    "/adamix.v1.InferenceService/PredictStream": lambda name: [
        inference_pb2.PredictStreamRequest(id="a", input=_inference(name))
    ],
    "/inference.GRPCInferenceService/ModelInfer": lambda name: [_tensors(name)],
}
# What is sent for none.
OTHERS: dict[str, Sequence[Message]] = {
    # Answered before its task is looked for: no backbone of these tests generates.
    "/adamix.v1.InferenceService/Generate": [inference_pb2.GenerateRequest(task="own-a")],
    "/inference.GRPCInferenceService/ServerLive": [oip.ServerLiveRequest()],
    "/inference.GRPCInferenceService/ServerReady": [oip.ServerReadyRequest()],
    "/inference.GRPCInferenceService/ServerMetadata": [oip.ServerMetadataRequest()],
    "/adamix.v1.AdapterService/ListTasks": [pb.ListTasksRequest()],
    "/adamix.v1.AdapterService/WatchTasks": [pb.WatchTasksRequest()],
    "/adamix.v1.AdminService/CreateTenant": [admin_pb2.CreateTenantRequest(id="new")],
    "/adamix.v1.AdminService/GetTenant": [admin_pb2.GetTenantRequest()],
    "/adamix.v1.AdminService/ListTenants": [admin_pb2.ListTenantsRequest()],
    "/adamix.v1.AdminService/UpdateTenant": [admin_pb2.UpdateTenantRequest()],
    "/adamix.v1.AdminService/DeleteTenant": [admin_pb2.DeleteTenantRequest(tenant="nobody")],
    "/adamix.v1.AdminService/CreateKey": [admin_pb2.CreateKeyRequest(role="caller")],
    "/adamix.v1.AdminService/ListKeys": [admin_pb2.ListKeysRequest()],
    "/adamix.v1.AdminService/RevokeKey": [admin_pb2.RevokeKeyRequest(key="a" * 12)],
    "/adamix.v1.AdminService/ListGrants": [admin_pb2.ListGrantsRequest()],
    "/adamix.v1.AdminService/ListAudit": [admin_pb2.ListAuditRequest()],
    "/adamix.v1.AdminService/GetUsage": [admin_pb2.GetUsageRequest()],
    "/adamix.v1.AdminService/WhoAmI": [admin_pb2.WhoAmIRequest()],
    "/adamix.v1.ServerService/GetServerInfo": [server_pb2.GetServerInfoRequest()],
    "/adamix.v1.ServerService/GetLoad": [server_pb2.GetLoadRequest()],
    "/adamix.v1.ServerService/Drain": [server_pb2.DrainRequest()],
    "/grpc.health.v1.Health/Check": [health_pb2.HealthCheckRequest()],
    # Not in every package of grpc; it has no fields.
    "/grpc.health.v1.Health/List": [health_pb2.HealthCheckRequest()],
    "/grpc.health.v1.Health/Watch": [health_pb2.HealthCheckRequest()],
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": [
        reflection_pb2.ServerReflectionRequest(list_services="")
    ],
}


@dataclass(frozen=True)
class Outcome:
    """How a call ended: its first answer, or what its status says."""

    code: str
    reason: str = ""
    message: str = ""
    resource: tuple[str, str] = ("", "")
    answer: bytes = b""


async def ask(harness: Harness, method: str, messages: Sequence[Message] | None, who: str) -> Outcome:
    """The first answer of a method of any kind; without messages, none is sent, and their end is not said either."""
    call = harness.channel.stream_stream(method)(metadata=said(who), timeout=30)
    try:
        if messages is not None:
            for message in messages:
                await call.write(message.SerializeToString())
            await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # it has ended already: how, is read next
    try:
        answer: Any = await call.read()
    except grpc.aio.AioRpcError as error:
        return _refused(error.code().name, status_of(error))
    finally:
        call.cancel()
    if method.endswith("/PredictStream"):
        response = inference_pb2.PredictStreamResponse.FromString(answer)
        if response.prediction.HasField("error"):
            error_status = response.prediction.error
            return _refused(Code(error_status.code).name, error_status)
    return Outcome("OK", answer=b"" if answer is grpc.aio.EOF else answer)


def _refused(code: str, status: Any) -> Outcome:
    found = details(status)
    resource = ("", "")
    if "ResourceInfo" in found:
        info = found["ResourceInfo"]
        assert info.description == status.message
        resource = (info.resource_type, info.resource_name)
    assert set(found) <= {"ErrorInfo", "ResourceInfo", "BadRequest", "RetryInfo", "QuotaFailure"}
    return Outcome(code, reason(status), status.message, resource)


def sees(who: str, method: str, name: str) -> bool:
    """Whether a caller that has the right is to find a task of this name, or may make one."""
    principal = WHO[who]
    tenant, task = name.split("/")[1::2] if "/" in name else (principal.tenant, name)
    if who == "narrowed" and not task.startswith("own-"):
        return False
    if method.endswith("/RegisterAdapter"):
        return tenant == principal.tenant or who == "operator"
    if (tenant, task) not in TASKS:
        return False
    is_lent = tenant == OTHER and principal.tenant == ME and NEEDS[method] == "infer" and (tenant, task) in LENT
    return tenant == principal.tenant or who == "operator" or is_lent


@pytest.fixture
async def server(start_serving: StartServing, make_adapter: MakeAdapter, store: Path, spec: BackboneSpec) -> Harness:
    data = make_adapter()
    digest = hashlib.sha256(data).hexdigest()
    catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
    catalog.blobs.put(data, digest)
    for tenant in (ME, OTHER, THIRD):
        make_tenant(catalog, tenant)
    manifest_json = make_manifest_json(spec.fingerprint, labels=3)
    for tenant, task in sorted(TASKS):
        catalog.register(registration(tenant, task, digest, manifest_json, len(data), spec.fingerprint))
    for owner, task in sorted(LENT):
        catalog.grants.add(owner, task, ME)
    catalog.close()
    return await start_serving(callers=Callers(WHO))


def has_right(who: str, method: str) -> bool:
    """Whether a caller is let in, whatever it asks for."""
    need = NEEDS[method]
    if need == "nothing" or who == NOBODY:
        return need == "nothing"
    return need == "identity" or need in WHO[who].rights or who == "operator"


def test_there_is_a_request_for_every_method_and_a_caller_for_every_role() -> None:
    assert sorted([*OF_TASKS, *OTHERS]) == sorted(NEEDS)
    assert {who for who in WHO if who != "narrowed"} == set(ROLES)


async def test_who_lacks_a_right_is_refused_before_it_sends_anything(server: Harness) -> None:
    for who in (*WHO, NOBODY):
        for method, need in NEEDS.items():
            if has_right(who, method):
                continue
            found = await ask(server, method, None, who)
            if who == NOBODY:
                assert (found.code, found.reason) == ("UNAUTHENTICATED", "KEY_INVALID"), method
            else:
                assert (found.code, found.reason) == ("PERMISSION_DENIED", "RIGHT_MISSING"), (who, method)
                assert f"'{need}'" in found.message, (who, method)


async def test_who_has_it_is_let_in(server: Harness) -> None:
    for who in (*WHO, NOBODY):
        for method, messages in OTHERS.items():
            if has_right(who, method):
                found = await ask(server, method, messages, who)
                assert found.code not in ("UNAUTHENTICATED", "PERMISSION_DENIED"), (who, method, found)


async def test_a_task_is_found_by_those_who_may_see_it_and_by_nobody_else(server: Harness) -> None:
    """Whatever is not found is not found in the same words, but for the name that the caller has written."""
    for method, request in OF_TASKS.items():
        for who in WHO:
            if has_right(who, method):
                found = {name: await ask(server, method, request(name), who) for name in NAMES}
                _check(who, method, found)


def _check(who: str, method: str, found: Mapping[str, Outcome]) -> None:
    """Whether those names and no others were found, and of the others nothing was told."""
    missing = set()
    for name, outcome in found.items():
        where = (who, method, name, outcome)
        assert outcome.code not in ("UNAUTHENTICATED", "PERMISSION_DENIED"), where
        if method.endswith("/ModelReady"):
            assert oip.ModelReadyResponse.FromString(outcome.answer).ready == sees(who, method, name), where
            continue
        if outcome.message == "grant not found":
            # Of a task that is seen, and taken back already under its other name.
            assert sees(who, method, name), where
            continue
        assert (outcome.code != "NOT_FOUND") == sees(who, method, name), where
        if outcome.code == "NOT_FOUND":
            kind, resource = outcome.resource
            assert resource == (name if "/" in name else f"tenants/{WHO[who].tenant}/tasks/{name}"), where
            missing.add((outcome.reason, outcome.message, kind))
    assert missing <= {("NOT_FOUND", "task not found", "adamix.v1/Task")}, (who, method, missing)


async def test_lists_and_watches_tell_of_what_may_be_named_alone(server: Harness) -> None:
    for who in ("publisher", "narrowed"):
        expected = [f"tenants/{ME}/tasks/own-a"] + ([f"tenants/{ME}/tasks/plain-b"] if who == "publisher" else [])
        names: list[str] = []
        token = ""
        while not names or token:
            request = pb.ListTasksRequest(page_size=1, page_token=token)
            page = await server.adapters.ListTasks(request, metadata=said(who))
            names += [task.name for task in page.tasks]
            token = page.next_page_token
        assert names == expected
        watched: list[str] = []
        async for message in server.adapters.WatchTasks(pb.WatchTasksRequest(), metadata=said(who), timeout=30):
            if message.synchronised:
                break
            watched.append(message.task.name)
        assert watched == expected


async def test_a_watcher_hears_of_no_change_that_is_not_for_it(server: Harness) -> None:
    watch = server.adapters.WatchTasks(pb.WatchTasksRequest(), metadata=said("narrowed"), timeout=30)
    while not (await watch.read()).synchronised:
        pass
    for task in ("plain-b", "own-a"):
        await server.adapters.DeleteTask(pb.DeleteTaskRequest(task=task), metadata=said("owner"))
    heard = await watch.read()
    assert (heard.task.name, heard.deleted) == (f"tenants/{ME}/tasks/own-a", True)
    watch.cancel()

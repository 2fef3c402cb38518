"""`AdminService` over a real port: what each kind of caller may make, see and change, and what it is told."""

import time
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from adamix.files.manifest import BackboneSpec
from adamix_protos.v1 import admin_pb2 as pb
from adamix_protos.v1 import inference_pb2
from adamix_server.access import api_keys
from adamix_server.access.principal import Principal
from adamix_server.access.rights import ROLES
from adamix_server.catalog.store import Catalog
from adamix_server.channel.supervisor_frames import Drained, Stats
from adamix_server.config import AccessSettings, FrontEndSettings
from adamix_server.frontend import catalog_view
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing
from adamix_testing.identities import Callers, of_role, said
from adamix_testing.refusals import details, failure, reason, refusal, status_of

NOT_FOUND, DENIED = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED
INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION

OPERATOR, OWNER, NARROW = said("operator"), said("owner"), said("narrow")


@pytest.fixture
def callers() -> Callers:
    return Callers(
        {
            "operator": of_role("operator"),
            "owner": of_role("owner", "acme"),
            "narrow": of_role("owner", "acme", "support-*"),
            "publisher": of_role("publisher", "acme"),
            "other": of_role("owner", "other"),
        }
    )


@pytest.fixture
async def server(start_serving: StartServing, callers: Callers) -> Harness:
    harness = await start_serving(callers=callers)
    for tenant in ("acme", "other"):
        await harness.admin.CreateTenant(pb.CreateTenantRequest(id=tenant), metadata=OPERATOR)
    return harness


async def told(call: Awaitable[object]) -> tuple[str, str, str, tuple[str, str]]:
    """Code, reason, words, and the type and name of what was not found."""
    error = await failure(call)
    status = status_of(error)
    resource = details(status).get("ResourceInfo")
    named = ("", "") if resource is None else (resource.resource_type, resource.resource_name)
    return error.code().name, reason(status), status.message, named


async def test_a_tenant_is_made_found_listed_changed_and_deleted(server: Harness) -> None:
    admin = server.admin
    message = pb.Tenant(weight=3, service_class=pb.SERVICE_CLASS_BATCH, quotas={"max_tasks": 0, "burst_s": 2})
    made = (
        await admin.CreateTenant(pb.CreateTenantRequest(id="tenants/new", tenant=message), metadata=OPERATOR)
    ).tenant
    assert (made.name, made.weight, made.service_class) == ("tenants/new", 3, pb.SERVICE_CLASS_BATCH)
    assert dict(made.quotas) == {"max_tasks": 0, "burst_s": 2}
    assert made.etag
    assert abs(made.create_time.seconds - time.time()) < 60
    found = await admin.GetTenant(pb.GetTenantRequest(tenant="new"), metadata=OPERATOR)
    assert found.tenant == made
    names, token = list[str](), ""
    while not names or token:
        page = await admin.ListTenants(pb.ListTenantsRequest(page_size=1, page_token=token), metadata=OPERATOR)
        names += [tenant.name for tenant in page.tenants]
        token = page.next_page_token
    assert names == [f"tenants/{tenant}" for tenant in ("acme", "default", "new", "other")]
    await admin.DeleteTenant(pb.DeleteTenantRequest(tenant="new", etag=made.etag), metadata=OPERATOR)
    assert (await refusal(admin.GetTenant(pb.GetTenantRequest(tenant="new"), metadata=OPERATOR)))[0] is NOT_FOUND


async def test_a_new_tenant_has_the_defaults(server: Harness) -> None:
    found = (await server.admin.GetTenant(pb.GetTenantRequest(), metadata=OWNER)).tenant
    assert (found.name, found.weight, found.service_class) == ("tenants/acme", 1, pb.SERVICE_CLASS_INTERACTIVE)
    assert not found.quotas


async def test_a_tenant_that_cannot_be(server: Harness) -> None:
    for request, expected in (
        (pb.CreateTenantRequest(), "TENANT_MISSING"),
        (pb.CreateTenantRequest(id="UPPER"), "ID_INVALID"),
        (pb.CreateTenantRequest(id="a", tenant=pb.Tenant(name="tenants/b")), "ID_INVALID"),
        (pb.CreateTenantRequest(id="a", tenant=pb.Tenant(weight=-1)), "WEIGHT_INVALID"),
        (pb.CreateTenantRequest(id="a", tenant=pb.Tenant(weight=1001)), "WEIGHT_INVALID"),
        (pb.CreateTenantRequest(id="a", tenant=pb.Tenant(service_class=7)), "SERVICE_CLASS_INVALID"),  # type: ignore[arg-type]
        (pb.CreateTenantRequest(id="a", tenant=pb.Tenant(quotas={"max_tasks": -1})), "QUOTA_INVALID"),
        (pb.CreateTenantRequest(id="a", tenant=pb.Tenant(quotas={"max_tasks": (1 << 63) - 1})), "QUOTA_INVALID"),
        (pb.CreateTenantRequest(id="a", tenant=pb.Tenant(quotas={"nothing": 1})), "QUOTA_INVALID"),
    ):
        answer = await refusal(server.admin.CreateTenant(request, metadata=OPERATOR))
        assert answer == (INVALID, expected), request


async def test_a_mask_says_what_is_changed_and_what_is_taken_back(server: Harness) -> None:
    async def update(*paths: str, **fields: Any) -> pb.Tenant:
        tenant = pb.Tenant(name="tenants/acme", **fields)
        request = pb.UpdateTenantRequest(tenant=tenant, update_mask=FieldMask(paths=paths))
        return (await server.admin.UpdateTenant(request, metadata=OPERATOR)).tenant

    changed = await update("quotas", quotas={"max_tasks": 3, "burst_s": 1}, weight=9)
    assert (changed.weight, dict(changed.quotas)) == (1, {"max_tasks": 3, "burst_s": 1})
    changed = await update("quotas.max_tasks", "quotas.queued_tokens", quotas={"queued_tokens": 0, "burst_s": 9})
    assert dict(changed.quotas) == {"burst_s": 1, "queued_tokens": 0}
    changed = await update("weight", "service_class", weight=2, service_class=pb.SERVICE_CLASS_BATCH)
    assert (changed.weight, changed.service_class) == (2, pb.SERVICE_CLASS_BATCH)
    assert dict(changed.quotas) == {"burst_s": 1, "queued_tokens": 0}
    assert not (await update("quotas")).quotas
    for paths, fields, expected in (
        ((), {}, "UPDATE_MASK_INVALID"),
        (("name",), {}, "UPDATE_MASK_INVALID"),
        (("max_tasks",), {"quotas": {"max_tasks": 1}}, "UPDATE_MASK_INVALID"),
        (("quotas.nothing",), {}, "UPDATE_MASK_INVALID"),
        (("weight",), {}, "WEIGHT_INVALID"),
        (("service_class",), {}, "SERVICE_CLASS_INVALID"),
        (("quotas.max_tasks",), {"quotas": {"max_tasks": -5}}, "QUOTA_INVALID"),
    ):
        assert await refusal(update(*paths, **fields)) == (INVALID, expected), paths


async def test_a_stale_etag_changes_and_deletes_nothing(server: Harness) -> None:
    tenant = pb.Tenant(name="tenants/acme", weight=5, etag="stale")
    update = pb.UpdateTenantRequest(tenant=tenant, update_mask=FieldMask(paths=["weight"]))
    aborted = grpc.StatusCode.ABORTED
    assert (await refusal(server.admin.UpdateTenant(update, metadata=OPERATOR)))[0] is aborted
    delete = pb.DeleteTenantRequest(tenant="acme", etag="stale")
    assert (await refusal(server.admin.DeleteTenant(delete, metadata=OPERATOR)))[0] is aborted
    assert (await server.admin.GetTenant(pb.GetTenantRequest(), metadata=OWNER)).tenant.weight == 1


async def test_another_tenant_is_as_unknown_as_one_that_there_is_not(server: Harness) -> None:
    admin = server.admin
    for ask, request in (
        (admin.GetTenant, pb.GetTenantRequest),
        (admin.GetUsage, pb.GetUsageRequest),
        (admin.ListKeys, pb.ListKeysRequest),
        (admin.ListGrants, pb.ListGrantsRequest),
        (admin.ListAudit, pb.ListAuditRequest),
    ):
        for name in ("other", "nobody"):
            code, why, words, named = await told(ask(request(tenant=name), metadata=OWNER))  # type: ignore[operator]
            assert (code, why, words) == ("NOT_FOUND", "TENANT_NOT_FOUND", "tenant not found")
            assert named == ("adamix.v1/Tenant", f"tenants/{name}")
        await ask(request(tenant="other"), metadata=OPERATOR)  # type: ignore[operator]
        code, *_ = await told(ask(request(tenant="nobody"), metadata=OPERATOR))  # type: ignore[operator]
        assert code == "NOT_FOUND"
    for tenant in ("other", "nobody"):
        create = pb.CreateKeyRequest(tenant=tenant, role="caller")
        assert await refusal(admin.CreateKey(create, metadata=OWNER)) == (NOT_FOUND, "TENANT_NOT_FOUND")


async def test_a_key_is_told_once_and_then_only_what_it_is(server: Harness, spec: BackboneSpec) -> None:
    end = Timestamp(seconds=int(time.time()) + 3600)
    request = pb.CreateKeyRequest(
        role="publisher", task_pattern="support-*", networks=["10.0.0.0/8"], display_name="ci", expire_time=end
    )
    made = await server.admin.CreateKey(request, metadata=OWNER)
    parsed = api_keys.parse(made.secret)
    assert parsed is not None
    assert made.key.name == f"tenants/acme/keys/{parsed.id}"
    assert (made.key.role, list(made.key.rights)) == ("publisher", ["infer", "read", "register", "operate"])
    assert (made.key.task_pattern, list(made.key.networks)) == ("support-*", ["10.0.0.0/8"])
    assert (made.key.display_name, made.key.expire_time, made.key.last_used_date) == ("ci", end, "")
    (listed,) = (await server.admin.ListKeys(pb.ListKeysRequest(), metadata=OWNER)).keys
    assert listed == made.key
    catalog = Catalog(server.store, backbone_fingerprint=spec.fingerprint)
    catalog.keys.note_used({parsed.id: "2026-01-02"})
    catalog.close()
    (listed,) = (await server.admin.ListKeys(pb.ListKeysRequest(), metadata=OWNER)).keys
    assert listed.last_used_date == "2026-01-02"
    revoked = (await server.admin.RevokeKey(pb.RevokeKeyRequest(key=parsed.id), metadata=OWNER)).key
    assert revoked.HasField("revoke_time")
    again = (await server.admin.RevokeKey(pb.RevokeKeyRequest(key=made.key.name), metadata=OWNER)).key
    assert again.revoke_time == revoked.revoke_time


async def test_a_key_that_cannot_be(server: Harness) -> None:
    for request, expected in (
        (pb.CreateKeyRequest(), "RIGHTS_EMPTY"),
        (pb.CreateKeyRequest(role="king"), "ROLE_UNKNOWN"),
        (pb.CreateKeyRequest(rights=["fly"]), "RIGHT_UNKNOWN"),
        (pb.CreateKeyRequest(role="caller", rights=["infer"]), "ROLE_AND_RIGHTS"),
        (pb.CreateKeyRequest(role="caller", task_pattern="Support-*"), "TASK_PATTERN_INVALID"),
        (pb.CreateKeyRequest(role="caller", networks=["10.0.0.1/8"]), "NETWORK_INVALID"),
        (pb.CreateKeyRequest(role="caller", expire_time=Timestamp(seconds=5)), "EXPIRE_TIME_INVALID"),
        (pb.CreateKeyRequest(role="caller", expire_time=Timestamp(seconds=(1 << 63) - 1)), "EXPIRE_TIME_INVALID"),
    ):
        answer = await refusal(server.admin.CreateKey(request, metadata=OWNER))
        assert answer == (INVALID, expected), request


async def test_nobody_gives_or_ends_a_key_with_more_than_it_has(server: Harness, callers: Callers) -> None:
    admin = server.admin
    too_much = (DENIED, "RIGHT_MISSING")
    for who, request in (
        (OWNER, pb.CreateKeyRequest(role="operator")),
        (OWNER, pb.CreateKeyRequest(rights=["infer", "admin"])),
        (NARROW, pb.CreateKeyRequest(role="caller")),
        (NARROW, pb.CreateKeyRequest(role="caller", task_pattern="*")),
        (OWNER, pb.CreateKeyRequest(role="caller", certificate_name="spiffe://x/tenant/other/role/owner")),
    ):
        assert await refusal(admin.CreateKey(request, metadata=who)) == too_much, request
    await admin.CreateKey(pb.CreateKeyRequest(role="caller", task_pattern="support-a"), metadata=NARROW)
    # An operator's key in the owner's tenant, and one for all tasks beside a narrowed owner's.
    strong = await admin.CreateKey(pb.CreateKeyRequest(tenant="acme", role="operator"), metadata=OPERATOR)
    wide = await admin.CreateKey(pb.CreateKeyRequest(role="caller"), metadata=OWNER)
    for who, key in ((OWNER, strong.key), (NARROW, wide.key)):
        assert await refusal(admin.RevokeKey(pb.RevokeKeyRequest(key=key.id), metadata=who)) == too_much
    # Who counts in some networks alone.
    made = await admin.CreateKey(pb.CreateKeyRequest(role="owner", networks=["127.0.0.0/8"]), metadata=OWNER)
    row = Principal(f"keys/{made.key.id}", "acme", ROLES["owner"], key_id=made.key.id)
    callers.principals["networked"] = row
    networked = said("networked")
    for networks in ([], ["0.0.0.0/0"], ["127.0.0.1/32", "::1/128"]):
        request = pb.CreateKeyRequest(role="caller", networks=networks)
        assert await refusal(admin.CreateKey(request, metadata=networked)) == too_much, networks
    await admin.CreateKey(pb.CreateKeyRequest(role="caller", networks=["127.0.0.1/32"]), metadata=networked)
    assert await refusal(admin.RevokeKey(pb.RevokeKeyRequest(key=wide.key.id), metadata=networked)) == too_much
    # Its own it may end.
    await admin.RevokeKey(pb.RevokeKeyRequest(key=made.key.id), metadata=networked)


async def test_another_tenants_key_is_as_unknown_as_one_that_there_is_not(server: Harness) -> None:
    theirs = (await server.admin.CreateKey(pb.CreateKeyRequest(role="caller"), metadata=said("other"))).key
    answers = set()
    for name in (theirs.id, "a" * 12, theirs.name, f"tenants/acme/keys/{theirs.id}", f"tenants/no/keys/{theirs.id}"):
        code, why, words, (kind, resource) = await told(
            server.admin.RevokeKey(pb.RevokeKeyRequest(key=name), metadata=OWNER)
        )
        assert resource == (name if "/" in name else f"tenants/acme/keys/{name}")
        answers.add((code, why, words, kind))
    assert answers == {("NOT_FOUND", "NOT_FOUND", "key not found", "adamix.v1/Key")}
    assert not (await server.admin.ListKeys(pb.ListKeysRequest(), metadata=OWNER)).keys
    await server.admin.RevokeKey(pb.RevokeKeyRequest(key=theirs.id), metadata=OPERATOR)
    for name, expected in (("", "KEY_MISSING"), ("x", "ID_INVALID"), ("tenants/acme/tasks/" + "a" * 12, "ID_INVALID")):
        assert await refusal(server.admin.RevokeKey(pb.RevokeKeyRequest(key=name), metadata=OWNER)) == (
            INVALID,
            expected,
        )


async def test_a_revocation_that_not_everybody_knows_of_is_to_be_done_again(
    server: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await server.admin.CreateKey(pb.CreateKeyRequest(role="caller"), metadata=OWNER)
    monkeypatch.setattr(catalog_view, "AGREEMENT_TIMEOUT_S", 0.05)
    server.supervisor.agrees = False
    revoke = pb.RevokeKeyRequest(key=made.key.id)
    answer = await refusal(server.admin.RevokeKey(revoke, metadata=OWNER))
    assert answer == (grpc.StatusCode.UNAVAILABLE, "CHANGE_UNSEEN")
    monkeypatch.undo()
    server.supervisor.agrees = True
    assert (await server.admin.RevokeKey(revoke, metadata=OWNER)).key.HasField("revoke_time")


async def test_a_lent_task_answers_and_one_taken_back_does_not(
    start_serving: StartServing, callers: Callers, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("support-a", make_adapter(seed=1), tenant="acme")
    seed("plain", make_adapter(seed=1), tenant="acme")
    seed("theirs", make_adapter(seed=1), tenant="other")
    server = await start_serving(callers=callers)
    admin, name = server.admin, "tenants/acme/tasks/support-a"

    async def ask() -> None:
        item = inference_pb2.PredictInput(task=name, text="w1")
        await server.inference.Predict(inference_pb2.PredictRequest(inputs=[item]), metadata=said("other"))

    assert (await refusal(ask()))[0] is NOT_FOUND
    grant = (await admin.GrantTask(pb.GrantTaskRequest(task="support-a", tenant="other"), metadata=NARROW)).grant
    assert (grant.task, grant.tenant) == (name, "other")
    await ask()
    await admin.GrantTask(pb.GrantTaskRequest(task="plain", tenant="other"), metadata=OWNER)
    for who, expected in ((OWNER, 2), (said("other"), 2), (NARROW, 1)):
        listed = (await admin.ListGrants(pb.ListGrantsRequest(), metadata=who)).grants
        assert (len(listed), grant in listed) == (expected, True)
    for task in ("theirs", "tenants/other/tasks/theirs", "nothing", "plain"):
        answer = await told(admin.GrantTask(pb.GrantTaskRequest(task=task, tenant="other"), metadata=NARROW))
        assert answer[:3] == ("NOT_FOUND", "NOT_FOUND", "task not found"), task
    code, why, _, named = await told(admin.GrantTask(pb.GrantTaskRequest(task="plain", tenant="no"), metadata=OWNER))
    assert (code, why, named) == ("NOT_FOUND", "TENANT_NOT_FOUND", ("adamix.v1/Tenant", "tenants/no"))
    await admin.RevokeGrant(pb.RevokeGrantRequest(task="support-a", tenant="other"), metadata=OWNER)
    assert (await refusal(ask()))[0] is NOT_FOUND
    again = admin.RevokeGrant(pb.RevokeGrantRequest(task="support-a", tenant="other"), metadata=OWNER)
    assert (await refusal(again))[0] is NOT_FOUND


async def test_tokens_are_counted_for_who_asks(
    start_serving: StartServing, callers: Callers, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("support-a", make_adapter(seed=1), tenant="acme")
    seed("own", make_adapter(seed=1), tenant="other")
    server = await start_serving(callers=callers)
    await server.admin.GrantTask(pb.GrantTaskRequest(task="support-a", tenant="other"), metadata=OWNER)
    inputs = [inference_pb2.PredictInput(task=task, text="w1 w2") for task in ("tenants/acme/tasks/support-a", "no")]
    await server.inference.Predict(inference_pb2.PredictRequest(inputs=inputs), metadata=said("other"))
    server.drain()
    tokens = dict[tuple[str, ...], float]()
    while not isinstance(frame := await server.supervisor.from_child.get(), Drained):
        for sample in frame.samples if isinstance(frame, Stats) else ():
            if sample.name == "adamix_tenant_tokens_total":
                tokens[sample.labels] = tokens.get(sample.labels, 0.0) + sample.values[0]
    # Two words, and the tokens of BERT around them; what was refused is not counted.
    assert tokens == {("other", "input"): 4.0}


async def test_a_tenant_goes_with_its_tasks_only_by_force_and_default_stays(
    start_serving: StartServing, callers: Callers, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("support-a", make_adapter(seed=1), tenant="acme")
    server = await start_serving(callers=callers)
    delete = pb.DeleteTenantRequest(tenant="acme")
    answer = await refusal(server.admin.DeleteTenant(delete, metadata=OPERATOR))
    assert answer == (PRECONDITION, "TENANT_NOT_EMPTY")
    delete.force = True
    await server.admin.DeleteTenant(delete, metadata=OPERATOR)
    assert (await refusal(server.admin.GetTenant(pb.GetTenantRequest(), metadata=OWNER)))[0] is NOT_FOUND
    request = pb.DeleteTenantRequest(tenant="default", force=True)
    assert await refusal(server.admin.DeleteTenant(request, metadata=OPERATOR)) == (PRECONDITION, "TENANT_REQUIRED")
    # What it is for is never guessed.
    assert (await refusal(server.admin.DeleteTenant(pb.DeleteTenantRequest(), metadata=OPERATOR)))[0] is INVALID


async def test_the_audit_of_the_own_tenant_and_of_all(server: Harness) -> None:
    await server.admin.CreateKey(pb.CreateKeyRequest(role="caller"), metadata=OWNER)
    await server.admin.CreateKey(pb.CreateKeyRequest(role="caller"), metadata=said("other"))
    own = (await server.admin.ListAudit(pb.ListAuditRequest(), metadata=OWNER)).entries
    assert [(entry.method.rpartition("/")[2], entry.tenant) for entry in own] == [
        ("CreateKey", "acme"),
        ("CreateTenant", "acme"),
    ]
    everything = (await server.admin.ListAudit(pb.ListAuditRequest(tenant="-"), metadata=OPERATOR)).entries
    assert {entry.tenant for entry in everything} == {"acme", "other"}
    assert await refusal(server.admin.ListAudit(pb.ListAuditRequest(tenant="-"), metadata=OWNER)) == (
        DENIED,
        "RIGHT_MISSING",
    )
    after = pb.ListAuditRequest(tenant="-", after_id=everything[-1].id, page_size=1)
    (first,) = (await server.admin.ListAudit(after, metadata=OPERATOR)).entries
    assert first.id == everything[-2].id
    late = pb.ListAuditRequest(since=Timestamp(seconds=(1 << 63) - 1))
    assert not (await server.admin.ListAudit(late, metadata=OWNER)).entries
    assert (await refusal(server.admin.ListAudit(pb.ListAuditRequest(after_id=-1), metadata=OWNER)))[0] is INVALID


async def test_usage_begins_with_the_tenant(server: Harness) -> None:
    found = (await server.admin.GetUsage(pb.GetUsageRequest(), metadata=OWNER)).usage
    tenant = (await server.admin.GetTenant(pb.GetTenantRequest(), metadata=OWNER)).tenant
    assert (found.tenant, found.since, found.tasks, found.input_tokens) == ("acme", tenant.create_time, 0, 0)


async def test_everybody_is_told_who_they_are(server: Harness, callers: Callers) -> None:
    callers.principals["late"] = Principal("x", "acme", ROLES["caller"], "a*", expire_time_s=2_000_000_000.5)
    callers.principals["far"] = Principal("x", "acme", ROLES["caller"], expire_time_s=1e18)
    found = await server.admin.WhoAmI(pb.WhoAmIRequest(), metadata=said("late"))
    assert (found.principal, found.tenant, list(found.rights)) == ("x", "acme", ["infer"])
    assert (found.task_pattern, found.expire_time.seconds) == ("a*", 2_000_000_000)
    assert not (await server.admin.WhoAmI(pb.WhoAmIRequest(), metadata=said("far"))).HasField("expire_time")


async def test_a_new_key_lets_its_holder_in_at_once_and_a_revoked_one_nobody(
    start_serving: StartServing, store: Any, spec: BackboneSpec
) -> None:
    """With real keys, from the first operator's on."""
    secret, key = api_keys.make()
    catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
    catalog.keys.create("default", key, rights=ROLES["operator"])
    catalog.close()
    server = await start_serving(settings=FrontEndSettings(access=AccessSettings(auth=("keys",))))

    def shown(text: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {text}"),)

    await server.admin.CreateTenant(pb.CreateTenantRequest(id="acme"), metadata=shown(secret))
    made = await server.admin.CreateKey(pb.CreateKeyRequest(tenant="acme", role="owner"), metadata=shown(secret))
    found = await server.admin.WhoAmI(pb.WhoAmIRequest(), metadata=shown(made.secret))
    assert (found.principal, found.tenant) == (f"keys/{made.key.id}", "acme")
    # Its own last one, with an answer that says so.
    revoked = await server.admin.RevokeKey(pb.RevokeKeyRequest(key=made.key.id), metadata=shown(made.secret))
    assert revoked.key.HasField("revoke_time")
    refused = await refusal(server.admin.WhoAmI(pb.WhoAmIRequest(), metadata=shown(made.secret)))
    assert refused == (grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID")
    # Also the last operator's.
    await server.admin.RevokeKey(pb.RevokeKeyRequest(key=key.id), metadata=shown(secret))
    assert (await refusal(server.admin.WhoAmI(pb.WhoAmIRequest(), metadata=shown(secret))))[1] == "KEY_INVALID"

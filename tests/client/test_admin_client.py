"""The client's methods for owners and operators, and the commands over them, against a front end that asks nobody."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adamix.errors import Aborted, InvalidConfig, NotFound
from adamix_client import ALL_TENANTS, Client
from adamix_client.chain import follow
from adamix_server.access import api_keys
from adamix_server.catalog import paging
from adamix_server.cli import audit_of_server
from adamix_server.cli.main import app
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing

Adamix = Callable[..., Any]


@pytest.fixture
async def harness(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> Harness:
    seed("sst2", make_adapter(seed=1))
    return await start_serving()


@pytest.fixture
def adamix(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Adamix:
    """Runs a command that asks the front end."""
    monkeypatch.setenv("ADAMIX_SERVER", harness.address)
    monkeypatch.setenv("COLUMNS", "200")

    async def run(*words: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, words)

    return run


async def document(adamix: Adamix, *words: str) -> Any:
    result = await adamix(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def test_every_method_gives_what_the_server_has_said(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "DEFAULT_PAGE_SIZE", 1)

    def work(client: Client) -> None:
        made = client.create_tenant("acme", weight=2, service_class="batch", quotas={"max_tasks": 3})
        assert (made.tenant, made.weight, made.service_class, made.quotas) == ("acme", 2, "batch", {"max_tasks": 3})
        assert client.get_tenant("acme") == made
        assert [tenant.tenant for tenant in client.tenants()] == ["acme", "default"]
        changed = client.update_tenant("acme", weight=7, quotas={"max_tasks": None, "burst_s": 4}, etag=made.etag)
        assert (changed.weight, changed.service_class, changed.quotas) == (7, "batch", {"burst_s": 4})
        with pytest.raises(Aborted):
            client.update_tenant("acme", weight=8, etag=made.etag)
        assert client.update_tenant("acme", quotas={}, only_these_quotas=True).quotas == {}
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
        new = client.create_key(tenant="acme", rights=["infer"], display_name="n", expire_time=end)
        other = client.create_key(tenant="acme", role="caller", networks=["10.0.0.0/8"], task_pattern="a*")
        key = api_keys.parse(new.secret)
        assert key is not None
        assert (new.key.id, new.key.tenant, new.key.role, new.key.expire_time) == (key.id, "acme", "caller", end)
        assert new.secret not in repr(new)
        named = client.create_key(certificate_name="CN=x", role="caller")
        assert (named.secret, named.key.certificate_name) == ("", "CN=x")
        assert client.keys("acme") == [other.key, new.key]
        assert client.revoke_key(other.key.name).revoke_time is not None
        grant = client.grant_task("sst2", "acme")
        assert (grant.task, grant.tenant) == ("tenants/default/tasks/sst2", "acme")
        assert client.grants("acme") == client.grants() == [grant]
        client.revoke_grant("sst2", "acme")
        assert client.grants() == []
        usage = client.usage()
        assert (usage.tenant, usage.tasks, usage.versions, usage.rejected) == ("default", 1, 1, {})
        assert usage.stored_bytes > 0
        entries = list(client.audit(ALL_TENANTS))
        assert [entry.id for entry in entries] == sorted((entry.id for entry in entries), reverse=True)
        assert next(client.audit("acme", after_id=entries[-1].id)).action == "create_tenant"
        assert len(list(client.audit(ALL_TENANTS, limit=3))) == 3
        assert not list(client.audit(since=datetime.now(UTC) + timedelta(hours=1)))
        client.delete_tenant("acme")
        with pytest.raises(NotFound):
            client.get_tenant("acme")
        me = client.who_am_i()
        assert (me.principal, me.tenant, me.expire_time) == ("", "default", None)
        assert me.rights == ("infer", "read", "register", "operate", "keys", "admin")
        for wrong in ({"service_class": "gold"}, {"weight": 1 << 40}, {"quotas": {"max_tasks": 1 << 70}}):
            with pytest.raises(InvalidConfig):
                client.update_tenant("acme", **wrong)  # type: ignore[arg-type]

    await harness.call(work)


async def test_the_chain_is_followed_from_what_the_server_tells(harness: Harness) -> None:
    def work(client: Client) -> None:
        for tenant in ("a", "b", "c"):
            client.create_tenant(tenant)
        entries = sorted(client.audit(ALL_TENANTS), key=lambda entry: entry.id)
        whole = follow(entries)
        assert (whole.fault, whole.entries, whole.last_hash) == ("", len(entries), entries[-1].hash)
        changed = [*entries[:2], replace(entries[2], principal="keys/nobody"), *entries[3:]]
        assert follow(changed).fault == f"entry {entries[2].id} is not what was written"
        assert follow([*entries[:1], *entries[2:]]).fault == f"entries from {entries[1].id} on were removed"
        last = entries[-1]
        assert follow(entries, (last.id, last.hash)).fault == ""
        assert "another hash" in follow(entries, (last.id, "0" * 64)).fault
        assert "cut off" in follow(entries[:-1], (last.id, last.hash)).fault

    await harness.call(work)


async def test_commands_of_tenants(adamix: Adamix) -> None:
    made = await document(
        adamix, "tenants", "create", "acme", "--weight", "3", "--class", "batch", "--quota", "burst_s=2"
    )
    (acme,) = made["tenants"]
    assert (acme["name"], acme["weight"], acme["quotas"]) == ("tenants/acme", 3, {"burst_s": "2"})
    assert acme["service_class"] == "SERVICE_CLASS_BATCH"
    changed = await document(adamix, "tenants", "set", "acme", "--quota", "max_tasks=0", "--quota", "burst_s=")
    assert (changed["tenants"][0]["quotas"], changed["tenants"][0]["weight"]) == ({"max_tasks": "0"}, 3)
    assert (await document(adamix, "tenants", "show", "acme"))["tenants"] == changed["tenants"]
    listed = await document(adamix, "tenants", "list")
    assert [tenant["name"] for tenant in listed["tenants"]] == ["tenants/acme", "tenants/default"]
    # What has its default is there all the same.
    assert listed["tenants"][1]["quotas"] == {}
    assert "max_tasks=0" in (await adamix("tenants", "list")).stdout
    assert (await document(adamix, "tenants", "delete", "acme")) == {"tenants": []}


async def test_commands_of_keys(adamix: Adamix) -> None:
    told = await adamix("keys", "create", "--role", "caller", "--tasks", "s*", "--expires", "90d", "--name", "ci")
    assert told.exit_code == 0
    secret = told.stdout.strip()
    key = api_keys.parse(secret)
    assert key is not None, "the secret stands alone on stdout"
    assert key.id in told.stderr
    assert secret not in told.stderr
    new = await document(adamix, "keys", "create", "--rights", "infer, read", "--network", "10.0.0.0/8")
    assert new == {"id": new["id"], "secret": new["secret"], "tenant": "default", "role": "", "expires": None}
    named = await adamix("keys", "create", "--role", "caller", "--certificate", "CN=x")
    assert api_keys.is_id(named.stdout.strip())
    listed = (await document(adamix, "keys", "list"))["keys"]
    assert [each["id"] for each in listed] == [named.stdout.strip(), new["id"], key.id]
    assert listed[1]["rights"] == ["infer", "read"]
    assert (listed[2]["role"], listed[2]["task_pattern"], listed[2]["display_name"]) == ("caller", "s*", "ci")
    (revoked,) = (await document(adamix, "keys", "revoke", f"keys/{key.id}"))["keys"]
    assert "revoke_time" in revoked
    assert "revoked" in (await adamix("keys", "list")).stdout
    whole = await adamix("keys", "revoke", secret)
    assert whole.exit_code == 2
    assert secret not in whole.output


async def test_commands_of_grants_usage_and_the_caller(adamix: Adamix) -> None:
    await adamix("tenants", "create", "acme")
    (grant,) = (await document(adamix, "grants", "add", "sst2", "--to", "acme"))["grants"]
    assert (grant["task"], grant["tenant"]) == ("tenants/default/tasks/sst2", "acme")
    assert (await document(adamix, "grants", "list", "--tenant", "acme")) == {"grants": [grant]}
    assert "acme" in (await adamix("grants", "list")).stdout
    assert (await document(adamix, "grants", "remove", "sst2", "--from", "acme")) == {"grants": []}
    usage = await document(adamix, "usage")
    assert {"tenant": "default", "calls": 0, "tasks": 1, "rejected": {}}.items() <= usage.items()
    assert usage["stored_bytes"] > 0
    assert "stored bytes" in (await adamix("usage", "--tenant", "acme")).stdout
    me = await document(adamix, "whoami")
    assert (me["principal"], me["tenant"], me["rights"][0]) == ("", "default", "infer")
    assert "asks nobody" in (await adamix("whoami")).stdout


async def test_commands_of_the_audit(adamix: Adamix, monkeypatch: pytest.MonkeyPatch) -> None:
    await adamix("tenants", "create", "acme")
    await adamix("tenants", "create", "other")
    entries = (await document(adamix, "audit"))["entries"]
    assert [entry["resource"] for entry in entries][-2:] == ["tenants/acme", "tenants/other"]
    only = (await document(adamix, "audit", "--tenant", "acme", "--since", "1h"))["entries"]
    assert [entry["tenant"] for entry in only] == ["acme"]
    assert len((await document(adamix, "audit", "--limit", "1"))["entries"]) == 1
    assert "CreateTenant" in (await adamix("audit")).stdout
    whole = await document(adamix, "audit", "--verify")
    assert (whole["ok"], whole["last_id"]) == (True, int(entries[-1]["id"]))
    noted = f"{whole['last_id']}:{whole['last_hash']}"
    assert noted in (await adamix("audit", "--verify", "--known", noted)).stdout
    broken = await adamix("audit", "--verify", "--known", f"{whole['last_id']}:{'0' * 64}")
    assert broken.exit_code == 1

    looks = []

    def look(_seconds: float) -> None:
        # Ctrl-C, at the second look.
        looks.append(1)
        if len(looks) > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(audit_of_server.time, "sleep", look)
    followed = await adamix("audit", "--follow", "--json", "--limit", "2")
    assert followed.exit_code == 0
    lines = [json.loads(line) for line in followed.stdout.splitlines()]
    assert [line["id"] for line in lines] == sorted({line["id"] for line in lines}, key=int)
    assert [line["resource"] for line in lines][:2] == ["tenants/acme", "tenants/other"]


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "create"),
        ("keys", "create", "--role", "king"),
        ("keys", "create", "--rights", "fly"),
        ("keys", "create", "--role", "caller", "--rights", "infer"),
        ("keys", "create", "--role", "caller", "--expires", "soon"),
        ("keys", "create", "--role", "caller", "--expires", "999999999d"),
        ("tenants", "create", "a", "--weight", "0"),
        ("tenants", "create", "a", "--class", "gold"),
        ("tenants", "create", "a", "--quota", "max_tasks=-1"),
        ("tenants", "create", "a", "--quota", "nothing=1"),
        ("tenants", "set", "a"),
        ("tenants", "set", "a", "--quota", "nothing="),
        ("audit", "--since", "soon"),
        ("audit", "--known", "soon", "--verify"),
        ("audit", "--follow", "--store", "/nowhere"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*words, "--server", "127.0.0.1:1"])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


async def test_what_the_server_refuses_is_one_sentence_and_exit_code_1(adamix: Adamix) -> None:
    for words in (
        ("tenants", "show", "nobody"),
        ("tenants", "delete", "default"),
        ("keys", "revoke", "a" * 12),
        ("keys", "list", "--tenant", "nobody"),
        ("grants", "add", "nothing", "--to", "default"),
        ("usage", "--tenant", "nobody"),
        ("audit", "--tenant", "nobody"),
    ):
        result = await adamix(*words)
        assert result.exit_code == 1, words
        assert (result.stdout, len(result.stderr.splitlines())) == ("", 1), words

"""What calls leave behind, over a real port: an entry of each control call, and what was used."""

from typing import Any

import grpc
import pytest

from adamix.errors import AdamixError, NotFound, Unauthenticated
from adamix.files.manifest import BackboneSpec
from adamix_client import Client, Input, StreamInput
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import inference_pb2
from adamix_server.access.entries import Entry
from adamix_server.access.principal import Principal
from adamix_server.access.sums import Sums, add
from adamix_server.catalog.audit import EntryRow
from adamix_server.catalog.store import Catalog
from adamix_server.channel.supervisor_frames import Account, Drained
from adamix_server.frontend.assembly import refused
from adamix_server.frontend.boundary import gate as gates
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import refusal

SERVICE = "adamix.v1.AdapterService/"


@pytest.fixture
async def harness(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> Harness:
    seed("sst2", make_adapter(seed=1))
    return await start_serving()


async def accounted(harness: Harness) -> tuple[list[Entry], dict[str, Sums], dict[str, str]]:
    """All that the front end tells until it has ended."""
    harness.drain()
    entries, usage, keys = list[Entry](), dict[str, Sums](), dict[str, str]()
    while not isinstance(frame := await harness.supervisor.from_child.get(), Drained):
        if isinstance(frame, Account):
            entries += frame.entries
            keys |= frame.keys
            for sums in frame.usage:
                usage[sums.tenant] = add(usage[sums.tenant], sums) if sums.tenant in usage else sums
    return entries, usage, keys


def stored(harness: Harness, spec: BackboneSpec) -> tuple[EntryRow, ...]:
    """Those in the catalog, the oldest first."""
    catalog = Catalog(harness.store, backbone_fingerprint=spec.fingerprint)
    try:
        assert catalog.audit_log.verify().fault is None
        return catalog.audit_log.page(None).rows[::-1]
    finally:
        catalog.close()


def told(entries: Any) -> list[tuple[str, str, str]]:
    return [(entry.method.removeprefix(SERVICE), entry.resource, entry.code) for entry in entries]


async def test_each_control_call_leaves_one_entry(
    harness: Harness, make_adapter: MakeAdapter, spec: BackboneSpec
) -> None:
    first, second = make_adapter(seed=1), make_adapter(seed=2)

    def work(client: Client) -> None:
        client.register("sst2", second)
        client.register("sst2", second)  # changes nothing
        client.rollback("sst2")
        client.tasks()
        with pytest.raises(NotFound):
            client.get_task("nothing")
        client.load_version("sst2", client.versions("sst2")[0].digest)
        with pytest.raises(AdamixError):
            client.register("bad", first[:100])
        client.predict(task="sst2", texts=["w1"])
        client.delete_task("sst2")

    await harness.call(work)
    entries, _, _ = await accounted(harness)
    name = "tenants/default/tasks/sst2"
    assert told(entries) == [
        ("RegisterAdapter", name, "OK"),
        ("ListTasks", "", "OK"),
        ("GetTask", "tenants/default/tasks/nothing", "NOT_FOUND"),
        ("ListVersions", name, "OK"),
        ("LoadVersion", name, "OK"),
        ("RegisterAdapter", "tenants/default/tasks/bad", "INVALID_ARGUMENT"),
    ]
    assert (entries[2].reason, entries[5].reason) == ("NOT_FOUND", "TRUNCATED")
    assert [len(entry.digest) for entry in entries] == [0, 0, 0, 0, 64, 0]
    assert {entry.tenant for entry in entries} == {"default"}
    assert all(entry.peer.startswith("ipv4:127.0.0.1:") for entry in entries)
    rows = stored(harness, spec)[1:]
    assert told(rows) == [("RegisterAdapter", name, "OK"), ("Rollback", name, "OK"), ("DeleteTask", name, "OK")]
    assert [row.action for row in rows] == ["register", "rollback", "delete_task"]
    assert all(row.peer.startswith("ipv4:127.0.0.1:") for row in rows)


async def test_a_drain_is_written_down(harness: Harness) -> None:
    await harness.call(lambda client: client.drain())
    entries, _, _ = await accounted(harness)
    assert [entry.method for entry in entries] == ["adamix.v1.ServerService/Drain"]


async def test_use_is_counted(harness: Harness) -> None:
    await harness.call(lambda client: client.predict(task="sst2", texts=["w1 w2", "w3"]))
    streamed = [StreamInput(id=f"{i}", input=Input("sst2", text="w1")) for i in range(3)]
    await harness.call(lambda client: [list(client.predict_stream(streamed)), client.tasks()])
    tokens = sum(len(row.token_ids) // 4 for submit in harness.engine.submits for row in submit.rows)
    _, usage, _ = await accounted(harness)
    assert tokens > 0
    assert usage == {"default": Sums(tenant="default", calls=3, input_tokens=tokens)}


async def test_what_is_refused_is_counted_by_reason(harness: Harness) -> None:
    harness.kill_engine(back_in_s=60)
    await harness.until(lambda: not harness.front_end._link.is_up)
    request = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="w1")] * 3)
    code, reason = await refusal(harness.inference.Predict(request))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_RESTARTING")
    _, usage, _ = await accounted(harness)
    assert usage == {"default": Sums(tenant="default", calls=1, rejected={reason: 3})}


class TestRefusals:
    @pytest.fixture
    async def guarded(self, monkeypatch: pytest.MonkeyPatch, harness: Harness) -> Harness:
        """A front end that knows two callers by what they say, and asks for a right."""
        known = {
            "reader": Principal("keys/r", "acme", frozenset({"read"}), key_id="r"),
            "caller": Principal("keys/c", "acme", frozenset({"infer"}), key_id="c"),
        }

        def identify(_gate: gates.Gate, _method: str, context: Any) -> Principal:
            who = dict(context.invocation_metadata()).get("who", "")
            if who not in known:
                refused(harness.front_end._recorder, "wrong_secret", "keys/x")
                raise Unauthenticated("who are you?", reason="KEY_INVALID")
            return known[who]

        monkeypatch.setattr(gates.Gate, "identify", identify)
        return harness

    async def test_whoever_is_turned_away_is_written_down_on_any_method(self, guarded: Harness) -> None:
        predict = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="w1")])
        for call in (
            lambda: guarded.inference.Predict(predict),
            lambda: guarded.inference.Predict(predict, metadata=(("who", "reader"),)),
            lambda: guarded.adapters.DeleteTask(pb.DeleteTaskRequest(task="sst2"), metadata=(("who", "reader"),)),
            lambda: guarded.channel.unary_unary("/made.Up/Method")(b"", metadata=(("who", "nobody"),)),
        ):
            await refusal(call())
        entries, usage, keys = await accounted(guarded)
        assert [(e.tenant, e.principal, e.method, e.code, e.reason, e.detail) for e in entries] == [
            ("", "", "adamix.v1.InferenceService/Predict", "UNAUTHENTICATED", "KEY_INVALID", "wrong_secret keys/x"),
            ("acme", "keys/r", "adamix.v1.InferenceService/Predict", "PERMISSION_DENIED", "RIGHT_MISSING", ""),
            ("acme", "keys/r", f"{SERVICE}DeleteTask", "PERMISSION_DENIED", "RIGHT_MISSING", ""),
            ("", "", "unknown", "UNAUTHENTICATED", "KEY_INVALID", "wrong_secret keys/x"),
        ]
        assert usage == {"acme": Sums(tenant="acme", rejected={"RIGHT_MISSING": 2})}
        assert keys == {}

    async def test_a_key_that_was_used_is_told_with_the_day(self, guarded: Harness) -> None:
        await guarded.adapters.ListTasks(pb.ListTasksRequest(), metadata=(("who", "reader"),))
        _, usage, keys = await accounted(guarded)
        assert list(keys) == ["r"]
        assert usage == {"acme": Sums(tenant="acme", calls=1)}

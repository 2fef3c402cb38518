"""Loading, unloading and pinning over a real channel, against an engine played by the test."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec
import pytest

from adamix.errors import AdamixError, DataLoss, FailedPrecondition, Overloaded, Unavailable
from adamix.files.manifest import BackboneSpec, HeadSpec
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_server.access.principal import Actor
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.rows import VersionRecord, VersionRow
from adamix_server.channel.engine_frames import Control
from adamix_server.frontend.control.pins import Residency
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing, serving
from adamix_testing.refusals import refusal


def load(harness: Harness, digest: str, task: str = "sst2") -> Any:
    return harness.adapters.LoadVersion(pb.LoadVersionRequest(task=task, digest=digest))


def unload(harness: Harness, digest: str, task: str = "sst2") -> Any:
    return harness.adapters.UnloadVersion(pb.UnloadVersionRequest(task=task, digest=digest))


def pin(harness: Harness, digest: str, task: str = "sst2", *, pinned: bool = True, **call: Any) -> Any:
    return harness.adapters.PinVersion(pb.PinVersionRequest(task=task, digest=digest, pinned=pinned), **call)


async def listed(harness: Harness, task: str = "sst2") -> list[tuple[str, bool, int]]:
    """(digest, pinned, residency) of a task's versions."""
    response = await harness.adapters.ListVersions(pb.ListVersionsRequest(task=task))
    return [(version.digest, version.pinned, version.residency) for version in response.versions]


async def test_load_says_how_far_the_version_came(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()
    assert await listed(harness) == [(digest, False, pb.RESIDENCY_HOST)]
    version = (await load(harness, digest)).version
    assert (version.digest, version.live, version.pinned) == (digest, True, False)
    assert version.residency == pb.RESIDENCY_DEVICE
    assert await listed(harness) == [(digest, False, pb.RESIDENCY_DEVICE)]
    version = (await unload(harness, digest)).version
    assert (version.digest, version.residency) == (digest, pb.RESIDENCY_STORE)


@pytest.mark.parametrize("call", [load, unload, pin])
async def test_what_is_not_there_is_not_found(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, call: Callable[..., Awaitable[object]]
) -> None:
    digest = seed("sst2", make_adapter())
    other = seed("other", make_adapter(seed=1), tenant="stranger")
    harness = await start_serving()
    missing = (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert await refusal(call(harness, "e" * 64)) == missing
    assert await refusal(call(harness, digest, "nothing")) == missing
    assert await refusal(call(harness, other, "other")) == missing
    for bad in ("", "E" * 64, "e" * 63, "../" + "e" * 61):
        assert await refusal(call(harness, bad)) == (grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_INVALID")
    assert not harness.engine.pinned
    assert harness.engine.controls == []


async def test_a_version_of_another_backbone_is_refused(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("old", make_adapter(fingerprint="c" * 64))
    harness = await start_serving()
    for call in (load, unload, pin):
        assert await refusal(call(harness, digest, "old")) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "BACKBONE_CHANGED",
        )


async def test_pinning_and_unpinning(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()
    for _ in range(2):
        version = (await pin(harness, digest)).version
        assert (version.digest, version.pinned, version.residency) == (digest, True, pb.RESIDENCY_DEVICE)
        assert harness.engine.pinned == {digest}
        assert await listed(harness) == [(digest, True, pb.RESIDENCY_DEVICE)]
    assert await refusal(unload(harness, digest)) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_PINNED")
    for _ in range(2):
        version = (await pin(harness, digest, pinned=False)).version
        assert (version.pinned, version.residency) == (False, pb.RESIDENCY_DEVICE)
        assert harness.engine.pinned == set()
    assert (await unload(harness, digest)).version.residency == pb.RESIDENCY_STORE


async def test_a_pin_that_fails_keeps_nothing(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()
    for error, code in (
        (DataLoss("its bytes are gone"), grpc.StatusCode.DATA_LOSS),
        (Overloaded("too many are pinned", reason="TOO_MANY_PINNED"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ):
        harness.engine.control_error = error
        assert await refusal(pin(harness, digest)) == (code, error.reason)
        harness.engine.control_error = None
        assert await listed(harness) == [(digest, False, pb.RESIDENCY_HOST)]
        assert not harness.engine.pinned


async def test_the_engines_refusal_reaches_the_caller(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.control_error = FailedPrecondition("requests use it", reason="VERSION_IN_USE")
    assert await refusal(unload(harness, digest)) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_IN_USE")


async def test_without_an_engine_nothing_is_pinned_but_anything_is_unpinned(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    first, second = seed("sst2", make_adapter()), seed("sst2", make_adapter(seed=1))
    harness = await start_serving()
    await pin(harness, first)
    harness.kill_engine()
    await harness.until(lambda: not harness.front_end._link.is_up)
    for call in (load, unload, pin):
        assert await refusal(call(harness, second)) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_RESTARTING")
    version = (await pin(harness, first, pinned=False)).version
    assert (version.pinned, version.residency) == (False, pb.RESIDENCY_UNSPECIFIED)
    assert {pinned for _, pinned, _ in await listed(harness)} == {False}


async def test_an_engine_that_restarts_gets_its_pins_back(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    first, second = seed("sst2", make_adapter()), seed("sst2", make_adapter(seed=1))
    seed("sst2", make_adapter(seed=2))
    harness = await start_serving()
    await pin(harness, first)
    await pin(harness, second)
    harness.kill_engine()
    # It cannot load at first; the front end tries until it can.
    harness.engine.control_error = Unavailable("not yet")
    harness.start_engine()
    await harness.until(lambda: any(c.generation == 2 and c.op == "pin" for c in harness.engine.controls))
    assert harness.engine.pinned == set()
    harness.engine.control_error = None
    await harness.until(lambda: harness.engine.pinned == {first, second})
    assert not harness.engine.submits


async def test_what_one_engine_refused_the_next_is_asked_at_once(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()
    engine = harness.engine
    await pin(harness, digest)
    harness.kill_engine()
    engine.control_error = DataLoss("its bytes are damaged")
    harness.start_engine()
    await harness.until(lambda: "is not pinned as it should be: its bytes are damaged" in caplog.text)
    harness.kill_engine()
    engine.control_error = None
    harness.start_engine()
    # Sooner than the minute after which the same engine would be asked again.
    await harness.until(lambda: engine.pinned == {digest})


async def test_an_engine_that_dies_right_after_its_answer_changes_nothing_about_the_pin(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()
    engine, reply = harness.engine, harness.engine.reply

    def reply_once(control: Control) -> None:
        reply(control)
        if control.op == "pin":
            engine.silent_on = {"pin"}

    engine.reply = reply_once
    call = asyncio.ensure_future(pin(harness, digest))
    await harness.until(lambda: [c.op for c in engine.controls] == ["pin", "pin"])
    harness.kill_engine()
    version = (await call).version
    assert (version.pinned, version.residency) == (True, pb.RESIDENCY_UNSPECIFIED)
    engine.reply, engine.silent_on = reply, set()
    harness.start_engine()
    await harness.until(lambda: engine.pinned == {digest})


async def test_a_front_end_that_restarts_pins_what_the_catalog_says(
    store: Path, tokenizer_file: Path, spec: BackboneSpec, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    async with serving(store, tokenizer_file, spec) as first_life:
        await pin(first_life, digest)
    async with serving(store, tokenizer_file, spec) as second_life:
        await second_life.until(lambda: second_life.engine.pinned == {digest})
        assert await listed(second_life) == [(digest, True, pb.RESIDENCY_DEVICE)]


async def test_a_pin_that_nobody_remembers_is_unpinned(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    # As a front end leaves it that dies between the engine's answer and its own transaction.
    harness.engine.pinned.add("d" * 64)
    await harness.until(lambda: not harness.engine.pinned)


async def test_a_caller_that_gives_up_leaves_nothing_pinned(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.silent_on = {"pin"}
    assert (await refusal(pin(harness, digest, timeout=0.2)))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    # The engine would have brought it sooner or later.
    await harness.until(lambda: [c.op for c in harness.engine.controls] == ["pin", "unpin"])
    assert await listed(harness) == [(digest, False, pb.RESIDENCY_HOST)]


async def test_the_last_of_two_tasks_unpins_their_adapter(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("one", make_adapter())
    assert seed("two", make_adapter()) == digest
    harness = await start_serving()
    await pin(harness, digest, "one")
    await pin(harness, digest, "two")
    version = (await pin(harness, digest, "one", pinned=False)).version
    assert not version.pinned
    assert harness.engine.pinned == {digest}
    await pin(harness, digest, "two", pinned=False)
    assert harness.engine.pinned == set()


async def test_pins_go_with_the_version(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    first, second = seed("sst2", make_adapter()), seed("sst2", make_adapter(seed=1))
    third = seed("other", make_adapter(seed=2))
    harness = await start_serving()
    await pin(harness, first)
    await pin(harness, second)
    assert await refusal(pin(harness, third, "other")) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_PINNED",
    )
    await harness.adapters.DeleteVersion(pb.DeleteVersionRequest(task="sst2", digest=first))
    await pin(harness, third, "other")
    assert harness.engine.pinned == {second, third}
    await harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="other"))
    await harness.until(lambda: harness.engine.pinned == {second})
    assert await listed(harness) == [(second, True, pb.RESIDENCY_DEVICE)]


async def test_a_pin_changes_the_etag_of_its_task(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()

    async def etag() -> str:
        return str((await harness.adapters.GetTask(pb.GetTaskRequest(task="sst2"))).task.etag)

    before = await etag()
    await pin(harness, digest)
    pinned = await etag()
    assert pinned != before
    await pin(harness, digest)
    assert await etag() == pinned, "nothing changed"


class SlowWorld:
    """A catalog of two tasks with the same bytes, and an engine; every step takes a few turns of the loop."""

    spec: BackboneSpec | None = None

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.catalog = self
        self.availability = self
        self.pins: set[str] = set()
        self.kept = False
        self.is_up = True
        self.hello = None

    async def a_while(self) -> None:
        for _ in range(self.random.randrange(5)):
            await asyncio.sleep(0)

    # The catalog's view.
    async def run(self, work: Callable[[], Any]) -> Any:
        await self.a_while()
        result = work()
        await self.a_while()
        return result

    change = run

    def resolve(self, tenant: str, task: str, digest: str) -> VersionRow:
        return VersionRow(
            tenant=tenant,
            task=task,
            digest=digest,
            state=State.READY,
            create_time_us=0,
            num_bytes=1,
            backbone_fingerprint="a" * 64,
            head=HeadSpec(type="classification", pooling="mean"),
            max_length=16,
            live=True,
            pinned=task in self.pins,
        )

    def reading(self) -> Any:
        return nullcontext()

    # What speaks against its versions.
    def failed(self, digest: str, error: AdamixError) -> None:
        pass

    def loaded(self, digest: str) -> None:
        pass

    def quarantine_reason(self, version: VersionRow) -> str:
        return ""

    # The catalog.
    def pinned(self) -> tuple[str, ...]:
        return ("d",) if self.pins else ()

    def get_version(self, tenant: str, task: str, digest: str) -> VersionRecord:
        row = self.resolve(tenant, task, digest)
        return VersionRecord(**msgspec.structs.asdict(row), manifest_json="{}")

    def check_pin(self, tenant: str) -> None:
        pass

    def set_pinned(self, tenant: str, task: str, digest: str, pinned: bool, *, by: Actor) -> VersionRow:
        if pinned:
            self.pins.add(task)
        else:
            self.pins.discard(task)
        return self.resolve(tenant, task, digest)

    # The link.
    async def control(self, op: str, digest: str = "", *, digests: Sequence[str] = (), tenant: str = "") -> Any:
        await self.a_while()
        if op == "residencies":
            return ["device"] * len(digests)
        self.kept = {"pin": True, "unpin": False}[op]
        await self.a_while()
        return "device"


@pytest.mark.parametrize("number", range(20))
async def test_whatever_front_ends_do_at_once_the_engine_ends_with_the_catalogs_pins(number: int) -> None:
    for trial in range(50):
        world = SlowWorld(random.Random(number * 1000 + trial))
        front_ends = [Residency(world, world, Recorder()) for _ in range(3)]  # type: ignore[arg-type]

        async def act(front_end: Residency, world: SlowWorld = world) -> None:
            for _ in range(3):
                call = world.random.choice([front_end.pin, front_end.unpin])
                await call("t", world.random.choice(["one", "two"]), "d")

        await asyncio.gather(*(act(front_end) for front_end in front_ends))
        assert world.kept == bool(world.pins)


async def test_errors_of_the_tree_only(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.control_error = AdamixError("secret of the engine")
    for call in (load, unload, pin):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(harness, digest)
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "secret" not in caught.value.details()

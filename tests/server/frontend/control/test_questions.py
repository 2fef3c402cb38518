"""What is asked of the engine about many adapters is one question."""

import pytest

from adamix_protos.v1 import adapters_pb2 as pb
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import StartServing


async def test_a_page_of_versions_asks_the_engine_once(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digests = [seed("many", make_adapter(seed=number)) for number in range(12)]
    harness = await start_serving()
    harness.engine.on_device.add(digests[3])
    page = await harness.adapters.ListVersions(pb.ListVersionsRequest(task="many"))
    (question,) = [control for control in harness.engine.controls if control.op == "residencies"]
    assert question.digests == digests[::-1]
    where = {version.digest: version.residency for version in page.versions}
    assert where == dict.fromkeys(digests, pb.RESIDENCY_HOST) | {digests[3]: pb.RESIDENCY_DEVICE}


async def test_what_a_deleted_task_leaves_is_one_question(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digests = [seed("many", make_adapter(seed=number)) for number in range(5)]
    harness = await start_serving(prepare=lambda engine: engine.in_use.add(digests[2]))
    await harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="many"))
    await harness.until(lambda: harness.blobs() == [digests[2]])
    (question,) = [control for control in harness.engine.controls if control.op == "in_use"]
    assert sorted(question.digests) == sorted(digests)


async def test_versions_are_listed_though_the_engine_does_not_say_where_they_are(
    start_serving: StartServing,
    seed: Seed,
    make_adapter: MakeAdapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("adamix_server.frontend.control.pins.WHERE_TIMEOUT_S", 0.05)
    digest = seed("quiet", make_adapter())
    harness = await start_serving(prepare=lambda engine: engine.silent_on.add("residencies"))
    (version,) = (await harness.adapters.ListVersions(pb.ListVersionsRequest(task="quiet"))).versions
    assert (version.digest, version.residency) == (digest, pb.RESIDENCY_UNSPECIFIED)

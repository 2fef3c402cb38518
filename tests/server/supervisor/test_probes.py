"""/livez, /readyz and /metrics of a server whose children are played."""

import asyncio
import urllib.error
import urllib.request

import pytest

from adamix_server.channel.codec import FromChild
from adamix_server.channel.supervisor_frames import Health, Ready, Stats
from adamix_server.supervisor import probes
from adamix_server.supervisor.probes import Fitness
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.stage import Stage, StartStage, healthy


async def ask(stage: Stage, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{stage.metrics_address}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def until_it_says(stage: Stage, path: str, status: int, *words: str) -> None:
    async with asyncio.timeout(10):
        while True:
            found, text = await ask(stage, path)
            if found == status and all(word in text for word in words):
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def stage(start_stage: StartStage) -> Stage:
    """Two front ends that answer calls and have not said that they serve."""
    stage = await start_stage(front_ends=2)
    await stage.until(stage.serving.is_set)
    return stage


async def test_ready_is_what_health_says_on_every_front_end_that_answers(stage: Stage) -> None:
    first, second = stage.children["frontend-0"][0], stage.children["frontend-1"][0]
    await until_it_says(stage, "/readyz", 503, "frontend-0: it has not said", "frontend-1: it has not said")
    first.says.put_nowait(Health(reasons=()))
    second.says.put_nowait(Health(reasons=("ENGINE_RESTARTING", "STORE_LOST")))
    await until_it_says(stage, "/readyz", 503, "frontend-1: ENGINE_RESTARTING\nfrontend-1: STORE_LOST\n")
    assert (await ask(stage, "/readyz"))[1].count("\n") == 2
    second.says.put_nowait(Health(reasons=()))
    await until_it_says(stage, "/readyz", 200, "ok")
    assert await ask(stage, "/healthz") == (200, "ok\n")
    # One that has died answers nobody; the other does. Its successor counts once it answers.
    second.die()
    await stage.until(lambda: len(stage.children["frontend-1"]) == 2 and stage.children["frontend-1"][1].is_ready)
    await until_it_says(stage, "/readyz", 503, "frontend-1: it has not said")
    stage.children["frontend-1"][1].says.put_nowait(Health(reasons=()))
    await until_it_says(stage, "/readyz", 200)
    # All along, the supervisor lived.
    assert await ask(stage, "/livez") == (200, "ok\n")
    stage.supervisor.stop()
    await stage.ended()


async def test_a_server_that_starts_or_drains_lives_and_is_not_ready(start_stage: StartStage) -> None:
    def late(name: str, number: int) -> FromChild:
        return Stats(samples=[]) if name == "frontend-0" else healthy(name, number)

    stage = await start_stage(late)
    await stage.until(lambda: "frontend-0" in stage.children)
    assert await ask(stage, "/readyz") == (503, "no front end answers calls\n")
    assert (await ask(stage, "/livez"))[0] == 200
    (front_end,) = stage.children["frontend-0"]
    front_end.says.put_nowait(Health(reasons=()))
    front_end.says.put_nowait(Ready(address="127.0.0.1:4711"))
    await until_it_says(stage, "/readyz", 200)
    stage.drains_at_once = False
    stage.supervisor.stop()
    assert await ask(stage, "/readyz") == (503, "the server is draining\n")
    assert (await ask(stage, "/livez"))[0] == 200
    stage.drains_at_once = True
    front_end.drain()
    await stage.ended()


async def test_a_scrape_shows_what_children_say_until_they_end(stage: Stage) -> None:
    recorder, engine = Recorder(), stage.children["engine"][0]
    recorder.set("adamix_queue_requests", value=7)
    recorder.inc("adamix_rejected_total", "OVERLOADED")
    engine.says.put_nowait(Stats(samples=recorder.drain()))
    await until_it_says(stage, "/metrics", 200, "\nadamix_queue_requests 7.0\n")
    text = (await ask(stage, "/metrics"))[1]
    for process in ("supervisor", "engine-0", "frontend-0", "frontend-1"):
        assert f'process_open_fds{{process="{process}"}}' in text
    engine.die()
    await stage.until(lambda: len(stage.children["engine"]) == 2)
    text = (await ask(stage, "/metrics"))[1]
    assert "\nadamix_queue_requests " not in text
    assert 'adamix_rejected_total{reason="OVERLOADED"} 1.0' in text
    assert (await ask(stage, "/nothing"))[0] == 404
    stage.supervisor.stop()
    await stage.ended()


def test_a_front_end_that_says_nothing_is_not_ready() -> None:
    fitness = Fitness()
    fitness.said("frontend-0", ())
    assert fitness.reasons({"frontend-0": 5.0}) == []
    assert fitness.reasons({"frontend-0": 6.0}) == ["frontend-0: nothing was heard of it for 6 s"]


async def test_how_long_a_front_end_has_said_nothing_is_known(
    start_stage: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "_SILENCE_S", 0.2)
    stage = await start_stage()
    await stage.until(stage.serving.is_set)
    (front_end,) = stage.children["frontend-0"]
    front_end.says.put_nowait(Health(reasons=()))
    await until_it_says(stage, "/readyz", 503, "frontend-0: nothing was heard of it for ")
    stage.supervisor.stop()
    await stage.ended()

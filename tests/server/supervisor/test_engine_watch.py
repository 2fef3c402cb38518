"""Whether an engine gets on: a judgement about times, and a process that is really stopped."""

import asyncio
import os
import signal
import time
from pathlib import Path

from adamix_server.channel.codec import FromChild
from adamix_server.channel.supervisor_frames import Beat, StartEngine
from adamix_server.config import EngineSettings
from adamix_server.supervisor.child import Child
from adamix_server.supervisor.engine_watch import EngineWatch, Progress, Verdict
from adamix_server.supervisor.keeper import Keeper

SUPPORT = Path(__file__).parents[2] / "support"


def test_an_engine_is_stalled_after_so_long_and_lost_after_three_times_that() -> None:
    progress = Progress(stall_s=10, now=100.0)
    assert progress.verdict(109.9) is Verdict.MOVING
    assert progress.verdict(110.0) is Verdict.STALLED
    assert progress.verdict(129.9) is Verdict.STALLED
    assert progress.verdict(130.0) is Verdict.LOST
    progress.beat(125.0)
    assert progress.verdict(130.0) is Verdict.MOVING
    assert progress.lost_at == 155.0


def test_what_a_beat_says_counts_and_not_when_it_came() -> None:
    progress = Progress(stall_s=10, now=100.0)
    for last_step in (150.0, 101.0):
        progress.beat(last_step)
    assert progress.last_step == 150.0


def test_time_in_which_nobody_watched_does_not_count() -> None:
    progress = Progress(stall_s=10, now=100.0)
    progress.excuse(60.0, 165.0)
    assert progress.verdict(169.9) is Verdict.MOVING
    assert progress.verdict(170.0) is Verdict.STALLED
    # What was read before is not put off: nobody ends a step in the future.
    progress.beat(179.0)
    progress.excuse(60.0, 180.0)
    assert progress.verdict(189.9) is Verdict.MOVING
    assert progress.verdict(190.0) is Verdict.STALLED


class Scene:
    """An engine that is a real process, kept and watched as the supervisor does."""

    def __init__(self, tmp_path: Path, stall_s: float) -> None:
        self.words: list[str] = []
        self.children: list[Child] = []
        self.stopping = asyncio.Event()
        self._first = StartEngine(
            settings=EngineSettings(backbone="x"),
            engine_id="0",
            generation=1,
            address="",
            front_ends=1,
            store=tmp_path,
            tokenizer=tmp_path,
            log_level="info",
        )
        self._keeper = Keeper(
            "engine", 60, start=self._start, on_frame=self._take, on_end=self._ended, stopping=self.stopping
        )
        self._watch = EngineWatch(
            stall_s,
            on_stalled=lambda _: self.words.append("stalled"),
            on_moving=lambda: self.words.append("moving"),
            end=self._keeper.replace,
        )
        self._tasks = [asyncio.create_task(self._keeper.run()), asyncio.create_task(self._watch.run())]

    async def _start(self) -> Child:
        path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
        self.children.append(await Child.start("adamix_testing.beating_child", self._first, {"PYTHONPATH": path}))
        return self.children[-1]

    def _take(self, frame: FromChild) -> None:
        if isinstance(frame, Beat):
            self._watch.beat(frame.last_step)
        else:
            self._watch.ready()
            self.words.append("ready")

    def _ended(self) -> None:
        self._watch.gone()
        self.words.append("ended")

    async def until(self, words: list[str]) -> None:
        async with asyncio.timeout(20):
            while self.words != words:  # noqa: ASYNC110 - the test has no event for it
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        self.stopping.set()
        await self._keeper.end(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_a_process_that_is_stopped_is_stalled_then_killed_and_replaced(tmp_path: Path) -> None:
    scene = Scene(tmp_path, stall_s=0.5)
    try:
        await scene.until(["ready"])
        first = scene.children[0].process
        # For a while only: all is well again by itself.
        first.send_signal(signal.SIGSTOP)
        await scene.until(["ready", "stalled"])
        first.send_signal(signal.SIGCONT)
        await scene.until(["ready", "stalled", "moving"])
        scene.words.clear()
        first.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        await scene.until(["stalled", "ended", "ready"])
        assert time.monotonic() - stopped > 3 * 0.5 - 0.1
        assert first.returncode == -signal.SIGKILL
        assert len(scene.children) == 2
    finally:
        await scene.end()


async def test_an_engine_is_not_blamed_for_a_pause_of_who_watches_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path, stall_s=0.5)
    try:
        await scene.until(["ready"])
        time.sleep(2.0)  # noqa: ASYNC251 - the loop stands still, as that of a stopped process
        await asyncio.sleep(0.3)
        assert scene.words == ["ready"]
    finally:
        await scene.end()

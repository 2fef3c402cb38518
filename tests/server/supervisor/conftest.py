"""A loop that each test leaves clean, and a supervisor on it whose children are played."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adamix_testing.event_loop import clean_loop
from adamix_testing.stage import FirstWords, Stage, StartStage, healthy, stage_of


@pytest.fixture(autouse=True)
async def each_test_leaves_a_clean_loop() -> AsyncIterator[None]:
    async with clean_loop():
        yield


@pytest.fixture
async def start_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[StartStage]:
    stages: list[Stage] = []

    async def start(
        first_words: FirstWords = healthy, *, front_ends: int = 1, stall_s: float = 10.0, http: str | None = None
    ) -> Stage:
        stages.append(stage_of(monkeypatch, tmp_path, first_words, front_ends=front_ends, stall_s=stall_s, http=http))
        return stages[-1]

    yield start
    for stage in stages:
        await stage.leave()

"""What these tests share: a front end that serves, and the command, in a thread beside its loop."""

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix_server.cli.main import app
from adamix_testing.front_end_fixtures import (
    each_test_leaves_a_clean_loop,
    harness,
    make_adapter,
    seed,
    settings,
    spec,
    start_serving,
    store,
    tokenizer_file,
)
from adamix_testing.harness import Harness, StartServing, judge_here

__all__ = [
    "each_test_leaves_a_clean_loop",
    "harness",
    "make_adapter",
    "seed",
    "settings",
    "spec",
    "start_serving",
    "store",
    "tokenizer_file",
]


class Adamix:
    """The command as a person types it, against a front end that begins to serve when it is first asked for."""

    def __init__(self, start: StartServing) -> None:
        self._start = start
        self._harness: Harness | None = None

    async def harness(self) -> Harness:
        if self._harness is None:
            self._harness = await self._start()
        return self._harness

    async def __call__(self, *arguments: object, code: int = 0, stdin: str | bytes | None = None) -> Any:
        """The result of the command, which must end with `code`."""
        words = [*map(str, arguments), "--server", (await self.harness()).address]
        result = await asyncio.to_thread(CliRunner().invoke, app, words, input=stdin, env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    async def document(self, *arguments: object, code: int = 0, stdin: str | None = None) -> Any:
        """What it says with `--json`."""
        return json.loads((await self(*arguments, "--json", code=code, stdin=stdin)).stdout)


@pytest.fixture
def adamix(start_serving: StartServing, monkeypatch: pytest.MonkeyPatch) -> Adamix:
    judge_here(monkeypatch)
    return Adamix(start_serving)

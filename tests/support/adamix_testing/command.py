"""The command as a person types it, against a front end that serves in this process."""

import asyncio
import json
from typing import Any

from typer.testing import CliRunner

from adamix_server.cli.main import app
from adamix_testing.harness import Harness, StartServing


class Adamix:
    """`adamix …`, in a thread beside the loop of a front end, which begins to serve when it is first asked for."""

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

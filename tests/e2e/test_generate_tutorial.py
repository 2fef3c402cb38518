"""The commands of docs/tutorials/generate.md, as they stand there: trained, merged, registered and streamed."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from adamix_server.cli.main import app
from adamix_testing.servers import Server

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "generate.md"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [str(block) for block in found]


def test_every_command_is_one_that_there_is() -> None:
    assert len(blocks("sh")) == 6
    whole: Any = typer.main.get_command(app)
    for line in blocks("sh"):
        words = shlex.split(line.rpartition(";")[2].removesuffix("&"))
        assert words[0] == "adamix"
        # Raises what a person would be told of a flag that is not, or that is missing.
        command = whole.commands[words[1]]
        command.make_context(words[1], words[2:]).close()


@pytest.mark.weights
@pytest.mark.long
def test_six_commands_and_a_text_is_written(tmp_path: Path) -> None:
    """Without the server's place in the page: its port is one that is free."""
    train, merge, serve, register, generate, many = blocks("sh")
    (python,) = blocks("python")
    program = tmp_path / "bin" / "adamix"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m adamix_server "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def run(line: str) -> str:
        done = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, (line, done.stderr)
        return done.stdout

    run(train)
    run(merge)
    words = shlex.split(serve.removesuffix("&"))
    assert words == ["adamix", "serve", "--backbone", "smollm2", "--store", "./texts"]
    server = Server(Path("smollm2"), tmp_path / "texts", "--threads", "2")
    try:
        environment["ADAMIX_SERVER"] = server.wait().address
        run(register)
        text = run(generate)
        # What two dozen steps teach: a sentence about what was asked for, in place of more attributes.
        assert "The Copper Thistle" in text
        assert "|" not in text
        run(many)
        (row,) = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
        assert row["source"] == "name : Blue Spice | Type : pub"
        assert "Blue Spice" in row["text"]
        (tmp_path / "chat.py").write_text(python.replace("127.0.0.1:50051", server.address))
        assert run(f"{shlex.quote(sys.executable)} chat.py").strip()
    finally:
        server.kill()

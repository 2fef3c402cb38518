"""The blocks of docs/tutorials/openai.md, as they stand there: the stock clients of Python and Node, and a shell."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from adamix_server.cli.main import app
from adamix_testing.servers import Server

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "openai.md"
ADDRESS = "127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [str(block) for block in found]


def test_every_command_is_one_that_there_is() -> None:
    serve, register, curl = blocks("sh")
    whole: Any = typer.main.get_command(app)
    for line in (serve, register):
        words = shlex.split(line.removesuffix("&"))
        assert words[0] == "adamix"
        command = whole.commands[words[1]]
        command.make_context(words[1], words[2:]).close()
    assert all(ADDRESS in block for block in (serve, curl, *blocks("python")[:1], *blocks("js")))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As the page starts it, but for its ports; its adapter has random weights, small ones."""
    from adamix.backbones import backbone as backbones
    from adamix.files import adapter_file
    from adamix_testing.adapters import text_adapter

    running = Server(Path("smollm2"), tmp_path_factory.mktemp("texts"), "--http", "127.0.0.1:0", "--threads", "2")
    try:
        adapter = text_adapter(backbones.load("smollm2", language_model=True).spec, 0, spread=0.01)
        path = tmp_path_factory.mktemp("adapter") / "restaurants.safetensors"
        path.write_bytes(adapter_file.encode(adapter.manifest, adapter.tensors))
        running.wait()
        with running.client() as client:
            client.register("restaurants", path)
        yield running
    finally:
        running.kill()


def run(server: Server, directory: Path, command: list[str], program: str) -> str:
    """What a program says that knows nothing of this repository, with the place of this server."""
    script = directory / "program.mjs"
    script.write_text(program.replace(ADDRESS, server.http))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, script.name], cwd=directory, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def strangers_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program of an environment that has `openai` and nothing of ours; skips where that cannot be had."""
    directory = tmp_path_factory.mktemp("stranger")
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True, timeout=120)
    python = str(directory / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--retries", "0", "-c", str(CONSTRAINTS), "openai"]
    if subprocess.run(install, capture_output=True, timeout=300).returncode != 0:
        pytest.skip("no package index can be reached")
    return python


@pytest.mark.weights
@pytest.mark.long
def test_from_python(server: Server, strangers_python: str, tmp_path: Path) -> None:
    said = run(server, tmp_path, [strangers_python], "\n".join(blocks("python")))
    assert said.startswith("['restaurants']\n")
    assert "CompletionUsage(completion_tokens=32" in said
    assert said.endswith("model_not_found\nunsupported_parameter n\n")


@pytest.mark.weights
@pytest.mark.long
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_from_a_shell(server: Server, tmp_path: Path) -> None:
    said = run(server, tmp_path, ["sh"], blocks("sh")[2])
    assert '"object":"text_completion"' in said
    assert '"finish_reason":"' in said


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which Node finds `openai`; skips where it cannot be had."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no Node")
    directory = tmp_path_factory.mktemp("node")
    install = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(directory), "openai@^6"]
    environment = {**os.environ, "npm_config_fetch_retries": "0"}
    done = subprocess.run(install, capture_output=True, text=True, timeout=180, env=environment)
    if done.returncode != 0:
        pytest.skip("npm cannot be reached")
    return directory


@pytest.mark.weights
@pytest.mark.long
def test_from_node(server: Server, node_modules: Path) -> None:
    assert run(server, node_modules, ["node"], blocks("js")[0]).strip()
    rest = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: "http://127.0.0.1:8080/v1", apiKey: "unused", maxRetries: 0 });
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const whole = await client.completions.create({ model: "restaurants", prompt: "a", max_tokens: 4, logprobs: 2 });
let name = "";
try {
  await client.chat.completions.create({ model: "gpt-4o", messages: [] });
} catch (error) {
  name = `${error.constructor.name} ${error.code} ${error.param}`;
}
console.log(JSON.stringify([models, whole.usage.completion_tokens, whole.choices[0].logprobs.tokens.length, name]));
"""
    said = run(server, node_modules, ["node"], rest)
    assert said.strip() == '[["restaurants"],4,4,"NotFoundError model_not_found model"]'

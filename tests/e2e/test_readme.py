"""What the front page shows is run as it stands there: only addresses are others, and the decoder is a tiny one."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adamix.backbones import backbone as backbones
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix_testing.adapters import embedding_adapter, random_adapter, text_adapter
from adamix_testing.decoder_files import save_decoder
from adamix_testing.servers import Server

README = Path(__file__).parents[2] / "README.md"
GRPC, HTTP = "127.0.0.1:50052", "127.0.0.1:8080"
STATE = "tasks: {mine: mine.safetensors}"


def blocks(heading: str) -> list[tuple[str, str]]:
    """(language, text) of the blocks in one section of the page, in order."""
    section = README.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


ASKING = blocks("Ask it from anywhere")


def data_of(adapter: AdapterFile) -> bytes:
    return adapter_file.encode(adapter.manifest, adapter.tensors)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: with an adapter, texts of their own, and what they want to be so."""
    directory = tmp_path_factory.mktemp("reader")
    spec = backbones.load(str(save_decoder("llama", directory / "decoder")), language_model=True).spec
    (directory / "mine.safetensors").write_bytes(data_of(random_adapter(spec, 1)))
    (directory / "restaurants.safetensors").write_bytes(data_of(text_adapter(spec, 2)))
    (directory / "vectors.safetensors").write_bytes(data_of(embedding_adapter(spec)))
    (directory / "mine.csv").write_text("text,label\n" + "".join(f"w{4 + i % 9} w5,yes\n" for i in range(70)))
    (directory / "tasks.yaml").write_text(STATE)
    return directory


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    running = Server(place / "decoder", place / "store", "--http", "127.0.0.1:0").wait()
    try:
        with running.client() as client:
            for task in ("restaurants", "vectors"):
                client.register(task, place / f"{task}.safetensors")
        yield running
    finally:
        running.kill()


@pytest.mark.slow
def test_every_way_of_asking(server: Server, place: Path) -> None:
    assert [language for language, _ in ASKING] == ["sh", "python", "python", "sh"]
    for _, text in ASKING:
        assert len(text.strip().splitlines()) <= 10
    outputs = [run(language, text, server, place) for language, text in ASKING]
    by_curl, by_openai, by_python, by_command = outputs
    assert '"mine"' in by_curl
    assert "NOT_FOUND" in by_curl, "the task that is not there fails alone"
    assert by_curl.rstrip().endswith("data: [DONE]")
    assert "'mine', 'restaurants', 'vectors'" in by_openai
    assert by_python.strip()
    answers = (place / "answers.csv").read_text().splitlines()
    assert (len(answers), answers[0].split(",")[:2]) == (71, ["text", "label"])
    assert "mine" in by_command


def run(language: str, text: str, server: Server, place: Path) -> str:
    """What a block prints, of a reader who has its server at other ports."""
    text = text.replace(GRPC, server.address).replace(HTTP, server.http)
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euc", text]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout

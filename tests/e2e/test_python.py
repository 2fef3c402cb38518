"""The blocks of docs/tutorials/python.md, as they stand there: trained, measured, reported and pushed from a program.

Long: a training on a packaged corpus, and a server of the packaged backbone.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adamix_testing.servers import Server

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "python.md"
ADDRESS = "127.0.0.1:50051"

pytestmark = [pytest.mark.long, pytest.mark.weights]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(Path("minilm"), tmp_path_factory.mktemp("python") / "store").wait()
    yield server
    server.kill()


def test_the_tutorial_does_what_it_says(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 10
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        code = compile(block.replace(ADDRESS, server.address), f"block {number + 1} of {PAGE.name}", "exec")
        exec(code, names)
    fitted, adapter, moods = names["fitted"], names["adapter"], names["moods"]
    assert fitted.metrics["accuracy"] > 0.5
    assert moods.metrics
    assert names["released"].published.version == adapter.digest
    assert names["answer"].result.label == names["one"].label
    assert names["answer"].version == adapter.digest
    page = (tmp_path / "trec.html").read_text()
    for part in ("By class", "Confusion", "Calibration", "Hardest rows", "Routes through the mixture"):
        assert part in page
    assert adapter.digest in (tmp_path / "runs" / "trec" / "README.md").read_text()

    # What is answered here is what the server answers.
    texts = ["Who wrote Faust?", "Where is Timbuktu?", "What does NASA stand for?", "When did Rome fall?"]
    offline = adapter.predict(texts)
    with server.client() as client:
        online = [found.result for found in client.predict(task="questions", texts=texts).predictions]
    assert [result.label for result in offline] == [result.label for result in online]
    for ours, theirs in zip(offline, online, strict=True):
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)

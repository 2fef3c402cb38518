"""What `adamix.load(…).predict` answers is what a server answers with the same file, by kind of head.

Long: a server and four trainings.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import adamix
from adamix.files import adapter_file
from adamix.files.manifest import BackboneSpec
from adamix_client import Classification, Embedding, MultiLabel, Regression
from adamix_testing.adapters import embedding_adapter
from adamix_testing.servers import Server

pytestmark = pytest.mark.long

SMALL: dict[str, Any] = {"max_steps": 4, "batch_size": 8, "max_length": 16, "rank": 4, "lr": 0.02, "progress": False}
WORDS = ("cat", "dog", "bird", "fish", "red", "blue", "quick", "lazy", "runs", "sleeps")
TEXTS = [f"the {a} {b}" for a in WORDS for b in WORDS]
KINDS: dict[str, tuple[list[dict[str, object]], dict[str, Any]]] = {
    "classes": ([{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(TEXTS)], {}),
    "pairs": ([{"text": t, "text_pair": t[::-1], "label": "abc"[i % 3]} for i, t in enumerate(TEXTS)], {}),
    "sets": ([{"text": t, "label": ["x", "y"][: i % 3]} for i, t in enumerate(TEXTS)], {}),
    "numbers": ([{"text": t, "label": i / 7} for i, t in enumerate(TEXTS)], {"clip": (0, 14)}),
}


@pytest.fixture(scope="module")
def server(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(backbone_directory, tmp_path_factory.mktemp("offline") / "store").wait()
    yield server
    server.kill()


@pytest.mark.parametrize("kind", [*KINDS, "vectors"])
def test_a_server_says_the_same(
    kind: str, server: Server, backbone_directory: Path, spec: BackboneSpec, tmp_path: Path
) -> None:
    if kind == "vectors":
        made = embedding_adapter(spec)
        (tmp_path / "vectors").write_bytes(adapter_file.encode(made.manifest, made.tensors))
        adapter = adamix.load(tmp_path / "vectors", backbone=backbone_directory)
    else:
        rows, settings = KINDS[kind]
        fitted = adamix.fit(backbone_directory, rows, out=tmp_path / "run", **SMALL, **settings)
        adapter = fitted.merge(progress=False)
    adapter.push(server.address, kind)
    texts: list[Any] = ["Big CAT, runs", "not\tunder", "the dog " * 4, "\u00e9 \U0001f408 zz", "a"]
    if kind == "pairs":
        texts = [(text, "red dog") for text in texts]
    offline = adapter.predict(texts, batch_size=2)
    with server.client() as client:
        online = [found.result for found in client.predict(task=kind, texts=texts).predictions]
    assert len(offline) == len(online) == len(texts)
    for ours, theirs in zip(offline, online, strict=True):
        assert type(ours) is type(theirs)
        match ours, theirs:
            case (Classification(), Classification()):
                assert (ours.label, ours.label_id) == (theirs.label, theirs.label_id)
                assert ours.scores == pytest.approx(theirs.scores, abs=1e-5)
            case (MultiLabel(), MultiLabel()):
                assert (ours.labels, ours.label_ids) == (theirs.labels, theirs.label_ids)
                assert ours.scores == pytest.approx(theirs.scores, abs=1e-5)
            case (Regression(), Regression()):
                assert ours.score == pytest.approx(theirs.score, abs=1e-5)
            case (Embedding(), Embedding()):
                assert ours.values == pytest.approx(theirs.values, abs=1e-5)
            case _:
                pytest.fail(f"another kind of answer: {ours}")

"""`adamix report`: a page that stands alone, says what is known and what is not, and shows texts as texts."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix.cli import app
from adamix.data import GenerationData
from adamix.reports.subject import read_subject

# Elements that have no end tag.
_EMPTY = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """A page as a browser takes it apart: its elements, and the text of each section."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {"": ""}
        self.open: list[str] = []
        self._section = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in _EMPTY:
            self.open.append(tag)
        if tag == "h2":
            self._section = attributes.get("id") or ""
            self.sections[self._section] = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.sections[self._section] += data


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _assert_stands_alone(text: str) -> Page:
    page = Page(text)
    assert page.open == []
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "img", "form", "base", "foreignobject"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "xlink:href", "src"):
                assert (value or "").startswith("#"), (tag, value)
            assert "javascript:" not in (value or "")
    assert "default-src 'none'" in text
    assert not re.search(r"url\((?!#)", text), "a style sheet that fetches"
    assert "@import" not in text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "pictures share the names of their parts"
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert {f"#{name}" for name in page.sections if name} == set(links)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    return page


@pytest.fixture(scope="module")
def page(trained: Path, hostile_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str, Any]:
    out = tmp_path_factory.mktemp("page") / "report.html"
    result = _invoke("report", trained, "--out", out, "--data", hostile_rows, "--seeds", 3, "--json")
    assert result.exit_code == 0, result.stderr
    text = out.read_text()
    return _assert_stands_alone(text), text, json.loads(result.stdout)


def test_the_page_of_a_training_has_every_part(page: tuple[Page, str, Any], trained: Path) -> None:
    found, text, document = page
    assert list(found.sections)[1:] == [
        "metrics", "curves", "classes", "confusion", "calibration", "hardest", "routes", "settings", "sizes",
        "provenance", "environment",
    ]  # fmt: skip
    assert f"{document['metrics']['accuracy']:.4f}" in found.sections["metrics"]
    assert text.count("<svg") == 3
    assert "expert 3" in found.sections["routes"]
    assert "random, mean of 3" in found.sections["routes"]
    settings = json.loads((trained / "run.json").read_text())
    for part, values in settings.items():
        for name in values:
            assert f"{part}.{name}" in found.sections["settings"]
    assert settings["backbone"]["fingerprint"] in found.sections["provenance"]
    assert settings["data"]["sha256"] in found.sections["provenance"]
    assert "transformers" in found.sections["environment"]
    assert "Not known" not in found.sections[""]


def test_hostile_labels_and_texts_are_texts(page: tuple[Page, str, Any]) -> None:
    found, text, _ = page
    assert "<script>alert(1)</script>" in found.sections["classes"]
    assert "onerror=alert(" in found.sections["hardest"]
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
    assert "\x1b" not in text
    # Each of them is isolated, so that none turns the direction of what stands beside it.
    assert all(tag != "img" for tag, _ in found.elements)


def test_no_path_of_the_machine_is_told(page: tuple[Page, str, Any], trained: Path, backbone_directory: Path) -> None:
    _, text, _ = page
    assert str(trained.parent) not in text
    assert str(backbone_directory.parent) not in text


def test_equal_findings_give_equal_pages(
    page: tuple[Page, str, Any], trained: Path, hostile_rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again.html"
    assert _invoke("report", trained, "--out", out, "--data", hostile_rows, "--seeds", 3).exit_code == 0
    assert out.read_text() == page[1]


def test_a_merged_file_says_what_is_not_known(merged: Path, hostile_rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "file.html"
    result = _invoke("report", merged, "--out", out, "--no-card", "--json")
    assert result.exit_code == 0, result.stderr
    assert "not measured: " in result.stderr
    assert json.loads(result.stdout) == {"report": str(out), "card": None, "metrics": {}, "rows": 0}
    found = _assert_stands_alone(out.read_text())
    assert list(found.sections)[1:] == ["metrics", "settings", "sizes", "provenance", "environment"]
    for note in ("curves, settings and routes: a merged file has none", "hostile is no packaged data set"):
        assert note in found.sections[""]
    assert not merged.with_name("README.md").exists()
    measured = tmp_path / "measured.html"
    assert _invoke("report", merged, "--out", measured, "--data", hostile_rows, "--no-card").exit_code == 0
    assert {"classes", "confusion", "calibration", "hardest"} <= set(
        _assert_stands_alone(measured.read_text()).sections
    )


@pytest.mark.long
def test_texts_are_reported_too(decoder_directory: Path, likes: GenerationData, tmp_path: Path) -> None:
    data, out, page = tmp_path / "likes.jsonl", tmp_path / "run", tmp_path / "report.html"
    rows = [{"source": e.source, "references": list(e.references)} for e in likes.examples]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--task-type", "generation", "--max-steps", "4", "--batch-size", "8", "--max-length", "32", "--rank", "4"]
    trained = _invoke("train", "--backbone", decoder_directory, "--data", data, *flags, "--out", out)
    assert trained.exit_code == 0, trained.stderr
    result = _invoke("report", out, "--out", page, "--data", data, "--split", "train", "--seeds", 2)
    assert result.exit_code == 0, result.stderr
    found = _assert_stands_alone(page.read_text())
    assert "perplexity" in found.sections["metrics"]
    assert "ensemble of all" in found.sections["routes"]
    assert "pipeline_tag: text-generation" in (out / "README.md").read_text()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_other_tasks_have_what_suits_them(kind: str, backbone_directory: Path, tmp_path: Path) -> None:
    data, out, page = tmp_path / "rows.jsonl", tmp_path / "run", tmp_path / "report.html"
    words = ["red", "green", "blue"]
    labels: list[Any] = (
        [float(i % 3) for i in range(48)] if kind == "regression" else [words[: i % 4] for i in range(48)]
    )
    texts = [f"{words[i % 3]} noun{i % 30} noun{i % 7}" for i in range(48)]
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--task-type", kind, "--max-steps", "4", "--batch-size", "8", "--max-length", "32", "--rank", "4"]
    assert _invoke("train", "--backbone", backbone_directory, "--data", data, *flags, "--out", out).exit_code == 0
    result = _invoke("report", out, "--out", page, "--data", data, "--split", "train", "--seeds", 0)
    assert result.exit_code == 0, result.stderr
    found = _assert_stands_alone(page.read_text())
    expected = {"points", "hardest"} if kind == "regression" else {"classes", "calibration", "hardest"}
    assert expected <= set(found.sections)
    assert "confusion" not in found.sections
    assert "random" not in found.sections["routes"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "-1"], "--seeds must be in 0..1000, not -1"),
        (["--split", "dev"], "--split must be train, validation or test"),
        (["--batch-size", "0"], "--batch-size must be 1 or more"),
        (["--data", "no-such.csv"], "no-such.csv"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    trained: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    out = tmp_path / "report.html"
    result = _invoke("report", trained, "--out", out, *flags)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_named_as_one(trained: Path, tmp_path: Path) -> None:
    for out, message in ((tmp_path, "is a directory"), (tmp_path / "page.txt", "must be named .html")):
        result = _invoke("report", trained, "--out", out)
        assert result.exit_code == 2
        assert message in result.stderr


def test_readings_that_are_no_numbers_are_left_out(trained: Path, tmp_path: Path) -> None:
    """A directory may be somebody else's."""
    copy = shutil.copytree(trained, tmp_path / "run")
    (state,) = copy.glob("checkpoints/*/trainer_state.json")
    vast = "1" + "0" * 400
    entries = (
        f'{{"step": {step}, "loss": {loss}}}' for step, loss in (("1", "0.5"), ("2", vast), (vast, "1"), ("true", "1"))
    )
    state.write_text(f'{{"log_history": [{", ".join(entries)}, "no"]}}')
    assert [(reading.step, reading.loss) for reading in read_subject(copy).readings] == [(1, 0.5), (2, None)]
    result = _invoke("report", copy, "--out", tmp_path / "page.html", "--seeds", "0", "--no-card")
    assert result.exit_code == 0, result.stderr

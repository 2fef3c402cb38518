"""The model card: front matter that hubs read, Markdown in which strangers' names are text, and nobody's file lost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from adamix.cli import app
from adamix.errors import InvalidConfig
from adamix.files import adapter_file
from adamix.reports.card import check_card, is_foreign, mark, render_card, write_card


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _front(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n", 2)[1])
    return found


def test_merge_writes_a_card_on_demand(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    assert _invoke("merge", trained, "--out", file).exit_code == 0
    assert not (tmp_path / "README.md").exists()
    assert _invoke("merge", trained, "--out", file, "--card").exit_code == 0
    text = (tmp_path / "README.md").read_text()
    assert _front(text) == {
        "library_name": "adamix",
        "tags": ["adamix", "adapter", "bottleneck"],
        "pipeline_tag": "text-classification",
    }
    adapter = adapter_file.read(file)
    assert adapter.digest in text
    assert 'adamix.load("adapter.safetensors")' in text
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text


def test_a_report_puts_its_metrics_into_the_card(trained: Path, hostile_rows: Path, tmp_path: Path) -> None:
    result = _invoke("report", trained, "--out", tmp_path / "r.html", "--data", hostile_rows, "--seeds", 0)
    assert result.exit_code == 0, result.stderr
    assert "README.md: model card" in result.stdout
    (model,) = _front((trained / "README.md").read_text())["model-index"]
    (found,) = model["results"]
    assert found["task"] == {"type": "text-classification"}
    assert found["dataset"] == {"name": "hostile", "type": "hostile", "split": "test"}
    assert {metric["type"] for metric in found["metrics"]} == {"accuracy", "macro_f1"}


def test_a_readme_of_somebody_else_is_never_lost(trained: Path, merged: Path, tmp_path: Path) -> None:
    readme, file = tmp_path / "README.md", tmp_path / "adapter.safetensors"
    for text in ("# Mine\n", "---\nlibrary_name: peft\n---\n", "---\nlibrary_name: [\n---\n", "---\n", ""):
        readme.write_text(text)
        assert is_foreign(readme), text
    readme.write_text("# Mine\n")
    result = _invoke("merge", trained, "--out", file, "--card")
    assert result.exit_code == 2
    assert "no model card of adamix" in result.stderr
    assert not file.exists()
    file.write_bytes(merged.read_bytes())
    reported = _invoke("report", file, "--out", tmp_path / "r.html")
    assert reported.exit_code == 0
    assert "left as it is" in reported.stderr
    assert readme.read_text() == "# Mine\n"
    with pytest.raises(InvalidConfig, match="no model card"):
        check_card(file)


def test_a_card_of_ours_is_written_anew(merged: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(merged.read_bytes())
    adapter = adapter_file.read(file)
    first = write_card(file, adapter)
    assert not is_foreign(first)
    assert write_card(file, adapter).read_text() == render_card(file.name, adapter)


def test_hub_ids_are_told_and_paths_are_not(merged: Path) -> None:
    adapter = adapter_file.read(merged)

    def render(backbone: str, data: str) -> str:
        manifest = msgspec.structs.replace(
            adapter.manifest,
            backbone=msgspec.structs.replace(adapter.manifest.backbone, name=backbone),
            training=msgspec.structs.replace(adapter.manifest.training, data=data),
        )
        return render_card("x.safetensors", replace(adapter, manifest=manifest))

    hub = _front(render("org/model", "org/set:part (12 rows)"))
    assert (hub["base_model"], hub["datasets"]) == ("org/model", ["org/set"])
    local = render("/home/somebody/model", "rows (12 rows)")
    assert "base_model" not in _front(local)
    assert "/home/somebody" not in local


def test_marks_of_markdown_are_text() -> None:
    assert mark("a|b\n# c") == r"a\|b \# c"
    assert mark("[x](http://e) <b> &") == r"\[x\]\(http://e\) &lt;b&gt; &amp;"

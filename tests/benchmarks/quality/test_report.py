"""What is told about a comparison: tables without invented cells, a document whose claim follows from its runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from adamix_bench.quality import plots, report
from adamix_bench.quality.statistics import claim, paired

METHODS = {"single-compute": 0.0, "merged": 0.02, "random": 0.01, "fixed": 0.0, "ensemble": 0.015, "m2": 0.005}


def records(tasks: tuple[str, ...] = ("trec", "tweets"), seeds: int = 3) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    found = []
    for task in tasks:
        for rows in (100, "all"):
            for seed in range(seeds):
                level = 0.7 + 0.05 * random.standard_normal()
                for method, gain in METHODS.items():
                    draws = (level + gain + 0.01 * random.standard_normal(5)).tolist()
                    found.append(
                        {
                            "kind": "run",
                            "task": task,
                            "rows": rows,
                            "seed": seed,
                            "method": method,
                            "metric": "pearson" if task == "tweets" else "accuracy",
                            "value": sum(draws) / 5,
                            "seconds": 1.5,
                            **({"draws": draws} if method in ("random", "fixed") else {}),
                        }
                    )
    return found


def test_the_claim_of_a_document_follows_from_its_runs() -> None:
    source = records()
    made = report.document(
        source[::-1], command=["bench", "quality"], machine={"cpu": "x"}, settings={"draws": 5}, tuning={}
    )
    read = json.loads(json.dumps(made, allow_nan=False))
    assert read["format"] == "adamix-bench-quality/1"
    assert read["command"] == ["adamix", "bench", "quality"]
    assert len(read["runs"]) == len(source)
    assert all("kind" not in run for run in read["runs"])
    assert claim(read["runs"]) == read["claim"]
    assert read["claim"]["pairs"] == 6
    for compared in read["comparisons"]:
        assert paired(read["runs"], "merged", compared["second"]).to_json() == compared
    assert {compared["second"] for compared in read["comparisons"]} == METHODS.keys() - {"merged"}


def test_a_claim_is_told_whether_or_not_it_holds() -> None:
    lines = " ".join(report.claim_lines(claim(records())))
    assert "6 few-shot pairs" in lines
    assert "(paired t)" in lines
    assert "2 tasks as one observation" in lines
    assert "of 12 runs" in lines
    assert "nothing to claim" in report.claim_lines(claim([]))[0]


def test_what_is_missing_is_shown_as_missing_and_means_take_complete_lines() -> None:
    found = [r for r in records() if not (r["method"] == "merged" and r["task"] == "trec" and r["rows"] == "all")]
    grid = report.comparison(found, ["single-compute", "merged", "lora"], "t", against="merged")
    at = {line[:2]: line[2:] for line in grid.lines}
    assert at["trec", "all"][1:] == ("-", "-")
    assert at["trec", "100"][0].endswith("(3)")
    # A method without any run is no reason to leave a line out; one that lacks a line is.
    assert grid.footer[0][0] == "mean of 3 complete lines"
    assert grid.footer[0][4] == "-"
    assert grid.footer[1][2].endswith("(9)")
    assert grid.footer[1][3:] == ("", "-")
    for column, method in enumerate(("single-compute", "merged"), start=2):
        cells = [[v["value"] for v in found if v["method"] == method and (v["task"], str(v["rows"])) == k] for k in at]
        del cells[list(at).index(("trec", "all"))]
        assert grid.footer[0][column] == f"{100 * np.mean([np.mean(cell) for cell in cells]):.1f}"
    nothing_shared = [r for r in records() if (r["method"] == "merged") == (r["task"] == "trec")]
    both = report.comparison(nothing_shared, ["single-compute", "merged"], "t", against="merged")
    assert [line[2:] for line in both.footer] == [("-", "-"), ("-", "")]


def test_tables_in_markdown_and_on_a_terminal_have_the_same_cells() -> None:
    grids = report.tables(records())
    # Sharing and consistency were not measured without: no table of merged alone.
    assert [grid.title.split(":")[0] for grid in grids] == [
        "One module or AdaMix", "Inference", "Number of experts (AdaMix has 4)"
    ]  # fmt: skip
    for grid in grids:
        console = Console(width=300)
        with console.capture() as captured:
            console.print(grid.rich())
        lines = grid.markdown().splitlines()
        assert len({line.count("|") for line in lines[2:] if line}) == 1
        for line in (*grid.lines, *grid.footer):
            assert all(cell in captured.get() and cell in grid.markdown() for cell in line)
    assert "± " in grids[0].lines[0][2]


def test_a_table_of_an_ablation_has_the_lines_it_was_measured_on() -> None:
    found = [r for r in records() if r["method"] != "m2" or r["task"] == "trec"]
    main, inference, experts = report.tables(found)
    assert {line[0] for line in main.lines} == {line[0] for line in inference.lines} == {"trec", "tweets"}
    assert {line[0] for line in experts.lines} == {"trec"}


def test_one_seed_has_no_deviation() -> None:
    line = report.main_table(records(seeds=1)).lines[0]
    assert "±" not in line[2]
    assert line[2].endswith("(1)")


def test_pictures_are_drawn_and_not_empty(tmp_path: Path) -> None:
    found = records(tasks=("trec", "tweets", "movie", "bbc", "spam"))
    drawn = [
        plots.violins(found, tmp_path / "new" / "routes.png"),
        plots.paired_differences(found, tmp_path / "differences.png"),
        plots.ablations(found, tmp_path / "ablations.png"),
    ]
    for path in drawn:
        assert path is not None
        with Image.open(path) as picture:
            assert picture.width > 600
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 50


def test_few_or_equal_draws_and_missing_methods_are_drawn_too(tmp_path: Path) -> None:
    found = [r for r in records(seeds=1) if r["method"] in ("merged", "random")]
    for run in found:
        if run["method"] == "random":
            run["draws"] = [run["value"]] * 5 if run["task"] == "trec" else [run["value"]]
    assert plots.violins(found, tmp_path / "routes.png") is not None
    assert plots.paired_differences(found, tmp_path / "d.png") is None
    assert plots.paired_differences(found, tmp_path / "d.png", "merged", "random") is not None
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("draw", [plots.violins, plots.paired_differences, plots.ablations], ids=lambda f: f.__name__)
def test_nothing_measured_draws_nothing(draw: Any, tmp_path: Path) -> None:
    assert draw([], tmp_path / "none.png") is None
    assert not list(tmp_path.iterdir())

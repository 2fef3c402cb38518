"""Rows in memory, in the forms that programs have them, are read as the same rows of a file are."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from adamix.data import load
from adamix.data.memory import read_memory
from adamix.errors import InvalidConfig, InvalidData

ROWS = [{"text": f"text number {i}", "label": ("yes", "no")[i % 2]} for i in range(40)]
COLUMNS = {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]}


def _frame() -> Any:
    return pytest.importorskip("pandas").DataFrame(COLUMNS)


def _data_set() -> Any:
    return pytest.importorskip("datasets").Dataset.from_dict(COLUMNS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ROWS,
        lambda: (row for row in ROWS),
        lambda: [(row["text"], row["label"]) for row in ROWS],
        lambda: COLUMNS,
        lambda: pa.table(COLUMNS),
        _frame,
        _data_set,
    ],
    ids=["dicts", "generator", "tuples", "columns", "arrow", "pandas", "datasets"],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_form_is_the_file(make: Any, split: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found, expected = read_memory(make()).labelled(split, None), load(str(file), split=split)
    assert (found.labels, found.examples) == (expected.labels, expected.examples)


def test_named_splits_are_taken_as_they_are() -> None:
    data = read_memory({"train": ROWS[:30], "test": {"text": ["a", "b"], "label": ["yes", "no"]}})
    assert len(data.labelled("train", None).examples) == 30
    assert [e.text for e in data.labelled("test", None).examples] == ["a", "b"]
    with pytest.raises(InvalidData, match="no validation split"):
        data.labelled("validation", None)


def test_a_data_set_names_its_labels() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))
    rows = datasets.Dataset.from_dict({"text": ["good"], "label": [1]}, features=features)
    found = read_memory(datasets.DatasetDict(train=rows, test=rows)).labelled("test", None)
    assert (found.labels, found.examples[0].label) == (("neg", "pos"), 1)


def test_numbers_of_a_frame_are_numbers() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": [0.5, 1.5, 2.5]})
    measured = read_memory({"train": frame, "test": frame}).labelled("test", None)
    assert (measured.task_type, [e.label for e in measured.examples]) == ("regression", [0.5, 1.5, 2.5])
    counted = read_memory({"train": pandas.DataFrame({"text": ["a", "b"], "label": [3, 4]}), "test": ROWS})
    assert counted.labelled("train", None).labels == ("3", "4", "no", "yes")


def test_sources_with_references() -> None:
    rows = [{"source": f"s {i}", "target": f"t {i}"} for i in range(30)]
    found = read_memory({"train": rows, "test": [{"source": "x", "references": ["a", "b"]}]})
    assert found.generates
    assert len(found.generation("train").examples) == 30
    assert found.generation("test").examples[0].references == ("a", "b")
    with pytest.raises(InvalidConfig, match="subset"):
        found.generation("train", "some")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "data of type NoneType are not read"),
        (b"text", "data of type bytes are not read"),
        ([1], "row 0 of the data is of type int"),
        ([("a", "b", "c")], "row 0 of the data is of type tuple"),
        ([{"texts": "a"}], "row 0 has texts; there must be text"),
        ([{"text": None, "label": "a"}], "row 0: text is missing"),
        ([{"text": "a", "label": float("nan")}], "row 0: label is missing"),
        ([{"text": "a", "label": 0.5}, {"text": "b", "label": 10**5000}], "row 1: label of very many digits is not a"),
        ([{"text": "\ud800", "label": "a"}], "not valid Unicode"),
        ({"text": ["a"], "label": ["x", "y"]}, "differ in length: text 1, label 2"),
        ({"text": "abc", "label": "xyz"}, "a dict of data holds columns"),
        ({}, "a dict of data holds columns"),
        ({"text": "abc", "label": 1}, "a dict of data holds columns"),
        ({"text": None, "label": None}, "a dict of data holds columns"),
        ([{"text": "a", "label": 10**5000}], "row 0: label of very many digits is too long"),
        (pa.array(["a", "b"]), "row 0 of the data is of type StringScalar"),
        ({"train": ROWS, "unsupervised": ROWS}, "the parts train, unsupervised; read are train, validation, test"),
        ([], "has 0 rows"),
        ({"train": []}, "has 0 rows"),
    ],
)
def test_what_holds_no_rows_is_refused_with_what_would(data: Any, message: str) -> None:
    with pytest.raises(InvalidData, match=message):
        read_memory(data).labelled("train", None)


def test_a_source_needs_one_kind_of_answer() -> None:
    for row in ({"source": "a"}, {"source": "a", "target": "b", "references": ["c"]}):
        with pytest.raises(InvalidData, match="there must be a source, and a target"):
            read_memory([row]).generation("train")


def test_no_rows_are_no_sources() -> None:
    for data in ([], {"train": []}):
        assert not read_memory(data).generates


def test_a_generator_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamix.data.memory.MAX_ROWS", 40)
    assert len(read_memory(iter(ROWS)).parts["train"]) == 40
    for data in (itertools.cycle(ROWS), {"text": itertools.repeat("a"), "label": itertools.repeat("b")}):
        with pytest.raises(InvalidData, match="more than 40 rows"):
            read_memory(data)


def test_a_column_may_be_called_as_what_a_data_set_has() -> None:
    frame = _frame()
    found = read_memory(frame.assign(features=1)).labelled("train", None)
    assert found.examples == read_memory(frame).labelled("train", None).examples
    with pytest.raises(InvalidData, match="row 0 of the data is of type str"):
        read_memory(frame["text"])

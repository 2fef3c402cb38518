"""Data sets by name, through the optional `datasets` library; its loader is replaced, nothing is fetched."""

import sys
from collections.abc import Callable
from typing import Any

import datasets
import pytest

from adamix import data
from adamix.errors import InvalidData

ClassLabel, Features, Value = datasets.ClassLabel, datasets.Features, datasets.Value

Hub = Callable[..., list[tuple[str, str | None]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """`hub(train=Dataset, …)` makes `load_dataset` answer that; returns the list of calls."""

    def serve(**splits: datasets.Dataset) -> list[tuple[str, str | None]]:
        calls: list[tuple[str, str | None]] = []

        def load_dataset(name: str, config: str | None = None) -> Any:
            calls.append((name, config))
            return datasets.DatasetDict(splits)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return serve


def _table(label: object, labels: list[Any], *texts: str) -> datasets.Dataset:
    columns = {name: [f"{name} {i}" for i in range(len(labels))] for name in texts}
    features = Features({name: Value("string") for name in texts} | {"label": label, "idx": Value("int32")})
    return datasets.Dataset.from_dict(columns | {"label": labels, "idx": list(range(len(labels)))}, features)


def test_class_names_and_pairs_of_a_glue_task(hub: Hub) -> None:
    label = ClassLabel(names=["entailment", "not_entailment"])
    table = _table(label, [0, 1, 1], "sentence1", "sentence2")
    calls = hub(train=table, validation=table, test=_table(label, [-1, -1], "sentence1", "sentence2"))
    loaded = data.load("org/glue:rte", split="validation")
    assert calls == [("org/glue", "rte")]
    assert (loaded.name, loaded.task_type) == ("org/glue:rte", "classification")
    assert loaded.labels == ("entailment", "not_entailment")
    assert loaded.examples[1] == data.Example("sentence1 1", 1, "sentence2 1")
    with pytest.raises(InvalidData, match="label '-1' is not one of the 2 labels: hidden"):
        data.load("org/glue:rte", split="test")


def test_class_names_keep_the_order_of_the_data_set(hub: Hub) -> None:
    table = _table(ClassLabel(names=["zero", "a", "10"]), [2, 0], "sentence")
    hub(train=table, test=table)
    loaded = data.load("some-set", split="test")
    assert loaded.labels == ("zero", "a", "10")
    assert [e.label for e in loaded.examples] == [2, 0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_splits_that_a_data_set_has_are_taken_whole(hub: Hub, split: str) -> None:
    """Class names are declared, so the other parts are not read; the rows must not be split a second time."""
    table = _table(ClassLabel(names=["x", "y"]), [0, 1] * 50, "text")
    hub(train=table, test=table)
    assert len(data.load("some-set", split=split).examples) == 100


def test_float_labels_are_regression(hub: Hub) -> None:
    table = _table(Value("float32"), [1.0, 2.0], "text")
    hub(train=table, test=table)
    assert data.load("some-set", split="test").task_type == "regression"


def test_lists_of_class_labels_are_multilabel(hub: Hub) -> None:
    feature = datasets.Sequence(ClassLabel(names=["a", "b", "c"]))
    table = _table(feature, [[2, 0], []], "text")
    hub(train=table, test=table)
    loaded = data.load("some-set", split="test")
    assert (loaded.task_type, loaded.labels) == ("multilabel", ("a", "b", "c"))
    assert [e.label for e in loaded.examples] == [(0, 2), ()]


def test_train_only_is_split_by_hash_with_the_same_ids(hub: Hub) -> None:
    hub(train=_table(Value("string"), ["no", "yes"] * 60, "text"))
    loaded = {split: data.load("some-set", split=split) for split in data.SPLITS}
    assert sum(len(part.examples) for part in loaded.values()) == 120
    assert {part.labels for part in loaded.values()} == {("no", "yes")}
    assert all(data.split_of(e.text) == split for split, part in loaded.items() for e in part.examples)


def test_named_validation_parts_are_found(hub: Hub) -> None:
    table = _table(ClassLabel(names=["x", "y"]), [0, 1], "premise", "hypothesis")
    hub(train=table, validation_matched=table, validation_mismatched=table)
    assert len(data.load("some-set", split="validation").examples) == 2
    with pytest.raises(InvalidData, match="no test split, only train, validation"):
        data.load("some-set", split="test")


def test_task_type_of_the_caller_wins(hub: Hub) -> None:
    hub(train=_table(ClassLabel(names=["1", "2"]), [0, 1] * 30, "text"))
    loaded = data.load("some-set", split="train", task_type="regression")
    assert {e.label for e in loaded.examples} == {0.0, 1.0}


def test_unknown_columns_are_listed(hub: Hub) -> None:
    hub(train=_table(Value("int64"), [0, 1], "body"))
    with pytest.raises(InvalidData, match="has the columns body, label, idx"):
        data.load("some-set", split="train")


def test_foreign_split_names_are_listed(hub: Hub) -> None:
    hub(unsupervised=_table(Value("int64"), [0, 1], "text"))
    with pytest.raises(InvalidData, match="has the splits unsupervised"):
        data.load("some-set", split="train")


@pytest.mark.parametrize("kind", [FileNotFoundError, datasets.exceptions.DatasetGenerationError])
def test_a_loader_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def load_dataset(name: str, config: str | None = None) -> Any:
        raise kind("Dataset 'nothing' doesn't exist\nand a second line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InvalidData, match=r"`datasets` cannot load nothing: Dataset 'nothing' doesn't exist$"):
        data.load("nothing", split="train")


def test_without_the_library_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidData, match="pip install datasets") as caught:
        data.load("nothing", split="train")
    assert caught.value.reason == "LIBRARY_MISSING"

"""A training as a program runs it: fit, merge, evaluate, load, predict, generate, go on."""

import math
import random
import signal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers.utils import logging

import adamix
from adamix.config import AdapterConfig
from adamix.data import GenerationData, TaskData
from adamix.errors import (
    AdamixError,
    Cancelled,
    FailedPrecondition,
    InvalidConfig,
    InvalidData,
    Unavailable,
)
from adamix.files import adapter_file, disk
from adamix.files.manifest import HeadSpec
from adamix.training.train import Progress
from adamix_client import Classification, Embedding, GeneratedText, MultiLabel, Regression

SMALL: dict[str, Any] = {"max_steps": 4, "batch_size": 8, "max_length": 32, "rank": 4, "lr": 0.01, "progress": False}


def _rows(data: TaskData) -> list[dict[str, object]]:
    return [{"text": e.text, "label": data.labels[int(str(e.label))]} for e in data.examples]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, backbone_directory: Path, colours: TaskData) -> adamix.Fitted:
    return adamix.fit(backbone_directory, _rows(colours), out=tmp_path_factory.mktemp("run"), **SMALL)


@pytest.fixture(scope="module")
def adapter(fitted: adamix.Fitted) -> adamix.Adapter:
    return fitted.merge(progress=False)


def test_rows_in_memory_train_to_the_weights_of_the_same_rows_in_a_file(
    fitted: adamix.Fitted, adapter: adamix.Adapter, backbone_directory: Path, csv: Path, tmp_path: Path
) -> None:
    by_file = adamix.fit(backbone_directory, csv, out=tmp_path / "run", **SMALL)
    other = adamix.merge(by_file, out=tmp_path / "x.safetensors", progress=False)
    assert other.adapter.tensors.keys() == adapter.adapter.tensors.keys()
    for name, tensor in adapter.adapter.tensors.items():
        assert (tensor.array == other.adapter.tensors[name].array).all(), name
    assert fitted.metrics == by_file.metrics
    assert set(fitted.metrics) == {"accuracy", "macro_f1"}
    assert fitted.document["steps"] == fitted.steps == 4


def test_a_training_leaves_the_process_as_it_found_it(
    backbone_directory: Path, colours: TaskData, tmp_path: Path
) -> None:
    def state() -> tuple[object, ...]:
        numbers = np.random.get_state()
        found = (random.getstate(), numbers[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]
        return (*found, logging.get_verbosity(), torch.get_num_threads(), signal.getsignal(signal.SIGINT))

    level = logging.get_verbosity()
    logging.set_verbosity_info()
    try:
        before = state()
        adamix.fit(backbone_directory, _rows(colours), out=tmp_path / "run", **SMALL)
        assert state() == before

        def fail(_: Progress) -> None:
            raise RuntimeError("a callback of somebody's own")

        with pytest.raises(RuntimeError, match="somebody's own"):
            adamix.fit(backbone_directory, _rows(colours), out=tmp_path / "other", callbacks=[fail], **SMALL)
        assert state() == before
    finally:
        logging.set_verbosity(level)


def test_a_merged_adapter_is_measured_alike_by_every_way(
    fitted: adamix.Fitted, adapter: adamix.Adapter, colours: TaskData
) -> None:
    rows = _rows(colours)
    found = fitted.evaluate(split="train", progress=False)
    assert found.metrics == adapter.evaluate(rows, split="train", progress=False).metrics
    assert found.metrics == adamix.evaluate(adapter, rows, split="train", progress=False).metrics
    assert found.document == {"metrics": found.metrics, "rows": found.rows, "truncated": 0}
    assert len(found.predictions) == len(found.logits) == found.rows
    labels = dict(zip([str(row["text"]) for row in rows], [row["label"] for row in rows], strict=True))
    assert 0 < found.metrics["accuracy"] <= 1
    assert set(found.predictions) <= set(labels.values())
    by_routes = fitted.evaluate(split="train", routing="random", seeds=2, progress=False)
    assert len(by_routes.document["draws"]) == 2
    assert by_routes.metrics == by_routes.document["metrics"]


def test_predictions_are_the_clients_values(adapter: adamix.Adapter) -> None:
    one = adapter.predict("red noun1")
    many = adapter.predict(["red noun1", "blue noun2 noun3", "noun4"], batch_size=2)
    assert isinstance(one, Classification)
    assert one.label == adapter.labels[one.label_id]
    assert math.isclose(sum(one.scores), 1.0)
    first = many[0]
    assert isinstance(first, Classification)
    assert first.scores == pytest.approx(one.scores, abs=1e-5)
    assert len(many) == 3
    assert adapter.predict([]) == []
    again = adamix.load(adapter.file).predict("red noun1")
    assert again == one


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["red", " "], "text 1 is empty"),
        (["red", 3], "text 1 is neither a text nor a pair"),
        (["\ud800"], "text 0 is not valid Unicode"),
        (["red " * 40], "text 0 is longer than the 32 tokens of the adapter.*truncate=True"),
    ],
)
def test_a_text_that_cannot_be_answered_is_named(adapter: adamix.Adapter, texts: Any, message: str) -> None:
    with pytest.raises(InvalidData, match=message):
        adapter.predict(texts)
    assert adapter.predict("red " * 40, truncate=True)


def test_other_heads_answer_with_their_values(
    tmp_path: Path, backbone_directory: Path, palettes: TaskData, numbers: TaskData
) -> None:
    sets = [
        {"text": e.text, "label": [palettes.labels[i] for i in e.label]}
        for e in palettes.examples
        if isinstance(e.label, tuple)
    ]
    several = adamix.fit(backbone_directory, sets, out=tmp_path / "sets", **SMALL).merge(progress=False)
    found = several.predict("red blue noun1")
    assert isinstance(found, MultiLabel)
    assert len(found.scores) == 3
    columns = {"text": [e.text for e in numbers.examples], "label": [e.label for e in numbers.examples]}
    fitted = adamix.fit(
        backbone_directory, columns, out=tmp_path / "numbers", task_type="regression", clip=(0, 90), **SMALL
    )
    value = fitted.merge(progress=False).predict("five noun1")
    assert value == Regression(90.0), "the numbers are over a hundred"


def test_a_decoder_writes_what_its_seed_says(tmp_path: Path, decoder_directory: Path, likes: GenerationData) -> None:
    rows = [{"source": e.source, "references": list(e.references)} for e in likes.examples]
    fitted = adamix.fit(decoder_directory, rows, out=tmp_path / "run", method="lora", **SMALL)
    assert "perplexity" in fitted.metrics
    adapter = fitted.merge(progress=False)
    text = adapter.generate("name anna colour red", max_new_tokens=5, temperature=1.0, seed=7)
    assert isinstance(text, GeneratedText)
    assert text == adapter.generate("name anna colour red", max_new_tokens=5, temperature=1.0, seed=7)
    # A server does not cut a prompt at the length of the training's texts, so none is cut here.
    long = adapter.generate("red " * 40, max_new_tokens=1)
    assert long.usage.prompt_tokens == 41 > adapter.manifest.max_length
    with pytest.raises(InvalidConfig, match="61 tokens and 5 new ones"):
        adapter.generate("red " * 60, max_new_tokens=5)
    assert (text.version, text.seed) == (adapter.digest, 7)
    assert text.usage.generated_tokens == len(text.token_ids) <= 5
    with pytest.raises(FailedPrecondition, match=r"use generate\(\)"):
        adapter.predict("name anna")
    with pytest.raises(InvalidData, match="the prompt is empty"):
        adapter.generate(" ")
    measured = fitted.evaluate(split="train", routing="fixed:0", progress=False)
    assert measured.document["routing"] == "fixed:0"


def test_a_head_of_labels_generates_nothing(adapter: adamix.Adapter) -> None:
    with pytest.raises(FailedPrecondition, match=r"use predict\(\)"):
        adapter.generate("red")


def test_other_merges_lie_beside_the_uniform_one_and_know_the_rows(
    fitted: adamix.Fitted, adapter: adamix.Adapter
) -> None:
    greedy = fitted.merge(how="greedy", progress=False)
    assert greedy.file.name == "adapter-greedy.safetensors"
    assert greedy.manifest.training.merge.startswith("greedy")
    weighted = fitted.merge(how="weighted", weights=[1, 0, 0, 0], progress=False)
    assert weighted.manifest.training.merge == "weighted 1,0,0,0"
    with pytest.raises(InvalidConfig, match="weights is for how weighted, not for uniform"):
        fitted.merge(weights=[1, 0, 0, 0])
    with pytest.raises(InvalidConfig, match="weights are one number per expert"):
        fitted.merge(how="weighted", weights="1,0")  # type: ignore[arg-type]
    assert adamix.inspect(adapter)["digest"] == adapter.digest == adamix.inspect(adapter.file)["digest"]


def test_a_recipe_gives_way_to_what_is_given_even_if_it_is_the_default(
    monkeypatch: pytest.MonkeyPatch, backbone_directory: Path, csv: Path, tmp_path: Path
) -> None:
    """By the values alone it could not be told whether a default was given."""
    from adamix.experiments import run as experiment

    plans: list[Any] = []

    def stop(plan: Any, _: object) -> Any:
        plans.append(plan)
        raise InvalidData("far enough")

    monkeypatch.setattr(experiment, "prepare", stop)
    for given in ({}, {"rank": AdapterConfig.rank}):
        with pytest.raises(InvalidData, match="far enough"):
            adamix.fit(backbone_directory, csv, out=tmp_path / "run", recipe="glue-bert-base", **given)
    assert plans[0].recipe.instead == {}
    assert plans[1].recipe.instead == ({} if plans[0].adapter.rank == AdapterConfig.rank else {"rank": 16})
    assert plans[1].adapter.rank == AdapterConfig.rank


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(
    fitted: adamix.Fitted, backbone_directory: Path, colours: TaskData, tmp_path: Path
) -> None:
    def press(progress: Progress) -> None:
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    rows, out = _rows(colours), tmp_path / "run"
    with pytest.raises(Cancelled, match=r"stopped after step 2 of 4; continue with resume=True"):
        adamix.fit(backbone_directory, rows, out=out, callbacks=[press], **SMALL)
    with pytest.raises(FailedPrecondition, match="continue its run with resume=True"):
        adamix.fit(backbone_directory, rows, out=out, **SMALL)
    resumed = adamix.fit(backbone_directory, rows, out=out, resume=True, **SMALL)
    assert (out / "mixture.safetensors").read_bytes() == (fitted.out / "mixture.safetensors").read_bytes()
    assert resumed.steps == 4


def test_a_mistake_costs_no_loading(backbone_directory: Path, csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InvalidConfig, match="method must be one of bottleneck, lora") as caught:
        adamix.fit("no-such-backbone", csv, out=out, method="prefix")
    assert caught.value.field == "method"
    with pytest.raises(InvalidConfig, match="give epochs or max_steps, not both"):
        adamix.fit("no-such-backbone", csv, out=out, epochs=1, max_steps=1)
    with pytest.raises(InvalidConfig, match="minilm"):
        adamix.fit("minlm", csv, out=out)
    with pytest.raises(InvalidConfig, match="task_type must be one of"):
        adamix.fit(backbone_directory, csv, out=out, task_type="ranking")
    with pytest.raises(InvalidData, match="data of type int are not read"):
        adamix.fit(backbone_directory, 3, out=out)
    with pytest.raises(InvalidData, match="nothing to learn"):
        adamix.fit(backbone_directory, [("red", "x"), ("blue", "x")], out=out)
    assert not out.exists()


def test_a_push_without_a_server_says_so(fitted: adamix.Fitted, adapter: adamix.Adapter) -> None:
    with pytest.raises(Unavailable):
        fitted.push("127.0.0.1:9", "colours")
    with pytest.raises(InvalidConfig, match="gate"):
        fitted.push("127.0.0.1:9", "colours", gate="accuracy")
    with pytest.raises(AdamixError):
        adapter.push("127.0.0.1:9", "colours")
    assert "colours" not in repr(fitted)


def test_progress_is_a_bar_on_stderr(
    backbone_directory: Path, colours: TaskData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adamix.fit(backbone_directory, _rows(colours), out=tmp_path / "run", **(SMALL | {"progress": True}))
    said = capsys.readouterr()
    assert "4/4" in said.err
    assert said.out == ""


def test_an_embedding_answers_with_numbers_of_length_one(adapter: adamix.Adapter, tmp_path: Path) -> None:
    whole, file = adapter.adapter, tmp_path / "vectors.safetensors"
    head = HeadSpec(type="embedding", pooling="mean", normalize=True)
    body = {name: tensor for name, tensor in whole.tensors.items() if not name.startswith("head.")}
    disk.write(file, adapter_file.encode(msgspec.structs.replace(whole.manifest, head=head), body))
    found = adamix.load(file).predict("red noun1")
    assert isinstance(found, Embedding)
    assert len(found.values) == whole.manifest.backbone.hidden_size
    assert math.hypot(*found.values) == pytest.approx(1.0)


def test_a_merge_that_learns_takes_the_few_rows_of_the_training(
    backbone_directory: Path, colours: TaskData, tmp_path: Path
) -> None:
    fitted = adamix.fit(backbone_directory, _rows(colours), out=tmp_path / "run", few_shot=9, **SMALL)
    assert fitted.merge(how="fisher", progress=False).manifest.training.merge == "fisher rows=9"


def test_a_directory_is_not_loaded(fitted: adamix.Fitted) -> None:
    with pytest.raises(InvalidConfig, match=r"is a directory: merge its mixture into a file first"):
        adamix.load(fitted.out)
    with pytest.raises(InvalidConfig, match=r"seeds must be in 1\.\.1000, not 0"):
        fitted.evaluate(routing="random", seeds=0)
    with pytest.raises(InvalidConfig, match="batch_size must be 1 or more"):
        fitted.evaluate(batch_size=0)

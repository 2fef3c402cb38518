"""`adamix import` and `adamix export` as a user types them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from typer.testing import CliRunner

from adamix.backbones import backbone as backbones
from adamix.backbones import packaged
from adamix.cli import app
from adamix.files import adapter_file
from adamix.modules.attach import attach

WORDS = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(36))]


def invoke(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def classifier(make_classifier: Callable[..., Any]) -> Any:
    return make_classifier("bert").model


@pytest.fixture
def backbone_directory(tmp_path: Path, classifier: Any) -> Path:
    """The classifier's body, and a tokenizer of whole words that keeps case."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)])
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    directory = tmp_path / "backbone"
    classifier.bert.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(directory)
    return directory


def test_peft_in_evaluated_and_out_again(classifier: Any, backbone_directory: Path, tmp_path: Path) -> None:
    """What `evaluate` says of an imported file is what the library's model says of the same texts."""
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2, init_lora_weights=False)
    torch.manual_seed(2)
    model = get_peft_model(classifier, config).eval()
    model.save_pretrained(tmp_path / "peft")
    file, lines = tmp_path / "adapter.safetensors", tmp_path / "out.jsonl"
    result = invoke(
        *("import", "peft", tmp_path / "peft", "--backbone", backbone_directory, "--labels", "red, green,blue"),
        *("--out", file, "--json"),
    )
    document = json.loads(result.stdout)
    assert document["digest"] == adapter_file.read(file).digest
    assert document["keys"] == {"matched": 10, "missing": 0, "surplus": 0}
    assert "tensors: 10 matched, 0 missing, 0 surplus" in result.stderr
    texts = ["w1 w2 w3", "w9", "w30 w1 w1 w8 w2", "w5 w6"]
    with (tmp_path / "data.csv").open("w", newline="") as data:
        csv.writer(data).writerows([("text", "label"), *zip(texts, ("red", "green", "blue", "red"), strict=True)])
    invoke("evaluate", file, "--data", tmp_path / "data.csv", "--split", "train", "--save-predictions", lines)
    tokenizer = backbones.load_tokenizer(str(backbone_directory))
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    for row in found:
        ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0]
        torch.testing.assert_close(torch.tensor(row["logits"]), logits, rtol=1e-5, atol=1e-5)
        assert row["prediction"] == ["red", "green", "blue"][int(logits.argmax())]
    exported = invoke("export", "peft", file, "--out", tmp_path / "again", "--json")
    assert json.loads(exported.stdout)["task_type"] == "SEQ_CLS"
    assert "label names are not in PEFT's files" in exported.stderr
    loaded = PeftModel.from_pretrained(model.unload(), tmp_path / "again")
    assert loaded.peft_config["default"].r == 2


def release_state(layers: int, width: int, rank: int, labels: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(6)
    state = {"classifier.weight": torch.randn(labels, width), "classifier.bias": torch.randn(labels)}
    for layer in range(layers):
        for side, count, shape in (("A", 4, (rank, width)), ("B", 1, (width, rank))):
            name = f"bert.encoder.layer.{layer}.output.ExpertSoup.MoA_{side}"
            state[f"{name}.expert_score_weight"] = torch.zeros(count)
            for expert in range(count):
                state[f"{name}.deepspeed_experts.{expert}.weight"] = torch.randn(shape) * 0.05
                state[f"{name}.deepspeed_experts.{expert}.bias"] = torch.randn(shape[0]) * 0.05
    return state


def test_a_release_file_becomes_an_adapter_and_a_mixture(backbone_directory: Path, tmp_path: Path) -> None:
    source, file, mixture = tmp_path / "soup.bin", tmp_path / "adapter.safetensors", tmp_path / "mixture"
    torch.save(release_state(2, 16, 3, 3), source)
    arguments = ("import", "microsoft-adamix", source, "--backbone", backbone_directory, "--out", file)
    result = invoke(*arguments, "--mixture", mixture, "--json")
    document = json.loads(result.stdout)
    assert document["keys"]["matched"] == 26
    assert document["self_test"]["max_abs_diff"] < 1e-5
    assert "the backbone's tokenizer keeps case" in document["notes"][0]
    assert adapter_file.read(file).manifest.head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    invoke("merge", mixture, "--out", tmp_path / "merged.safetensors")
    merged = adapter_file.read(tmp_path / "merged.safetensors")
    assert merged.digest == adapter_file.read(file).digest
    full = invoke(*arguments, "--mixture", mixture, code=2)
    assert "is not an empty directory" in full.stderr


def test_failures_are_one_line_and_write_nothing(backbone_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter.safetensors"
    (tmp_path / "empty").mkdir()
    common = ("--backbone", backbone_directory, "--out", out)
    for kind in ("peft", "adapterhub"):
        result = invoke("import", kind, tmp_path / "empty", *common, code=1)
        assert "adapter_config.json: No such file" in result.stderr
    result = invoke("import", "peft", tmp_path / "empty", *common, "--clip", "5", code=2)
    assert "--clip is two numbers" in result.stderr
    result = invoke("import", "peft", tmp_path / "empty", *common, "--labels", "a,a", code=2)
    assert "names a label twice" in result.stderr
    (tmp_path / "text.bin").write_text("not a checkpoint")
    result = invoke("import", "microsoft-adamix", tmp_path / "text.bin", *common, code=1)
    assert "text.bin is damaged" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.weights
def test_pretrained_weights_agree_with_peft(tmp_path: Path) -> None:
    """The packaged encoder under PEFT and under ours, on text, with the frozen pooler of its checkpoint."""
    directory = packaged.directory("minilm")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=4)
    targets = ["query", "value", "intermediate.dense"]
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=targets, init_lora_weights=False))
    adapted.eval().save_pretrained(tmp_path / "peft")
    file = tmp_path / "adapter.safetensors"
    invoke("import", "peft", tmp_path / "peft", "--backbone", "minilm", "--out", file)
    adapter, backbone = adapter_file.read(file), backbones.load("minilm")
    assert adapter.manifest.head.dense == "backbone"
    tokenizer = backbones.load_tokenizer("minilm")
    batch = tokenizer(
        ["A film that never ends.", "Short, and all the better for it!"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = adapted(**batch).logits
        found = attach(adapter, backbone)(**batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.save(release_state(6, 384, 8, 2), tmp_path / "soup.bin")
    result = invoke(
        "import", "microsoft-adamix", tmp_path / "soup.bin", "--backbone", "minilm", "--out", file, "--json"
    )
    document = json.loads(result.stdout)
    assert document["notes"] == []
    assert document["self_test"]["max_abs_diff"] < 1e-3

"""Loading a backbone from disk: tokens are those of its tokenizer file, weights those of its checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer

from adamix.backbones import backbone as backbones
from adamix.data import Example
from adamix.errors import InvalidConfig
from adamix.rows.labelled import tokenize

TEXTS = ["red noun1", "RED Noun1 unheard", "[CLS] one [MASK] noun2", "blue", "<pad> [UNK]"]


def _edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(params=["as saved", "another class", "no special tokens"])
def directory(request: pytest.FixtureRequest, backbone_directory: Path, tmp_path: Path) -> Path:
    """The tiny backbone, with tokenizer files that `AutoTokenizer` reads in ways of its own."""
    for path in backbone_directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if request.param == "another class":
        # Rebuilt by its class with a BERT normaliser, which the file does not have.
        _edit_json(tmp_path / "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=True)
        assert type(AutoTokenizer.from_pretrained(tmp_path)) is BertTokenizer
    if request.param == "no special tokens":
        # The words are in the vocabulary, but the file does not have them cut out of texts.
        _edit_json(tmp_path / "tokenizer.json", added_tokens=[])
    return tmp_path


def test_training_reads_the_tokens_that_the_server_reads(directory: Path) -> None:
    text = backbones.export_tokenizer(str(directory))
    served = Tokenizer.from_str(text)
    tokenizer = backbones.load_tokenizer(str(directory))
    examples = [Example(first, 0, second) for first in TEXTS for second in [None, *TEXTS]]
    rows = tokenize(tokenizer, examples, max_length=64, has_types=True)
    for example, row in zip(examples, rows, strict=True):
        expected = served.encode(example.text) if example.pair is None else served.encode(example.text, example.pair)
        assert row.input_ids == tuple(expected.ids)
        assert row.type_ids == tuple(expected.type_ids)
        assert (row.type_ids[-1] == 1) == (example.pair is not None)
    assert tokenizer.pad_token_id == 0
    assert tokenize(tokenizer, examples, max_length=64, has_types=False)[-1].type_ids is None


def test_what_truncates_and_pads_in_the_file_does_not_here(directory: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    before = backbones.export_tokenizer(str(directory))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(directory / "tokenizer.json"))
    assert backbones.export_tokenizer(str(directory)) == before
    (row,) = tokenize(
        backbones.load_tokenizer(str(directory)), [Example("red " * 6, 0)], max_length=64, has_types=False
    )
    assert len(row) == 8


@pytest.mark.parametrize("name", ["encoder.layer.1.output.dense.weight", "embeddings.LayerNorm.bias"])
def test_a_checkpoint_without_a_weight_of_the_body_is_refused(
    backbone_directory: Path, tmp_path: Path, name: str
) -> None:
    for path in backbone_directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidConfig, match=f"lacks weights of a bert body, {name}"):
        backbones.load(str(tmp_path))


def test_a_checkpoint_without_a_pooler_is_a_backbone_without_one(backbone_directory: Path, tmp_path: Path) -> None:
    whole = backbones.load(str(backbone_directory))
    for path in backbone_directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if not k.startswith("pooler.")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = backbones.load(str(tmp_path))
    assert whole.pooler is not None
    assert loaded.pooler is None
    assert loaded.spec.fingerprint == whole.spec.fingerprint
    assert all(torch.isfinite(p).all() for p in loaded.model.parameters())

"""What is exported of a checkpoint for those who write prompts and end texts."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config

from adamix.backbones import backbone
from adamix.prompts.vocabulary import Vocabulary
from adamix_testing.word_tokenizers import decoder_words

SIZE = 24


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """No weights: nothing of this is in them."""
    decoder_words(("a", "b")).save_pretrained(tmp_path)
    GPT2Config(vocab_size=SIZE, bos_token_id=2, eos_token_id=3).save_pretrained(tmp_path)
    return tmp_path


def exported(directory: Path) -> Vocabulary:
    return Vocabulary.from_json(backbone.export_generation(str(directory)))


def edit(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | entries))


def test_ends_are_those_of_the_config_where_there_is_nothing_else(checkpoint: Path) -> None:
    found = exported(checkpoint)
    assert (found.vocab_size, found.bos_id, found.eos_id, found.separator_id) == (SIZE, 2, 3, 2)
    assert (found.eos_ids, found.chat_template, found.rules) == ((3,), None, {})
    assert found.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    # Nothing depends on when it is written, or by whom.
    assert backbone.export_generation(str(checkpoint)) == found.to_json()


@pytest.mark.parametrize(
    ("given", "ids"),
    [([7, 3, 7], (3, 7)), (5, (5,)), ([5, SIZE], (5,)), (None, ())],
    ids=["several", "one", "beyond", "none"],
)
def test_ends_of_generation_config_win(given: object, ids: tuple[int, ...], checkpoint: Path) -> None:
    edit(checkpoint / "generation_config.json", eos_token_id=given)
    found = exported(checkpoint)
    assert found.eos_ids == ids
    assert found.eos_id == 3


def test_templates_are_found_where_auto_tokenizer_finds_them(checkpoint: Path) -> None:
    config = checkpoint / "tokenizer_config.json"
    edit(config, chat_template="of the config")
    assert exported(checkpoint).chat_template == "of the config"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "of two"}]
    edit(config, chat_template=named)
    assert exported(checkpoint).chat_template == "of two"
    edit(config, chat_template=named[:1])
    assert exported(checkpoint).chat_template is None
    (checkpoint / "chat_template.jinja").write_text("of the file")
    assert exported(checkpoint).chat_template == "of the file"


def test_a_template_that_is_too_long_is_left_out(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = checkpoint / "chat_template.jinja"
    path.write_text("a" * (64 << 10))
    assert exported(checkpoint).chat_template == "a" * (64 << 10)
    path.write_text("a" * ((64 << 10) + 1))
    assert exported(checkpoint).chat_template is None
    assert "left out: it is too long" in caplog.text

"""RoBERTa on pretrained weights: the packaged BERT read as one computes the same, and has an identity of its own."""

from pathlib import Path

import pytest
import torch

from adamix.backbones import backbone as backbones
from adamix.data import Example
from adamix.rows.labelled import collate, tokenize

pytestmark = [pytest.mark.weights, pytest.mark.slow]

TEXTS = ["Where is the Eiffel tower?", "Why?", "naïve café — “quotes” " * 12, "What is the length of a metre?"]


def test_the_states_of_single_texts_are_those_of_bert(minilm_as_roberta: Path) -> None:
    name = str(minilm_as_roberta)
    bert, roberta = backbones.load("minilm"), backbones.load(name)
    rows = tokenize(
        backbones.load_tokenizer(name), [Example(text, 0) for text in TEXTS], max_length=64, has_types=False
    )
    batch = collate(rows, pad_id=0)
    with torch.no_grad():
        states = [loaded.model(**batch).last_hidden_state for loaded in (bert, roberta)]
    tokens = batch["attention_mask"].bool()
    assert torch.equal(states[0][tokens], states[1][tokens])


def test_it_is_another_backbone_with_the_same_tokenizer(minilm_as_roberta: Path) -> None:
    bert, roberta, again = (backbones.load(name) for name in ("minilm", *[str(minilm_as_roberta)] * 2))
    assert (bert.spec.model_type, roberta.spec.model_type) == ("bert", "roberta")
    assert roberta.spec.fingerprint != bert.spec.fingerprint
    assert roberta.spec.fingerprint == again.spec.fingerprint
    assert roberta.spec.tokenizer_fingerprint == bert.spec.tokenizer_fingerprint
    assert (bert.first_position, roberta.first_position) == (0, 1)
    # 513 positions, of which the one of padding is no token's.
    assert (bert.spec.max_tokens, roberta.spec.max_tokens) == (512, 512)
    assert (bert.spec.type_vocab_size, roberta.spec.type_vocab_size) == (2, 1)
    assert roberta.pooler is None

"""One short run on pretrained weights and real questions: train, merge, evaluate, inspect."""

from collections import Counter
from pathlib import Path

import pytest

from adamix import data
from adamix.backbones.backbone import load, load_tokenizer
from adamix.config import TrainConfig, TrainingPlan
from adamix.evaluation.labelled import evaluate
from adamix.files import adapter_file
from adamix.merging.merge import merge
from adamix.training.train import train

pytestmark = [pytest.mark.weights, pytest.mark.slow]


def test_a_merged_mixture_answers_real_questions(tmp_path: Path) -> None:
    backbone, tokenizer = load("minilm"), load_tokenizer("minilm")
    rows = data.few_shot(data.load("trec", split="train"), 120, seed=0)
    test = data.few_shot(data.load("trec", split="test"), 120, seed=0)
    settings = TrainConfig(max_steps=60, batch_size=8, learning_rate=5e-3, max_length=32)
    train(TrainingPlan(train=settings), backbone, tokenizer, rows, None, tmp_path)
    adapter = adapter_file.decode(merge(tmp_path))
    adapter_file.check_backbone(adapter, backbone.spec)
    # 6 layers of 2*384*16 + 16 + 384 and a head of 6 labels.
    assert adapter.num_parameters() == (76_128, 2_310)
    assert adapter.num_bytes < 350_000
    result = evaluate(adapter, backbone, tokenizer, test)
    majority = max(Counter(example.label for example in test.examples).values()) / len(test.examples)
    assert result.rows == 120
    assert result.metrics["accuracy"] > majority + 0.3

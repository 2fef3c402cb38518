"""Every way of merging, on a mixture trained on pretrained weights and real questions."""

from collections import Counter
from pathlib import Path

import pytest

from adamix import data
from adamix.backbones.backbone import load, load_tokenizer
from adamix.config import AdapterConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.evaluation import labelled
from adamix.files import adapter_file
from adamix.merging.merge import DATA_METHODS, MergeConfig, merge, read_mixture
from adamix.merging.samples import Samples
from adamix.training.train import train


@pytest.mark.weights
@pytest.mark.slow
def test_all_methods_merge_a_trained_mixture_on_pretrained_weights(tmp_path: Path) -> None:
    backbone, tokenizer = load("minilm"), load_tokenizer("minilm")
    rows = data.few_shot(data.load("trec", split="train"), 36, seed=0)
    settings = TrainConfig(max_steps=15, batch_size=8, learning_rate=1e-2, max_length=16)
    config = MixtureConfig(num_experts=2, share="none")
    adapter = AdapterConfig(rank=4, distinct_init=False)
    plan = TrainingPlan(adapter=adapter, mixture=config, train=settings)
    train(plan, backbone, tokenizer, rows, None, tmp_path)
    mixture = read_mixture(tmp_path)
    majority = max(Counter(example.label for example in rows.examples).values()) / len(rows.examples)
    samples = Samples(backbone, tokenizer, rows)
    found = {}
    for how in ("uniform", *DATA_METHODS, "ties", "dare"):
        by_data = samples if how in DATA_METHODS else None
        content = merge(mixture, how, samples=by_data, config=MergeConfig(steps=3, max_rows=12, density=0.9))
        found[how] = labelled.evaluate(adapter_file.decode(content), backbone, tokenizer, rows).metrics["accuracy"]
    # Methods that keep what was learned answer the rows they were trained on far better than by the commonest class.
    assert min(found.values()) > majority + 0.2, found

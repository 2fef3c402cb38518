"""Decoders on a device: the texts, and the tokens that are drawn, are those of a CPU."""

import msgspec
import numpy as np
import pytest
import torch

from adamix.generation import drawing
from adamix.generation.sampling import GREEDY, Sampling
from adamix_server.channel.engine_frames import GenerateParams
from adamix_server.engine.sampler import Sampler
from adamix_testing.decoders import Steps, runner_with, text_adapters, text_sequence, tiny_decoder, written_alone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen3"])
def test_texts_in_company_are_those_written_alone(name: str) -> None:
    backbone = tiny_decoder(name)
    adapters = text_adapters(backbone)
    random = np.random.default_rng(0)
    asked = []
    for i in range(12):
        slot = i % (len(adapters) + 1)
        prompt = random.integers(0, backbone.spec.vocab_size, int(random.integers(1, 50))).tolist()
        asked.append((prompt, slot, written_alone(backbone, adapters[slot - 1] if slot else None, prompt, 9)))
    sequences = [text_sequence(prompt, len(written), slot) for prompt, slot, written in asked]
    runner = runner_with(backbone, adapters, num_pages=13, device=torch.device("cuda"))
    Steps(runner, num_pages=13).run(sequences, random.integers(0, 24, len(asked)).tolist())
    assert [sequence.generated.tolist() for sequence in sequences] == [written for *_, written in asked]


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(temperature=1.2, top_p=0.9), Sampling(temperature=0.8, top_k=40, repetition_penalty=1.3)],
    ids=["greedy", "top_p", "top_k"],
)
def test_drawn_tokens_are_those_of_the_definition(sampling: Sampling) -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 3, (64, 49_152)).astype(np.float32)
    sequences = [text_sequence([1, 2, 3], 4) for _ in logits]
    for seed, sequence in enumerate(sequences):
        sequence.request.row = msgspec.structs.replace(
            sequence.request.row, generate=GenerateParams(max_new_tokens=4, sampling=sampling)
        )
        sequence.seed = seed
    drawn = Sampler(logits.shape[1]).draw(torch.from_numpy(logits).cuda(), sequences)
    expected = [
        drawing.next_token(row, sequence.generated, sampling, sequence.seed)
        for row, sequence in zip(logits, sequences, strict=True)
    ]
    assert [None if each is None else each.token for each in drawn] == expected

"""Decoders in steps over pages: whatever shares a step, a text is the one that its adapter writes alone."""

from functools import cache

import numpy as np
import pytest

from adamix_testing.decoders import (
    DECODERS,
    Steps,
    runner_with,
    text_adapters,
    text_sequence,
    tiny_decoder,
    written_alone,
)


@cache
def texts(name: str, count: int) -> list[tuple[list[int], int, list[int]]]:
    """(prompt, slot, what is written alone) of random requests of a tiny decoder."""
    backbone = tiny_decoder(name)
    adapters = text_adapters(backbone)
    random = np.random.default_rng(count)
    made = []
    for i in range(count):
        slot = i % (len(adapters) + 1)
        prompt = random.integers(0, backbone.spec.vocab_size, int(random.integers(1, 50))).tolist()
        adapter = adapters[slot - 1] if slot else None
        made.append((prompt, slot, written_alone(backbone, adapter, prompt, int(random.integers(3, 20)))))
    return made


def check_identity(name: str, count: int) -> None:
    expected = texts(name, count)
    backbone = tiny_decoder(name)
    adapters = text_adapters(backbone)
    sequences = [text_sequence(prompt, len(written), slot) for prompt, slot, written in expected]
    arrivals = np.random.default_rng(1).integers(0, 2 * count, count).tolist()
    # Three long texts need more pages than there are.
    steps = Steps(runner_with(backbone, adapters, num_pages=13), num_pages=13)
    steps.run(sequences, arrivals)
    assert steps.num_preemptions > 0
    assert [sequence.generated.tolist() for sequence in sequences] == [written for *_, written in expected]


@pytest.mark.parametrize("name", DECODERS)
def test_texts_in_company_are_those_written_alone(name: str) -> None:
    check_identity(name, 8)


@pytest.mark.long
@pytest.mark.parametrize("name", DECODERS)
def test_many_texts_in_company_are_those_written_alone(name: str) -> None:
    check_identity(name, 32)

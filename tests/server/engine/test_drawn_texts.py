"""Texts drawn in the engine are those that `sample` draws offline by the same seed, whatever shares their steps."""

from collections.abc import Sequence as Ordered
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from adamix.generation import drawing
from adamix.generation.sample import sample
from adamix.generation.sampling import GREEDY, Sampling
from adamix_server.engine.decoder_runner import StepResult
from adamix_server.engine.sampler import Sampler
from adamix_server.engine.sequence import Sequence, Work
from adamix_testing.decoders import VOCABULARY, Steps, runner_with, text_adapters, text_sequence, tiny_decoder

NEW_TOKENS = 20
SETTINGS = [
    GREEDY,
    Sampling(temperature=1.0),
    Sampling(temperature=2.0, top_k=20, top_p=0.9),
    Sampling(temperature=1.5, min_p=0.02, repetition_penalty=1.3, frequency_penalty=0.2),
    Sampling(temperature=0.8, no_repeat_ngram_size=2, presence_penalty=-0.5),
]


class DrawnSteps(Steps):
    """Tokens are drawn by the sampler; what it gives of probabilities is kept."""

    def take_in(self, works: Ordered[Work], result: StepResult) -> None:
        complete = [work.sequence for work in works if work.is_complete]
        drawn = Sampler(VOCABULARY).draw(result.logits, complete)
        for work in works:
            work.sequence.num_computed += work.num_new
        for sequence, one in zip(complete, drawn, strict=True):
            assert one is not None
            assert sequence.params is not None
            self.logits.setdefault(sequence, []).append(one.logprobs)
            sequence.buffer[sequence.num_tokens] = one.token
            sequence.num_tokens += 1
            if len(sequence.generated) == sequence.params.max_new_tokens:
                self._end(sequence)


def asked(prompt: Ordered[int], slot: int, sampling: Sampling, logprobs: int | None) -> Sequence:
    made = text_sequence(prompt, NEW_TOKENS, slot)
    assert made.params is not None
    params = msgspec.structs.replace(made.params, sampling=sampling, logprobs=logprobs)
    made.request.row = msgspec.structs.replace(made.request.row, generate=params)
    return Sequence.of(made.request)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_seed_gives_the_text_that_it_gives_offline(name: str) -> None:
    backbone = tiny_decoder(name)
    adapters = [None, *text_adapters(backbone)]
    random = np.random.default_rng(0)
    wanted = []
    for number in range(15):
        how = SETTINGS[number % len(SETTINGS)]
        sampling = replace(how, seed=number // 5)
        prompt = random.integers(0, VOCABULARY, random.integers(1, 30)).tolist()
        wanted.append((number % len(adapters), prompt, sampling, 3 if number % 2 else None))
    alone = [
        sample(adapters[slot], backbone, prompt, sampling, max_new_tokens=NEW_TOKENS, logprobs=count)
        for slot, prompt, sampling, count in wanted
    ]
    sequences = [asked(prompt, slot, sampling, count) for slot, prompt, sampling, count in wanted]
    steps = DrawnSteps(runner_with(backbone, [one for one in adapters if one is not None]), num_pages=12)
    steps.run(sequences, arrivals=[number % 4 * 3 for number in range(len(sequences))])
    assert steps.num_preemptions > 0
    assert [sequence.generated.tolist() for sequence in sequences] == [text.token_ids for text in alone]
    for sequence, text in zip(sequences, alone, strict=True):
        mine = np.frombuffer(b"".join(steps.logits[sequence]), drawing.LOGPROB)
        theirs = np.frombuffer(text.logprobs, drawing.LOGPROB)
        np.testing.assert_array_equal(mine["token"], theirs["token"])
        np.testing.assert_allclose(mine["logprob"], theirs["logprob"], atol=1e-4)

"""The first batches of an engine, of nobody: they bring up what a first batch waits for, and show how fast it is.

Knows the runners and a clock; what becomes of the number is the caller's matter.
"""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from adamix.files.manifest import BackboneSpec
from adamix_server.channel.engine_frames import GenerateParams, Row
from adamix_server.engine.decoder_runner import DecoderRunner
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.request import Request
from adamix_server.engine.residency.slots import Hold
from adamix_server.engine.sampler import Sampler
from adamix_server.engine.sequence import Sequence, Work

# As long as usual texts are, and as many tokens as show what a large batch takes. Slow machines start the later for it.
_TEXT_TOKENS = 64
_MOST_TOKENS = 1024
# A decoder is larger than an encoder mostly, and its steps are smaller.
_MOST_DECODER_TOKENS = 256


def tokens_per_s(runner: ModelRunner, spec: BackboneSpec, max_batch_tokens: int) -> float:
    """Run a batch without adapters twice; the tokens a second of the second time."""
    length, text = _text(spec, min(max_batch_tokens, _MOST_TOKENS))
    requests = [Request.of_tokens(text) for _ in range(min(max_batch_tokens, _MOST_TOKENS) // length)]

    def run() -> None:
        runner.hidden_states(requests)
        runner.check_device()

    return len(requests) * length / _seconds_of_second(run)


def decoder_tokens_per_s(
    runner: DecoderRunner, sampler: Sampler, spec: BackboneSpec, max_batch_tokens: int, page_tokens: int
) -> float:
    """Compute some prompts without adapters, and a token of each, twice; the prompts' tokens a second the second time.

    To be called before anything is in the pages.
    """
    most = min(max_batch_tokens, _MOST_DECODER_TOKENS)
    length, text = _text(spec, most)
    num_pages = -(-length // page_tokens)
    works: list[Work] = []
    for number in range(min(most // length, (runner.num_pages - 1) // num_pages)):
        row = Row(
            id=0,
            tenant="",
            digest="",
            token_ids=text.tobytes(),
            deadline=float("inf"),
            generate=GenerateParams(max_new_tokens=1),
        )
        sequence = Sequence.of(Request(row, b"", 0.0, Hold("", since=0.0)))
        sequence.pages = list(range(1 + number * num_pages, 1 + (number + 1) * num_pages))
        works.append(Work(sequence, length))

    def run() -> None:
        sampler.draw(runner.run(works).logits, [work.sequence for work in works])
        runner.check_device()

    return len(works) * length / _seconds_of_second(run)


def _text(spec: BackboneSpec, most: int) -> tuple[int, NDArray[np.int32]]:
    """A text of usual length, if that is not more than `most`, and its length."""
    length = min(_TEXT_TOKENS, spec.max_tokens, most)
    return length, np.random.default_rng(0).integers(0, spec.vocab_size, length, dtype="<i4")


def _seconds_of_second(run: Callable[[], None]) -> float:
    """What something takes when it is done for the second time."""
    run()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began

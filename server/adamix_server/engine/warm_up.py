"""The first batches of an engine, of nobody: they bring up what a first batch waits for, and show how fast it is.

Knows the runner and a clock; what becomes of the number is the caller's matter.
"""

import time

import numpy as np

from adamix.files.manifest import BackboneSpec
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.request import Request

# As long as usual texts are, and as many tokens as show what a large batch takes. Slow machines start the later for it.
_TEXT_TOKENS = 64
_MOST_TOKENS = 1024


def tokens_per_s(runner: ModelRunner, spec: BackboneSpec, max_batch_tokens: int) -> float:
    """Run a batch without adapters twice; the tokens a second of the second time."""
    num_tokens = min(max_batch_tokens, _MOST_TOKENS)
    length = min(_TEXT_TOKENS, spec.max_tokens, num_tokens)
    text = np.random.default_rng(0).integers(0, spec.vocab_size, length, dtype=np.int32)
    requests = [Request.of_tokens(text) for _ in range(num_tokens // length)]
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        runner.hidden_states(requests)
        runner.check_device()
        seconds = time.perf_counter() - began
    return len(requests) * length / seconds

"""transformers' continuous batching, on the same model; every request has its own number of new tokens."""

import logging
from contextlib import ExitStack
from typing import Any, Self

from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from adamix.errors import AdamixError
from adamix.modules.heads import shared_copy
from adamix_bench.generation.turns import Texts
from adamix_bench.generation.workload import NEW_TOKENS, PROMPT_TOKENS, Workload

# As many as a step of the engine's has while texts are being written.
_BATCH_TOKENS = 256
_PAGE_TOKENS = 32
_WAIT_S = 300.0


class ContinuousBatching:
    """A manager that waits for requests in a thread of its own, as long as a with-block runs.

    It is given what suits it on CPUs: scaled-dot-product attention, memory for all requests from the start.
    """

    def __init__(self, language_model: PreTrainedModel, most_at_once: int) -> None:
        # Its attention is exchanged.
        model: Any = shared_copy(language_model)
        self._model = model.eval()
        self._model.set_attn_implementation("sdpa")
        self._num_blocks = most_at_once * -(-(PROMPT_TOKENS[1] + NEW_TOKENS[1]) // _PAGE_TOKENS) + 1
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # It warns of what it lacks on a CPU.
        logger = logging.getLogger("transformers")
        self._stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        self._manager = self._stack.enter_context(
            self._model.continuous_batching_context_manager(
                generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
                continuous_batching_config=ContinuousBatchingConfig(
                    page_size=_PAGE_TOKENS,
                    num_blocks=self._num_blocks,
                    max_batch_tokens=_BATCH_TOKENS,
                    allow_block_sharing=False,
                    use_cuda_graph=False,
                ),
                warmup=False,
            )
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def generate(self, workload: Workload) -> Texts:
        """Raises AdamixError if a request fails, or nothing comes for minutes."""
        places: dict[str | None, int] = {}
        for place, (prompt, new_tokens) in enumerate(zip(workload.prompts, workload.new_tokens, strict=True)):
            places[self._manager.add_request(list(prompt), max_new_tokens=new_tokens)] = place
        texts: list[list[int]] = [[] for _ in range(len(workload))]
        for _ in range(len(workload)):
            result = self._manager.get_result(timeout=_WAIT_S)
            if result is None or result.error is not None:
                reason = "nothing came" if result is None else result.error
                raise AdamixError(f"transformers' continuous batching did not answer: {reason}")
            texts[places[result.request_id]] = result.generated_tokens
        return texts

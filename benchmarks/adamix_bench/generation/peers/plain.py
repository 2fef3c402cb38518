"""transformers' `generate`, one request after another."""

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from adamix.modules.heads import shared_copy
from adamix_bench.generation.turns import Texts
from adamix_bench.generation.workload import Workload


class PlainGenerate:
    def __init__(self, language_model: PreTrainedModel) -> None:
        model: Any = shared_copy(language_model)
        self._model = model.eval()
        self._model.generation_config = GenerationConfig()

    @torch.inference_mode()
    def generate(self, workload: Workload) -> Texts:
        return [
            self._text(prompt, new_tokens)
            for prompt, new_tokens in zip(workload.prompts, workload.new_tokens, strict=True)
        ]

    def _text(self, prompt: Any, new_tokens: int) -> list[int]:
        ids = torch.tensor([list(prompt)])
        config = GenerationConfig(
            do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, use_cache=True, pad_token_id=0
        )
        output = self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        found: list[int] = output[0, ids.shape[1] :].tolist()
        return found

"""A text for one prompt, token by token, drawn as `Sampling` says: what the server is to give for the same seed.

The model is transformers' own with the adapter in place. Knows no text: ids in, ids out.
"""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch

from adamix.backbones.backbone import Backbone
from adamix.errors import FailedPrecondition, InvalidConfig
from adamix.files.adapter_file import AdapterFile
from adamix.generation import drawing
from adamix.generation.beam_search import attach_adapter
from adamix.generation.sampling import GREEDY, Sampling
from adamix.modules.heads import shared_copy

_SEED_BITS = 64


@dataclass(frozen=True)
class Sampled:
    """What was drawn behind a prompt.

    Attributes:
        token_ids: without the end of text.
        finish: at an end of text, or at the limit of tokens.
        seed: by which it was drawn.
        logprobs: if asked for, as in `drawing.logprobs`, of each of `token_ids`.
    """

    token_ids: list[int]
    finish: Literal["eos", "length"]
    seed: int
    logprobs: bytes


@torch.inference_mode()
def sample(
    adapter: AdapterFile | None,
    backbone: Backbone,
    prompt: Sequence[int],
    sampling: Sampling = GREEDY,
    *,
    max_new_tokens: int = 64,
    end_ids: Collection[int] = (),
    logprobs: int | None = None,
) -> Sampled:
    """Draw tokens behind a prompt until one of `end_ids`, or so many.

    Args:
        adapter: None is the backbone alone.
        logprobs: how many alternatives are reported of each token; None reports nothing.

    Raises:
        InvalidAdapter: the adapter does not fit the backbone.
        FailedPrecondition: the adapter's head is no language model, the backbone was loaded without one, or a score is
            not finite.
        InvalidConfig: the prompt is empty, or the backbone has no positions for so many tokens.
    """
    if not prompt or max_new_tokens < 1 or len(prompt) + max_new_tokens > backbone.spec.max_tokens:
        raise InvalidConfig(
            f"{len(prompt)} tokens and {max_new_tokens} new ones must be at least 1 each and together at most "
            f"{backbone.spec.max_tokens}",
            field="max_new_tokens",
        )
    model = _language_model(adapter, backbone)
    seed = secrets.randbits(_SEED_BITS) if sampling.seed is None else sampling.seed
    generated = np.zeros(0, np.int32)
    found, cache, ids = b"", None, torch.tensor([list(prompt)], device=model.device)
    while len(generated) < max_new_tokens:
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        logits = output.logits[0, -1].float().cpu().numpy()
        token = drawing.next_token(logits, generated, sampling, seed)
        if token is None:
            raise FailedPrecondition("the model's scores are not finite")
        if token in end_ids:
            return Sampled(generated.tolist(), "eos", seed, found)
        if logprobs is not None:
            found += drawing.logprobs(logits, token, logprobs)
        generated = np.append(generated, np.int32(token))
        cache, ids = output.past_key_values, torch.tensor([[token]], device=model.device)
    return Sampled(generated.tolist(), "length", seed, found)


def _language_model(adapter: AdapterFile | None, backbone: Backbone) -> Any:
    if adapter is not None:
        return attach_adapter(adapter, backbone)
    if backbone.language_model is None:
        raise FailedPrecondition(f"{backbone.spec.label} was loaded without a language model that generates text")
    return cast("Any", shared_copy(backbone.language_model)).eval()

"""Small random decoders of every family, what they write alone, and a scheduler that is as simple as can be."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.files.adapter_file import AdapterFile
from adamix.generation.beam_search import attach_adapter
from adamix.modules.heads import shared_copy
from adamix_kernels.paged import PAGE_TOKENS
from adamix_server.channel.engine_frames import GenerateParams
from adamix_server.engine.decoder_runner import DecoderRunner, StepResult
from adamix_server.engine.request import Request, Status
from adamix_server.engine.residency.packing import pack
from adamix_server.engine.residency.slot_bank import SlotBank
from adamix_server.engine.sequence import Sequence as TokenSequence
from adamix_server.engine.sequence import Work
from adamix_testing.adapters import text_adapter

VOCABULARY, POSITIONS = 96, 160
# Tokens that the layers with a window see: less than the texts of most tests have.
WINDOW = 11
_HOST = torch.device("cpu")
# Of an adapter on a device.
_EXTENT_BYTES = 1 << 20

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,
}


def _rope(kind: str, **parameters: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **parameters}}


_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "initializer_range": 0.3}

DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **_GPT2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES)),
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES | _LLAMA3)),
    "linear": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES | _rope("linear", factor=2.0))),
    "yarn": lambda: LlamaForCausalLM(
        LlamaConfig(**_SIZES | _rope("yarn", factor=4.0, original_max_position_embeddings=32))
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=WINDOW)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES)),
    "qwen2-windows": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=16)),
}


def tiny_decoder(name: str) -> Backbone:
    """A backbone with its language-model head: the same weights with every call."""
    torch.manual_seed(0)
    return backbones.from_language_model(DECODERS[name]())


def text_adapters(backbone: Backbone) -> list[AdapterFile]:
    """Of both kinds, at one and at several sites, of ranks that fill a vector and do not."""
    inner = tuple(site for site in ("mlp_gate", "mlp_in") if site in backbone.spec.sites)
    return [
        text_adapter(backbone.spec, 1, kind="bottleneck", sites=("mlp_out",), rank=8),
        text_adapter(backbone.spec, 2, kind="lora", sites=("attn_q", "attn_v"), rank=4),
        text_adapter(backbone.spec, 3, kind="bottleneck", sites=("attn_out", *inner), rank=5),
        text_adapter(backbone.spec, 4, kind="lora", sites=("attn_k", "attn_out", *inner, "mlp_out"), rank=16),
    ]


@torch.inference_mode()
def written_alone(backbone: Backbone, adapter: AdapterFile | None, prompt: Sequence[int], count: int) -> list[int]:
    """The first tokens that `generate` of transformers writes, greedy, whatever they are. The backbone is untouched."""
    if adapter is None:
        assert backbone.language_model is not None
        model: Any = shared_copy(backbone.language_model)
        model.config.use_cache = True
    else:
        model = attach_adapter(adapter, backbone)
    # What is None in the settings of a call is filled in from the model's own: no token may count as an end.
    model.generation_config = GenerationConfig()
    how = GenerationConfig(
        do_sample=False, max_new_tokens=count, min_new_tokens=count, use_cache=True, eos_token_id=None, pad_token_id=0
    )
    ids = torch.tensor([list(prompt)])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
    return [int(token) for token in written[0, len(prompt) :]]


def text_sequence(prompt: Sequence[int], max_new_tokens: int, slot: int = 0) -> TokenSequence:
    """A sequence of nobody that is to be generated."""
    request = Request.of_tokens(np.array(prompt, np.int32), slot=slot)
    request.row = msgspec.structs.replace(request.row, generate=GenerateParams(max_new_tokens=max_new_tokens))
    return TokenSequence.of(request)


def read_sequence(tokens: Sequence[int], slot: int) -> TokenSequence:
    """A sequence of nobody that is answered by its adapter's head."""
    return TokenSequence.of(Request.of_tokens(np.array(tokens, np.int32), slot=slot))


def runner_with(
    backbone: Backbone,
    adapters: Sequence[AdapterFile],
    num_pages: int = 64,
    *,
    device: torch.device = _HOST,
    **settings: Any,
) -> DecoderRunner:
    """A runner whose slots 1, 2, … hold these adapters. Takes the backbone over."""
    if backbone.language_model is not None:
        nn.Module.to(backbone.language_model, device)
    bank = SlotBank(max(1, len(adapters)), _EXTENT_BYTES * max(1, len(adapters)), torch.float32, device)
    runner = DecoderRunner(backbone, bank, num_pages, **settings)
    for slot, adapter in enumerate(adapters, start=1):
        bank.write(slot, (slot - 1) * _EXTENT_BYTES, pack(adapter, torch.float32))
    return runner


class Steps:
    """Runs sequences to their end, oldest first: a chunk of each, as long as there are pages and a budget.

    Where pages are missing the youngest gives up its own, and is computed again from its beginning.

    Args:
        arrivals: the step before which each sequence comes.
    """

    def __init__(
        self, runner: DecoderRunner, *, chunk: int = 7, budget: int = 24, most_running: int = 8, num_pages: int = 64
    ) -> None:
        self.runner = runner
        self.chunk, self.budget, self.most_running = chunk, budget, most_running
        self.free = deque(range(1, num_pages))
        self.running: list[TokenSequence] = []
        self.waiting: deque[TokenSequence] = deque()
        self.outputs: dict[TokenSequence, np.ndarray] = {}
        self.logits: dict[TokenSequence, list[bytes]] = {}
        self.num_preemptions = 0

    def run(self, sequences: Sequence[TokenSequence], arrivals: Sequence[int] | None = None) -> None:
        """Until all have ended."""
        order = deque(sorted(zip(arrivals or [0] * len(sequences), range(len(sequences)), strict=True)))
        turn = 0
        while order or self.waiting or self.running:
            while order and order[0][0] <= turn:
                self.waiting.append(sequences[order.popleft()[1]])
            if works := self._works():
                self.take_in(works, self.runner.run(works))
            turn += 1

    def take_in(self, works: Sequence[Work], result: StepResult) -> None:
        drawn = iter(result.logits.numpy())
        for i, work in enumerate(works):
            sequence, is_complete = work.sequence, work.is_complete
            sequence.num_computed += work.num_new
            if not is_complete:
                continue
            if sequence.params is None:
                self.outputs[sequence] = result.outputs[i]
                self._end(sequence)
                continue
            logits = next(drawn)
            self.logits.setdefault(sequence, []).append(logits.tobytes())
            sequence.buffer[sequence.num_tokens] = logits.argmax()
            sequence.num_tokens += 1
            if len(sequence.generated) == sequence.params.max_new_tokens:
                self._end(sequence)
        assert next(drawn, None) is None

    def _works(self) -> list[Work]:
        works: list[Work] = []
        left = self.budget
        while self.waiting and len(self.running) < self.most_running:
            self.running.append(self.waiting.popleft())
        for sequence in list(self.running):
            if sequence not in self.running or not left:
                continue
            num_new = min(sequence.num_pending, self.chunk, left)
            while sequence in self.running and not self._grow(sequence, num_new):
                victim = self.running[-1]
                works = [work for work in works if work.sequence is not victim]
                self._preempt(victim)
            if sequence in self.running:
                works.append(Work(sequence, num_new))
                left -= num_new
        return sorted(works, key=lambda work: work.sequence.request.slot)

    def _grow(self, sequence: TokenSequence, num_new: int) -> bool:
        missing = -(-(sequence.num_computed + num_new) // PAGE_TOKENS) - len(sequence.pages)
        if missing > len(self.free):
            return False
        sequence.pages += [self.free.popleft() for _ in range(missing)]
        return True

    def _preempt(self, sequence: TokenSequence) -> None:
        self._release(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _end(self, sequence: TokenSequence) -> None:
        sequence.request.status = Status.ENDED
        self._release(sequence)

    def _release(self, sequence: TokenSequence) -> None:
        self.running.remove(sequence)
        self.free.extend(sequence.pages)
        sequence.pages = []

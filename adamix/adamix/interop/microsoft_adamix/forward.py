"""What the release of AdaMix computes when it evaluates, in plain torch, straight from its state dict.

A second opinion on an import: nothing here knows our sites, files or merging, only the release's names and formulas
(its inference level 3). The backbone is the unmodified model of transformers with hooks at the modules behind which the
release put its experts.

Shapes: N rows, L tokens, H hidden size, r rank.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidAdapter
from adamix.files.adapter_file import AdapterFile
from adamix.modules.attach import attach
from adamix.modules.heads import shared_copy

# Relative to the largest value: rounding of fp32 sums in another order, through all layers. A wrong weight shows whole.
TOLERANCE = 1e-4
_ROWS, _TOKENS = 3, 12


@torch.inference_mode()
def self_test(state: Mapping[str, Tensor], adapter: AdapterFile, backbone: Backbone, alpha: float | None) -> float:
    """Run an imported adapter and the release's formula on the same random tokens.

    Args:
        state: the release's, without `module.`.

    Returns:
        the largest difference: of logits, or of the last hidden states where the file has no head.

    Raises:
        InvalidAdapter: they differ by more than rounding.
    """
    ids, mask = _tokens(backbone)
    model = attach(adapter, backbone)
    body = shared_copy(backbone.model)
    _hook_experts(body, state, alpha)
    states = [_last_states(module, backbone, ids, mask) for module in (body, model.body)]
    expected, found = (state * mask.unsqueeze(-1) for state in states)
    if "classifier.weight" in state or "classifier.out_proj.weight" in state:
        expected, found = _logits(states[0][:, 0], state, backbone), model.head(states[1], mask)
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE * max(0.01, float(expected.abs().max())):
        raise InvalidAdapter(
            f"self-test failed: the imported adapter differs from the release's formula by {difference:.3g}",
            reason="SELF_TEST_FAILED",
        )
    return difference


def _tokens(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Random ids `[N, L]` and a mask that leaves each row another length."""
    generator = torch.Generator().manual_seed(0)
    length = min(_TOKENS, backbone.spec.max_tokens)
    ids = torch.randint(backbone.spec.vocab_size, (_ROWS, length), generator=generator)
    lengths = torch.arange(length, length - _ROWS, -1).clamp(min=1)
    mask = (torch.arange(length) < lengths.unsqueeze(1)).long()
    device = next(backbone.model.parameters()).device
    return ids.to(device), mask.to(device)


def _last_states(body: nn.Module, backbone: Backbone, ids: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids) + backbone.first_position
    states: Tensor = body(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    return states.float()


def _logits(first: Tensor, state: Mapping[str, Tensor], backbone: Backbone) -> Tensor:
    """From states of the first token `[N, H]`: BERT by its pooler, RoBERTa by the layer it trained."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"].to(x), state[f"{name}.bias"].to(x))

    if "classifier.weight" in state and backbone.pooler is not None:
        return linear(backbone.pooler(first), "classifier")
    return linear(torch.tanh(linear(first, "classifier.dense")), "classifier.out_proj")


def _hook_experts(body: nn.Module, state: Mapping[str, Tensor], alpha: float | None) -> None:
    for name, module in body.named_modules():
        # BERT's and RoBERTa's FFN output; GPT-2's whole MLP, which ends in its output projection.
        for prefix in ("bert.", "roberta.", "transformer."):
            experts = f"{prefix}{name.removesuffix('.dense')}.ExpertSoup"
            if f"{experts}.MoA_A.expert_score_weight" in state and name.endswith((".output.dense", ".mlp")):
                module.register_forward_hook(_bottleneck_hook(state, experts, name.endswith(".mlp")))
        attention = f"transformer.{name}"
        if f"{attention}.experts_lora_A.0" in state:
            module.register_forward_hook(_lora_hook(state, attention, alpha or 0.0))


def _bottleneck_hook(state: Mapping[str, Tensor], experts: str, is_nlg: bool) -> Callable[..., Tensor]:
    """`h + Up(GELU(Down(h)))`, each projection the mean of its experts."""
    down, up = (_mean_expert(state, f"{experts}.MoA_{side}") for side in "AB")

    def hook(_module: nn.Module, _inputs: Any, h: Tensor) -> Tensor:
        inner = F.gelu(F.linear(h, *down), approximate="tanh" if is_nlg else "none")
        return h + F.linear(inner, *up)

    return hook


def _mean_expert(state: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, Tensor]:
    weights = torch.softmax(state[f"{prefix}.expert_score_weight"].float(), 0)
    pairs = [
        (f"{prefix}.deepspeed_experts.{e}.weight", f"{prefix}.deepspeed_experts.{e}.bias") for e in range(len(weights))
    ]
    weight = sum(w * state[pair[0]].float() for w, pair in zip(weights, pairs, strict=True))
    bias = sum(w * state[pair[1]].float() for w, pair in zip(weights, pairs, strict=True))
    return torch.as_tensor(weight), torch.as_tensor(bias)


def _lora_hook(state: Mapping[str, Tensor], prefix: str, alpha: float) -> Callable[..., Tensor]:
    """A `[2r, H]` gives 2r channels, of which B's two groups read r each; q and v get the results, k gets zeros."""
    a, b = (_mean_factor(state, prefix, side) for side in "AB")
    scale = alpha / (a.shape[0] // 2)

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], qkv: Tensor) -> Tensor:
        channels = F.linear(inputs[0], a).transpose(-2, -1)
        query, value = F.conv1d(channels, b.unsqueeze(-1), groups=2).transpose(-2, -1).chunk(2, dim=-1)
        return qkv + scale * torch.cat([query, torch.zeros_like(query), value], dim=-1)

    return hook


def _mean_factor(state: Mapping[str, Tensor], prefix: str, side: str) -> Tensor:
    if f"{prefix}.experts_lora_{side}.1" not in state:
        return state[f"{prefix}.experts_lora_{side}.0"].float()
    weights = torch.softmax(state[f"{prefix}.lora_expert_score_weight"].float(), 0)
    return torch.stack([w * state[f"{prefix}.experts_lora_{side}.{e}"].float() for e, w in enumerate(weights)]).sum(0)

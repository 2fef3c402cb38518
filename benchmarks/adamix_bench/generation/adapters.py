"""Adapters of both kinds at different sites and of different ranks, without training: the same for the same seed.

Even ones have a bottleneck of 16, 8 or 24 units at one site or two, odd ones a LoRA of rank 8, 4 or 16 at two sites or
six. What the weights are worth does not matter to speed.
"""

import numpy as np

from adamix.files import adapter_file
from adamix.files.manifest import BackboneRef, BackboneSpec, HeadSpec, Kind, Manifest, TrainingRecord
from adamix.files.tensors import TensorData

_BOTTLENECKS = (("mlp_out",), ("attn_out", "mlp_out"))
_LORAS = (("attn_q", "attn_v"), ("attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_out"))
_UNITS, _RANKS = (16, 8, 24), (8, 4, 16)
_WEIGHT_STD = 0.05


def make_adapter(spec: BackboneSpec, index: int, seed: int) -> bytes:
    """The file of the `index`-th adapter of a seed, for a backbone's language model."""
    random = np.random.default_rng([seed, index])
    kind: Kind = "lora" if index % 2 else "bottleneck"
    sites = (_LORAS if index % 2 else _BOTTLENECKS)[index // 2 % 2]
    rank = (_RANKS if index % 2 else _UNITS)[index // 2 % 3]
    tensors: dict[str, TensorData] = {}
    for layer in range(spec.num_layers):
        for site in sites:
            tensors |= _weights(f"layers.{layer}.{site}.", kind, rank, spec.sites[site], random)
    manifest = Manifest(
        kind=kind,
        activation="identity" if kind == "lora" else "gelu",
        scaling=1.0,
        backbone=BackboneRef(**{name: getattr(spec, name) for name in BackboneRef.__struct_fields__}),
        head=HeadSpec(type="causal_lm", pooling="none"),
        max_length=spec.max_tokens,
        training=TrainingRecord(method="random", seed=seed),
    )
    return adapter_file.encode(manifest, tensors)


def _weights(
    name: str, kind: Kind, rank: int, widths: tuple[int, int], random: np.random.Generator
) -> dict[str, TensorData]:
    width_in, width_out = widths
    if kind == "lora":
        return {name + "lora_A": _normal(random, rank, width_in), name + "lora_B": _normal(random, width_out, rank)}
    return {
        name + "down_proj.weight": _normal(random, rank, width_out),
        name + "down_proj.bias": _normal(random, rank),
        name + "up_proj.weight": _normal(random, width_out, rank),
        name + "up_proj.bias": _normal(random, width_out),
    }


def _normal(random: np.random.Generator, *shape: int) -> TensorData:
    return TensorData.from_float32(random.standard_normal(shape, np.float32) * np.float32(_WEIGHT_STD))

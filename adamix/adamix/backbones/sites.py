"""Where adapters sit in each model family: one table, and one function that puts modules there.

A site is a point in the *unmodified* transformers backbone. Training and serving both call `insert`, with different
`make_site` functions, so they cannot disagree about placement. This module knows module names only: neither what an
adapter computes nor where its weights come from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from adamix.errors import InvalidConfig
from adamix.files.manifest import NORM_SITES, SITES


@dataclass(frozen=True)
class SitePath:
    """A module inside one layer. `window` = (i, n): the i-th of n equal column blocks of a fused projection."""

    module: str
    window: tuple[int, int] | None = None


@dataclass(frozen=True)
class Family:
    """One model family of transformers.

    Attributes:
        layers: path of the ModuleList of layers inside the body (`AutoModel`).
        sites: site name -> module inside a layer.
        mlp_activation: the activation between `mlp_in` and `mlp_out`, where it is a module of its own.
        has_token_types: the body takes `token_type_ids` (and must be given them when rows are packed).
        positions_after_padding: the first position id is `padding_idx + 1`, not 0.
        is_decoder: causal attention.
    """

    model_type: str
    layers: str
    sites: dict[str, SitePath] = field(repr=False)
    mlp_activation: str | None = None
    has_token_types: bool = False
    positions_after_padding: bool = False
    is_decoder: bool = False


@dataclass(frozen=True)
class Point:
    """One site of one layer of a given backbone. Weights of the wrapped module are `[out_features, in_features]`.

    `window` = (start, stop) selects output columns of a fused projection; `out_features` is then its width.
    """

    layer: int
    site: str
    module: nn.Module
    in_features: int
    out_features: int
    window: tuple[int, int] | None
    is_norm: bool


_BERT_SITES = {
    "attn_q": SitePath("attention.self.query"),
    "attn_k": SitePath("attention.self.key"),
    "attn_v": SitePath("attention.self.value"),
    "attn_out": SitePath("attention.output.dense"),
    "attn_norm": SitePath("attention.output.LayerNorm"),
    "mlp_in": SitePath("intermediate.dense"),
    "mlp_out": SitePath("output.dense"),
    "mlp_norm": SitePath("output.LayerNorm"),
}
_BERT_ACTIVATION = "intermediate.intermediate_act_fn"
_DISTILBERT_SITES = {
    "attn_q": SitePath("attention.q_lin"),
    "attn_k": SitePath("attention.k_lin"),
    "attn_v": SitePath("attention.v_lin"),
    "attn_out": SitePath("attention.out_lin"),
    "attn_norm": SitePath("sa_layer_norm"),
    "mlp_in": SitePath("ffn.lin1"),
    "mlp_out": SitePath("ffn.lin2"),
    "mlp_norm": SitePath("output_layer_norm"),
}
_GPT2_SITES = {
    "attn_q": SitePath("attn.c_attn", (0, 3)),
    "attn_k": SitePath("attn.c_attn", (1, 3)),
    "attn_v": SitePath("attn.c_attn", (2, 3)),
    "attn_out": SitePath("attn.c_proj"),
    "mlp_in": SitePath("mlp.c_fc"),
    "mlp_out": SitePath("mlp.c_proj"),
}
_LLAMA_SITES = {
    "attn_q": SitePath("self_attn.q_proj"),
    "attn_k": SitePath("self_attn.k_proj"),
    "attn_v": SitePath("self_attn.v_proj"),
    "attn_out": SitePath("self_attn.o_proj"),
    "mlp_gate": SitePath("mlp.gate_proj"),
    "mlp_in": SitePath("mlp.up_proj"),
    "mlp_out": SitePath("mlp.down_proj"),
}

FAMILIES = {
    f.model_type: f
    for f in (
        Family("bert", "encoder.layer", _BERT_SITES, _BERT_ACTIVATION, has_token_types=True),
        Family(
            "roberta",
            "encoder.layer",
            _BERT_SITES,
            _BERT_ACTIVATION,
            has_token_types=True,
            positions_after_padding=True,
        ),
        Family(
            "xlm-roberta",
            "encoder.layer",
            _BERT_SITES,
            _BERT_ACTIVATION,
            has_token_types=True,
            positions_after_padding=True,
        ),
        Family("distilbert", "transformer.layer", _DISTILBERT_SITES, "ffn.activation"),
        Family("gpt2", "h", _GPT2_SITES, is_decoder=True),
        Family("llama", "layers", _LLAMA_SITES, is_decoder=True),
        Family("mistral", "layers", _LLAMA_SITES, is_decoder=True),
        Family("qwen2", "layers", _LLAMA_SITES, is_decoder=True),
        Family("qwen3", "layers", _LLAMA_SITES, is_decoder=True),
    )
}


def family(model_type: str) -> Family:
    """The family of a `config.model_type`. Raises InvalidConfig, naming those there are."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        known = ", ".join(sorted(FAMILIES))
        raise InvalidConfig(f"backbones of type {model_type!r} are not supported; supported: {known}") from None


def points(model: nn.Module, site: str) -> list[Point]:
    """The points of one site in every layer of a body, first layer first. Raises InvalidConfig."""
    model_family = family(model.config.model_type)  # type: ignore[union-attr, arg-type]  # a PreTrainedModel
    path = _site_path(model_family, site)
    layers = model.get_submodule(model_family.layers)
    return [_point(index, site, layer, path) for index, layer in enumerate(layers.children())]


def insert(
    model: nn.Module, sites: Sequence[str], make_site: Callable[[Point], nn.Module]
) -> dict[tuple[int, str], nn.Module]:
    """Replace the module at each site of each layer by `make_site(point)`, in place.

    Sites that share a fused module are wrapped one around the other; each sees the earlier one as `point.module`.

    Returns:
        the made modules by (layer, site), in order of layers, then of `sites`.

    Raises:
        InvalidConfig: the family, or this family's site, is unknown; a site is named twice.
    """
    if len(set(sites)) != len(sites):
        raise InvalidConfig(f"a site is named twice: {', '.join(sites)}")
    model_family = family(model.config.model_type)  # type: ignore[union-attr, arg-type]  # a PreTrainedModel
    paths = {site: _site_path(model_family, site) for site in sites}
    made: dict[tuple[int, str], nn.Module] = {}
    for index, layer in enumerate(model.get_submodule(model_family.layers).children()):
        for site, path in paths.items():
            module = make_site(_point(index, site, layer, path))
            layer.set_submodule(path.module, module)
            made[index, site] = module
    return made


def _site_path(model_family: Family, site: str) -> SitePath:
    if site not in SITES:
        raise InvalidConfig(f"unknown site {site!r}; sites are {', '.join(SITES)}", field="sites")
    if site not in model_family.sites:
        known = ", ".join(model_family.sites)
        raise InvalidConfig(f"{model_family.model_type} has no site {site!r}; it has {known}", field="sites")
    return model_family.sites[site]


def _point(index: int, site: str, layer: nn.Module, path: SitePath) -> Point:
    module = layer.get_submodule(path.module)
    width_in, width_out = features_of(module)
    window = None
    if path.window is not None:
        block, count = path.window
        width_out //= count
        window = (block * width_out, (block + 1) * width_out)
    return Point(index, site, module, width_in, width_out, window, site in NORM_SITES)


def features_of(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear, a transformers Conv1D (weight [in, out]), a norm, or a module wrapped around one."""
    while isinstance(inner := getattr(module, "inner", None), nn.Module):
        module = inner
    if isinstance(module, nn.Linear) or hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    weight = module.weight
    if not isinstance(weight, torch.Tensor):
        raise InvalidConfig(f"{type(module).__name__} has no features to adapt")
    if weight.dim() == 1:
        return weight.shape[0], weight.shape[0]
    return weight.shape[0], weight.shape[1]

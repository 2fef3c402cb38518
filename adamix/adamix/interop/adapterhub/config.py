"""`adapter_config.json` of AdapterHub: what a directory says about itself, and what in it cannot be imported.

Every option that changes what is computed is either read, or refused with the reason; one that is not known here is
refused as well. Knows no tensors.
"""

from pathlib import Path
from typing import Any

import msgspec

from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidAdapter
from adamix.files.manifest import Activation
from adamix.interop.reading import converted, quoted, read_json, shown

CONFIG_FILE = "adapter_config.json"
HEAD_CONFIG_FILE = "head_config.json"
FUSION_CONFIG_FILE = "adapter_fusion_config.json"
# (attention block, other block) as submodules of a layer.
BLOCKS = {
    "bert": ("attention.output", "output"),
    "roberta": ("attention.output", "output"),
    "xlm-roberta": ("attention.output", "output"),
    "distilbert": ("attention_adapters", "output_adapters"),
    "gpt2": ("attention_adapters", "output_adapters"),
    "llama": ("attention_adapters", "output_adapters"),
    "mistral": ("attention_adapters", "output_adapters"),
}
_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
    "silu": "silu",
    "tanh": "tanh",
    "linear": "identity",
}
# Files without a `version` come from a time when `gelu` was the approximation.
_EARLY_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_REFUSED = {
    "is_parallel": "a parallel adapter (par_bn) reads the input of its block",
    "phm_layer": "Compacter builds its weights from Kronecker products",
    "inv_adapter": "an invertible adapter changes the embeddings",
    "invertible_adapter": "an invertible adapter changes the embeddings",
    "cross_adapter": "adapters behind cross attention belong to encoder-decoder models",
    "use_gating": "a gate scales the adapter by its input",
    "ln_before": "the adapter has a LayerNorm of its own",
    "ln_after": "the adapter has a LayerNorm of its own",
}
_NEUTRAL = (
    *("adapter_residual_before_ln", "architecture", "dropout", "init_weights", "init_weights_seed", "leave_out"),
    *("mh_adapter", "non_linearity", "original_ln_after", "original_ln_before", "output_adapter", "reduction_factor"),
    *("inv_adapter_reduction_factor", "residual_before_ln", "scaling", "stochastic_depth"),
    # Of Compacter, and without effect where phm_layer is off.
    *("factorized_phm_W", "factorized_phm_rule", "hypercomplex_nonlinearity", "learn_phm", "phm_bias", "phm_c_init"),
    *("phm_dim", "phm_init_range", "phm_rank", "shared_W_phm", "shared_phm_rule"),
)


class BottleneckConfig(msgspec.Struct, frozen=True):
    """The entries of `config` that decide what is computed."""

    mh_adapter: bool
    output_adapter: bool
    non_linearity: str
    original_ln_before: bool = False
    original_ln_after: bool = True
    residual_before_ln: bool | str = True
    scaling: float | str = 1.0
    leave_out: list[int] = []


class HeadConfig(msgspec.Struct, frozen=True):
    """The entries of a head's `config`; `layers` counts linears."""

    head_type: str
    num_labels: int = 2
    layers: int = 1
    activation_function: str | None = None
    label2id: dict[str, int] | None = None
    use_pooler: bool = False
    bias: bool = True


def read_config(source: Path, backbone: Backbone) -> dict[str, Any]:
    """The whole document of a directory made for such a backbone. Raises InvalidAdapter."""
    if (source / FUSION_CONFIG_FILE).exists() and not (source / CONFIG_FILE).exists():
        raise InvalidAdapter(
            "AdapterFusion combines several adapters by attention: not supported", reason="UNSUPPORTED"
        )
    document = read_json(source / CONFIG_FILE)
    if "peft_type" in document:
        raise InvalidAdapter("this is a directory of PEFT: `adamix import peft`", reason="UNSUPPORTED")
    spec = backbone.spec
    found = (document.get("model_type"), document.get("hidden_size"))
    if found != (spec.model_type, spec.hidden_size):
        raise InvalidAdapter(
            f"made for {quoted(found[0])} of hidden size {quoted(found[1])}; {spec.label} is {spec.model_type} of "
            f"{spec.hidden_size}",
            reason="BACKBONE_MISMATCH",
        )
    if spec.model_type not in BLOCKS:
        raise InvalidAdapter(f"the library has no adapters for {spec.model_type}", reason="UNSUPPORTED")
    return document


def bottleneck_config(document: dict[str, Any]) -> BottleneckConfig:
    """Its `config`. Raises InvalidAdapter, naming the option that cannot be imported."""
    value = document.get("config")
    if not isinstance(value, dict):
        raise InvalidAdapter(f"{CONFIG_FILE}: `config` is not an object", reason="MANIFEST_INVALID")
    architecture = value.get("architecture")
    if architecture is not None:
        raise InvalidAdapter(
            f"{CONFIG_FILE}: the library's {quoted(architecture)} is not supported; bottleneck adapters are",
            reason="UNSUPPORTED",
        )
    for name, reason in _REFUSED.items():
        if value.get(name):
            raise InvalidAdapter(f"{CONFIG_FILE}: {name} is set: {reason}", reason="UNSUPPORTED")
    unknown = [name for name, setting in value.items() if setting and name not in (*_NEUTRAL, *_REFUSED)]
    if unknown:
        raise InvalidAdapter(f"{CONFIG_FILE}: unknown options are set: {shown(unknown)}", reason="UNSUPPORTED")
    config = converted(value, BottleneckConfig, CONFIG_FILE)
    if isinstance(config.scaling, str):
        raise InvalidAdapter(
            f"{CONFIG_FILE}: scaling is {quoted(config.scaling)}: learned factors are not supported",
            reason="UNSUPPORTED",
        )
    if not config.original_ln_after:
        raise InvalidAdapter(
            f"{CONFIG_FILE}: original_ln_after is off: the block's own sum and LayerNorm are left out",
            reason="UNSUPPORTED",
        )
    is_name = isinstance(config.residual_before_ln, str)  # "post_add"
    if is_name or (config.original_ln_before and not config.residual_before_ln):
        raise InvalidAdapter(
            f"{CONFIG_FILE}: residual_before_ln is {quoted(config.residual_before_ln)}: the adapter's residual is "
            "taken where our format has no site",
            reason="UNSUPPORTED",
        )
    return config


def activation_of(name: str, is_early: bool) -> Activation:
    """Our name of an activation; `is_early` of one in a file without a version. Raises InvalidAdapter."""
    name = name.lower()
    name = _EARLY_ACTIVATIONS.get(name, name) if is_early else name
    if name not in _ACTIVATIONS:
        raise InvalidAdapter(
            f"the activation {quoted(name)} is not supported; supported are {', '.join(_ACTIVATIONS)}",
            reason="UNSUPPORTED",
        )
    return _ACTIVATIONS[name]

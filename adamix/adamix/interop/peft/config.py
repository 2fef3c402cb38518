"""`adapter_config.json` of PEFT: what a LoRA directory says about itself, and what in it cannot be imported.

Every option that changes what is computed is either read, or refused with the reason; one that is not known here is
refused as well. Knows no tensors.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from adamix.errors import InvalidAdapter
from adamix.interop.reading import converted, quoted, read_json, shown

CONFIG_FILE = "adapter_config.json"

# Options that change what is computed in a way that a LoRA file of ours cannot hold.
_REFUSED = {
    "use_dora": "DoRA rescales the weights of the backbone",
    "use_qalora": "QALoRA pools the input of the LoRA",
    "lora_bias": "B has a bias of its own, which our format has no place for",
    "trainable_token_indices": "trainable tokens change the embeddings of the backbone",
    "target_parameters": "parameters that are no linear layer were adapted",
    "layer_replication": "layers of the backbone were repeated",
    "alora_invocation_tokens": "an activated LoRA applies to some tokens only",
    "megatron_config": "it was trained with Megatron's parallel layers",
    "use_bdlora": "block-diagonal LoRA was trained",
    "arrow_config": "Arrow routes between several LoRAs",
    "kasa_config": "KaSA changes the weights of the backbone",
    "monteclora_config": "MonteCLoRA samples the factors",
    "ensure_weight_tying": "it ties embeddings of the backbone to their adapters",
}
# Options that matter in training only, or are read here.
_NEUTRAL = (
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core"),
    *("modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"),
    *("runtime_config", "target_modules", "task_type", "use_rslora", "velora_config"),
)
# Of a model with another head, as TOKEN_CLS, the layers may have the same names and read other states.
_TASK_TYPES = (None, "SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION")
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")


class LoraConfig(msgspec.Struct, frozen=True):
    """The entries of `adapter_config.json` that decide what is computed."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None

    def scale(self, module: str, rank: int) -> float:
        """The factor on the LoRA of a module, by its name in the model that PEFT wrapped.

        Raises:
            InvalidAdapter: its rank is not what the config says, or a pattern cannot be used.
        """
        expected = int(_pattern(self.rank_pattern, module, self.r))
        if rank != expected or rank < 1:
            raise InvalidAdapter(
                f"{module[:120]} has rank {rank}, and {CONFIG_FILE} says {expected}", reason="SHAPE_MISMATCH"
            )
        alpha = _pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_config(source: Path) -> LoraConfig:
    """The config of a directory. Raises InvalidAdapter, naming the option that cannot be imported."""
    value = read_json(source / CONFIG_FILE)
    peft_type = value.get("peft_type")
    if peft_type != "LORA":
        raise InvalidAdapter(
            f"{CONFIG_FILE}: PEFT's method {quoted(peft_type)} is not supported; only LORA is", reason="UNSUPPORTED"
        )
    for name, reason in _REFUSED.items():
        if value.get(name):
            raise InvalidAdapter(f"{CONFIG_FILE}: {name} is set: {reason}", reason="UNSUPPORTED")
    if value.get("bias", "none") != "none":
        raise InvalidAdapter(
            f"{CONFIG_FILE}: bias={quoted(value['bias'])}: biases of the backbone were trained, and an adapter "
            "leaves the backbone as it is",
            reason="UNSUPPORTED",
        )
    init = value.get("init_lora_weights", True)
    if init not in _PLAIN_INIT or value.get("loftq_config"):
        raise InvalidAdapter(
            f"{CONFIG_FILE}: init_lora_weights={quoted(init)} changes the weights of the backbone when training "
            "begins: save the adapter converted to a plain LoRA (path_initial_model_for_weight_conversion)",
            reason="UNSUPPORTED",
        )
    unknown = [name for name, setting in value.items() if setting and name not in (*_NEUTRAL, *_REFUSED)]
    if unknown:
        raise InvalidAdapter(f"{CONFIG_FILE}: unknown options are set: {shown(unknown)}", reason="UNSUPPORTED")
    config = converted(value, LoraConfig, CONFIG_FILE)
    if config.task_type not in _TASK_TYPES:
        raise InvalidAdapter(
            f"{CONFIG_FILE}: the task type {quoted(config.task_type)} is not supported", reason="UNSUPPORTED"
        )
    return config


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: float) -> float:
    """The value of the first pattern that matches the end of a module's name, at a dot (PEFT's `get_pattern_key`)."""
    for pattern, value in (patterns or {}).items():
        if _compiled(pattern).match(module):
            return float(value)
    return default


def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern is a regular expression from a stranger: one that could run for hours is refused."""
    repeats = re.findall(r"[*+?{]", pattern)
    if len(pattern) > 256 or len(repeats) > 3 or re.search(r"\)[*+?{]", pattern):
        raise InvalidAdapter(f"{CONFIG_FILE}: the pattern {quoted(pattern)} is too involved", reason="UNSUPPORTED")
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError):
        raise InvalidAdapter(
            f"{CONFIG_FILE}: {quoted(pattern)} is no regular expression", reason="MANIFEST_INVALID"
        ) from None

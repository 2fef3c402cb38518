"""Load a frozen backbone and say exactly which one it is.

A backbone is the body of a pretrained transformer: no pooler, evaluation mode, no gradients, and beside it, on request,
the language-model head of its checkpoint. Its fingerprint covers the tensors of the body that came from the checkpoint
and nothing else, because transformers fills what a checkpoint lacks (often a pooler) with random values. This module
knows nothing of adapters.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.hub import cached_file

from adamix.backbones import language_model as language_models
from adamix.backbones import names, packaged, sites
from adamix.backbones import vocabulary as vocabularies
from adamix.errors import InvalidConfig
from adamix.files.manifest import BackboneSpec

_POOLER_PREFIX = "pooler."
_SPECIAL_TOKENS = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")


@dataclass(frozen=True)
class Backbone:
    """A frozen body and its identity.

    Attributes:
        model: the body; `model(input_ids=…, …).last_hidden_state` is `[batch, tokens, hidden]`.
        pooler: the checkpoint's own pooler, `[N, hidden] -> [N, hidden]` on first-token states; None if it has none.
        first_position: position id of a sequence's first token.
        lm_head: the checkpoint's language-model head, frozen: hidden states `[N, hidden] -> [N, vocabulary]`; None
            unless it was loaded with one.
        language_model: the model of transformers that `lm_head` is of and whose body is `model`; None as well.
    """

    model: PreTrainedModel
    pooler: nn.Module | None
    spec: BackboneSpec
    name: str
    first_position: int
    lm_head: nn.Module | None = None
    language_model: PreTrainedModel | None = None

    @property
    def family(self) -> sites.Family:
        return sites.family(self.spec.model_type)


class Pooler(nn.Module):
    """BERT's pooler on states that are already those of the first token: `tanh(W x + b)`."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, first: torch.Tensor) -> torch.Tensor:
        """`[N, hidden] -> [N, hidden]`."""
        return torch.tanh(self.dense(first))


def resolve(name: str) -> str:
    """As `names.resolve`. Raises InvalidConfig."""
    with _quiet_loading():  # of weights that have to be converted first
        return names.resolve(name)


def device_name(name: str) -> str:
    """The device that `auto`, `cpu` or `cuda` stands for: of this process, where torchrun started several.

    Raises:
        InvalidConfig: it is none of these, or there is no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InvalidConfig(f"--device must be auto, cpu or cuda, not {name!r}", field="device")
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("--device cuda: torch finds no CUDA device", field="device")
    if name == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def read_family(name: str) -> sites.Family:
    """The family of a backbone, from its config alone.

    Raises:
        InvalidConfig: it cannot be found or read, or its family is not supported.
    """
    return sites.family(_read_config(name).model_type)


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    language_model: bool = False,
) -> Backbone:
    """Load a backbone by directory, hub id or packaged name.

    Args:
        language_model: load the checkpoint's language-model head as well; identity and body are the same with it.

    Raises:
        InvalidConfig: it cannot be found or read, it lacks weights of the body or a head that is asked for, or its
            family is not supported.
    """
    whole, missing = None, set[str]()
    if language_model:
        family = read_family(name)
        whole, missing = _read(name, language_models.model_class(family))
        language_models.check_head(whole, missing, name)
    if whole is not None and family.is_decoder:
        model = language_models.body_of(whole)
        missing = {key.removeprefix(f"{whole.base_model_prefix}.") for key in missing}
    else:
        # The model with a masked-language-model head comes without the pooler.
        model, missing = _read(name, AutoModel)
    random = sorted(n for n, _ in model.named_parameters() if n in missing and not n.startswith(_POOLER_PREFIX))
    if random:
        raise InvalidConfig(
            f"the checkpoint of {name!r} lacks weights of a {model.config.model_type} body, {random[0]} the first of "
            f"{len(random)}: without them it would be random"
        )
    present = set(model.state_dict()) - missing
    fingerprint = hashlib.sha256(export_tokenizer(name).encode()).hexdigest()
    backbone = from_model(model, name=name, tokenizer_fingerprint=fingerprint, present=present)
    if whole is not None:
        if language_models.body_of(whole) is not model:
            language_models.give_body(whole, model)
        backbone = _with_head(backbone, whole)
    modules: list[nn.Module | None] = [backbone.model, backbone.pooler, backbone.lm_head]
    for module in modules:
        if module is not None:
            module.to(device=device, dtype=dtype)
    return backbone


def from_model(
    model: PreTrainedModel,
    *,
    name: str = "in-memory",
    tokenizer_fingerprint: str = hashlib.sha256(b"").hexdigest(),
    present: Collection[str] | None = None,
) -> Backbone:
    """A backbone from a body in memory (fp32). Takes the model over: freezes it and removes its pooler.

    Args:
        present: names of the tensors that came from a checkpoint; default all.
    """
    family = sites.family(model.config.model_type)
    present = set(model.state_dict()) if present is None else set(present)
    pooler = _take_pooler(model, present)
    model.eval().requires_grad_(False)
    if family.is_decoder:
        # Keys and values of earlier tokens are for generation; here each text goes through once, as a whole.
        model.config.use_cache = False
    return Backbone(
        model=model,
        pooler=pooler,
        spec=_spec(model, family, name, tokenizer_fingerprint, present, pooler),
        name=name,
        first_position=_first_position(model, family),
    )


def from_language_model(
    model: PreTrainedModel, *, name: str = "in-memory", tokenizer_fingerprint: str = hashlib.sha256(b"").hexdigest()
) -> Backbone:
    """A backbone with its language-model head from a model in memory (fp32). Takes the model over, as `from_model`."""
    backbone = from_model(language_models.body_of(model), name=name, tokenizer_fingerprint=tokenizer_fingerprint)
    return _with_head(backbone, model)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The backbone's tokenizer, exactly as `export_tokenizer` writes it and the server runs it.

    Not what `AutoTokenizer` makes of the same file: it builds some kinds anew from settings, with other rules than the
    file's. Only the names of the special tokens are taken from there.

    Raises:
        InvalidConfig: it cannot be found or read, or has no fast implementation.
    """
    return _by_its_file(name, _auto_tokenizer(name))


def export_tokenizer(name: str) -> str:
    """The text of `tokenizer.json`, truncation and padding stripped, as canonical JSON.

    Packaged tokenizers may cut silently (MiniLM's file says 128 tokens), hence the stripping. The sha256 of this text
    is the tokenizer fingerprint.
    """
    source = resolve(name)
    path = cached_file(source, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        text = _auto_tokenizer(name).backend_tokenizer.to_str()
    else:
        text = Path(path).read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    content["truncation"] = content["padding"] = None
    return json.dumps(content, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def export_generation(name: str) -> str:
    """The text of `generation.json`, as canonical JSON: what the checkpoint says of prompts and of where texts end.

    Ends are those of its `generation_config.json`, or of its config where it has none; the chat template is the one
    that `AutoTokenizer` finds, of several the default.

    Raises:
        InvalidConfig: the checkpoint, or its tokenizer, cannot be found or read.
    """
    auto = _auto_tokenizer(name)
    return vocabularies.of_checkpoint(resolve(name), _read_config(name), _by_its_file(name, auto), auto).to_json()


def fingerprint(model: nn.Module, present: Collection[str]) -> str:
    """sha256 over the sorted (name, shape, sha256 of the fp32 little-endian bytes) of the tensors in `present`.

    Poolers, heads and buffers do not count, so that the same body has the same fingerprint however it was saved.
    """
    total = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if name in present and not name.startswith(_POOLER_PREFIX):
            total.update(f"{name}\0{list(parameter.shape)}\0{_tensor_digest(parameter)}\n".encode())
    return total.hexdigest()


def _read(name: str, auto_class: Any) -> tuple[PreTrainedModel, set[str]]:
    """A model in fp32, and the names of its tensors that the checkpoint lacks."""
    try:
        with _quiet_loading():
            model, info = auto_class.from_pretrained(
                resolve(name),
                dtype=torch.float32,
                trust_remote_code=False,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    return model, set(info["missing_keys"])


def _with_head(backbone: Backbone, model: PreTrainedModel) -> Backbone:
    model.eval().requires_grad_(False)
    return replace(backbone, lm_head=language_models.head_of(model, backbone.family), language_model=model)


def _unreadable(name: str, error: Exception) -> InvalidConfig:
    known = ", ".join(packaged.PACKAGES)
    reason = str(error).splitlines()[0]
    return InvalidConfig(f"cannot load backbone {name!r} (packaged ones: {known}): {reason}")


def _auto_tokenizer(name: str) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"cannot load the tokenizer of {name!r}: {str(error).splitlines()[0]}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InvalidConfig(f"the tokenizer of {name!r} has no fast implementation (tokenizer.json)")
    return tokenizer


def _read_config(name: str) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(resolve(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    return config


def _by_its_file(name: str, auto: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer by the rules of `tokenizer.json`, with the names that `auto` has for special tokens."""
    special = auto.special_tokens_map
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(export_tokenizer(name)),
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    # Not as arguments, which would add them to the tokens that are recognised inside of a text.
    for attribute in _SPECIAL_TOKENS:
        if special.get(attribute) is not None:
            setattr(tokenizer, attribute, str(special[attribute]))
    return tokenizer


def _spec(
    model: PreTrainedModel,
    family: sites.Family,
    name: str,
    tokenizer_fingerprint: str,
    present: Collection[str],
    pooler: Pooler | None,
) -> BackboneSpec:
    config = model.config
    widths = {}
    for site in family.sites:
        first = sites.points(model, site)[0]
        widths[site] = (first.in_features, first.out_features)
    return BackboneSpec(
        model_type=family.model_type,
        fingerprint=fingerprint(model, present),
        tokenizer_fingerprint=tokenizer_fingerprint,
        pooler_fingerprint=None if pooler is None else fingerprint(pooler, [n for n, _ in pooler.named_parameters()]),
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        name=name,
        sites=widths,
        vocab_size=config.vocab_size,
        max_tokens=config.max_position_embeddings - _first_position(model, family),
        type_vocab_size=getattr(config, "type_vocab_size", 0) if family.has_token_types else 0,
    )


def _take_pooler(model: PreTrainedModel, present: Collection[str]) -> Pooler | None:
    """Remove the body's pooler (it would run on every forward) and keep it if the checkpoint had it."""
    module = getattr(model, "pooler", None)
    if module is None:
        return None
    setattr(model, "pooler", None)  # noqa: B010 - the attribute's declared type is a module
    dense = getattr(module, "dense", None)
    if not isinstance(dense, nn.Linear) or f"{_POOLER_PREFIX}dense.weight" not in present:
        return None
    return Pooler(dense).eval().requires_grad_(False)


def _first_position(model: PreTrainedModel, family: sites.Family) -> int:
    return int(model.config.pad_token_id) + 1 if family.positions_after_padding else 0


def _tensor_digest(tensor: torch.Tensor) -> str:
    values = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
    return hashlib.sha256(values.numpy().astype("<f4", copy=False).data).hexdigest()


class _quiet_loading:  # noqa: N801 - a context manager used like a function
    """Keep transformers' loading report and progress bar off the terminal: a body has no head to warn about."""

    def __enter__(self) -> None:
        from transformers.utils import logging as transformers_logging

        self._logger = logging.getLogger("transformers")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)
        self._bar = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging as transformers_logging

        self._logger.setLevel(self._level)
        if self._bar:
            transformers_logging.enable_progress_bar()

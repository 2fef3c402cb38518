"""A mixture file (`adamix-mixture/1`) and its merging into one adapter (`adamix/1`).

Merging averages the experts of each projection, weights and biases alike. Nothing here needs torch or a backbone:
a mixture is tensors by name and a manifest.

Keys of a mixture are those of the adapter with the expert's number behind the projection's name:
`layers.{i}.{site}.down_proj.{e}.weight`, `layers.{i}.{site}.lora_A.{e}`. A shared projection is expert 0 alone.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from adamix import adapter_file
from adamix.adapter_file import MIXTURE_FORMAT, TensorData
from adamix.config import RoutingGranularity, Share
from adamix.errors import InvalidAdapter, InvalidConfig
from adamix.manifest import SITES, Manifest

MIXTURE_FILE = "mixture.safetensors"

Method = Literal["uniform", "weighted", "learned", "greedy", "fisher", "regmean", "ties", "dare"]
METHODS: tuple[Method, ...] = get_args(Method)

_EXPERT_KEY = re.compile(
    r"(?P<projection>layers\.(?:0|[1-9]\d{0,3})\.(?:" + "|".join(SITES) + r")\.(?:down_proj|up_proj|lora_A|lora_B))"
    r"\.(?P<expert>0|[1-9]\d?)(?P<tail>\.weight|\.bias)?"
)


class MixtureManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a mixture says about itself: the manifest of the adapter it will become, and how it was mixed."""

    adapter: Manifest
    num_experts: int
    share: Share
    routing_granularity: RoutingGranularity
    common_start: bool = False


@dataclass(frozen=True)
class MixtureFile:
    """A mixture as it lies on disk."""

    manifest: MixtureManifest
    tensors: dict[str, TensorData]

    def encode(self) -> bytes:
        """Canonical bytes."""
        manifest = {**msgspec.to_builtins(self.manifest), "adapter": self.manifest.adapter.to_json()}
        return adapter_file.encode_tensors(MIXTURE_FORMAT, manifest, self.tensors)


def expert_key(projection: str, expert: int, part: str) -> str:
    """The key of one expert's tensor; `part` is `weight` or `bias`, and a LoRA's factors have no parts."""
    return f"{projection}.{expert}" if projection.endswith(("lora_A", "lora_B")) else f"{projection}.{expert}.{part}"


def initial_key(projection: str, part: str) -> str:
    """The key of the common start of a projection's experts; parts as of `expert_key`."""
    is_factor = projection.endswith(("lora_A", "lora_B"))
    return f"initial.{projection}" if is_factor else f"initial.{projection}.{part}"


def read_mixture(source: str | os.PathLike[str]) -> MixtureFile:
    """Read the mixture of a training directory, or a mixture file.

    Raises:
        InvalidAdapter: the file is no mixture of ours; the message says what it is.
        InvalidConfig: the directory holds no finished training.
    """
    path = Path(source)
    if path.is_dir():
        path /= MIXTURE_FILE
        if not path.exists():
            raise InvalidConfig(f"{source} holds no {MIXTURE_FILE}: train with `--out {source}` first")
    file_format, manifest, tensors = adapter_file.decode_tensors(adapter_file.read_bytes(path))
    if file_format == adapter_file.FORMAT:
        raise InvalidAdapter(f"{path.name} is merged already", reason="ALREADY_MERGED")
    if file_format != MIXTURE_FORMAT:
        raise InvalidAdapter(f"unknown format {file_format[:40]!r}; expected {MIXTURE_FORMAT}", reason="FORMAT_UNKNOWN")
    try:
        checked = msgspec.convert(manifest, MixtureManifest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidAdapter(f"mixture manifest: {str(error)[:200]}", reason="MANIFEST_INVALID") from None
    checked.adapter.check()
    adapter_file.check_values(checked.adapter, tensors)
    return MixtureFile(checked, tensors)


def merge(source: str | os.PathLike[str] | MixtureFile, how: str = "uniform") -> bytes:
    """Merge a mixture into the canonical bytes of one adapter file.

    `uniform` is the paper's: the mean over the experts of each projection. For a LoRA with a shared factor this is
    exactly the mean of the experts' products; for a bottleneck it is not (the activation lies in between), which is
    why training must keep the experts in one basis (`mixture.py`). Experts that are all equal merge into themselves,
    bit for bit.

    Raises:
        InvalidConfig: `how` is not offered.
        InvalidAdapter: the mixture is malformed.
    """
    if how not in METHODS:
        raise InvalidConfig(f"--how must be one of {', '.join(METHODS)}, not {how[:40]!r}", field="how")
    if how != "uniform":
        raise InvalidConfig(f"merging by {how!r} is not available in this version; use --how uniform", field="how")
    mixture = source if isinstance(source, MixtureFile) else read_mixture(source)
    manifest = mixture.manifest.adapter
    merged = _merge_tensors(mixture)
    data = adapter_file.encode(_with_merge(manifest, how), merged)
    adapter_file.decode(data)
    return data


def _merge_tensors(mixture: MixtureFile) -> dict[str, TensorData]:
    experts: dict[str, dict[int, NDArray[np.float32]]] = {}
    merged: dict[str, TensorData] = {}
    for key, tensor in mixture.tensors.items():
        match = _EXPERT_KEY.fullmatch(key)
        if match is None:
            merged[key] = tensor  # the head; decode() refuses whatever else this may be
        else:
            target = match["projection"] + (match["tail"] or "")
            experts.setdefault(target, {})[int(match["expert"])] = tensor.to_float32()
    for key, copies in experts.items():
        count = _num_experts(mixture.manifest, key)
        if sorted(copies) != list(range(count)):
            raise InvalidAdapter(f"{key}: expected experts 0..{count - 1}", reason="TENSOR_MISSING")
        if len({copy.shape for copy in copies.values()}) != 1:
            raise InvalidAdapter(f"{key}: experts differ in shape", reason="SHAPE_MISMATCH")
        merged[key] = TensorData.from_float32(_mean([copies[expert] for expert in range(count)]))
    return merged


def _num_experts(manifest: MixtureManifest, key: str) -> int:
    is_down = ".down_proj" in key or ".lora_A" in key
    return 1 if manifest.share == ("down" if is_down else "up") else manifest.num_experts


def _mean(copies: list[NDArray[np.float32]]) -> NDArray[Any]:
    # Summed in fp64: there the mean of equal fp32 values is that value exactly, for any number of them.
    return np.asarray(np.mean(np.stack(copies), axis=0, dtype=np.float64))


def _with_merge(manifest: Manifest, how: str) -> Manifest:
    training = msgspec.structs.replace(manifest.training, merge=how)
    return msgspec.structs.replace(manifest, training=training)

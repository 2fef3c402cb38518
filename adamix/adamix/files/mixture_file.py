"""A mixture on disk: `adamix-mixture/1`, all experts of a training before they are merged.

Keys are those of the adapter with the expert's number behind the projection's name:
`layers.{i}.{site}.down_proj.{e}.weight`, `layers.{i}.{site}.lora_A.{e}`. A shared projection is expert 0 alone. Where
the experts of a projection started from equal weights, these are kept under `initial.` and the projection's name. All
other tensors are the head's. Knows neither torch nor how experts are merged.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from adamix.errors import InvalidAdapter, InvalidConfig
from adamix.files import adapter_file, disk
from adamix.files.manifest import MAX_EXPERTS, SITES, Manifest, RoutingGranularity, Share
from adamix.files.tensors import MIXTURE_FORMAT, TensorData, decode_tensors, encode_tensors

MIXTURE_FILE = "mixture.safetensors"

_PROJECTION = r"layers\.(?:0|[1-9]\d{0,3})\.(?:" + "|".join(SITES) + r")\.(?:down_proj|up_proj|lora_A|lora_B)"
_EXPERT_KEY = re.compile(rf"(?P<projection>{_PROJECTION})\.(?P<expert>0|[1-9]\d?)(?P<tail>\.weight|\.bias)?")
_INITIAL_KEY = re.compile(rf"initial\.(?P<target>{_PROJECTION}(?:\.weight|\.bias)?)")


class MixtureManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a mixture says about itself: the manifest of the adapter it will become, and how it was mixed.

    Attributes:
        common_start: the experts of each projection started from equal weights, which are in the file.
    """

    adapter: Manifest
    num_experts: int
    share: Share
    routing_granularity: RoutingGranularity
    common_start: bool = False


@dataclass(frozen=True)
class ExpertStack:
    """The M copies of one tensor of a projection.

    Attributes:
        copies: fp32 `[M, …]`, expert 0 first.
        initial: the values that all copies started from, fp32 `[…]`; None if they had no common start.
    """

    copies: NDArray[np.float32]
    initial: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.copies)


@dataclass(frozen=True)
class Projection:
    """The experts of one projection: weights `[M, out, in]` and biases `[M, out]`; a factor of a LoRA has no bias.

    Attributes:
        key: `layers.{i}.{site}.down_proj`, `….lora_A`, and so on.
    """

    key: str
    weight: ExpertStack
    bias: ExpertStack | None

    @property
    def num_experts(self) -> int:
        return len(self.weight)


@dataclass(frozen=True)
class MixtureFile:
    """A mixture as it lies on disk."""

    manifest: MixtureManifest
    tensors: dict[str, TensorData]

    def encode(self) -> bytes:
        """Canonical bytes."""
        manifest = {**msgspec.to_builtins(self.manifest), "adapter": self.manifest.adapter.to_json()}
        return encode_tensors(MIXTURE_FORMAT, manifest, self.tensors)

    def projections(self) -> dict[str, Projection]:
        """Every projection by its key.

        Raises:
            InvalidAdapter: an expert is missing, or differs in shape; or so does what the experts started from.
        """
        stacks = _expert_stacks(self)
        keys = sorted({target.removesuffix(".weight").removesuffix(".bias") for target in stacks})
        surplus = set(stacks) - {merged_key(key, part) for key in keys for part in ("weight", "bias")}
        if surplus:
            raise InvalidAdapter(f"unexpected tensors of {min(surplus)}", reason="TENSOR_UNEXPECTED")
        projections = {}
        for key in keys:
            if merged_key(key, "weight") not in stacks:
                raise InvalidAdapter(f"{key} has no weights", reason="TENSOR_MISSING")
            bias = None if _is_factor(key) else stacks.get(merged_key(key, "bias"))
            projections[key] = Projection(key, stacks[merged_key(key, "weight")], bias)
        return projections

    def head(self) -> dict[str, TensorData]:
        """The tensors that belong to no expert, by their keys: the head's, and whatever should not be there."""
        return {k: t for k, t in self.tensors.items() if not (_EXPERT_KEY.fullmatch(k) or _INITIAL_KEY.fullmatch(k))}


def expert_key(projection: str, expert: int, part: str) -> str:
    """The key of one expert's tensor; `part` is `weight` or `bias`, and a LoRA's factors have no parts."""
    return f"{projection}.{expert}" if _is_factor(projection) else f"{projection}.{expert}.{part}"


def initial_key(projection: str, part: str) -> str:
    """The key of the common start of a projection's experts; parts as of `expert_key`."""
    return f"initial.{merged_key(projection, part)}"


def merged_key(projection: str, part: str) -> str:
    """The key that the experts' tensor has once they are merged."""
    return projection if _is_factor(projection) else f"{projection}.{part}"


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
    file_format, manifest, tensors = decode_tensors(disk.read_bytes(path))
    if file_format == adapter_file.FORMAT:
        raise InvalidAdapter(f"{path.name} is merged already", reason="ALREADY_MERGED")
    if file_format != MIXTURE_FORMAT:
        raise InvalidAdapter(f"unknown format {file_format[:40]!r}; expected {MIXTURE_FORMAT}", reason="FORMAT_UNKNOWN")
    try:
        checked = msgspec.convert(manifest, MixtureManifest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidAdapter(f"mixture manifest: {str(error)[:200]}", reason="MANIFEST_INVALID") from None
    if not 1 <= checked.num_experts <= MAX_EXPERTS:
        raise InvalidAdapter(
            f"mixture manifest: num_experts must be in 1..{MAX_EXPERTS}, not {checked.num_experts}",
            reason="MANIFEST_INVALID",
        )
    checked.adapter.check()
    adapter_file.check_values(checked.adapter, tensors)
    return MixtureFile(checked, tensors)


def _expert_stacks(mixture: MixtureFile) -> dict[str, ExpertStack]:
    """The copies of every tensor by the key it has once they are merged."""
    found: dict[str, dict[int, NDArray[np.float32]]] = {}
    initial: dict[str, NDArray[np.float32]] = {}
    for key, tensor in mixture.tensors.items():
        if match := _EXPERT_KEY.fullmatch(key):
            found.setdefault(match["projection"] + (match["tail"] or ""), {})[int(match["expert"])] = (
                tensor.to_float32()
            )
        elif match := _INITIAL_KEY.fullmatch(key):
            initial[match["target"]] = tensor.to_float32()
    stacks = {}
    for target, copies in found.items():
        count = _num_experts(mixture.manifest, target)
        if len(copies) != count or max(copies) >= count:
            raise InvalidAdapter(f"{target}: expected experts 0..{count - 1}", reason="TENSOR_MISSING")
        if len({copy.shape for copy in copies.values()}) != 1:
            raise InvalidAdapter(f"{target}: experts differ in shape", reason="SHAPE_MISMATCH")
        stacks[target] = ExpertStack(np.stack([copies[expert] for expert in range(count)]), initial.get(target))
    _check_initial(mixture.manifest, stacks, initial)
    return stacks


def _check_initial(
    manifest: MixtureManifest, stacks: Mapping[str, ExpertStack], initial: Mapping[str, NDArray[np.float32]]
) -> None:
    surplus = sorted(set(initial) - (set(stacks) if manifest.common_start else set()))
    if surplus:
        raise InvalidAdapter(f"unexpected tensor initial.{surplus[0]}", reason="TENSOR_UNEXPECTED")
    for target, stack in stacks.items():
        if stack.initial is not None and stack.initial.shape != stack.copies.shape[1:]:
            raise InvalidAdapter(f"initial.{target} differs in shape from its experts", reason="SHAPE_MISMATCH")
        if manifest.common_start and len(stack) > 1 and stack.initial is None:
            raise InvalidAdapter(f"missing initial.{target}", reason="TENSOR_MISSING")


def _num_experts(manifest: MixtureManifest, key: str) -> int:
    is_down = ".down_proj" in key or ".lora_A" in key
    return 1 if manifest.share == ("down" if is_down else "up") else manifest.num_experts


def _is_factor(projection: str) -> bool:
    return projection.endswith(("lora_A", "lora_B"))

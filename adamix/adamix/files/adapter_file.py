"""One adapter, one `.safetensors` file, one identity: the sha256 of its bytes.

Reads and writes the format `adamix/1`, a merged adapter: what `tensors` parses is checked here for everything that can
be checked without a backbone. Does not know what the tensors mean to a backbone beyond names and shapes, and never
holds a device tensor.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamix.errors import InvalidAdapter
from adamix.files.disk import read_bytes
from adamix.files.manifest import NORM_SITES, SITES, BackboneSpec, Manifest, check_fits
from adamix.files.tensors import MIXTURE_FORMAT, TensorData, decode_tensors, encode_tensors, shown

FORMAT = "adamix/1"

MAX_ADAPTER_RANK = 1024
# The largest magnitude accepted: what fp16 can hold. Trained weights are far below; anything above overflows on the
# device into the infinities that the finiteness check is there to keep out.
MAX_MAGNITUDE = 65_504.0
# The output layer of a regression is in the units of its target, and those may be large.
MAX_OUTPUT_MAGNITUDE = 1e30


_SITE_KEY = re.compile(
    r"layers\.(0|[1-9]\d{0,3})\.(" + "|".join(SITES) + r")\."
    r"(down_proj\.weight|down_proj\.bias|up_proj\.weight|up_proj\.bias|lora_A|lora_B)"
)


@dataclass(frozen=True)
class AdapterFile:
    """A parsed file. `tensors` is ordered by key; the arrays are read-only views of the file's bytes."""

    manifest: Manifest
    tensors: dict[str, TensorData]
    digest: str
    num_bytes: int

    def site(self, layer: int, site: str) -> dict[str, TensorData]:
        """The tensors of one site by their last name (`down_proj.weight`, `lora_A`, …); empty if it has none."""
        prefix = f"layers.{layer}.{site}."
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}

    def sites(self) -> list[tuple[int, str]]:
        """Every (layer, site) that carries weights, in order of layers."""
        found = {(int(m[1]), m[2]) for key in self.tensors if (m := _SITE_KEY.fullmatch(key))}
        return sorted(found)

    def head(self) -> dict[str, TensorData]:
        """The head's tensors by name without the `head.` prefix."""
        return {key[5:]: value for key, value in self.tensors.items() if key.startswith("head.")}

    def num_parameters(self) -> tuple[int, int]:
        """(adapter, head) parameter counts. The head counts: it can be larger than the adapter."""
        head = sum(t.array.size for t in self.head().values())
        return sum(t.array.size for t in self.tensors.values()) - head, head


def encode(manifest: Manifest, tensors: Mapping[str, TensorData]) -> bytes:
    """The canonical bytes of an adapter."""
    return encode_tensors(FORMAT, manifest.to_json(), tensors)


def decode(data: bytes) -> AdapterFile:
    """Parse and check the bytes of a merged adapter.

    Checks everything that can be checked without a backbone: layout, limits, names, dtypes, finite values, and that
    the tensors agree with the manifest and with one another.

    Raises:
        InvalidAdapter: with the check it failed as `reason`.
    """
    file_format, manifest_json, tensors = decode_tensors(data)
    if file_format == MIXTURE_FORMAT:
        raise InvalidAdapter(
            "this is a mixture before merging; run `adamix merge DIR --out FILE` and use that file",
            reason="UNMERGED_MIXTURE",
        )
    if file_format != FORMAT:
        raise InvalidAdapter(
            f"unknown format {shown(file_format)}; this version reads {FORMAT}", reason="FORMAT_UNKNOWN"
        )
    adapter = AdapterFile(
        manifest=Manifest.from_json(manifest_json),
        tensors=tensors,
        digest=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
    )
    check_values(adapter.manifest, tensors)
    _check_tensors(adapter)
    return adapter


def check_values(manifest: Manifest, tensors: Mapping[str, TensorData]) -> None:
    """Raise InvalidAdapter unless every value is finite and no larger than its place allows.

    That is MAX_MAGNITUDE, but MAX_OUTPUT_MAGNITUDE for the output layer of a regression that is stored as F32.
    """
    for name, tensor in tensors.items():
        is_output = manifest.head.type == "regression" and name in ("head.out_proj.weight", "head.out_proj.bias")
        limit = MAX_OUTPUT_MAGNITUDE if is_output and tensor.dtype == "F32" else MAX_MAGNITUDE
        values = tensor.to_float32()
        with np.errstate(invalid="ignore"):
            # max() propagates NaN and the comparison is then False: this finds NaN, Inf and absurd values.
            if not (values.max() <= limit and values.min() >= -limit):
                raise InvalidAdapter(f"non-finite or huge values in {name[:80]}", reason="NON_FINITE")


def check_backbone(adapter: AdapterFile, spec: BackboneSpec) -> None:
    """Raise InvalidAdapter unless every tensor has exactly the shape its site has on this backbone."""
    check_fits(adapter.manifest, spec)
    for layer, site in adapter.sites():
        if layer >= spec.num_layers:
            raise InvalidAdapter(f"layer {layer} does not exist on this backbone", reason="SHAPE_MISMATCH")
        if site not in spec.sites:
            raise InvalidAdapter(f"site {site} does not exist on {spec.model_type}", reason="SHAPE_MISMATCH")
        width_in, width_out = spec.sites[site]
        for name, tensor in adapter.site(layer, site).items():
            rank = tensor.shape[1] if name in ("up_proj.weight", "lora_B") else tensor.shape[0]
            expected = {
                "down_proj.weight": (rank, width_out),
                "down_proj.bias": (rank,),
                "up_proj.weight": (width_out, rank),
                "up_proj.bias": (width_out,),
                "lora_A": (rank, width_in),
                "lora_B": (width_out, rank),
            }[name]
            _require_shape(f"layers.{layer}.{site}.{name}", tensor, expected)


def read(path: str | os.PathLike[str]) -> AdapterFile:
    """Read and check a merged adapter file. Raises InvalidAdapter; FileNotFoundError as usual."""
    return decode(read_bytes(path))


def _check_tensors(adapter: AdapterFile) -> None:
    """Names known, site sets complete, shapes of one site in agreement, head as the manifest says."""
    for key in adapter.tensors:
        if _SITE_KEY.fullmatch(key) is None and not key.startswith("head."):
            raise InvalidAdapter(f"unexpected tensor {key[:80]}", reason="TENSOR_UNEXPECTED")
    for layer, site in adapter.sites():
        _check_site(adapter, layer, site)
    _check_head(adapter)


def _check_site(adapter: AdapterFile, layer: int, site: str) -> None:
    where, found, kind = f"layers.{layer}.{site}", adapter.site(layer, site), adapter.manifest.kind
    if kind == "lora" and site in NORM_SITES:
        raise InvalidAdapter(f"{where}: a LoRA cannot sit at a norm point", reason="TENSOR_UNEXPECTED")
    names = ("lora_A", "lora_B") if kind == "lora" else ("down_proj.weight", "up_proj.weight")
    biases = () if kind == "lora" else ("down_proj.bias", "up_proj.bias")
    _require_names(where, found, names, biases)
    down, up = found[names[0]], found[names[1]]
    if len(down.shape) != 2 or len(up.shape) != 2 or up.shape[1] != down.shape[0]:
        raise InvalidAdapter(f"{where}: projections do not fit one another", reason="SHAPE_MISMATCH")
    rank = down.shape[0]
    if rank > MAX_ADAPTER_RANK:
        raise InvalidAdapter(f"{where}: rank {rank} is over {MAX_ADAPTER_RANK}", reason="TOO_LARGE")
    for bias, size in zip(biases, (rank, up.shape[0]), strict=False):
        if bias in found:
            _require_shape(f"{where}.{bias}", found[bias], (size,))


def _check_head(adapter: AdapterFile) -> None:
    spec, found, hidden = adapter.manifest.head, adapter.head(), adapter.manifest.backbone.hidden_size
    names: list[str] = []
    if spec.dense == "own":
        names += ["dense.weight", "dense.bias"]
    if spec.type in ("classification", "multilabel", "regression"):
        names += ["out_proj.weight", "out_proj.bias"]
    elif spec.type == "embedding" and "out_proj.weight" in found:
        names += ["out_proj.weight"]
    elif spec.dim not in (None, hidden):
        raise InvalidAdapter(
            f"head.dim is {spec.dim}, but without head.out_proj a vector has the hidden size, {hidden}",
            reason="SHAPE_MISMATCH",
        )
    _require_names("head", found, names, [])
    shapes = {
        "dense.weight": (hidden, hidden),
        "dense.bias": (hidden,),
        "out_proj.weight": (spec.num_labels if spec.dim is None else spec.dim, hidden),
        "out_proj.bias": (spec.num_labels,),
    }
    for name, tensor in found.items():
        _require_shape(f"head.{name}", tensor, shapes[name])


def _require_names(where: str, found: Mapping[str, Any], names: Iterable[str], optional: Iterable[str]) -> None:
    required = set(names)
    missing, extra = required - set(found), set(found) - required - set(optional)
    if missing:
        raise InvalidAdapter(f"{where}: missing {', '.join(sorted(missing))}", reason="TENSOR_MISSING")
    if extra:
        raise InvalidAdapter(f"{where}: unexpected {', '.join(sorted(extra))[:80]}", reason="TENSOR_UNEXPECTED")


def _require_shape(name: str, tensor: TensorData, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise InvalidAdapter(
            f"{name} has shape {list(tensor.shape)}, expected {list(expected)}", reason="SHAPE_MISMATCH"
        )

"""One adapter, one `.safetensors` file, one identity: the sha256 of its bytes.

Reads and writes the format `adamix/1` (a merged adapter) and `adamix-mixture/1` (a mixture before merging). The
bytes are canonical, so equal adapters have equal digests: `__metadata__` first, keys sorted, compact ASCII JSON,
padded with spaces to 8 bytes, data in key order. Reading is strict, because these files come from strangers: own
header parser, numpy views of bytes already in memory, no mmap, no pickle, no torch. This module does not know what
the tensors mean to a backbone beyond names and shapes, and never holds a device tensor.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from adamix.errors import InvalidAdapter
from adamix.manifest import NORM_SITES, SITES, BackboneSpec, Manifest, check_fits

FORMAT = "adamix/1"
MIXTURE_FORMAT = "adamix-mixture/1"

MAX_FILE_BYTES = 256 << 20
MAX_HEADER_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 512 << 10
MAX_TENSORS = 4096
MAX_TENSOR_RANK = 4
MAX_ADAPTER_RANK = 1024
# The largest magnitude accepted: what fp16 can hold. Trained weights are far below; anything above overflows on the
# device into the infinities that the finiteness check is there to keep out.
MAX_MAGNITUDE = 65_504.0
# The output layer of a regression is in the units of its target, and those may be large.
MAX_OUTPUT_MAGNITUDE = 1e30

Dtype = Literal["F32", "F16", "BF16"]
# numpy has no bfloat16: its bits are carried as uint16 and widened by shifting.
_STORAGE: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

_SITE_KEY = re.compile(
    r"layers\.(0|[1-9]\d{0,3})\.(" + "|".join(SITES) + r")\."
    r"(down_proj\.weight|down_proj\.bias|up_proj\.weight|up_proj\.bias|lora_A|lora_B)"
)
_MAGIC = {
    b"PK\x03\x04": "a zip archive or a PyTorch pickle",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x1f\x8b": "a gzip archive",
    b"GGUF": "a GGUF file",
}


@dataclass(frozen=True)
class TensorData:
    """One tensor as it lies in the file: its dtype name and the array of its storage type (uint16 for BF16)."""

    dtype: Dtype
    array: NDArray[Any]

    def __post_init__(self) -> None:
        if self.array.dtype != _STORAGE.get(self.dtype):
            raise InvalidAdapter(f"a {self.dtype} tensor cannot hold {self.array.dtype}", reason="DTYPE_INVALID")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def to_float32(self) -> NDArray[np.float32]:
        """The values in fp32 (exact for all three dtypes)."""
        if self.dtype == "BF16":
            return (self.array.astype(np.uint32) << 16).view(np.float32)
        return self.array.astype(np.float32)

    @classmethod
    def from_float32(cls, values: NDArray[Any], dtype: Dtype = "F32") -> "TensorData":
        """Round fp32 values to `dtype` (to nearest even)."""
        values = np.asarray(values, dtype=np.float32, order="C")
        if dtype == "BF16":
            bits = values.view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            # Adding carries some NaNs into infinity or zero; they must stay what the finiteness check finds.
            return cls(dtype, np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16))
        return cls(dtype, values.astype(_STORAGE[dtype]))


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


def encode_tensors(file_format: str, manifest: Mapping[str, Any], tensors: Mapping[str, TensorData]) -> bytes:
    """Canonical safetensors bytes with `manifest` as the metadata entry of that name."""
    metadata = {"format": file_format, "manifest": canonical_json(manifest)}
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        end = offset + tensor.array.nbytes
        header[name] = {"data_offsets": [offset, end], "dtype": tensor.dtype, "shape": list(tensor.shape)}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    body = [np.ascontiguousarray(tensors[n].array, _STORAGE[tensors[n].dtype]).tobytes() for n in sorted(tensors)]
    return b"".join([len(text).to_bytes(8, "little"), text, *body])


def canonical_json(value: Mapping[str, Any]) -> str:
    """Compact ASCII JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=True, allow_nan=False)


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
            f"unknown format {_clip(file_format)}; this version reads {FORMAT}", reason="FORMAT_UNKNOWN"
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


def decode_tensors(data: bytes) -> tuple[str, Any, dict[str, TensorData]]:
    """Parse a safetensors file of ours into (format, manifest JSON, tensors).

    The values of the tensors are not looked at: see `check_values`.

    Raises:
        InvalidAdapter: with the check it failed as `reason`.
    """
    if len(data) > MAX_FILE_BYTES:
        raise InvalidAdapter(f"file is over {MAX_FILE_BYTES >> 20} MiB", reason="TOO_LARGE")
    header, body_start = _parse_header(data)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InvalidAdapter("no adamix metadata: this is not an adamix adapter file", reason="FORMAT_UNKNOWN")
    file_format, manifest_text = metadata.get("format"), metadata.get("manifest")
    if not isinstance(file_format, str) or not isinstance(manifest_text, str):
        raise InvalidAdapter("no adamix metadata: this is not an adamix adapter file", reason="FORMAT_UNKNOWN")
    if len(manifest_text) > MAX_MANIFEST_BYTES:
        raise InvalidAdapter("manifest is too large", reason="TOO_LARGE")
    return (
        file_format,
        _parse_json(manifest_text, "manifest"),
        _read_tensors(header, memoryview(data)[body_start:]),
    )


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


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file under the size limit, read once and never mapped.

    A pipe, device or directory is refused instead of waited for.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidAdapter("not a regular file", reason="NOT_A_FILE")
        if info.st_size > MAX_FILE_BYTES:
            raise InvalidAdapter(f"file is over {MAX_FILE_BYTES >> 20} MiB", reason="TOO_LARGE")
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(fd)


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _parse_header(data: bytes) -> tuple[dict[str, Any], int]:
    try:
        return _parse_own_header(data)
    except InvalidAdapter:
        # Only now, because the length of a header can begin with the same bytes: 640 is a pickle's first two.
        for magic, name in _MAGIC.items():
            if data.startswith(magic):
                raise InvalidAdapter(
                    f"this is {name}; adapters are .safetensors files", reason="FORMAT_UNKNOWN"
                ) from None
        raise


def _parse_own_header(data: bytes) -> tuple[dict[str, Any], int]:
    if len(data) < 8:
        raise InvalidAdapter("file is shorter than a header", reason="TRUNCATED")
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise InvalidAdapter("header is over 1 MiB: not a safetensors adapter", reason="HEADER_TOO_LARGE")
    if len(data) < 8 + size:
        raise InvalidAdapter("file ends inside its header", reason="TRUNCATED")
    try:
        text = data[8 : 8 + size].decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidAdapter("header is not UTF-8", reason="HEADER_INVALID") from None
    header = _parse_json(text, "header")
    if not isinstance(header, dict):
        raise InvalidAdapter("header is not a JSON object", reason="HEADER_INVALID")
    if len(header) > MAX_TENSORS + 1:
        raise InvalidAdapter(f"more than {MAX_TENSORS} tensors", reason="TOO_LARGE")
    return header, 8 + size


def _parse_json(text: str, what: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Two parsers that disagree on which duplicate wins would let a file validate as one thing and load as another.
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("duplicate key")
        return result

    def no_constant(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError):
        raise InvalidAdapter(f"{what} is not valid JSON", reason="HEADER_INVALID") from None


def _read_tensors(header: Mapping[str, Any], body: memoryview) -> dict[str, TensorData]:
    entries = sorted((_check_entry(name, entry) for name, entry in header.items()), key=lambda e: e[3])
    tensors: dict[str, TensorData] = {}
    position = 0
    for name, dtype, shape, start, end in entries:
        count = 1
        for size in shape:
            count *= size
        if start != position or end - start != count * _STORAGE[dtype].itemsize:
            raise InvalidAdapter("tensor data has holes, overlaps or a wrong size", reason="LAYOUT_INVALID")
        position = end
        if end > len(body):
            raise InvalidAdapter("file ends inside its data", reason="TRUNCATED")
        array = np.frombuffer(body[start:end], dtype=_STORAGE[dtype]).reshape(shape)
        tensors[name] = TensorData(dtype, array)
    if position != len(body):
        raise InvalidAdapter("file has bytes after its last tensor", reason="LAYOUT_INVALID")
    return dict(sorted(tensors.items()))


def _check_entry(name: str, entry: Any) -> tuple[str, Dtype, tuple[int, ...], int, int]:
    if len(name) > 256 or not name.isascii() or not name.isprintable():
        raise InvalidAdapter("a tensor name is not printable ASCII", reason="LAYOUT_INVALID")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidAdapter(f"malformed entry for {name}", reason="LAYOUT_INVALID")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _STORAGE:
        raise InvalidAdapter(f"{name} has dtype {_clip(dtype)}; allowed are F32, F16, BF16", reason="DTYPE_INVALID")
    if not _is_ints(shape) or len(shape) > MAX_TENSOR_RANK or not all(1 <= d <= 1 << 28 for d in shape):
        raise InvalidAdapter(f"{name} has an invalid shape", reason="LAYOUT_INVALID")
    if not _is_ints(offsets) or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1] <= MAX_FILE_BYTES:
        raise InvalidAdapter(f"{name} has invalid offsets", reason="LAYOUT_INVALID")
    return name, cast("Dtype", dtype), tuple(shape), offsets[0], offsets[1]


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


def _is_ints(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(type(v) is int for v in value)


def _clip(value: object) -> str:
    # Never the repr of a list or object: a deeply nested one exhausts the stack.
    return repr(value)[:40] if isinstance(value, str) else type(value).__name__

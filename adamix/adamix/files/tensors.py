"""Tensors and a manifest as the bytes of one `.safetensors` file, and back.

The bytes are canonical, so equal contents have equal digests: `__metadata__` first, keys sorted, compact ASCII JSON,
padded with spaces to 8 bytes, data in key order. Reading is strict, because these files come from strangers: own
header parser, numpy views of bytes already in memory, no mmap, no pickle, no torch. Knows neither what the manifest
says nor what a tensor's name means.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from adamix.errors import InvalidAdapter

MIXTURE_FORMAT = "adamix-mixture/1"

MAX_FILE_BYTES = 256 << 20
MAX_HEADER_BYTES = 1 << 20
# What is read. What is written or registered is smaller: `manifest.MAX_NEW_MANIFEST_BYTES`.
MAX_MANIFEST_BYTES = 512 << 10
MAX_TENSORS = 4096
MAX_TENSOR_RANK = 4

Dtype = Literal["F32", "F16", "BF16"]
# numpy has no bfloat16: its bits are carried as uint16 and widened by shifting.
_STORAGE: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

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


def read_sizes(start: bytes) -> tuple[int, ...]:
    """The number of values of each tensor, from a file's first bytes, which hold at least its header.

    Raises:
        InvalidAdapter: with the check the header failed as `reason`.
    """
    header, _ = _parse_header(start)
    entries = (_check_entry(name, entry) for name, entry in header.items() if name != "__metadata__")
    return tuple((end - begin) // _STORAGE[dtype].itemsize for _, dtype, _, begin, end in entries)


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
        raise InvalidAdapter(f"{name} has dtype {shown(dtype)}; allowed are F32, F16, BF16", reason="DTYPE_INVALID")
    if not _is_ints(shape) or len(shape) > MAX_TENSOR_RANK or not all(1 <= d <= 1 << 28 for d in shape):
        raise InvalidAdapter(f"{name} has an invalid shape", reason="LAYOUT_INVALID")
    if not _is_ints(offsets) or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1] <= MAX_FILE_BYTES:
        raise InvalidAdapter(f"{name} has invalid offsets", reason="LAYOUT_INVALID")
    return name, cast("Dtype", dtype), tuple(shape), offsets[0], offsets[1]


def _is_ints(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(type(v) is int for v in value)


def shown(value: object) -> str:
    """A value of a file, short enough for a message."""
    # Never the repr of a list or object: a deeply nested one exhausts the stack.
    return repr(value)[:40] if isinstance(value, str) else type(value).__name__

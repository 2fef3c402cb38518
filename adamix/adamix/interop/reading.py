"""Files of strangers into plain tensors and plain JSON.

Pickles are read by torch's restricted loader only, which builds tensors and containers and calls nothing else; sizes
are checked before anything is allocated. This module does not know what any tensor or entry means.
"""

import json
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from adamix.errors import InvalidAdapter
from adamix.files.tensors import MAX_FILE_BYTES, Dtype, TensorData

MAX_JSON_BYTES = 1 << 20
MAX_TENSORS = 20_000
_DTYPES: dict[torch.dtype, Dtype] = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_SHOWN = 5
T = TypeVar("T")
# What torch's readers raise for damaged files: there is no common class.
_DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, TypeError, ValueError, struct.error),
)


def read_text(path: Path, max_bytes: int) -> str:
    """A text in UTF-8. Raises InvalidAdapter; OSError where there is no file."""
    with _regular(path, max_bytes) as file:
        data = file.read(max_bytes + 1)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidAdapter(f"{path.name} is not text in UTF-8", reason="MANIFEST_INVALID") from None


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file. Raises InvalidAdapter; OSError where there is no file."""
    with _regular(path, max_bytes) as file:
        data = file.read(max_bytes + 1)
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidAdapter(f"{path.name} is not JSON text in UTF-8", reason="HEADER_INVALID") from None
    if not isinstance(value, dict):
        raise InvalidAdapter(f"{path.name} is not a JSON object", reason="HEADER_INVALID")
    return value


def read_tensors(path: Path, max_bytes: int = MAX_FILE_BYTES) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, by name. Raises InvalidAdapter."""
    with _regular(path, max_bytes) as file:
        data = file.read(max_bytes + 1)
    try:
        return load_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        # KeyError: a dtype that torch or this version of the reader has no name for.
        raise InvalidAdapter(
            f"{path.name} is not a complete safetensors file: {_first_line(error)}", reason="LAYOUT_INVALID"
        ) from None


def read_pickle(path: Path, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """What `torch.save` wrote, read without running any code of it. Raises InvalidAdapter."""
    with _regular(path, max_bytes) as file:
        _check_archive(file, path.name, max_bytes)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise InvalidAdapter(
                f"{path.name} is damaged, or a pickle that holds more than tensors: it is not loaded, because that "
                "could run its code; save the state dict alone",
                reason="PICKLE_REFUSED",
            ) from None
        except _DAMAGE as error:
            raise InvalidAdapter(
                f"{path.name} is damaged or was not written by torch.save: {_first_line(error)}",
                reason="LAYOUT_INVALID",
            ) from None


def state_dict(value: object, where: str) -> dict[str, Tensor]:
    """`value` as tensors by name. Raises InvalidAdapter unless it is a dict of plain dense tensors."""
    if not isinstance(value, dict) or not value:
        raise InvalidAdapter(f"{where} holds no state dict", reason="LAYOUT_INVALID")
    if len(value) > MAX_TENSORS:
        raise InvalidAdapter(f"{where} holds more than {MAX_TENSORS} tensors", reason="TOO_LARGE")
    for name, tensor in value.items():
        if not isinstance(name, str) or len(name) > 512 or not name.isprintable():
            raise InvalidAdapter(f"{where}: a name is no printable text", reason="LAYOUT_INVALID")
        if not isinstance(tensor, Tensor):
            raise InvalidAdapter(f"{where}: {name[:80]} is no tensor", reason="LAYOUT_INVALID")
    return cast("dict[str, Tensor]", value)


def tensor_data(name: str, tensor: Tensor) -> TensorData:
    """A tensor as the adapter file stores it, in its own dtype.

    Raises:
        InvalidAdapter: it is not F32, F16 or BF16; or it claims more values than it holds (a view that repeats them).
    """
    tensor = _dense(name, tensor)
    dtype = _DTYPES[tensor.dtype]
    if dtype == "BF16":
        return TensorData("BF16", tensor.view(torch.uint16).numpy())
    return TensorData(dtype, tensor.numpy())


def float32(name: str, tensor: Tensor) -> Tensor:
    """The values in fp32, checked as by `tensor_data`."""
    return _dense(name, tensor).float()


def float64_array(name: str, tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The values in fp64, checked as by `tensor_data`."""
    return _dense(name, tensor).double().numpy()


class Ledger:
    """The tensors of a source, each of which is taken once or reported.

    Args:
        tensors: by name.
        where: the file, as messages name it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.where = where
        self._tensors = dict(tensors)
        self._taken: set[str] = set()
        self._missing: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    @property
    def matched(self) -> int:
        return len(self._taken)

    @property
    def surplus(self) -> list[str]:
        """Names that nothing has taken yet."""
        return [name for name in self._tensors if name not in self._taken]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which stays untaken."""
        return tuple(self._tensors[name].shape)

    def require(self, names: Iterable[str]) -> None:
        """Raise InvalidAdapter, naming them, if any of these is missing."""
        missing = [name for name in names if name not in self._tensors]
        if missing:
            raise InvalidAdapter(
                f"{self.where}: {len(missing)} tensors missing ({shown(missing)})", reason="TENSOR_MISSING"
            )

    def tensor(self, name: str) -> Tensor:
        """Take a tensor that is there. Raises InvalidAdapter if it is not."""
        self.require([name])
        self._taken.add(name)
        return self._tensors[name]

    def take(self, name: str) -> Tensor | None:
        """The tensor of that name; None, and remembered as missing, where there is none."""
        tensor = self._tensors.get(name)
        if tensor is None:
            self._missing.append(name)
        else:
            self._taken.add(name)
        return tensor

    def close(self) -> None:
        """Raise InvalidAdapter, naming them, if tensors were missing or are left over."""
        surplus = self.surplus
        if not self._missing and not surplus:
            return
        parts = [f"{self.where}: {self.matched} tensors match"]
        parts += [f"{len(names)} {what} ({shown(names)})" for what, names in
                  (("missing", self._missing), ("not understood", surplus)) if names]  # fmt: skip
        raise InvalidAdapter("; ".join(parts), reason="TENSOR_MISSING" if self._missing else "TENSOR_UNEXPECTED")


def converted(value: object, kind: type[T], where: str) -> T:
    """Plain JSON as a struct or a typed container. Raises InvalidAdapter, naming the entry that does not fit."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidAdapter(f"{where}: {ascii(str(error))[1:-1][:160]}", reason="MANIFEST_INVALID") from None


def quoted(value: object) -> str:
    """An entry of a file, for a message: short, on one line, and without the depths of a nested one."""
    if isinstance(value, str):
        return ascii(value[:40])
    return str(value)[:40] if isinstance(value, bool | int | float | None) else f"of type {type(value).__name__}"


def shown(names: Iterable[str]) -> str:
    """The first few of many names, for a message."""
    listed = [ascii(name[:120])[1:-1] for name in names]
    return ", ".join(listed[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "")


def _dense(name: str, tensor: Tensor) -> Tensor:
    # A subclass or another layout could lie about its size.
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        raise InvalidAdapter(f"{name[:120]} is not a plain dense tensor", reason="LAYOUT_INVALID")
    if tensor.dtype not in _DTYPES or tensor.device.type != "cpu":
        raise InvalidAdapter(
            f"{name[:120]} has dtype {str(tensor.dtype).removeprefix('torch.')}; read are float32, float16, bfloat16",
            reason="DTYPE_INVALID",
        )
    if tensor.numel() == 0 or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InvalidAdapter(f"{name[:120]} has {tensor.numel()} values, not those it holds", reason="LAYOUT_INVALID")
    return tensor.detach().contiguous()


@contextmanager
def _regular(path: Path, max_bytes: int) -> Iterator[BinaryIO]:
    """An open regular file under the limit. A pipe, device or directory is refused instead of waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidAdapter(f"{path.name} is not a regular file", reason="NOT_A_FILE")
        if info.st_size > max_bytes:
            limit = f"{max_bytes >> 20} MiB" if max_bytes >> 20 else f"{max_bytes >> 10} KiB"
            raise InvalidAdapter(f"{path.name} is over {limit}", reason="TOO_LARGE")
        with open(fd, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(fd)


def _check_archive(file: BinaryIO, name: str, max_bytes: int) -> None:
    """torch.save stores its records as they are. Compressed ones could become any size when they are read."""
    if file.read(4) == b"PK\x03\x04":
        file.seek(0)
        try:
            entries = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, *_DAMAGE) as error:
            raise InvalidAdapter(
                f"{name} is damaged or was not written by torch.save: {_first_line(error)}", reason="LAYOUT_INVALID"
            ) from None
        is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not is_stored or sum(entry.file_size for entry in entries) > max_bytes:
            raise InvalidAdapter(f"{name} holds compressed or oversized records", reason="LAYOUT_INVALID")
    file.seek(0)


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:160]

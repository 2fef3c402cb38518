"""Every kind of bad file, the exact reason, and a parent unharmed."""

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from adamix.errors import InvalidAdapter
from adamix.files.adapter_file import encode
from adamix.files.manifest import BackboneSpec, Manifest
from adamix.files.tensors import MAX_FILE_BYTES, MIXTURE_FORMAT, TensorData, encode_tensors
from adamix_server.frontend.control.validation import validate

Stored = Callable[[bytes], Path]
Edit = Callable[[dict[str, Any]], None]


def with_header(data: bytes, edit: Edit) -> bytes:
    """The file with another header over the same data."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    edit(header)
    return with_header_text(json.dumps(header), data[8 + size :])


def with_header_text(text: str, body: bytes = b"") -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(8, "little") + raw + body


def set_value(tensors: dict[str, TensorData], name: str, value: float) -> dict[str, TensorData]:
    array = tensors[name].array.copy()
    array.flat[-1] = value
    return tensors | {name: TensorData("F32", array)}


def reason(path: Path, spec: BackboneSpec, **options: Any) -> str:
    with pytest.raises(InvalidAdapter) as caught:
        validate(path, spec, **options)
    assert str(path) not in caught.value.message
    return caught.value.reason


UP = "layers.1.mlp_out.up_proj.weight"


def first_two(header: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = sorted(name for name in header if name != "__metadata__")
    return header[names[0]], header[names[1]]


def shift_second(by: int) -> Edit:
    def edit(header: dict[str, Any]) -> None:
        _, second = first_two(header)
        second["data_offsets"] = [offset + by for offset in second["data_offsets"]]

    return edit


def edit_entry(**changes: Any) -> Edit:
    return lambda header: header[UP].update(changes)


LAYOUT: dict[str, tuple[Edit, str]] = {
    "overlap": (shift_second(-4), "LAYOUT_INVALID"),
    "hole": (shift_second(4), "LAYOUT_INVALID"),
    "reversed offsets": (edit_entry(data_offsets=[64, 0]), "LAYOUT_INVALID"),
    "negative offset": (edit_entry(data_offsets=[-128, 0]), "LAYOUT_INVALID"),
    "offsets out of range": (edit_entry(data_offsets=[1 << 40, (1 << 40) + 128]), "LAYOUT_INVALID"),
    "huge offsets": (edit_entry(data_offsets=[0, 10**400]), "LAYOUT_INVALID"),
    "zero dimension": (edit_entry(shape=[0, 1 << 62, 1 << 62]), "LAYOUT_INVALID"),
    "negative dimension": (edit_entry(shape=[-8, -4]), "LAYOUT_INVALID"),
    "fractional dimension": (edit_entry(shape=[8.0, 4]), "LAYOUT_INVALID"),
    "boolean dimension": (edit_entry(shape=[True, 32]), "LAYOUT_INVALID"),
    "product overflow": (edit_entry(shape=[1 << 28, 1 << 28, 1 << 28, 1 << 28]), "LAYOUT_INVALID"),
    "100,000 dimensions": (edit_entry(shape=[1] * 100_000), "LAYOUT_INVALID"),
    "unknown dtype": (edit_entry(dtype="F64"), "DTYPE_INVALID"),
    "dtype of wrong type": (edit_entry(dtype=7), "DTYPE_INVALID"),
    "smaller dtype": (edit_entry(dtype="F16"), "LAYOUT_INVALID"),
    "extra entry field": (edit_entry(extra=1), "LAYOUT_INVALID"),
    "entry is a list": (lambda h: h.update({UP: [1]}), "LAYOUT_INVALID"),
    "name with a path": (lambda h: h.update({"../../etc/x": h.pop(UP)}), "TENSOR_UNEXPECTED"),
    "name with NUL": (lambda h: h.update({"a\0b": h.pop(UP)}), "LAYOUT_INVALID"),
    "name too long": (lambda h: h.update({"x" * 300: h.pop(UP)}), "LAYOUT_INVALID"),
    "transposed": (edit_entry(shape=[4, 8]), "SHAPE_MISMATCH"),
    "no metadata": (lambda h: h.pop("__metadata__"), "FORMAT_UNKNOWN"),
    "metadata not text": (lambda h: h["__metadata__"].update(format=1), "FORMAT_UNKNOWN"),
    "another format": (lambda h: h["__metadata__"].update(format="adamix/2"), "FORMAT_UNKNOWN"),
    "manifest not JSON": (lambda h: h["__metadata__"].update(manifest="{"), "HEADER_INVALID"),
    "manifest a list": (lambda h: h["__metadata__"].update(manifest="[]"), "MANIFEST_INVALID"),
    "manifest too deep": (lambda h: h["__metadata__"].update(manifest="[" * 100_000), "HEADER_INVALID"),
    "manifest too large": (lambda h: h["__metadata__"].update(manifest=" " * (600 << 10)), "TOO_LARGE"),
    "manifest with NaN": (lambda h: h["__metadata__"].update(manifest='{"a":NaN}'), "HEADER_INVALID"),
}


@pytest.mark.parametrize("name", LAYOUT)
def test_a_wrong_header_is_refused(stored: Stored, spec: BackboneSpec, valid: bytes, name: str) -> None:
    edit, expected = LAYOUT[name]
    assert reason(stored(with_header(valid, edit)), spec) == expected


BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "TRUNCATED"),
    "shorter than a header": (lambda data: data[:7], "TRUNCATED"),
    "cut in the header": (lambda data: data[:100], "TRUNCATED"),
    "cut in the data": (lambda data: data[: len(data) // 2], "TRUNCATED"),
    "one byte short": (lambda data: data[:-1], "TRUNCATED"),
    "trailing bytes": (lambda data: data + b"\0", "LAYOUT_INVALID"),
    "header of 2^63": (lambda data: (1 << 63).to_bytes(8, "little") + data[8:], "HEADER_TOO_LARGE"),
    "header of 100 MB": (lambda data: (10**8).to_bytes(8, "little") + data[8:], "HEADER_TOO_LARGE"),
    "bit flipped in the header": (lambda data: data[:8] + bytes([data[8] ^ 1]) + data[9:], "HEADER_INVALID"),
    "header not UTF-8": (lambda _: (2).to_bytes(8, "little") + b"\xff\xfe", "HEADER_INVALID"),
    "header not an object": (lambda _: with_header_text("[]"), "HEADER_INVALID"),
    "header too deep": (lambda _: with_header_text("[" * 500_000), "HEADER_INVALID"),
    "header a huge number": (lambda _: with_header_text("9" * 500_000), "HEADER_INVALID"),
    "duplicate key": (lambda _: with_header_text('{"a":{},"a":{}}'), "HEADER_INVALID"),
    "100,000 tensors": (
        lambda _: with_header_text("{" + ",".join(f'"{i:x}":0' for i in range(100_000)) + "}"),
        "TOO_LARGE",
    ),
    "JSON text": (lambda _: b'{"weights": [1, 2, 3]}', "HEADER_TOO_LARGE"),
    "pickle": (lambda _: pickle.dumps({"weights": [1.0, 2.0]}), "FORMAT_UNKNOWN"),
    "gzip": (lambda _: b"\x1f\x8b\x08\x00" + bytes(60), "FORMAT_UNKNOWN"),
}


@pytest.mark.parametrize("name", BYTES)
def test_wrong_bytes_are_refused(stored: Stored, spec: BackboneSpec, valid: bytes, name: str) -> None:
    change, expected = BYTES[name]
    assert reason(stored(change(valid)), spec) == expected


def test_archives_are_refused_unopened(stored: Stored, spec: BackboneSpec, valid: bytes) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("adapter.safetensors", valid)
    assert reason(stored(archive.getvalue()), spec) == "FORMAT_UNKNOWN"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("adapter.safetensors"))
    assert reason(stored(archive.getvalue()), spec) == "HEADER_TOO_LARGE"


def test_a_pickle_is_never_unpickled(stored: Stored, spec: BackboneSpec, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    assert reason(stored(pickle.dumps(Payload())), spec) == "FORMAT_UNKNOWN"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_values_that_would_overflow_are_refused(
    stored: Stored, spec: BackboneSpec, manifest: Manifest, tensors: dict[str, TensorData], value: float
) -> None:
    data = encode(manifest, set_value(tensors, UP, value))
    assert reason(stored(data), spec) == "NON_FINITE"


def test_one_bad_value_in_any_tensor_is_found(
    stored: Stored, spec: BackboneSpec, manifest: Manifest, tensors: dict[str, TensorData]
) -> None:
    for name in ("head.out_proj.bias", "layers.0.mlp_out.down_proj.weight"):
        assert reason(stored(encode(manifest, set_value(tensors, name, np.nan))), spec) == "NON_FINITE"


def test_tensors_missing_extra_or_misplaced_are_refused(
    stored: Stored, spec: BackboneSpec, manifest: Manifest, tensors: dict[str, TensorData]
) -> None:
    without = {name: tensor for name, tensor in tensors.items() if name != UP}
    assert reason(stored(encode(manifest, without)), spec) == "TENSOR_MISSING"
    for name in ("layers.0.mlp_out.gate.weight", "model.embeddings.weight", "head.other"):
        extra = tensors | {name: tensors["head.out_proj.bias"]}
        assert reason(stored(encode(manifest, extra)), spec) == "TENSOR_UNEXPECTED"
    moved = {name.replace("layers.1.", "layers.7."): tensor for name, tensor in tensors.items()}
    assert reason(stored(encode(manifest, moved)), spec) == "SHAPE_MISMATCH"
    elsewhere = {name.replace("mlp_out", "attn_q"): tensor for name, tensor in tensors.items()}
    assert reason(stored(encode(manifest, elsewhere)), spec) == "SHAPE_MISMATCH"


def test_an_adapter_of_another_backbone_is_refused(stored: Stored, spec: BackboneSpec, valid: bytes) -> None:
    path = stored(valid)
    for change, expected in (
        ({"fingerprint": "c" * 64}, "BACKBONE_MISMATCH"),
        ({"tokenizer_fingerprint": "c" * 64}, "TOKENIZER_MISMATCH"),
        ({"max_tokens": 16}, "MANIFEST_INVALID"),
    ):
        assert reason(path, msgspec.structs.replace(spec, **change)) == expected


def test_a_mixture_is_refused_with_the_way_out(
    stored: Stored, spec: BackboneSpec, manifest: Manifest, tensors: dict[str, TensorData]
) -> None:
    path = stored(encode_tensors(MIXTURE_FORMAT, manifest.to_json(), tensors))
    with pytest.raises(InvalidAdapter, match="adamix merge") as caught:
        validate(path, spec)
    assert caught.value.reason == "UNMERGED_MIXTURE"


def test_a_wrong_digest_is_refused_before_the_file_is_parsed(stored: Stored, spec: BackboneSpec, valid: bytes) -> None:
    assert reason(stored(valid), spec, expected_digest="0" * 64) == "DIGEST_MISMATCH"
    assert reason(stored(valid[:100]), spec, expected_digest="0" * 64) == "DIGEST_MISMATCH"


def test_what_is_no_regular_file_is_refused_without_waiting(spec: BackboneSpec, valid: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(valid)
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "link", tmp_path / "fifo", tmp_path / "directory", Path("/dev/zero")):
        assert reason(path, spec) == "NOT_A_FILE", path.name


def test_a_file_over_the_limit_is_refused_unread(spec: BackboneSpec, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert reason(path, spec) == "TOO_LARGE"

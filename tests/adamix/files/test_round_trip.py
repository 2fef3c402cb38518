"""What goes into a file comes out of it, and equal adapters are equal bytes."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adamix.errors import InvalidAdapter
from adamix.files import adapter_file, disk
from adamix.files.manifest import HeadSpec, Manifest, TrainingRecord
from adamix.files.tensors import Dtype, TensorData, encode_tensors
from adamix_testing.manifests import make_manifest, make_spec

DIGEST = st.text("0123456789abcdef", min_size=64, max_size=64)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
DTYPES: tuple[Dtype, ...] = ("F32", "F16", "BF16")
WEIGHTS = st.floats(-60_000, 60_000, width=32)


@st.composite
def adapters(draw: st.DrawFn) -> tuple[Manifest, dict[str, TensorData]]:
    hidden, layers = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["bottleneck", "lora"]))
    sites = draw(st.sets(st.tuples(st.integers(0, layers - 1), st.sampled_from(["attn_out", "mlp_in", "mlp_out"]))))
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, site in sites:
        rank, width, where = draw(st.integers(1, 3)), draw(st.integers(1, 5)), f"layers.{layer}.{site}."
        if kind == "lora":
            shapes |= {where + "lora_A": (rank, draw(st.integers(1, 5))), where + "lora_B": (width, rank)}
        else:
            shapes |= {where + "down_proj.weight": (rank, width), where + "up_proj.weight": (width, rank)}
            if draw(st.booleans()):
                shapes |= {where + "down_proj.bias": (rank,), where + "up_proj.bias": (width,)}
    labels = draw(st.integers(1, 4))
    shapes |= {"head.out_proj.weight": (labels, hidden), "head.out_proj.bias": (labels,)}
    tensors = {
        name: TensorData.from_float32(
            draw(hnp.arrays(np.float32, shape, elements=WEIGHTS)), draw(st.sampled_from(DTYPES))
        )
        for name, shape in shapes.items()
    }
    names = draw(st.none() | st.lists(TEXT, min_size=labels, max_size=labels))
    spec = make_spec(
        fingerprint=draw(DIGEST),
        tokenizer_fingerprint=draw(DIGEST),
        pooler_fingerprint=draw(st.none() | DIGEST),
        hidden_size=hidden,
        num_layers=layers,
    )
    head = HeadSpec(
        type="multilabel",
        pooling=draw(st.sampled_from(["cls", "mean"])),
        num_labels=labels,
        id2label=None if names is None else {str(i): name for i, name in enumerate(names)},
        threshold=draw(st.none() | st.floats(0, 1)),
    )
    manifest = make_manifest(
        spec,
        head,
        kind=kind,
        activation="identity" if kind == "lora" else draw(st.sampled_from(["gelu", "relu", "tanh"])),
        scaling=draw(
            st.floats(-1e4, 1e4)
            | st.dictionaries(st.sampled_from(["mlp_in", "layers.2.mlp_out"]), WEIGHTS.map(lambda x: x / 8))
        ),
        max_length=draw(st.integers(1, 512)),
        training=TrainingRecord(
            method="adamix",
            seed=draw(st.integers(-(2**62), 2**62)),
            data=draw(TEXT),
            metrics=draw(st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False), max_size=3)),
        ),
    )
    return manifest, tensors


@given(adapters(), st.randoms())
@settings(max_examples=150, deadline=None)
def test_decode_is_the_inverse_of_encode(adapter: tuple[Manifest, dict[str, TensorData]], rng: random.Random) -> None:
    manifest, tensors = adapter
    data = adapter_file.encode(manifest, tensors)
    decoded = adapter_file.decode(data)
    assert decoded.manifest == manifest
    assert adapter_file.encode(decoded.manifest, decoded.tensors) == data
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(decoded.tensors[name].array, tensor.array)
    shuffled = list(tensors.items())
    rng.shuffle(shuffled)
    assert adapter_file.encode(manifest, dict(shuffled)) == data


def test_decoded_tensors_cannot_be_written(manifest: Manifest, tensors: dict[str, TensorData]) -> None:
    decoded = adapter_file.decode(adapter_file.encode(manifest, tensors))
    with pytest.raises(ValueError, match="read-only"):
        decoded.tensors["head.out_proj.bias"].array[0] = 0


@pytest.mark.parametrize("order", ["F", "stride"])
def test_memory_order_does_not_reach_the_file(manifest: Manifest, tensors: dict[str, TensorData], order: str) -> None:
    name = "head.out_proj.weight"
    array = tensors[name].array
    other = np.asfortranarray(array) if order == "F" else np.repeat(array, 2, axis=1)[:, ::2]
    changed = tensors | {name: TensorData("F32", other)}
    assert adapter_file.encode(manifest, changed) == adapter_file.encode(manifest, tensors)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_headers_whose_length_looks_like_a_pickle_are_read(manifest: Manifest, length: int) -> None:
    value = manifest.to_json() | {"scaling": 1.0, "head": {"type": "embedding", "pooling": "mean"}}
    value["training"] = {"method": "adamix"}
    data = encode_tensors(adapter_file.FORMAT, value, {})
    data = length.to_bytes(8, "little") + data[8:].ljust(length)
    assert data[:1] == b"\x80"
    assert adapter_file.decode(data).tensors == {}


FLOATS = hnp.arrays(np.uint32, st.integers(1, 50), elements=st.integers(0, 2**32 - 1))


@given(FLOATS)
@settings(deadline=None)
def test_bf16_rounds_as_torch_does(bits: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
    values = bits.view(np.float32)
    ours = TensorData.from_float32(values, "BF16")
    theirs = torch.from_numpy(values.copy()).bfloat16()
    ours_as_torch = torch.from_numpy(ours.array.view(np.int16).copy()).view(torch.bfloat16)
    torch.testing.assert_close(ours_as_torch, theirs, rtol=0, atol=0, equal_nan=True)
    np.testing.assert_array_equal(ours.to_float32(), theirs.float().numpy())


@given(FLOATS)
@settings(deadline=None)
def test_f16_rounds_as_torch_does(bits: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
    values = bits.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        ours = TensorData.from_float32(values, "F16").to_float32()
    np.testing.assert_array_equal(ours, torch.from_numpy(values.copy()).half().float().numpy())


def test_a_tensor_without_dimensions_stays_one() -> None:
    assert TensorData.from_float32(np.float32(1.5), "BF16").shape == ()


@pytest.mark.parametrize(
    ("dtype", "array"), [("BF16", np.float32), ("F32", np.float64), ("F32", ">f4"), ("I8", np.int8)]
)
def test_storage_of_another_type_is_refused(dtype: Any, array: Any) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        TensorData(dtype, np.zeros(2, array))
    assert caught.value.reason == "DTYPE_INVALID"


def test_writing_replaces_whole_files_only(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.safetensors"
    disk.write(target, b"old")
    disk.write(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.safetensors"
    disk.write(target, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        disk.write(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "device"):
        with pytest.raises(InvalidAdapter) as caught:
            adapter_file.read(path)
        assert caught.value.reason == "NOT_A_FILE"
    with pytest.raises(FileNotFoundError):
        adapter_file.read(tmp_path / "missing")
    assert len(list(Path("/proc/self/fd").iterdir())) == before

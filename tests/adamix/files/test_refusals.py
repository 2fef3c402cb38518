"""Every check of the adapter file has a file that fails it, and says so by its `reason`."""

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adamix.errors import InvalidAdapter
from adamix.files import adapter_file
from adamix.files.manifest import BackboneSpec, Manifest, label_map
from adamix.files.tensors import MAX_HEADER_BYTES, MAX_MANIFEST_BYTES, MIXTURE_FORMAT, Dtype, TensorData, encode_tensors

Crafted = Callable[..., bytes]
DOWN = "layers.0.mlp_out.down_proj.weight"
UP = "layers.0.mlp_out.up_proj.weight"


def _refused(data: bytes) -> InvalidAdapter:
    with pytest.raises(InvalidAdapter) as caught:
        adapter_file.decode(data)
    assert caught.value.message.isprintable()
    return caught.value


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    return buffer.getvalue()


FOREIGN = {
    "a zip archive": _zip(),
    "gzip": gzip.compress(b"x" * 100, mtime=0),
    "GGUF": b"GGUF\x03\0\0\0" + b"\0" * 64,
} | {f"a pickle.*protocol {p}|a pickle": pickle.dumps({"a": [1.0]}, protocol=p) for p in (2, 3, 4, 5)}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_kinds_are_named(name: str) -> None:
    with pytest.raises(InvalidAdapter, match=rf"this is .*({name})") as caught:
        adapter_file.decode(FOREIGN[name])
    assert caught.value.reason == "FORMAT_UNKNOWN"


def test_a_mixture_says_to_merge(manifest: Manifest, tensors: dict[str, TensorData]) -> None:
    error = _refused(encode_tensors(MIXTURE_FORMAT, manifest.to_json(), tensors))
    assert error.reason == "UNMERGED_MIXTURE"
    assert "adamix merge" in error.message


def test_sizes_over_the_limits(
    monkeypatch: pytest.MonkeyPatch, manifest: Manifest, tensors: dict[str, TensorData], crafted: Crafted
) -> None:
    huge = (MAX_HEADER_BYTES + 1).to_bytes(8, "little")
    assert _refused(huge + b" " * 100).reason == "HEADER_TOO_LARGE"
    assert _refused(b"\xff" * 100).reason == "HEADER_TOO_LARGE"

    def long_manifest(header: dict[str, Any]) -> None:
        header["__metadata__"]["manifest"] += " " * MAX_MANIFEST_BYTES

    assert _refused(crafted(long_manifest)).reason == "TOO_LARGE"
    wide = TensorData("F32", np.zeros((adapter_file.MAX_ADAPTER_RANK + 1, 4), "<f4"))
    other = TensorData("F32", np.zeros((4, adapter_file.MAX_ADAPTER_RANK + 1), "<f4"))
    without_bias = {k: v for k, v in tensors.items() if k != "layers.0.mlp_out.down_proj.bias"}
    assert _refused(adapter_file.encode(manifest, without_bias | {DOWN: wide, UP: other})).reason == "TOO_LARGE"
    monkeypatch.setattr("adamix.files.tensors.MAX_TENSORS", len(tensors) - 1)
    assert _refused(crafted()).reason == "TOO_LARGE"
    monkeypatch.setattr("adamix.files.tensors.MAX_FILE_BYTES", 100)
    assert _refused(crafted()).reason == "TOO_LARGE"


def _file(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b'"text"',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"__metadata__": {"format": "adamix/1", "format": "adamix/2"}}',
        b"\xff{}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_headers_that_are_no_json_object(text: bytes) -> None:
    assert _refused(_file(text)).reason == "HEADER_INVALID"


@pytest.mark.parametrize("text", ["not json", '{"kind": "lora", "kind": "lora"}', "[" * 100_000, '{"kind": NaN}'])
def test_manifests_that_are_no_json(crafted: Crafted, text: str) -> None:
    def edit(header: dict[str, Any]) -> None:
        header["__metadata__"]["manifest"] = text

    assert _refused(crafted(edit)).reason == "HEADER_INVALID"


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        {},
        {"format": "pt"},
        {"format": "adamix/1"},
        {"manifest": "{}"},
        {"format": "adamix/1", "manifest": "{}", "more": 1},
        {"format": "adamix/2", "manifest": "{}"},
        {"format": "", "manifest": "{}"},
        {"format": "\ud800\x1b[2J", "manifest": "{}"},
    ],
)
def test_files_without_our_metadata(crafted: Crafted, metadata: Any) -> None:
    def edit(header: dict[str, Any]) -> None:
        header["__metadata__"] = metadata
        if metadata is None:
            del header["__metadata__"]

    assert _refused(crafted(edit)).reason == "FORMAT_UNKNOWN"


ENTRY_EDITS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "unknown dtype": ("DTYPE_INVALID", lambda e: e.update(dtype="I64")),
    "dtype is a list": ("DTYPE_INVALID", lambda e: e.update(dtype=["F32"])),
    "dtype is an object": ("DTYPE_INVALID", lambda e: e.update(dtype={})),
    "dtype is null": ("DTYPE_INVALID", lambda e: e.update(dtype=None)),
    "dtype is deeply nested": ("DTYPE_INVALID", lambda e: e.update(dtype=json.loads("[" * 900 + "]" * 900))),
    "no dtype": ("LAYOUT_INVALID", lambda e: e.pop("dtype")),
    "another key": ("LAYOUT_INVALID", lambda e: e.update(more=1)),
    "size of zero": ("LAYOUT_INVALID", lambda e: e.update(shape=[0, 4])),
    "negative size": ("LAYOUT_INVALID", lambda e: e.update(shape=[-2, -4])),
    "fractional size": ("LAYOUT_INVALID", lambda e: e.update(shape=[2.0, 4])),
    "boolean size": ("LAYOUT_INVALID", lambda e: e.update(shape=[True, 8])),
    "huge size": ("LAYOUT_INVALID", lambda e: e.update(shape=[1 << 40, 4])),
    "product that wraps in 64 bits": ("LAYOUT_INVALID", lambda e: e.update(shape=[1 << 28] * 4)),
    "too many dimensions": ("LAYOUT_INVALID", lambda e: e.update(shape=[1, 1, 1, 2, 4])),
    "shape is a number": ("LAYOUT_INVALID", lambda e: e.update(shape=8)),
    "shape of another size": ("LAYOUT_INVALID", lambda e: e.update(shape=[2, 5])),
    "offsets reversed": ("LAYOUT_INVALID", lambda e: e.update(data_offsets=e["data_offsets"][::-1])),
    "negative offset": ("LAYOUT_INVALID", lambda e: e.update(data_offsets=[-32, 0])),
    "three offsets": ("LAYOUT_INVALID", lambda e: e["data_offsets"].append(9)),
    "offset beyond any file": ("LAYOUT_INVALID", lambda e: e.update(data_offsets=[0, 1 << 62])),
    "overlap": ("LAYOUT_INVALID", lambda e: e.update(data_offsets=[0, 32])),
    "hole": ("LAYOUT_INVALID", lambda e: e.update(data_offsets=[x + 8 for x in e["data_offsets"]])),
}


@pytest.mark.parametrize("case", ENTRY_EDITS)
def test_malformed_tensor_entries(crafted: Crafted, case: str) -> None:
    reason, edit = ENTRY_EDITS[case]

    def edit_entry(header: dict[str, Any]) -> None:
        edit(header[DOWN])

    assert _refused(crafted(edit_entry)).reason == reason


@pytest.mark.parametrize("value", [None, 5, [], "x"])
def test_tensor_entries_that_are_no_object(crafted: Crafted, value: Any) -> None:
    assert _refused(crafted(lambda header: header.update({DOWN: value}))).reason == "LAYOUT_INVALID"


@pytest.mark.parametrize(
    "name", ["layers.0.mlp_out.down_proj.weight\n", "\x1b[2J", "schön", "x" * 257, "\ud800"], ids=ascii
)
def test_tensor_names_that_are_not_printable_ascii(crafted: Crafted, name: str) -> None:
    assert _refused(crafted(lambda header: header.update({name: header.pop(DOWN)}))).reason == "LAYOUT_INVALID"


def test_bytes_missing_and_bytes_left_over(crafted: Crafted) -> None:
    data = crafted()
    assert _refused(data + b"\0").reason == "LAYOUT_INVALID"
    assert _refused(data[:-1]).reason == "TRUNCATED"
    assert _refused(b"").reason == "TRUNCATED"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65_536.0, -1e30])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_that_are_not_finite_or_huge(
    manifest: Manifest, tensors: dict[str, TensorData], dtype: Dtype, value: float
) -> None:
    array = np.zeros((2, 4), np.float32)
    array[1, 3] = value
    with np.errstate(over="ignore"):
        bad = TensorData.from_float32(array, dtype)
    error = _refused(adapter_file.encode(manifest, tensors | {DOWN: bad}))
    assert error.reason == "NON_FINITE"
    assert DOWN in error.message


@pytest.mark.parametrize("head_type", ["regression", "classification"])
@pytest.mark.parametrize("name", ["head.out_proj.weight", "head.out_proj.bias"])
def test_only_the_output_layer_of_a_regression_may_be_huge(manifest: Manifest, head_type: str, name: str) -> None:
    """Targets of any unit; but not rounded to a coarse dtype, and never infinite."""
    head = {"type": head_type, "pooling": "mean", "num_labels": 1}
    shapes = {"head.out_proj.weight": (1, 4), "head.out_proj.bias": (1,)}

    def encoded(value: float, dtype: Dtype = "F32") -> bytes:
        tensors = {key: TensorData.from_float32(np.zeros(shape)) for key, shape in shapes.items()}
        tensors[name] = TensorData.from_float32(np.full(shapes[name], value), dtype)
        return _head(manifest, head, tensors)

    if head_type == "regression":
        adapter_file.decode(encoded(260_000.0))
        adapter_file.decode(encoded(-1e30))
    else:
        assert _refused(encoded(260_000.0)).reason == "NON_FINITE"
    assert _refused(encoded(260_000.0, "BF16")).reason == "NON_FINITE"
    for value in (1.01e30, np.inf, -np.inf, np.nan):
        assert _refused(encoded(value)).reason == "NON_FINITE"


def _f32(*shape: int) -> TensorData:
    return TensorData("F32", np.ones(shape, "<f4"))


TENSOR_EDITS: dict[str, tuple[str, dict[str, TensorData | None]]] = {
    "unknown name": ("TENSOR_UNEXPECTED", {"surprise": _f32(1)}),
    "unknown site": ("TENSOR_UNEXPECTED", {"layers.0.mlp_up.up_proj.weight": _f32(4, 2)}),
    "layer with a leading zero": ("TENSOR_UNEXPECTED", {"layers.00.mlp_out.up_proj.weight": _f32(4, 2)}),
    "negative layer": ("TENSOR_UNEXPECTED", {"layers.-1.mlp_out.up_proj.weight": _f32(4, 2)}),
    "LoRA in a bottleneck": ("TENSOR_UNEXPECTED", {"layers.0.mlp_out.lora_A": _f32(2, 4)}),
    "unknown head tensor": ("TENSOR_UNEXPECTED", {"head.norm.weight": _f32(4)}),
    "no down": ("TENSOR_MISSING", {DOWN: None}),
    "no up": ("TENSOR_MISSING", {UP: None}),
    "only a bias": ("TENSOR_MISSING", {"layers.1.attn_out.up_proj.bias": _f32(4)}),
    "no head bias": ("TENSOR_MISSING", {"head.out_proj.bias": None}),
    "no dense layer": ("TENSOR_MISSING", {"head.dense.weight": None}),
    "ranks differ": ("SHAPE_MISMATCH", {UP: _f32(4, 3)}),
    "down is a vector": ("SHAPE_MISMATCH", {DOWN: _f32(2)}),
    "up is a vector": ("SHAPE_MISMATCH", {UP: _f32(4)}),
    "down is a scalar": ("SHAPE_MISMATCH", {DOWN: _f32()}),
    "up is a scalar": ("SHAPE_MISMATCH", {UP: _f32()}),
    "bias of another size": ("SHAPE_MISMATCH", {"layers.0.mlp_out.up_proj.bias": _f32(5)}),
    "head of another width": ("SHAPE_MISMATCH", {"head.out_proj.weight": _f32(2, 4)}),
    "head for another backbone": ("SHAPE_MISMATCH", {"head.dense.bias": _f32(5)}),
}


@pytest.mark.parametrize("case", TENSOR_EDITS)
def test_tensors_that_do_not_fit_the_manifest(manifest: Manifest, tensors: dict[str, TensorData], case: str) -> None:
    reason, edits = TENSOR_EDITS[case]
    changed = {name: t for name, t in (tensors | edits).items() if t is not None}
    assert _refused(adapter_file.encode(manifest, changed)).reason == reason


def test_lora_files(with_manifest: Crafted, manifest: Manifest, tensors: dict[str, TensorData]) -> None:
    value = manifest.to_json() | {"kind": "lora", "activation": "identity"}
    head = {name: tensor for name, tensor in tensors.items() if name.startswith("head.")}

    def encoded(**extra: TensorData) -> bytes:
        named = {f"layers.0.{name.replace('__', '.')}": tensor for name, tensor in extra.items()}
        return encode_tensors(adapter_file.FORMAT, value, head | named)

    good = adapter_file.decode(encoded(mlp_in__lora_A=_f32(2, 4), mlp_in__lora_B=_f32(6, 2)))
    assert good.sites() == [(0, "mlp_in")]
    at_norm = encoded(mlp_norm__lora_A=_f32(2, 4), mlp_norm__lora_B=_f32(4, 2))
    assert _refused(at_norm).reason == "TENSOR_UNEXPECTED"
    assert _refused(encoded(mlp_in__lora_A=_f32(2, 4))).reason == "TENSOR_MISSING"


def _head(manifest: Manifest, head: dict[str, Any], tensors: dict[str, TensorData]) -> bytes:
    return encode_tensors(adapter_file.FORMAT, manifest.to_json() | {"head": head}, tensors)


def test_embedding_heads(manifest: Manifest) -> None:
    head: dict[str, Any] = {"type": "embedding", "pooling": "mean"}
    adapter_file.decode(_head(manifest, head, {}))
    projection = {"head.out_proj.weight": _f32(7, 4)}
    adapter_file.decode(_head(manifest, head | {"dim": 7}, projection))
    assert _refused(_head(manifest, head | {"dim": 8}, projection)).reason == "SHAPE_MISMATCH"
    assert _refused(_head(manifest, head, projection)).reason == "SHAPE_MISMATCH"


def test_language_model_heads_have_no_tensors(manifest: Manifest) -> None:
    head = {"type": "causal_lm", "pooling": "none"}
    adapter_file.decode(_head(manifest, head, {}))
    assert _refused(_head(manifest, head, {"head.out_proj.weight": _f32(1, 4)})).reason == "TENSOR_UNEXPECTED"


def test_label_map_gives_ids_as_text() -> None:
    assert label_map(["no", "yes"]) == label_map({0: "no", 1: "yes"}) == {"0": "no", "1": "yes"}


BACKBONE_EDITS: dict[str, tuple[str, dict[str, Any]]] = {
    "another backbone": ("BACKBONE_MISMATCH", {"fingerprint": "1" * 64}),
    "another tokenizer": ("TOKENIZER_MISMATCH", {"tokenizer_fingerprint": "1" * 64}),
    "another width": ("BACKBONE_MISMATCH", {"hidden_size": 8}),
    "another depth": ("BACKBONE_MISMATCH", {"num_layers": 3}),
    "fewer positions": ("MANIFEST_INVALID", {"max_tokens": 63}),
    "site missing in the family": ("SHAPE_MISMATCH", {"sites": {"mlp_out": (6, 4)}}),
    "site of another width": ("SHAPE_MISMATCH", {"sites": {"mlp_out": (6, 5), "mlp_norm": (4, 4)}}),
}


@pytest.mark.parametrize("case", BACKBONE_EDITS)
def test_adapters_of_another_backbone(crafted: Crafted, spec: BackboneSpec, case: str) -> None:
    reason, edits = BACKBONE_EDITS[case]
    values = {name: getattr(spec, name) for name in spec.__struct_fields__} | edits
    with pytest.raises(InvalidAdapter) as caught:
        adapter_file.check_backbone(adapter_file.decode(crafted()), BackboneSpec(**values))
    assert caught.value.reason == reason


def test_layers_beyond_the_backbone(manifest: Manifest, tensors: dict[str, TensorData], spec: BackboneSpec) -> None:
    moved = {name.replace("layers.1.", "layers.2."): tensor for name, tensor in tensors.items()}
    adapter = adapter_file.decode(adapter_file.encode(manifest, moved))
    with pytest.raises(InvalidAdapter, match="layer 2 does not exist") as caught:
        adapter_file.check_backbone(adapter, spec)
    assert caught.value.reason == "SHAPE_MISMATCH"


@pytest.mark.parametrize(("ours", "theirs"), [("1" * 64, None), ("1" * 64, "2" * 64), (None, "2" * 64)])
def test_the_pooler_must_be_the_same_one(
    with_manifest: Crafted, manifest: Manifest, spec: BackboneSpec, ours: str | None, theirs: str | None
) -> None:
    value = manifest.to_json()
    value["head"] = {"type": "embedding", "pooling": "cls", "dense": "backbone"}
    value["backbone"] |= {"pooler_fingerprint": ours} if ours else {}
    adapter = adapter_file.decode(encode_tensors(adapter_file.FORMAT, value, {}))
    values = {name: getattr(spec, name) for name in spec.__struct_fields__} | {"pooler_fingerprint": theirs}
    with pytest.raises(InvalidAdapter) as caught:
        adapter_file.check_backbone(adapter, BackboneSpec(**values))
    assert caught.value.reason == "POOLER_MISMATCH"

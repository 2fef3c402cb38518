"""Limits of an adapter file, met exactly: what is at the limit is no reason to refuse it, one more is."""

from collections.abc import Callable

import numpy as np
import pytest

from adamix.errors import InvalidAdapter
from adamix.files import adapter_file
from adamix.files.manifest import MAX_LABELS, HeadSpec, Manifest, label_map
from adamix.files.tensors import MAX_HEADER_BYTES, TensorData
from adamix_testing.manifests import make_manifest, make_spec

DOWN, UP = "layers.0.mlp_out.down_proj.weight", "layers.0.mlp_out.up_proj.weight"
BIAS = "layers.0.mlp_out.down_proj.bias"


def reason_of(data: bytes) -> str:
    """Why a file is refused; empty if it is not."""
    try:
        adapter_file.decode(data)
    except InvalidAdapter as error:
        return error.reason
    return ""


def test_header() -> None:
    def announced(num_bytes: int) -> str:
        return reason_of(num_bytes.to_bytes(8, "little") + b" " * 100)

    assert [announced(MAX_HEADER_BYTES), announced(MAX_HEADER_BYTES + 1)] == ["TRUNCATED", "HEADER_TOO_LARGE"]


def test_tensors(
    crafted: Callable[..., bytes], tensors: dict[str, TensorData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamix.files.tensors.MAX_TENSORS", len(tensors))
    assert reason_of(crafted()) == ""
    monkeypatch.setattr("adamix.files.tensors.MAX_TENSORS", len(tensors) - 1)
    assert reason_of(crafted()) == "TOO_LARGE"


def test_rank(manifest: Manifest, tensors: dict[str, TensorData]) -> None:
    width = tensors[DOWN].array.shape[1]

    def of(rank: int) -> str:
        wide = {
            name: TensorData("F32", np.zeros(shape, "<f4"))
            for name, shape in {DOWN: (rank, width), UP: (width, rank), BIAS: (rank,)}.items()
        }
        return reason_of(adapter_file.encode(manifest, tensors | wide))

    assert [of(adapter_file.MAX_ADAPTER_RANK), of(adapter_file.MAX_ADAPTER_RANK + 1)] == ["", "TOO_LARGE"]


def test_labels() -> None:
    def of(count: int) -> str:
        head = HeadSpec(
            type="classification", pooling="cls", num_labels=count, id2label=label_map([str(i) for i in range(count)])
        )
        try:
            Manifest.from_json(make_manifest(make_spec(), head).to_json())
        except InvalidAdapter as error:
            return error.reason
        return ""

    assert [of(MAX_LABELS), of(MAX_LABELS + 1)] == ["", "MANIFEST_INVALID"]

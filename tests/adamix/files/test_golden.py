"""The bytes of the format. If one of these tests has to change, every adapter out there has another digest."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as safetensors_load

from adamix.errors import InvalidAdapter
from adamix.files import adapter_file
from adamix.files.manifest import BackboneSpec, Manifest
from adamix.files.tensors import TensorData

GOLDEN = Path(__file__).with_name("golden-adapter.safetensors")
GOLDEN_DIGEST = "4d739e079640b318ee77b5beeb186d160b958394eb3e40f93c92d0e55a9361a0"


def test_encoding_gives_the_golden_bytes(manifest: Manifest, tensors: dict[str, TensorData]) -> None:
    data = adapter_file.encode(manifest, tensors)
    assert hashlib.sha256(data).hexdigest() == GOLDEN_DIGEST
    assert data == GOLDEN.read_bytes()


def test_decoding_the_golden_file_gives_everything_back(
    manifest: Manifest, tensors: dict[str, TensorData], spec: BackboneSpec
) -> None:
    adapter = adapter_file.read(GOLDEN)
    assert adapter.manifest == manifest
    assert adapter.digest == GOLDEN_DIGEST
    assert adapter.num_bytes == GOLDEN.stat().st_size
    assert list(adapter.tensors) == sorted(tensors)
    for name, tensor in tensors.items():
        assert adapter.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(adapter.tensors[name].array, tensor.array)
    assert adapter.sites() == [(0, "mlp_out"), (1, "mlp_norm")]
    assert set(adapter.site(0, "mlp_out")) == {
        "down_proj.weight",
        "down_proj.bias",
        "up_proj.weight",
        "up_proj.bias",
    }
    assert adapter.num_parameters() == (8 + 2 + 8 + 4 + 4 + 4, 16 + 4 + 12 + 3)
    adapter_file.check_backbone(adapter, spec)


def test_layout_of_the_header() -> None:
    data = GOLDEN.read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert (8 + size) % 8 == 0
    assert data[8:].startswith(b'{"__metadata__":{"format":"adamix/1","manifest":"{\\"activation\\":')
    assert data[8 : 8 + size].isascii()


def test_the_safetensors_library_reads_the_same_values(tensors: dict[str, TensorData]) -> None:
    loaded = safetensors_load(GOLDEN.read_bytes())
    assert set(loaded) == set(tensors)
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtypes[tensor.dtype]
        np.testing.assert_array_equal(loaded[name].float().numpy(), tensor.to_float32())


def test_mutations_of_single_bytes_are_refused_or_harmless() -> None:
    golden, rng = GOLDEN.read_bytes(), random.Random(0)
    header_end = 8 + int.from_bytes(golden[:8], "little")
    refusals: list[InvalidAdapter] = []
    accepted = 0
    for _ in range(2_000):
        # Half of them in the header, where the structure is.
        position = rng.randrange(header_end) if rng.random() < 0.5 else rng.randrange(len(golden))
        data = bytearray(golden)
        data[position] ^= rng.randrange(1, 256)
        try:
            adapter = adapter_file.decode(bytes(data))
        except InvalidAdapter as error:
            refusals.append(error)
            continue
        accepted += 1
        assert adapter.digest == hashlib.sha256(data).hexdigest() != GOLDEN_DIGEST
        again = adapter_file.encode(adapter.manifest, adapter.tensors)
        assert adapter_file.encode(*_content(again)) == again
        if position >= header_end:
            assert again == bytes(data)
    assert accepted > 100
    assert len(refusals) > 500
    assert all(error.reason != "INVALID_ADAPTER" for error in refusals), "every refusal names the check it is"
    assert all(error.message.isprintable() for error in refusals)


def _content(data: bytes) -> tuple[Manifest, dict[str, TensorData]]:
    adapter = adapter_file.decode(data)
    return adapter.manifest, adapter.tensors


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 500, -1, -100])
def test_truncated_files_are_refused(cut: int) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        adapter_file.decode(GOLDEN.read_bytes()[:cut])
    assert caught.value.reason == "TRUNCATED"

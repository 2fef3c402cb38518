"""One small adapter that has everything, and ways to make files that are wrong in one place."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from adamix.files import adapter_file
from adamix.files.manifest import BackboneSpec, Manifest
from adamix.files.tensors import TensorData
from adamix_testing.golden_adapter import golden_manifest, golden_spec, golden_tensors, join, split


@pytest.fixture
def manifest() -> Manifest:
    return golden_manifest()


@pytest.fixture
def tensors() -> dict[str, TensorData]:
    return golden_tensors()


@pytest.fixture
def spec() -> BackboneSpec:
    """The backbone that the golden adapter belongs to."""
    return golden_spec()


@pytest.fixture
def crafted(manifest: Manifest, tensors: dict[str, TensorData]) -> Callable[..., bytes]:
    """`crafted(edit)` gives the golden adapter's bytes after `edit(header)` changed or replaced its header."""

    def craft(edit: Callable[[dict[str, Any]], Any] = lambda header: None) -> bytes:
        header, body = split(adapter_file.encode(manifest, tensors))
        replaced = edit(header)
        return join(header if replaced is None else replaced, body)

    return craft


@pytest.fixture
def with_manifest(manifest: Manifest, tensors: dict[str, TensorData]) -> Callable[..., bytes]:
    """`with_manifest(edit)` gives the golden adapter's bytes after `edit(manifest_json)`."""

    def craft(edit: Callable[[dict[str, Any]], Any]) -> bytes:
        value = manifest.to_json()
        edit(value)
        header, body = split(adapter_file.encode(manifest, tensors))
        header["__metadata__"]["manifest"] = json.dumps(value)
        return join(header, body)

    return craft

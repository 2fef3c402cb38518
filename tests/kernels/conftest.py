"""Fixtures of the op tests: one batch per awkward shape, with weights for its slots."""

from collections.abc import Callable

import pytest
import torch

from adamix_kernels import native
from adamix_kernels.native.build import BuildError, build
from adamix_kernels.testing import ODD_SHAPES, BatchShape
from adamix_testing.kernel_batches import Batch, build_batch


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Beside a device, whatever runs kernels is a test of the device: `make gpu` runs it."""
    if torch.cuda.is_available():
        for item in items:
            if "device" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> str:
    """Where kernels run: on the CUDA device, or by the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def make_batch() -> Callable[[BatchShape, torch.dtype], Batch]:
    return build_batch


@pytest.fixture(params=ODD_SHAPES.values(), ids=ODD_SHAPES.keys())
def shape(request: pytest.FixtureRequest) -> BatchShape:
    return request.param


@pytest.fixture(scope="session")
def library() -> native.Library:
    """The native kernels, compiled now if they were not before."""
    try:
        build()
    except BuildError as error:
        pytest.skip(str(error))
    native.load.cache_clear()
    found = native.load()
    if found is None:
        pytest.skip("native kernels are turned off")
    return found

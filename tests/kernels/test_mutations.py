"""Faults put into a copy of the kernels on purpose: the tests of the ops must find every one of them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import adamix_kernels

PACKAGE = Path(adamix_kernels.__path__[0])
# Few and small, of every kernel and of each op's own arguments; those that guard the memory around their rows first.
TESTS = [
    "test_triton_ops.py::test_bottleneck[mixed ranks, an empty slot-fused-torch.float32]",
    "test_triton_ops.py::test_bottleneck[mixed ranks, an empty slot-split-torch.float32]",
    "test_triton_ops.py::test_down_and_up_projections_of_different_slots[fused]",
    "test_triton_ops.py::test_down_and_up_projections_of_different_slots[split]",
    "test_triton_ops.py::test_slices_of_unequal_widths_and_ranks_update_their_windows_only[split-torch.float32]",
    "test_triton_ops.py::test_bottleneck_norm[mixed ranks, an empty slot-torch.float32-True-fused]",
    "test_triton_ops.py::test_every_activation[fused-relu]",
    "test_records.py::test_weights_that_lie_badly_are_copied_and_the_copies_outlive_the_launch[columns]",
]
# Runs the tests against the package that was imported, once that is known to be the copy.
RUN = """
import sys, pytest, adamix_kernels
assert list(adamix_kernels.__path__) == [sys.argv[1]], adamix_kernels.__path__
sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *sys.argv[2:]]))
"""


@dataclass(frozen=True)
class Mutation:
    """One text in one file of the package, and what takes its place."""

    name: str
    file: str
    old: str
    new: str


KERNELS = "gpu/low_rank.py"
MUTATIONS = [
    Mutation(
        "fused takes the up projection of the down slot",
        KERNELS,
        "offset_of(records, down_slot, DOWN), offset_of(records, up_slot, UP)",
        "offset_of(records, down_slot, DOWN), offset_of(records, down_slot, UP)",
    ),
    Mutation(
        "expand takes the up projection of the down slot",
        KERNELS,
        "up = offset_of(records, up_slot, UP)",
        "up = offset_of(records, down_slot, UP)",
    ),
    Mutation(
        "fused writes rows beyond its tile",
        KERNELS,
        "y.to(out.dtype.element_ty), mask=row_mask[:, None] & (cols < OUT)[None, :])",
        "y.to(out.dtype.element_ty), mask=(rows >= 0)[:, None] & (cols < OUT)[None, :])",
    ),
    Mutation(
        "expand writes rows beyond its tile",
        KERNELS,
        "mask = row_mask[:, None] & col_mask[None, :]",
        "mask = (rows >= 0)[:, None] & col_mask[None, :]",
    ),
    Mutation(
        "fused leaves out the bias of the down projection",
        KERNELS,
        "acc += load_vector(base, first_bias, units, rank)[None, :]",
        "pass",
    ),
    Mutation(
        "fused leaves out the bias of the up projection",
        KERNELS,
        "y = (y + load_vector(base, bias, cols, OUT)[None, :]) * scale",
        "y = y * scale",
    ),
    Mutation("the rank is off by one", KERNELS, "r, r < rank, cols", "r, r < rank - 1, cols"),
    Mutation("fused forgets the scale", KERNELS, "cols, OUT)[None, :]) * scale", "cols, OUT)[None, :])"),
    Mutation("fused drops the residual", KERNELS, "tl.where(rank > 0, kept + y, kept)", "tl.where(rank > 0, y, kept)"),
    Mutation(
        "fused takes the activation of the up slot",
        KERNELS,
        "code = field(records, down_slot, ACTIVATION)",
        "code = field(records, up_slot, ACTIVATION)",
    ),
    Mutation("records confuse two activations", "gpu/records.py", '"relu": 3, "silu": 4', '"relu": 4, "silu": 3'),
    Mutation("expand leaves out the last part of the sum", KERNELS, "in range(SPLITS)", "in range(SPLITS - 1)"),
    Mutation(
        "expand ignores where its window begins",
        KERNELS,
        "tl.store(out + at_rows * OUT_STRIDE + (start + cols)[None, :]",
        "tl.store(out + at_rows * OUT_STRIDE + cols[None, :]",
    ),
    Mutation("the norm keeps the mean", KERNELS, "(block - mean[:, None]) * rstd", "block * rstd"),
    Mutation("copies of weights are freed before the launch", "gpu/ops.py", "together.kept)", "())"),
]  # fmt: skip


def run(directory: Path, mutation: Mutation | None) -> subprocess.CompletedProcess[str]:
    """The tests against a copy of the package with this mutation, in the interpreter whatever the machine has."""
    copy = directory / "adamix_kernels"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if mutation is not None:
        path = copy / mutation.file
        text = path.read_text("utf-8")
        assert text.count(mutation.old) == 1, f"{mutation.old!r} is there {text.count(mutation.old)} times"
        path.write_text(text.replace(mutation.old, mutation.new), "utf-8")
    tests = [str(Path(__file__).parent / each) for each in TESTS]
    # The copy before everything else; what the tests share is found where this process finds it.
    search_path = os.pathsep.join((str(directory), *filter(None, [os.environ.get("PYTHONPATH")])))
    environment = os.environ | {"PYTHONPATH": search_path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(copy), *tests]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Mutation | None], Future]]:
    """Starts the tests against each copy two at a time, from the first that is asked for."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = {each: pool.submit(run, tmp_path_factory.mktemp("copy"), each) for each in (None, *MUTATIONS)}
        yield runs.__getitem__
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
def test_the_package_as_it_is_passes(start):
    outcome = start(None).result()
    assert outcome.returncode == pytest.ExitCode.OK, outcome.stdout + outcome.stderr
    assert f"{len(TESTS)} passed" in outcome.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_a_fault_is_found(mutation, start):
    outcome = start(mutation).result()
    assert outcome.returncode == pytest.ExitCode.TESTS_FAILED, outcome.stdout + outcome.stderr
    assert "AssertionError" in outcome.stdout

"""Faults put into a copy of the kernels on purpose: the tests of the ops must find every one of them."""

import os
import shutil
import subprocess
import sys
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
# Runs the tests against each copy of the package in a process of its own, two at a time, each forked from this one:
# what all of them import is imported once. Arguments: folders of copies, "--", tests. A folder gets `out` and `status`.
RUN = """
import os, sys
from pathlib import Path
import hypothesis, numpy, pytest, torch, torch._dynamo, triton, triton.language

def run(folder, tests):
    sys.path.insert(0, folder)
    import adamix_kernels
    assert list(adamix_kernels.__path__) == [f"{folder}/adamix_kernels"], adamix_kernels.__path__
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]))

def child(folder, tests):
    with open(f"{folder}/out", "wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    status = "died"
    try:
        status = run(folder, tests)
    finally:
        sys.stdout.flush()
        Path(folder, "status").write_text(str(status))
        os._exit(0)

end = sys.argv.index("--")
running = 0
for folder in sys.argv[1:end]:
    if running == 2:
        os.wait()
        running -= 1
    if os.fork() == 0:
        child(folder, sys.argv[end + 1 :])
    running += 1
for _ in range(running):
    os.wait()
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


@dataclass(frozen=True)
class Outcome:
    """How the tests ended, as pytest says it in its exit code, and what they printed."""

    status: str
    out: str


def copy_package(folder: Path, mutation: Mutation | None) -> None:
    copy = folder / "adamix_kernels"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if mutation is not None:
        path = copy / mutation.file
        text = path.read_text("utf-8")
        assert text.count(mutation.old) == 1, f"{mutation.old!r} is there {text.count(mutation.old)} times"
        path.write_text(text.replace(mutation.old, mutation.new), "utf-8")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Of the package as it is (""), and of every mutation; in the interpreter, whatever the machine has."""
    folders = {}
    for name, mutation in {"": None, **{each.name: each for each in MUTATIONS}}.items():
        folders[name] = tmp_path_factory.mktemp("copy")
        copy_package(folders[name], mutation)
    tests = [str(Path(__file__).parent / each) for each in TESTS]
    alone = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", RUN, *map(str, folders.values()), "--", *tests]
    subprocess.run(command, env=os.environ | alone, timeout=600, check=True)
    return {
        name: Outcome((folder / "status").read_text(), (folder / "out").read_text("utf-8"))
        for name, folder in folders.items()
    }


@pytest.mark.slow
def test_the_package_as_it_is_passes(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[""]
    assert outcome.status == str(int(pytest.ExitCode.OK)), outcome.out
    assert f"{len(TESTS)} passed" in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize("name", [each.name for each in MUTATIONS])
def test_a_fault_is_found(name: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[name]
    assert outcome.status == str(int(pytest.ExitCode.TESTS_FAILED)), outcome.out
    assert "AssertionError" in outcome.out

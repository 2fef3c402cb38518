"""What runs on a CUDA device, run here by the interpreter: everything but graphs and their clock."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from adamix_bench.kernels import batches, clocks, devices, plan_clock
from adamix_bench.kernels.cells import QUICK
from adamix_bench.kernels.plan_clock import PlanClock
from adamix_bench.kernels.run import run
from adamix_bench.kernels.settings import Settings
from adamix_bench.measure import Goal, Spread
from adamix_kernels.gpu import launch
from adamix_kernels.plans import Facts, Plan

FUSED = Plan("fused", block_m=16, block_h=32, num_warps=4, num_stages=2)
SPLIT = Plan("split", block_m=16, block_h=32, num_warps=4, num_stages=2, block_n=32, splits=2)
FACTS = Facts("fp32", rank=16, features=64, rows=9, segments=3)


def run_once(calls: Sequence[Callable[[], object]]) -> float:
    """In the place of a replayed graph's time."""
    for call in calls:
        call()
    return float(len(calls))


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch, device: str) -> torch.device:
    """The benchmark believes to be on a CUDA device."""
    found = torch.device(device)
    monkeypatch.setattr(clocks, "replayed_us", run_once)
    monkeypatch.setattr(batches, "_BYTES_OF_ALL", 1)  # the fewest batches: interpreting them takes long
    monkeypatch.setattr(devices, "found", devices.Cuda)
    monkeypatch.setattr(devices.Cuda, "name", "Some GPU")
    monkeypatch.setattr(devices.Cuda, "_device", found)
    monkeypatch.setattr(devices.Cuda, "facts", lambda _: {"copy_gb_per_s": 1e-3, "empty_kernel_us": 20.0})
    encoder = Goal("encoder", "a whole encoder", Spread((0.96,)), 0.95)
    monkeypatch.setattr("adamix_bench.kernels.run.retention", lambda *_: [encoder])
    return found


def test_every_form_is_measured_and_held_to_floor_and_launch(on_device, tmp_path: Path, capsys) -> None:
    document = run(Settings(quick=True, dtypes=("fp32",)), tmp_path, ["bench", "kernels"])
    assert document["failures"] == {}
    for cell in document["cells"]:
        assert cell["chosen"]["form"] == "fused"
        assert {form for form, time in cell["times"].items() if "us" in time} == {"fused", "unfused", "bmm"}
        assert "bf16" in cell["times"]["grouped_mm"]["error"]
    assert [(goal["name"], goal["holds"]) for goal in document["goals"]] == [
        ("decode.1.others", None),
        ("decode.8.others", None),
        ("encoder", True),
    ]
    assert (tmp_path / "some-gpu" / "kernels.png").stat().st_size > 1000
    assert "fused 16x" in capsys.readouterr().out


def test_ours_is_measured_everywhere_before_what_it_is_compared_with(on_device, tmp_path: Path) -> None:
    order: list[tuple[str, ...]] = []
    times = devices.Cuda.times

    def recorded(self: devices.Cuda, cell: object, dtype: str, wanted: Sequence[str]) -> object:
        order.append(tuple(wanted))
        return times(self, cell, dtype, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices.Cuda, "times", recorded)
        patch.setattr("adamix_bench.kernels.run.COMPILED", QUICK[:1])
        patch.setattr(torch, "compile", lambda **_: lambda function: function)
        run(Settings(quick=True, dtypes=("fp32",)), tmp_path, [], quiet=True)
    assert order == [("fused",)] * 3 + [("unfused", "bmm", "grouped_mm")] * 3 + [("compiled",)]


def test_a_form_that_cannot_be_computed_is_told_and_the_others_are_measured(
    on_device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise RuntimeError("not on this device\nat some place")

    monkeypatch.setattr(torch, "baddbmm", refuses)
    document = run(Settings(quick=True, cells="H=96", dtypes=("fp32",)), tmp_path, [], quiet=True)
    (cell,) = document["cells"]
    assert cell["times"]["bmm"] == {"error": "RuntimeError: not on this device"}
    assert "us" in cell["times"]["unfused"]
    assert document["failures"] == {}


@pytest.mark.parametrize("plan", [FUSED, SPLIT], ids=["fused", "split"])
def test_a_plan_that_computes_what_it_should_has_a_time(plan: Plan, on_device) -> None:
    assert PlanClock(on_device)(plan, FACTS) == 4.0


def test_a_plan_that_computes_something_else_has_none(on_device, monkeypatch: pytest.MonkeyPatch) -> None:
    right = launch.low_rank_

    def wrong(out: torch.Tensor, *operands: object) -> None:
        right(out, *operands)
        out[-1, -1] += 1

    monkeypatch.setattr(launch, "low_rank_", wrong)
    assert PlanClock(on_device)(SPLIT, FACTS) is None


def test_a_fused_plan_has_to_do_for_norm_points_too(on_device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_clock, "low_rank_norm", lambda s, *_: s.clone())
    assert PlanClock(on_device)(FUSED, FACTS) is None
    assert PlanClock(on_device)(SPLIT, FACTS) is not None


def test_a_plan_that_cannot_be_launched_has_none(on_device, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    def refuses(*_: object) -> None:
        raise OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(launch, "low_rank_", refuses)
    assert PlanClock(on_device)(FUSED, FACTS) is None

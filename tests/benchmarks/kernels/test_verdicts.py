"""What is said about times: ratios to the floor and to an empty kernel, and the rule of the CPU."""

import pytest

from adamix_bench.kernels.cells import Cell
from adamix_bench.kernels.clocks import Timing
from adamix_bench.kernels.verdicts import Measured, decode_goals, floor_goals, judge_rule


def fused(cell: Cell, us: float | None) -> Measured:
    return Measured(cell, "bf16", {"form": "fused"}, {"fused": Timing(us)})


def at_floor(cell: Cell, times: float, copy_gb_per_s: float) -> Measured:
    return fused(cell, times * cell.bytes_moved(2) / copy_gb_per_s / 1e3)


def test_the_floor_holds_only_if_it_holds_in_the_worst_long_cell() -> None:
    cells = [
        at_floor(Cell(2048, 1, 768, 64), 1.1, 3000),
        at_floor(Cell(8192, 16, 768, 64), 1.3, 3000),
        at_floor(Cell(8192, 16, 1024, 64), 1.4, 3000),
        at_floor(Cell(512, 1, 768, 64), 9.0, 3000),
    ]
    small, large = floor_goals(cells, 3000)
    assert (small.name, small.holds) == ("floor.768", True)
    assert small.measured is not None
    assert small.measured.median == pytest.approx(1.3)
    assert "T=8192 A=16 H=768 r=64" in small.note
    assert (large.name, large.holds) == ("floor.1024", False)


def test_decode_is_held_to_the_empty_kernel_at_the_usual_sizes_and_told_at_others() -> None:
    cells = [fused(Cell(8, 8, 768, 64), 3.9), fused(Cell(8, 8, 4096, 64), 9.0), fused(Cell(32, 16, 768, 64), 99.0)]
    usual, others = decode_goals(cells, empty_kernel_us=2.0)
    assert usual.holds is True
    assert usual.measured is not None
    assert usual.measured.median == pytest.approx(1.95)
    assert others.target is None
    assert others.measured is not None
    assert others.measured.median == pytest.approx(4.5)
    (missed, _) = decode_goals(cells, empty_kernel_us=1.9)
    assert missed.holds is False


def test_a_cell_without_a_time_is_no_evidence() -> None:
    assert floor_goals([fused(Cell(2048, 1, 768, 64), None)], 3000) == []


def test_the_rule_is_judged_by_what_its_choice_loses() -> None:
    def chose(form: str, rows: int, **times: float) -> Measured:
        return Measured(Cell(rows, 1, 64, 8), "fp32", {"form": form}, {name: Timing(us) for name, us in times.items()})

    cells = [chose("loop", 1, loop=1.0, tiles=2.0), chose("loop", 2, loop=1.09, tiles=1.0)]
    cells += [chose("tiles", 3, loop=1.0, tiles=4.0), chose("tiles", 4, loop=1.2, tiles=1.0)]
    found = judge_rule(cells)["fp32"]
    assert found["cells"] == 4
    assert found["share_within_10_percent"] == 0.75
    assert found["worst_loss"] == 4.0
    assert (found["worst_cell"], found["worst_choice"], found["worst_best"]) == ("T=3 A=1 H=64 r=8", "tiles", "loop")
    assert found["mean_loss"] == pytest.approx((1.09 * 4.0) ** 0.25)

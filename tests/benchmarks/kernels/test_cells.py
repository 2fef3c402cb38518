"""Which batches are measured, in which order, and how many bytes they have to move."""

from itertools import product

import pytest

from adamix.errors import InvalidConfig
from adamix_bench.kernels.cells import ADAPTERS, COMPILED, FEATURES, RANKS, ROWS, Cell, Filter, grid


def test_the_grid_has_every_size_once_and_no_adapter_without_a_row() -> None:
    cells = grid()
    wanted = {Cell(t, a, h, r) for t, a, h, r in product(ROWS, ADAPTERS, FEATURES, RANKS) if a <= t}
    assert wanted <= set(cells)
    assert len(cells) == len(set(cells))
    assert all(cell.adapters <= cell.rows for cell in cells)
    assert {cell.rows for cell in cells if cell.is_decode} == {1, 8, 32}


def test_what_has_a_target_at_the_usual_sizes_comes_first() -> None:
    cells = grid()
    with_target = [cell.is_usual and (cell.is_decode or cell.is_long) for cell in cells]
    assert with_target == sorted(with_target, reverse=True)
    usual = [cell.is_usual for cell in cells]
    assert usual == sorted(usual, reverse=True)


def test_six_cells_are_compiled_and_all_are_in_the_grid() -> None:
    assert len(COMPILED) == 6
    assert set(COMPILED) <= set(grid())


@pytest.mark.parametrize(
    "cell", [Cell(1, 1, 8, 8), Cell(64, 64, 8, 8), Cell(65, 64, 8, 8), Cell(2048, 16, 8, 8)], ids=str
)
def test_every_adapter_has_rows_and_all_rows_have_an_adapter(cell: Cell) -> None:
    lengths = cell.lengths()
    assert len(lengths) == cell.adapters
    assert min(lengths) >= 1
    assert sum(lengths) == cell.rows
    assert cell.lengths() == lengths
    assert cell.segments().slots.tolist() == list(range(1, cell.adapters + 1))


def test_long_segments_are_uneven() -> None:
    assert max(Cell(2048, 16, 8, 8).lengths()) > 1.5 * 2048 / 16


def test_bytes_are_rows_in_and_out_and_each_adapters_weights_once() -> None:
    # 10 rows of 4 features in and out; 3 adapters of two 2 x 4 matrices and biases of 2 and 4.
    assert Cell(10, 3, 4, 2).bytes_moved(itemsize=2) == 2 * (10 * 4 + 10 * 4 + 3 * (8 + 8 + 2 + 4))


def test_a_filter_keeps_the_values_it_names() -> None:
    cells = Filter.parse("T=8,32 H=768").of(grid())
    assert {cell.rows for cell in cells} == {8, 32}
    assert {cell.features for cell in cells} == {768}
    assert {cell.rank for cell in cells} == set(RANKS)


@pytest.mark.parametrize("text", ["X=1", "T", "T=", "T=a", "T=1;2", "T=-1"])
def test_a_filter_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig):
        Filter.parse(text)

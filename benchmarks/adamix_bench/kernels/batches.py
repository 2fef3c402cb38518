"""The operands of a cell on a device: rows, and adapters in an arena as a server keeps them.

Shapes: T rows, A adapters, S slots (A + 1), H features, R rank, E elements of a slot.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adamix_bench.kernels.cells import Cell
from adamix_kernels.gpu.records import FIELDS, SlotTable
from adamix_kernels.segments import Segments
from adamix_kernels.weights import BottleneckWeights

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_ALIGNMENT = 64  # elements: at least 128 bytes
_FEWEST, _BYTES_OF_ALL = 4, 1 << 29


@dataclass(frozen=True, eq=False)
class Adapters:
    """Random bottlenecks that move a unit row by about one unit.

    Attributes:
        arena: [S, E]; slot s lies in row s as down | down_bias | up_bias | up.
        weights: views of the arena by slot, None for slot 0.
        table: the same, as the kernels take them.
    """

    arena: Tensor
    weights: list[BottleneckWeights | None]
    table: SlotTable[BottleneckWeights]

    @classmethod
    def random(cls, cell: Cell, dtype: torch.dtype, device: torch.device) -> "Adapters":
        slots = cell.adapters + 1
        width = -(-_places(cell)[-1] // _ALIGNMENT) * _ALIGNMENT
        arena = torch.randn(slots, width, dtype=dtype, device=device)
        table: SlotTable[BottleneckWeights] = SlotTable(
            torch.zeros(slots, FIELDS, dtype=torch.int64, device=device), arena.view(-1)
        )
        down, down_bias, up_bias, up = parts(arena, cell)
        down.mul_(cell.features**-0.5)
        up.mul_(cell.rank**-0.5)
        weights: list[BottleneckWeights | None] = [None]
        for slot in range(1, slots):
            weights.append(BottleneckWeights(down[slot], down_bias[slot, 0], up[slot], up_bias[slot, 0], 1.0, "gelu"))
            table[slot] = weights[slot]
        table.records.table.copy_(torch.tensor([table.record(slot) for slot in range(slots)]))
        return cls(arena, weights, table)


@dataclass(frozen=True, eq=False)
class Batch:
    """One cell's operands.

    Attributes:
        x: [T, H], unit rows.
        segments: slot a + 1 for adapter a.
    """

    cell: Cell
    x: Tensor
    segments: Segments
    adapters: Adapters

    @classmethod
    def random(cls, cell: Cell, dtype: torch.dtype, device: torch.device, segments: Segments | None = None) -> "Batch":
        """Several batches may share `segments`, and with them what is uploaded for each."""
        x = torch.randn(cell.rows, cell.features, dtype=dtype, device=device)
        return cls(cell, x, segments or cell.segments(), Adapters.random(cell, dtype, device))

    @classmethod
    def several(cls, cell: Cell, dtype: torch.dtype, device: torch.device, most: int = 20) -> "list[Batch]":
        """So many batches that what they move does not fit into a cache; few of large cells, `most` of small ones."""
        count = max(_FEWEST, min(most, _BYTES_OF_ALL // cell.bytes_moved(dtype.itemsize)))
        first = cls.random(cell, dtype, device)
        return [first] + [cls.random(cell, dtype, device, first.segments) for _ in range(1, count)]


def parts(rows: Tensor, cell: Cell) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slots [A, E] as down [A, R, H], down_bias [A, 1, R], up_bias [A, 1, H] and up [A, R, H], without a copy."""
    h, r, n = cell.features, cell.rank, len(rows)
    at = _places(cell)
    down, up = rows[:, : at[0]].view(n, r, h), rows[:, at[2] : at[3]].view(n, r, h)
    return down, rows[:, at[0] : at[0] + r].view(n, 1, r), rows[:, at[1] : at[2]].view(n, 1, h), up


def _places(cell: Cell) -> tuple[int, int, int, int]:
    """Where down_bias, up_bias and up begin, and where up ends; each part begins on 16 bytes."""
    h, r = cell.features, cell.rank
    down_bias = r * h
    up_bias = down_bias + -(-r // 8) * 8
    up = up_bias + h
    return down_bias, up_bias, up, up + r * h

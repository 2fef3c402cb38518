"""The adapters in device memory: one arena, a slot for each, and the modules that read them inside the backbone.

The arena is allocated once. A slot is a range of it plus a row in each site's table of weights (views into the range).
Beside each table lie its records, from which kernels read where in the arena the weights of a slot are. Where the
device is the CPU, an adapter in host memory is where it has to be already: a slot then refers to it, nothing is copied,
ranges are only counted, and records are kept if they are asked for: they say where in host memory the weights are.
During a forward pass the sites read which rows belong to which slot from the bank's current batch: a with-block that
refuses nesting. The bank neither chooses slots (`slots.py`) nor reads files (`loader.py`), nor does it have kernels
compiled (`rehearsal.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from adamix.backbones.sites import Point, features_of, insert
from adamix.errors import InternalError
from adamix.files.manifest import HeadSpec
from adamix_kernels import dispatch
from adamix_kernels.dispatch import BottleneckWeights, HeadWeights, LoraWeights
from adamix_kernels.frozen_linear import FrozenLinear
from adamix_kernels.gpu.records import FIELDS, SlotTable
from adamix_kernels.rows import host_base
from adamix_kernels.segments import Segments
from adamix_server.engine.residency.packing import PackedAdapter

# Which table of a site a kind of weights has its records in.
_BOTTLENECK, _LORA = 0, 1


class SlotBank:
    """`num_slots` slots over an arena of `capacity_bytes` on `device`, holding weights in `dtype`.

    Args:
        has_arena: whether weights are copied to an arena; by default they are on every device but a CPU.
    """

    def __init__(
        self,
        num_slots: int,
        capacity_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        has_arena: bool | None = None,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.num_slots = num_slots
        self._arena: torch.Tensor | None = None
        self._records: torch.Tensor | None = None
        if (device.type != "cpu") if has_arena is None else has_arena:
            self._arena = torch.empty(capacity_bytes // dtype.itemsize, dtype=dtype, device=device)
        # By layer and name.
        self.sites: dict[tuple[int, str], LinearSite | NormSite] = {}
        # Which sites each occupied slot has weights at.
        self._occupied: dict[int, tuple[tuple[int, str], ...]] = {}
        self.heads: list[HeadWeights | None] = [None] * (num_slots + 1)
        self.head_specs: list[HeadSpec | None] = [None] * (num_slots + 1)
        # Slots whose adapter gives values that are not finite, alone or with another: their sequences share no block of
        # attention.
        self.apart: set[int] = set()
        # Of the ops on rows; None chooses.
        self.implementation: str | None = None
        self._segments: Segments | None = None

    def install(self, model: nn.Module, sites: list[str], *, with_records: bool = False) -> None:
        """Put a site of this bank at each of `sites` in every layer of a backbone's body.

        Args:
            with_records: keep records without an arena, too: for batches of short segments on a CPU.
        """
        insert(model, sites, self._make_site)
        if self._arena is not None or with_records:
            base = host_base(self.dtype) if self._arena is None else self._arena
            # All sites in one tensor: the records of a slot are one write, whatever the number of layers.
            shape = (len(self.sites), 2, self.num_slots + 1, FIELDS)
            self._records = torch.zeros(shape, dtype=torch.int64, device=self.device)
            for site, of_site in zip(self.sites.values(), self._records, strict=True):
                site.put_records(of_site, base)

    def write(self, slot: int, offset_bytes: int, packed: PackedAdapter) -> None:
        """Bring an adapter to the device and enter it in the tables. Its range of the arena is the caller's to choose.

        The range is overwritten as a whole before any table refers to it, so nothing is left of whose it was before.

        On CUDA the copy is queued on the current stream, so a forward pass that follows sees it whole.
        """
        if self._segments is not None:
            raise InternalError("the arena was written during a forward pass")
        if slot in self._occupied:
            # At sites that the new one has not, the old one would stay.
            raise InternalError(f"slot {slot} was not cleared")
        if self._arena is None:
            weights = packed.weights
        else:
            start = offset_bytes // self.dtype.itemsize
            extent = self._arena[start : start + packed.data.numel()]
            extent.copy_(packed.data, non_blocking=True)
            weights = packed.weights_in(extent)
        for at, site_weights in weights.sites.items():
            self.sites[at].enter(slot, site_weights)
        self._write_records(slot)
        self.heads[slot] = weights.head
        self.head_specs[slot] = packed.manifest.head
        self._occupied[slot] = packed.sites

    def clear(self, slot: int) -> None:
        """Take a slot's adapter out of the tables. Its bytes stay until the extent is overwritten, unreachable."""
        for key in self._occupied.pop(slot):
            self.sites[key].enter(slot, None)
        self._write_records(slot)
        self.heads[slot] = self.head_specs[slot] = None
        self.apart.discard(slot)

    def _write_records(self, slot: int) -> None:
        """Bring what the sites say of a slot to the device, on the current stream."""
        if self._records is None:
            return
        rows = torch.tensor([site.records_of(slot) for site in self.sites.values()])
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        self._records[:, :, slot].copy_(rows, non_blocking=True)

    @contextmanager
    def batch(self, segments: Segments) -> Iterator[None]:
        """The rows of the forward pass inside the block: which slot each segment of packed rows uses."""
        if self._segments is not None:
            raise InternalError("a batch is running on this bank already")
        self._segments = segments
        try:
            yield
        finally:
            self._segments = None

    @property
    def segments(self) -> Segments:
        if self._segments is None:
            raise InternalError("a site ran outside `with bank.batch(…)`")
        return self._segments

    def _make_site(self, point: Point) -> "LinearSite | NormSite":
        made = NormSite(self, point) if point.is_norm else LinearSite(self, point)
        self.sites[point.layer, point.site] = made
        return made


class BankSite(nn.Module):
    """One site of one layer: the wrapped module, and each slot's weights there."""

    def __init__(self, bank: SlotBank, point: Point) -> None:
        super().__init__()
        self.inner = point.module
        self._bank = bank
        self._window = point.window
        self._bottlenecks: list[BottleneckWeights | None] | SlotTable[BottleneckWeights]
        self._loras: list[LoraWeights | None] | SlotTable[LoraWeights]
        self._bottlenecks, self._loras = [None] * (bank.num_slots + 1), [None] * (bank.num_slots + 1)
        self._num_bottlenecks = 0
        self._num_loras = 0

    @property
    def num_columns(self) -> int:
        """Of what the wrapped module gives, all windows together."""
        return features_of(self.inner)[1]

    def put_records(self, records: torch.Tensor, base: torch.Tensor) -> None:
        """Keep weights in tables whose records, int64 `[2, slots + 1, 8]`, say how far behind the base they lie."""
        self._bottlenecks = SlotTable(records[_BOTTLENECK], base)
        self._loras = SlotTable(records[_LORA], base)

    def records_of(self, slot: int) -> list[list[int]]:
        """What the records of a slot must be."""
        return [table.record(slot) for table in (self._bottlenecks, self._loras) if isinstance(table, SlotTable)]

    def enter(self, slot: int, weights: BottleneckWeights | LoraWeights | None) -> None:
        """Set or clear (None) one slot's weights."""
        self._num_bottlenecks -= self._bottlenecks[slot] is not None
        self._num_loras -= self._loras[slot] is not None
        self._bottlenecks[slot] = weights if isinstance(weights, BottleneckWeights) else None
        self._loras[slot] = weights if isinstance(weights, LoraWeights) else None
        self._num_bottlenecks += self._bottlenecks[slot] is not None
        self._num_loras += self._loras[slot] is not None


class LinearSite(BankSite):
    """`y = Wx`, then on each segment's rows `y + s·up(act(down(y)))` or `y + s·B(Ax)`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[1, T, in] -> [1, T, out]`."""
        if not self._num_loras and not self._num_bottlenecks:
            plain: torch.Tensor = self.inner(x)
            return plain
        frozen = self.inner if isinstance(self.inner, FrozenLinear) else None
        # An adapter's update comes before the activation that a frozen layer would compute with its product.
        rows: torch.Tensor = (self.inner(x) if frozen is None else frozen.linear(x))[0]
        segments = self._bank.segments
        if self._num_loras:
            rows = self.add_loras(rows, x[0], segments)
        if self._num_bottlenecks:
            self.add_bottlenecks(rows, segments)
        return rows[None] if frozen is None else frozen.activate(rows)[None]

    def add_loras(self, rows: torch.Tensor, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """`rows [T, out]` with `s·B(Ax)` added, from `x [T, in]`, where a segment's slot has a LoRA here."""
        return dispatch.lora_(rows, x, segments, self._loras, self._window, implementation=self._bank.implementation)

    def add_bottlenecks(self, rows: torch.Tensor, segments: Segments) -> None:
        """Add `s·up(act(down(y)))` to `rows [T, out]`, where a segment's slot has a bottleneck here."""
        columns = rows if self._window is None else rows[:, slice(*self._window)]
        dispatch.bottleneck_(columns, segments, self._bottlenecks, implementation=self._bank.implementation)


class NormSite(BankSite):
    """`s -> LN(s + A(LN(s)))` on the rows of segments with an adapter here; `LN(s)` on all others."""

    inner: nn.LayerNorm

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        """`[1, T, hidden] -> [1, T, hidden]`."""
        if not self._num_bottlenecks:
            plain: torch.Tensor = self.inner(s)
            return plain
        return self.adapt(s[0], self._bank.segments)[None]

    def adapt(self, rows: torch.Tensor, segments: Segments) -> torch.Tensor:
        """`[T, hidden] -> [T, hidden]`, with what each segment's slot has here."""
        norm = self.inner
        how = self._bank.implementation
        return dispatch.bottleneck_norm(
            rows, segments, self._bottlenecks, norm.weight, norm.bias, norm.eps, implementation=how
        )

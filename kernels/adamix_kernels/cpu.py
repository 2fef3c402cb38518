"""The ops of `reference` in fast plain-torch forms, and the rule that picks among the forms.

Written for CPUs, where a batch of many small adapters is bound by per-call costs; CUDA tensors take the same code with
another rule. Autograd cannot follow them, except `head`, `routed_linear` and `routed_low_rank`. Knows no Triton.

The adapters of one batch and site are grouped by (rank, activation, biases, scale). A group runs in one of two forms:

- **loop**: two products per segment, on views of its rows, accumulating in place. On one thread a product of 43 rows,
  D=384, R=16 takes 9.5 us; on two it takes 50 us, because waking the second thread (OMP_WAIT_POLICY=PASSIVE) costs
  more than the product. So the loop gives up the other threads unless its products are large.
- **tiles**: the segments are cut into tiles of equal height, the rows gathered, the weights stacked once per tile, and
  the whole group is two batched products. A fixed number of calls whatever the number of segments, all threads busy.

Short segments whose weights have records at hand (a `SlotTable`'s) are not grouped at all: `rows` computes them in C,
where it was built.

Milliseconds that a bottleneck adds between two products `[T, 384] x [384, 1536]` (12.5 ms in fp32, 5.5 ms in bf16 at
T=1024), i.e. with the cold caches and sleeping threads of a model. Lognormal segment lengths, two cores of a Zen 4 CPU,
torch 2.13, PASSIVE:

    T, G, R      fp32: loop  on one thread  tiles     bf16: loop  on one thread  tiles
    128, 4, 16         0.67           0.18   0.45           0.88           0.31   0.49
    128, 16, 16        1.92           0.29   0.52           1.92           0.81   0.53
    256, 32, 16        3.63           0.60   0.73           3.89           1.61   0.62
    1024, 4, 16        1.63           1.10   1.13           1.24           0.61   0.69
    1024, 24, 16       3.36           1.15   1.17           4.50           1.67   0.84
    1024, 48, 16       5.87           1.69   1.76           7.40           2.85   0.97
    1024, 24, 64       4.05           2.55   2.76           4.48           2.07   1.28

`pick_form` turns these into an estimate per form and takes the least: in fp32 on a few threads the loop on one thread,
in bf16 tiles from about 8 segments on, tiles everywhere once there are many threads, the loop on all threads for a
few long segments of a large rank. Layouts with one tile per segment, padded to the longest, lose to equal tiles as soon
as lengths differ (1024, 48, 64 in fp32: 5.0 against 3.5 ms).

Shapes: T rows, G segments, N tiles, B rows per tile, R rank, D features.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adamix_kernels import reference, rows
from adamix_kernels.invariant import one_thread
from adamix_kernels.segments import Segments
from adamix_kernels.weights import BottleneckWeights, HeadWeights, LoraWeights, LowRank, RoutedProjection, activation


def bottleneck_(x: Tensor, segments: Segments, weights: Sequence[BottleneckWeights | None]) -> Tensor:
    """See `reference.bottleneck_`."""
    _adapt(x, x, x, segments, weights)
    return x


def bottleneck_norm(
    s: Tensor,
    segments: Segments,
    weights: Sequence[BottleneckWeights | None],
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
) -> Tensor:
    """See `reference.bottleneck_norm`."""
    shape = norm_weight.shape
    normed = F.layer_norm(s, shape, norm_weight, norm_bias, eps)
    if not any(reference.adapters_of(segments, weights)):
        return normed
    out = torch.empty_like(s)
    _adapt(out, s, normed, segments, weights)
    return F.layer_norm(out, shape, norm_weight, norm_bias, eps)


def lora_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[LoraWeights | None],
    window: tuple[int, int] | None = None,
) -> Tensor:
    """See `reference.lora_`."""
    out = y if window is None else y[:, slice(*window)]
    _adapt(out, out, x, segments, weights)
    return y


def lora_slices_(
    y: Tensor,
    x: Tensor,
    segments: Segments,
    weights: Sequence[Sequence[LoraWeights | None]],
    windows: Sequence[tuple[int, int]],
) -> Tensor:
    """See `reference.lora_slices_`."""
    for of_slice, window in zip(weights, windows, strict=True):
        lora_(y, x, segments, of_slice, window)
    return y


def head(features: Tensor, segments: Segments, weights: Sequence[HeadWeights | None]) -> list[Tensor]:
    """See `reference.head`. Heads differ in width and most have one row: a loop, on one thread while they are small."""
    used = [weights[slot] for slot in set(segments.slots.tolist()) if slot]
    largest = max((w.numel() for h in used if h is not None for w in (h.dense, h.out) if w is not None), default=0)
    if features.device.type == "cpu" and 2 * len(features) * largest < _THREADS_PAY_FLOPS * len(segments):
        with one_thread():
            return reference.head(features, segments, weights)
    return reference.head(features, segments, weights)


def routed_linear(
    x: Tensor, experts: Sequence[int], weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None
) -> Tensor:
    """See `reference.routed_linear`: one product per distinct expert, over all of its groups at once."""
    groups_of: dict[int, list[int]] = {}
    for group, expert in enumerate(experts):
        groups_of.setdefault(expert, []).append(group)
    if len(groups_of) <= 1:
        return _linear(x, next(iter(groups_of), 0), weights, biases)
    # Experts stand in order of appearance, so that two groups (two passes over one batch) never need reordering.
    order = [group for groups in groups_of.values() for group in groups]
    sorted_already = order == list(range(len(order)))
    if not sorted_already:
        permutation = torch.tensor(order, device=x.device)
        x = x.index_select(0, permutation)
    pieces = x.split_with_sizes([len(groups) for groups in groups_of.values()])
    y = torch.cat([_linear(piece, expert, weights, biases) for piece, expert in zip(pieces, groups_of, strict=True)])
    return y if sorted_already else y.index_select(0, permutation.argsort())


def routed_low_rank(
    source: Tensor,
    residual: Tensor | None,
    down: RoutedProjection,
    up: RoutedProjection,
    scale: float,
    activation_name: str,
) -> Tensor:
    """See `reference.routed_low_rank`."""
    return reference.routed_low_rank(source, residual, down, up, scale, activation_name, routed_linear)


def _linear(x: Tensor, expert: int, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> Tensor:
    return F.linear(x, weights[expert], None if biases is None else biases[expert])


def _adapt(out: Tensor, residual: Tensor, source: Tensor, segments: Segments, weights: rows.Adapters) -> None:
    """`out = residual + A(source)` per row. `out` may be `residual` itself, which may be `source` itself."""
    left = rows.adapt_short(out, residual, source, segments, weights)
    if left == []:
        return
    adapters = reference.adapters_of(segments, weights)
    runs = list(segments)
    groups: dict[tuple[object, ...], list[int]] = {}
    for position in range(len(runs)) if left is None else left:
        adapter = adapters[position]
        if adapter is not None:
            groups.setdefault(adapter.group, []).append(position)
        elif out is not residual:
            _, start, end = runs[position]
            out[start:end].copy_(residual[start:end])
    for positions in groups.values():
        chosen = [adapter for p in positions if (adapter := adapters[p]) is not None]
        num_rows = sum(runs[p][2] - runs[p][1] for p in positions)
        form = pick_form(
            num_rows=num_rows,
            num_segments=len(positions),
            rank=len(chosen[0].down),
            features=(source.shape[1] + out.shape[1]) // 2,
            dtype=source.dtype,
            device_type=source.device.type,
            threads=torch.get_num_threads(),
        )
        if form == "tiles":
            _tiles(out, residual, source, segments, positions, chosen)
            continue
        with one_thread() if form == "loop_on_one_thread" else nullcontext():
            _loop(out, residual, source, [runs[p] for p in positions], chosen)


def _loop(
    out: Tensor,
    residual: Tensor,
    source: Tensor,
    runs: Sequence[tuple[int, int, int]],
    adapters: Sequence[LowRank],
) -> None:
    lengths = [end - start for _, start, end in runs]
    rank, has_ones = len(adapters[0].down), adapters[0].bias_and_up is not None
    packed = source.new_empty(sum(lengths), rank + has_ones)
    # With a column of ones in front, the product with `bias_and_up` adds the bias by itself.
    units = packed[:, 1:] if has_ones else packed
    for (_, start, end), hidden, adapter in zip(runs, units.split_with_sizes(lengths), adapters, strict=True):
        if adapter.down_bias is None:
            torch.mm(source[start:end], adapter.down_t, out=hidden)
        else:
            torch.addmm(adapter.down_bias, source[start:end], adapter.down_t, out=hidden)
    packed = activation(adapters[0].activation)(packed)
    if has_ones:
        packed[:, 0] = 1.0
    for (_, start, end), hidden, adapter in zip(runs, packed.split_with_sizes(lengths), adapters, strict=True):
        changed = out[start:end]
        if out is not residual:
            changed.copy_(residual[start:end])
        if adapter.bias_and_up is not None:
            changed.addmm_(hidden, adapter.bias_and_up, alpha=adapter.scale)
            continue
        if adapter.up_bias is not None:
            changed.add_(adapter.up_bias, alpha=adapter.scale)
        changed.addmm_(hidden, adapter.up, alpha=adapter.scale)


def _tiles(
    out: Tensor,
    residual: Tensor,
    source: Tensor,
    segments: Segments,
    positions: Sequence[int],
    adapters: Sequence[LowRank],
) -> None:
    num_rows = int(segments.lengths[list(positions)].sum())
    layout = _layout(segments, tuple(positions), _block_rows(num_rows, len(positions)), out.device)
    adapter_at = dict(zip(positions, adapters, strict=True))
    tiles = [adapter_at[position] for position in layout.segment_of_tile]
    gathered = _gather(source, layout)
    down = torch.stack([tile.down for tile in tiles]).transpose(1, 2)
    down_bias = _stack_biases([tile.down_bias for tile in tiles])
    hidden = torch.bmm(gathered, down) if down_bias is None else torch.baddbmm(down_bias, gathered, down)
    hidden = activation(tiles[0].activation)(hidden)
    # The gathered source has been read for the last time: where it is the residual too, it becomes the sum.
    total = gathered if residual is source else _gather(residual, layout)
    up_bias = _stack_biases([tile.up_bias for tile in tiles])
    if up_bias is not None:
        total.add_(up_bias, alpha=tiles[0].scale)
    total.baddbmm_(hidden, torch.stack([tile.up for tile in tiles]), alpha=tiles[0].scale)
    if num_rows == len(out) and out.is_contiguous():
        torch.index_select(total.flatten(0, 1), 0, layout.place, out=out)
    else:
        out.index_copy_(0, layout.rows, total.flatten(0, 1).index_select(0, layout.place))


def _gather(source: Tensor, layout: "_Layout") -> Tensor:
    return source.index_select(0, layout.index).view(len(layout.segment_of_tile), -1, source.shape[1])


def _stack_biases(biases: Sequence[Tensor | None]) -> Tensor | None:
    """[N, 1, features], or None: within a group all adapters have the bias or none has."""
    given = [bias for bias in biases if bias is not None]
    return torch.stack(given)[:, None] if given else None


@dataclass(frozen=True)
class _Layout:
    """`PaddedIndex` as tensors on the device of the batch.

    Attributes:
        index: int64 [N * B], the packed row behind each padded position.
        place: int64 [rows], the padded position of each row of the group.
        rows: int64 [rows], the packed row of each row of the group.
        segment_of_tile: [N].
    """

    index: Tensor
    place: Tensor
    rows: Tensor
    segment_of_tile: list[int]


# Every layer of a forward asks for the same few layouts, so they are kept for as long as the batch's Segments live.
_layouts: WeakKeyDictionary[Segments, dict[object, _Layout]] = WeakKeyDictionary()


def _layout(segments: Segments, positions: tuple[int, ...], block_rows: int, device: torch.device) -> _Layout:
    layouts = _layouts.setdefault(segments, {})
    key = (positions, block_rows, device)
    layout = layouts.get(key)
    if layout is None:
        padded = segments.padded_index(block_rows, positions)
        index, place, rows = (
            torch.from_numpy(array).to(device, non_blocking=True)
            for array in (padded.index.ravel(), np.flatnonzero(padded.mask), padded.index[padded.mask])
        )
        layout = layouts[key] = _Layout(index, place, rows, padded.segment.tolist())
    return layout


def _block_rows(num_rows: int, num_segments: int) -> int:
    """The power of two at or above the mean segment: padding and copies of the weights stay within about twice."""
    mean = -(-num_rows // num_segments)
    return min(max(1 << (mean - 1).bit_length(), _MIN_BLOCK_ROWS), _MAX_BLOCK_ROWS)


Form = Literal["loop_on_one_thread", "loop", "tiles"]


@dataclass(frozen=True)
class _Speed:
    """What one thread does in a microsecond, and the calls' own cost: of one turn of the loop, of all of tiles.

    `wake_us` is what a turn costs more whose two products each wake the other threads.
    """

    flops_per_us: float
    elements_per_us: float
    turn_us: float
    tiles_us: float
    wake_us: float


# fp32 is fitted to the table above; bf16 to the 216 cells of `adamix bench kernels` (benchmarks/results), with which
# the table agrees. fp64 takes the numbers of fp32, fp16 those of bf16.
_SINGLE = _Speed(flops_per_us=60e3, elements_per_us=1.4e3, turn_us=15, tiles_us=600, wake_us=90)
_HALF = _Speed(flops_per_us=220e3, elements_per_us=1.8e3, turn_us=35, tiles_us=160, wake_us=310)
_THREADS_PAY_FLOPS = 6e6  # per product; 100 us of one thread in fp32
_MIN_BLOCK_ROWS, _MAX_BLOCK_ROWS = 4, 64
_MOST_SEGMENTS_TO_LAUNCH_ONE_BY_ONE = 3  # a turn is three launches, tiles are ten


def pick_form(
    *, num_rows: int, num_segments: int, rank: int, features: int, dtype: torch.dtype, device_type: str, threads: int
) -> Form:
    """The form with the least estimated time for a group of segments (the rule above).

    Args:
        num_rows: rows of the group, over all its segments.
        features: mean of the features going in and coming out.
        threads: threads torch may use.
    """
    if device_type != "cpu":
        return "loop" if num_segments <= _MOST_SEGMENTS_TO_LAUNCH_ONE_BY_ONE else "tiles"
    speed = _HALF if dtype.itemsize == 2 else _SINGLE
    # The last tile of a segment is half empty on average.
    num_tiles = num_rows / _block_rows(num_rows, num_segments) + num_segments / 2
    products_us = 4.0 * num_rows * rank * features / speed.flops_per_us
    pass_us = num_rows * features / speed.elements_per_us
    weights_us = num_tiles * 2.0 * rank * features / speed.elements_per_us
    estimates: dict[Form, float] = {
        "loop_on_one_thread": num_segments * speed.turn_us + products_us + pass_us,
        "loop": num_segments * (speed.turn_us + speed.wake_us) + (products_us + pass_us) / threads,
        "tiles": speed.tiles_us + (products_us + weights_us + 4 * pass_us) / threads,
    }
    return min(estimates, key=lambda form: estimates[form])

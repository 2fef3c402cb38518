"""A whole BERT on packed rows, with an adapter of its own for every sequence, against the same BERT without adapters.

The model is that of transformers with random weights. Its rows are those of all sequences one after another, attention
is `varlen_attention`, and the adapters are bottlenecks after the last product of every layer, where AdaMix puts them
(and, for comparison, after the attention's as well, where Houlsby et al. 2019 do). On CUDA both forward passes are
captured in graphs; that with adapters is captured for one batch, and another batch is put in its place before it is
timed, as a server does in every step. On a CPU both run as they are, so that the code is the same.

Shapes: T rows, S sequences, N heads, E features of a head, H features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from adamix_bench.kernels import clocks
from adamix_bench.kernels.batches import Adapters
from adamix_bench.kernels.cells import Cell
from adamix_bench.measure import Goal, Spread, in_turns
from adamix_kernels import dispatch
from adamix_kernels.attention import SequenceLayout, varlen_attention
from adamix_kernels.gpu.tiles import Room, reserve
from adamix_kernels.segments import Segments
from adamix_kernels.testing import error_ratio, tolerance

RETENTION_TARGET = 0.95


@dataclass(frozen=True)
class EncoderSizes:
    """A model and a batch of sequences, each with an adapter of its own.

    Attributes:
        batch: T rows, as many sequences as adapters, and the adapters' H and R.
        turns: comparisons of the forward passes.
        retention_target: bound of the share of the bare backbone's speed, at AdaMix's sites; None only tells it.
    """

    batch: Cell
    layers: int
    heads: int
    inner_features: int
    vocabulary: int
    turns: int
    retention_target: float | None = None


BERT_BASE = EncoderSizes(
    Cell(2048, 64, 768, 64),
    layers=12,
    heads=12,
    inner_features=3072,
    vocabulary=30522,
    turns=7,
    retention_target=RETENTION_TARGET,
)
TINY = EncoderSizes(Cell(24, 4, 32, 8), layers=2, heads=2, inner_features=48, vocabulary=50, turns=2)


class PackedEncoder:
    """The model and one batch of token ids; the same weights and ids whatever sites there are.

    Args:
        sites: where every layer gets adapters: `mlp_out`, `attn_out`. None makes the bare backbone.
        implementation: of the ops on adapters; None takes the device's.

    Attributes:
        segments: the adapter of each sequence in the next forward pass.
        inputs: of the model: token ids, positions and types, [1, T] each.
    """

    def __init__(
        self,
        sizes: EncoderSizes,
        device: torch.device,
        dtype: torch.dtype,
        sites: Sequence[str] = (),
        implementation: str | None = None,
    ) -> None:
        self.device = device
        self.sites = tuple(sites)
        self.rank = sizes.batch.rank
        self._sizes = sizes
        self._cell = sizes.batch
        self.segments = self._cell.segments()
        self.lengths = self._cell.lengths()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = self._model().to(device, dtype).eval()
            ids = torch.randint(sizes.vocabulary, (1, self._cell.rows))
        positions = np.concatenate([np.arange(length) for length in self.lengths])
        self.inputs = {
            "input_ids": ids.to(device),
            "position_ids": torch.from_numpy(positions).to(device)[None],
            "token_type_ids": torch.zeros_like(ids).to(device),
        }
        for layer in self.model.encoder.layer:
            outputs = {"mlp_out": layer.output, "attn_out": layer.attention.output}
            for output in (outputs[site] for site in sites):
                output.dense = _Site(output.dense, Adapters.random(self._cell, dtype, device), self, implementation)

    def _model(self) -> Any:
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=self._sizes.vocabulary,
            hidden_size=self._cell.features,
            num_hidden_layers=self._sizes.layers,
            num_attention_heads=self._sizes.heads,
            intermediate_size=self._sizes.inner_features,
        )
        model = BertModel(config, add_pooling_layer=False)
        model.set_attn_implementation(_attention_over(tuple(self.lengths)))
        return model

    @torch.inference_mode()
    def forward(self) -> Tensor:
        """The last hidden states [T, H] of the batch."""
        hidden: Tensor = self.model(**self.inputs).last_hidden_state[0]
        return hidden

    def rotated(self) -> Segments:
        """The same sequences, each with the adapter of the next."""
        return Segments.from_lengths(np.roll(self.segments.slots, -1), self.lengths)


class _Site(nn.Module):
    """`y = Wx`, then on each sequence's rows `y + up(act(down(y)))` with its own adapter, in place."""

    def __init__(
        self, linear: nn.Module, adapters: Adapters, encoder: PackedEncoder, implementation: str | None
    ) -> None:
        super().__init__()
        self.linear = linear
        self.adapters = adapters
        self._encoder = encoder
        self._implementation = implementation

    def forward(self, x: Tensor) -> Tensor:
        """[1, T, in] -> [1, T, H]."""
        rows: Tensor = self.linear(x)[0]
        table = self.adapters.table
        return dispatch.bottleneck_(rows, self._encoder.segments, table, implementation=self._implementation)[None]


@cache
def _attention_over(lengths: tuple[int, ...]) -> str:
    """The name of attention over sequences of these lengths. Registered once: graphs hold what its layout uploaded."""
    from transformers import AttentionInterface

    name = f"adamix_bench_{'_'.join(map(str, lengths))}"
    AttentionInterface.register(name, partial(_attend, SequenceLayout.from_lengths(lengths)))
    return name


def _attend(
    layout: SequenceLayout,
    module: nn.Module,  # noqa: ARG001 - the interface of transformers
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - rows of other sequences are not read
    scaling: float | None = None,
    **keywords: Any,  # noqa: ARG001 - nothing that BERT passes changes anything here
) -> tuple[Tensor, None]:
    """[1, N, T, E] -> [1, T, N, E]."""
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    return varlen_attention(q, k, v, layout, scale=scaling)[None], None


def retention(sizes: EncoderSizes, device: torch.device, dtype: torch.dtype) -> list[Goal]:
    """Time of the bare backbone over time with adapters, at AdaMix's sites and at twice as many.

    Raises:
        RuntimeError: a graph does not compute the batch that was put into it.
    """
    clock = _Replayed if device.type == "cuda" else _Eager
    encoders = [PackedEncoder(sizes, device, dtype, sites) for sites in ((), ("mlp_out",), ("mlp_out", "attn_out"))]
    ways = {f"{len(encoder.sites)} sites": clock(encoder).time_us for encoder in encoders}
    bare, one, two = (Spread(tuple(us)) for us in in_turns(ways, sizes.turns, lambda *_: None).values())
    cell = sizes.batch
    what = f"{sizes.layers} layers, T={cell.rows}, {cell.adapters} adapters of r={cell.rank}, share of the bare speed"
    times = (f"{bare.median:,.0f} us bare, {each.median:,.0f} us with adapters" for each in (one, two))
    return [
        Goal("encoder", f"{what}: mlp_out", bare.over(one), sizes.retention_target, note=next(times)),
        Goal("encoder.both", f"{what}: mlp_out and attn_out", bare.over(two), note=next(times)),
    ]


class _Eager:
    """The forward pass as it is."""

    def __init__(self, encoder: PackedEncoder) -> None:
        self._encoder = encoder

    def time_us(self) -> float:
        return clocks.seconds(self._encoder.forward) * 1e6


class _Replayed:
    """The forward pass in a graph, of another batch than it was captured with; its result is checked first."""

    @torch.inference_mode()
    def __init__(self, encoder: PackedEncoder) -> None:
        # The room is found under these segments: they live as long as the graph.
        self._captured_with = encoder.segments
        tiles = reserve(encoder.segments, encoder.device, Room(len(encoder.segments), encoder.rank))
        self._graph, self._results = clocks.captured([encoder.forward])
        other = encoder.rotated()
        tiles.refill(other)
        self._graph.replay()
        encoder.segments = other
        error = error_ratio(cast("Tensor", self._results[0]), expected := encoder.forward())
        if not error <= tolerance(expected.dtype):
            raise RuntimeError(f"the graph does not compute the batch that was put into it: error ratio {error:.2g}")

    def time_us(self) -> float:
        return clocks.median_us(self._graph.replay)

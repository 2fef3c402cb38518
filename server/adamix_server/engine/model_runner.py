"""Runs one batch through the packed backbone and the heads: rows in, logits out.

Knows the device and the slot bank; knows neither queues nor digests nor who asked. The backbone is the unmodified
transformers model with a site of the bank at every point of its family.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from adamix.backbone import Backbone
from adamix.errors import FailedPrecondition, InternalError
from adamix.manifest import HeadSpec
from adamix_kernels import dispatch
from adamix_kernels.frozen_linear import padded_rows
from adamix_kernels.segments import Segments
from adamix_server.adapters.slot_bank import SlotBank
from adamix_server.engine import attention
from adamix_server.engine.attention import packed
from adamix_server.engine.frozen import freeze_linears

# Largest difference between packed and one-by-one hidden states at which a backbone is accepted, as a share of their
# length, by dtype: single features of some backbones are far larger than the rest, and their rounding errors, too. fp32
# differs in the order of sums alone, 16-bit types by a few units in the last place per layer.
_PARITY = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# Filling a batch up to a few more tokens takes several short sequences: the attention costs less.
_LONGEST_FILLING = 16

# T tokens, N sequences, H hidden features, C outputs of a head.


@dataclass(frozen=True)
class PackedRow:
    """One sequence to run: its token ids (int32), its token types if it has any, and the slot of its adapter."""

    token_ids: NDArray[np.int32]
    type_ids: NDArray[np.int32] | None
    slot: int


class ModelRunner:
    """A backbone with a slot bank at its sites. Takes the backbone over: its modules are wrapped in place."""

    def __init__(self, backbone: Backbone, bank: SlotBank) -> None:
        attention.register()
        self._backbone = backbone
        self._bank = bank
        self._is_frozen = False
        self._check_parity()
        bank.install(backbone.model, list(backbone.family.sites))

    @torch.inference_mode()
    def run(self, rows: Sequence[PackedRow]) -> list[NDArray[np.float32]]:
        """The raw head outputs (fp32 `[C]`, or `[H]` for an embedding head) of each row, in order of `rows`.

        Rows of one slot should lie together: each change of slot starts a new segment. An adapter whose values are not
        finite may, on a CPU, spoil its neighbours in the attention once: then the batch is run again, with it apart for
        good.
        """
        outputs, known = self._outputs(rows), set(self._bank.apart)
        if attention.keeps_apart(self._bank.device):
            return outputs
        if suspects := _not_finite(rows, outputs) - known:
            self._bank.apart |= suspects
            outputs = self._outputs(rows)
            if _not_finite(rows, outputs) - self._bank.apart:
                # Something that spoils its neighbours and not itself has got new ones: now nobody has any.
                self._bank.apart |= {row.slot for row in rows}
                outputs = self._outputs(rows)
            # If each gives finite values by itself, two of them together do not. Nobody knows which: all stay apart, or
            # every batch would be run again.
            if guilty := _not_finite(rows, outputs):
                self._bank.apart = known | guilty
        return outputs

    def _outputs(self, rows: Sequence[PackedRow]) -> list[NDArray[np.float32]]:
        slots = [row.slot for row in rows]
        hidden = self.hidden_states(rows)
        lengths = [len(row.token_ids) for row in rows]
        features = self._pool(hidden, lengths, [self._head_spec(slot) for slot in slots])
        grouped = Segments.from_lengths(slots, [1] * len(rows))
        outputs = dispatch.head(features, grouped, self._bank.heads)
        # All in one copy, because for each the host waits until the device has nothing left to do.
        together = torch.cat([output.reshape(-1) for output in outputs]).float().cpu().numpy()
        parts = np.split(together, np.cumsum([output.numel() for output in outputs])[:-1])
        return [row for part, output in zip(parts, outputs, strict=True) for row in part.reshape(output.shape)]

    @torch.inference_mode()
    def hidden_states(self, rows: Sequence[PackedRow]) -> torch.Tensor:
        """The last hidden states `[T, H]` of all rows, one after another, with each row's adapter applied."""
        num_tokens = sum(len(row.token_ids) for row in rows)
        all_rows = [*rows, *self._fill_up(num_tokens)]
        lengths = [len(row.token_ids) for row in all_rows]
        with self._bank.batch(Segments.from_lengths([row.slot for row in all_rows], lengths)):
            return self._forward(all_rows, lengths)[:num_tokens]

    def check_device(self) -> None:
        """Raise the device's own error if it can no longer compute."""
        if self._bank.device.type == "cuda":
            torch.cuda.synchronize(self._bank.device)

    def _fill_up(self, num_tokens: int) -> list[PackedRow]:
        """Sequences without an adapter that bring a batch to one of few sizes, where sizes cost memory and time."""
        if not self._is_frozen:
            return []
        missing = padded_rows(num_tokens) - num_tokens
        longest = min(_LONGEST_FILLING, self._backbone.spec.max_tokens)
        return [
            PackedRow(np.zeros(min(longest, missing - done), np.int32), None, slot=0)
            for done in range(0, missing, longest)
        ]

    def _forward(self, rows: Sequence[PackedRow], lengths: Sequence[int]) -> torch.Tensor:
        model, device = self._backbone.model, self._bank.device
        first = self._backbone.first_position
        inputs: dict[str, Any] = {
            "input_ids": _packed([row.token_ids for row in rows], device),
            "position_ids": _packed([np.arange(first, first + n) for n in lengths], device),
        }
        if self._backbone.spec.type_vocab_size:
            # A tokenizer may tell the texts of a pair apart where the backbone, with one type, does not.
            has_types = self._backbone.spec.type_vocab_size > 1
            types = [
                np.zeros(n, np.int32) if r.type_ids is None or not has_types else r.type_ids
                for r, n in zip(rows, lengths, strict=True)
            ]
            inputs["token_type_ids"] = _packed(types, device)
        apart = [row.slot in self._bank.apart for row in rows] if self._bank.apart else None
        with packed(attention.lay_out(lengths, device, self._bank.dtype, apart)):
            hidden: torch.Tensor = model(**inputs).last_hidden_state[0]
        return hidden

    def _pool(self, hidden: torch.Tensor, lengths: Sequence[int], specs: Sequence[HeadSpec]) -> torch.Tensor:
        """One feature vector per sequence `[N, H]`, pooled as its head wants."""
        ends = np.cumsum(lengths)
        starts = ends - lengths
        features = hidden.new_zeros(len(lengths), hidden.shape[1])
        poolings = {spec.pooling for spec in specs}
        if "mean" in poolings:
            everything = torch.arange(len(hidden), device=hidden.device)
            bags = _to_device(starts, hidden.device)
            features = F.embedding_bag(everything, hidden.float(), bags, mode="mean").to(hidden.dtype)
        for pooling, row in (("cls", starts), ("last", ends - 1)):
            if pooling in poolings:
                chosen = _to_device(np.array([spec.pooling == pooling for spec in specs]), hidden.device)
                features = torch.where(chosen[:, None], hidden[_to_device(row, hidden.device)], features)
        if any(spec.dense == "backbone" for spec in specs):
            if self._backbone.pooler is None:
                raise InternalError("a head wants the backbone's pooler, which it does not have")
            chosen = _to_device(np.array([spec.dense == "backbone" for spec in specs]), hidden.device)
            features = torch.where(chosen[:, None], self._backbone.pooler(features), features)
        return features

    def _head_spec(self, slot: int) -> HeadSpec:
        spec = self._bank.head_specs[slot]
        if spec is None:
            raise InternalError(f"slot {slot} holds no adapter")
        return spec

    @torch.inference_mode()
    def _check_parity(self) -> None:
        """Refuse a backbone whose packed answers are not its own: run a few sequences both ways."""
        model, spec = self._backbone.model, self._backbone.spec
        generator = np.random.default_rng(0)
        lengths = [n for n in (7, 1, 12, 7) if n <= spec.max_tokens]
        rows = [PackedRow(generator.integers(0, spec.vocab_size, n, dtype=np.int32), None, slot=0) for n in lengths]
        device = self._bank.device
        alone = [
            model(
                input_ids=_packed([row.token_ids], device),
                position_ids=_packed([np.arange(len(row.token_ids)) + self._backbone.first_position], device),
            ).last_hidden_state[0]
            for row in rows
        ]
        self._is_frozen = freeze_linears(model, self._backbone.family)
        model.set_attn_implementation(attention.IMPLEMENTATION)
        expected = torch.cat(alone).float()
        deviations = (self._forward(rows, lengths).float() - expected).norm(dim=1) / expected.norm(dim=1)
        difference = deviations.max().item()
        if not difference <= _PARITY[self._bank.dtype]:
            raise FailedPrecondition(
                f"backbone {spec.label} cannot be packed: packed and single hidden states differ by {difference:.2%}"
            )


def _not_finite(rows: Sequence[PackedRow], outputs: Sequence[NDArray[np.float32]]) -> set[int]:
    """The slots with an output that is not finite."""
    return {row.slot for row, output in zip(rows, outputs, strict=True) if not np.isfinite(output).all()}


def _packed(parts: Sequence[NDArray[Any]], device: torch.device) -> torch.Tensor:
    """Concatenate to `[1, T]` int64."""
    return _to_device(np.concatenate(parts).astype(np.int64), device)[None]


def _to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device that the host does not wait for."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

"""Runs one batch through the packed backbone and the heads: requests in, logits out.

Knows the device and the slot bank; reads of a request its tokens and its slot, and knows neither queues nor digests nor
who asked. The backbone is the unmodified
transformers model with a site of the bank at every point of its family.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from adamix.backbones.backbone import Backbone
from adamix.errors import FailedPrecondition, InternalError
from adamix.files.manifest import HeadSpec
from adamix_kernels import dispatch
from adamix_kernels.frozen_linear import BLOCK_ROWS, padded_rows
from adamix_kernels.segments import Segments
from adamix_server.engine import attention
from adamix_server.engine.attention import packed
from adamix_server.engine.frozen import freeze_linears, make_invariant
from adamix_server.engine.request import Request
from adamix_server.engine.residency.slot_bank import SlotBank
from adamix_server.engine.transfer import to_device

# Largest difference between packed and one-by-one hidden states at which a backbone is accepted, as a share of their
# length, by dtype: single features of some backbones are far larger than the rest, and their rounding errors, too. fp32
# differs in the order of sums alone, 16-bit types by a few units in the last place per layer.
PARITY = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# Filling a batch up to a few more tokens takes several short sequences: the attention costs less.
_LONGEST_FILLING = 16

# Token and type ids are little-endian int32.
_ID_BYTES = 4

# T tokens, N sequences, H hidden features, C outputs of a head.


class ModelRunner:
    """A backbone with a slot bank at its sites. Takes the backbone over: its modules are wrapped in place.

    Args:
        deterministic: give each request the same bits whatever shares its batch and whatever else the bank holds. In
            fp32 on a CPU; slower.

    Raises:
        FailedPrecondition: the backbone cannot be run packed, or (`deterministic`) not so.
    """

    def __init__(self, backbone: Backbone, bank: SlotBank, *, deterministic: bool = False) -> None:
        if deterministic and (bank.device.type != "cpu" or bank.dtype != torch.float32):
            raise FailedPrecondition("deterministic answers are to be had in fp32 on CPUs alone")
        attention.register()
        self._backbone = backbone
        self._bank = bank
        self._deterministic = deterministic
        # Each sequence is a segment of its own, computed in the form that is its own.
        bank.implementation = "invariant" if deterministic else None
        self._is_frozen = False
        self._check_parity()
        bank.install(backbone.model, list(backbone.family.sites))

    @torch.inference_mode()
    def run(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        """The raw head outputs (fp32 `[C]`, or `[H]` for an embedding head) of each request, in their order.

        Those of one slot should lie together: each change of slot starts a new segment. An adapter whose values are not
        finite may, on a CPU, spoil its neighbours in the attention once: then the batch is run again, with it apart for
        good.
        """
        outputs, known = self._outputs(requests), set(self._bank.apart)
        if self._deterministic or attention.keeps_apart(self._bank.device):
            return outputs
        if suspects := _not_finite(requests, outputs) - known:
            self._bank.apart |= suspects
            outputs = self._outputs(requests)
            if _not_finite(requests, outputs) - self._bank.apart:
                # Something that spoils its neighbours and not itself has got new ones: now nobody has any.
                self._bank.apart |= {request.slot for request in requests}
                outputs = self._outputs(requests)
            # If each gives finite values by itself, two of them together do not. Nobody knows which: all stay apart, or
            # every batch would be run again.
            if guilty := _not_finite(requests, outputs):
                self._bank.apart = known | guilty
        return outputs

    def _outputs(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        slots = [request.slot for request in requests]
        hidden = self.hidden_states(requests)
        lengths = [request.num_tokens for request in requests]
        features = self._pool(hidden, lengths, [self._head_spec(slot) for slot in slots])
        grouped = self._segments(slots, [1] * len(slots))
        outputs = dispatch.head(features, grouped, self._bank.heads, implementation=self._bank.implementation)
        # All in one copy, because for each the host waits until the device has nothing left to do.
        together = torch.cat([output.reshape(-1) for output in outputs]).float().cpu().numpy()
        parts = np.split(together, np.cumsum([output.numel() for output in outputs])[:-1])
        return [row for part, output in zip(parts, outputs, strict=True) for row in part.reshape(output.shape)]

    @torch.inference_mode()
    def hidden_states(self, requests: Sequence[Request]) -> torch.Tensor:
        """The last hidden states `[T, H]` of all requests, one after another, with each one's adapter applied."""
        lengths = [request.num_tokens for request in requests]
        num_tokens = sum(lengths)
        filling = self._filling(num_tokens)
        lengths += filling
        slots = [*(request.slot for request in requests), *(0 for _ in filling)]
        fill_ids = bytes(_ID_BYTES * sum(filling))
        token_ids = b"".join([*(request.row.token_ids for request in requests), fill_ids])
        type_ids = b"".join([*map(self._type_ids, requests), fill_ids])
        with self._bank.batch(self._segments(slots, lengths)):
            return self._forward(token_ids, type_ids, lengths, slots)[:num_tokens]

    @torch.inference_mode()
    def is_finite_without_adapter(self, request: Request, progress: Callable[[], None]) -> bool:
        """Whether the bare backbone has finite hidden states for a request's tokens. `progress`: called after that."""
        bare = Request.of_tokens(request.token_ids, request.type_ids)
        is_finite = bool(torch.isfinite(self.hidden_states([bare])).all())
        progress()
        return is_finite

    def check_device(self) -> None:
        """Raise the device's own error if it can no longer compute."""
        if self._bank.device.type == "cuda":
            torch.cuda.synchronize(self._bank.device)

    def _filling(self, num_tokens: int) -> list[int]:
        """Lengths of sequences that bring a batch to one of few sizes, where sizes cost memory and time."""
        if self._deterministic:
            missing, longest = -num_tokens % BLOCK_ROWS, self._backbone.spec.max_tokens
        elif self._is_frozen:
            missing = padded_rows(num_tokens) - num_tokens
            longest = min(_LONGEST_FILLING, self._backbone.spec.max_tokens)
        else:
            return []
        return [min(longest, missing - done) for done in range(0, missing, longest)]

    def _segments(self, slots: Sequence[int], lengths: Sequence[int]) -> Segments:
        if self._deterministic:
            return Segments(np.array(slots, np.int32), np.cumsum([0, *lengths], dtype=np.int64))
        return Segments.from_lengths(slots, lengths)

    def _type_ids(self, request: Request) -> bytes:
        # A tokenizer may tell the texts of a pair apart where the backbone, with one type, does not.
        if request.row.type_ids is None or self._backbone.spec.type_vocab_size <= 1:
            return bytes(len(request.row.token_ids))
        return request.row.type_ids

    def _forward(self, token_ids: bytes, type_ids: bytes, lengths: Sequence[int], slots: Sequence[int]) -> torch.Tensor:
        """The last hidden states `[T, H]` of sequences that lie one after another, their ids as in a `Row`."""
        device = self._bank.device
        inputs: dict[str, Any] = {
            "input_ids": _ids(token_ids, device),
            "position_ids": _positions(lengths, self._backbone.first_position, device),
        }
        if self._backbone.spec.type_vocab_size:
            inputs["token_type_ids"] = _ids(type_ids, device)
        apart = [slot in self._bank.apart for slot in slots] if self._bank.apart else None
        layout = attention.lay_out(lengths, device, self._bank.dtype, apart, deterministic=self._deterministic)
        with packed(layout):
            hidden: torch.Tensor = self._backbone.model(**inputs).last_hidden_state[0]
        return hidden

    def _pool(self, hidden: torch.Tensor, lengths: Sequence[int], specs: Sequence[HeadSpec]) -> torch.Tensor:
        """One feature vector per sequence `[N, H]`, pooled as its head wants."""
        if self._deterministic and len(lengths) > 1:
            parts = zip(torch.split(hidden, list(lengths)), lengths, specs, strict=True)
            return torch.cat([self._pool(part.clone(), [length], [spec]) for part, length, spec in parts])
        ends = np.cumsum(lengths)
        starts = ends - lengths
        features = hidden.new_zeros(len(lengths), hidden.shape[1])
        poolings = {spec.pooling for spec in specs}
        if "mean" in poolings:
            everything = torch.arange(len(hidden), device=hidden.device)
            bags = to_device(starts, hidden.device)
            features = F.embedding_bag(everything, hidden.float(), bags, mode="mean").to(hidden.dtype)
        for pooling, row in (("cls", starts), ("last", ends - 1)):
            if pooling in poolings:
                chosen = to_device(np.array([spec.pooling == pooling for spec in specs]), hidden.device)
                features = torch.where(chosen[:, None], hidden[to_device(row, hidden.device)], features)
        if any(spec.dense == "backbone" for spec in specs):
            if self._backbone.pooler is None:
                raise InternalError("a head wants the backbone's pooler, which it does not have")
            chosen = to_device(np.array([spec.dense == "backbone" for spec in specs]), hidden.device)
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
        sequences = [generator.integers(0, spec.vocab_size, n, dtype=np.int32).tobytes() for n in lengths]
        first, device = self._backbone.first_position, self._bank.device
        alone = [
            model(input_ids=_ids(ids, device), position_ids=_positions([n], first, device)).last_hidden_state[0]
            for ids, n in zip(sequences, lengths, strict=True)
        ]
        if self._deterministic:
            make_invariant(model, self._backbone.family)
        else:
            self._is_frozen = freeze_linears(model, self._backbone.family)
        model.set_attn_implementation(attention.IMPLEMENTATION)
        expected = torch.cat(alone).float()
        filling = self._filling(sum(lengths))
        token_ids = b"".join([*sequences, bytes(_ID_BYTES * sum(filling))])
        packed_lengths = [*lengths, *filling]
        together = self._forward(token_ids, bytes(len(token_ids)), packed_lengths, [0] * len(packed_lengths))
        together = together[: sum(lengths)]
        deviations = (together.float() - expected).norm(dim=1) / expected.norm(dim=1)
        difference = deviations.max().item()
        if not difference <= PARITY[self._bank.dtype]:
            raise FailedPrecondition(
                f"backbone {spec.label} cannot be packed: packed and single hidden states differ by {difference:.2%}"
            )


def _not_finite(requests: Sequence[Request], outputs: Sequence[NDArray[np.float32]]) -> set[int]:
    """The slots with an output that is not finite."""
    return {request.slot for request, output in zip(requests, outputs, strict=True) if not np.isfinite(output).all()}


def _ids(data: bytes, device: torch.device) -> torch.Tensor:
    """Ids as in a `Row`, as `[1, T]` int64."""
    return to_device(np.frombuffer(data, "<i4").astype(np.int64), device)[None]


def _positions(lengths: Sequence[int], first: int, device: torch.device) -> torch.Tensor:
    """`[1, T]` int64: in each sequence they count from `first`."""
    starts = np.cumsum(lengths) - lengths
    return to_device(np.arange(sum(lengths)) - np.repeat(starts, lengths) + first, device)[None]

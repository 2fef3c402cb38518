"""Runs one step of a decoder: works in, logits over the vocabulary and head outputs out.

Knows the device, the slot bank and the pages of keys and values; reads of a sequence its tokens, its pages and its
slot, and knows neither queues nor digests nor who asked. Which sequences run, and which pages are theirs, is the
scheduler's to say. The backbone is the transformers model with a site of the bank at every point of its family, and
some of its leaves exchanged (`frozen_decoder.py`); it is refused at the start if its answers are then other than
before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adamix.backbones.backbone import Backbone
from adamix.backbones.decoders import KvShape, check_positions
from adamix.errors import FailedPrecondition, InternalError
from adamix.files.manifest import HeadSpec
from adamix_kernels import dispatch, rows
from adamix_kernels.frozen_linear import BLOCK_ROWS, padded_step_rows
from adamix_kernels.paged import PAGE_TOKENS
from adamix_kernels.segments import Segments
from adamix_server.config import QuantizeName
from adamix_server.engine import causal_attention
from adamix_server.engine.causal_attention import paged
from adamix_server.engine.chunked_pooling import ChunkedPooling
from adamix_server.engine.frozen_decoder import freeze_decoder
from adamix_server.engine.kv_cache import KvCache
from adamix_server.engine.model_runner import PARITY
from adamix_server.engine.request import Request
from adamix_server.engine.residency.slot_bank import SlotBank
from adamix_server.engine.sequence import Sequence as TokenSequence
from adamix_server.engine.sequence import Work
from adamix_server.engine.step_plan import StepPlan
from adamix_server.engine.transfer import to_device

# Lengths of the texts of the check at the start, and how many tokens of each go into one of its steps: several chunks
# of some, which end inside of pages.
_PARITY_LENGTHS, _PARITY_CHUNK = (7, 1, 40, 7), 17

# Of what is checked without its adapter, so many tokens are computed at a time.
_CHECKED_TOKENS = 256

# T rows of a step, G works that are generated and complete, H hidden features, V tokens of the vocabulary.


@dataclass(frozen=True)
class StepResult:
    """What a step gives its works.

    Attributes:
        logits: fp32 `[G, V]` on the device, of the complete works that are generated, in their order.
        outputs: the raw head outputs (fp32 `[C]`, or `[H]` of an embedding) of the complete works that are not, by
            their index among the step's works.
    """

    logits: torch.Tensor
    outputs: dict[int, NDArray[np.float32]]


class DecoderRunner:
    """A decoder with a slot bank at its sites and pages for its keys and values.

    Takes the backbone over: its modules are exchanged and wrapped in place.

    Args:
        num_pages: of the cache, page 0 among them; `kv_cache.kv_page_bytes` each.
        deterministic: give each sequence the same bits whatever shares its steps and whatever else the bank holds. In
            fp32 on a CPU; slower.
        quantize: in what the weights of the body's linears and of its language-model head are kept.

    Raises:
        FailedPrecondition: the decoder cannot be run so: its positions (`ROPE_UNSUPPORTED`), its attention, or
            (`deterministic`) its parts.
        InvalidConfig: this device has no products with weights as `quantize` wants them.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: SlotBank,
        num_pages: int,
        *,
        deterministic: bool = False,
        quantize: QuantizeName = "none",
    ) -> None:
        check_positions(backbone.model.config)
        if backbone.lm_head is None:
            raise FailedPrecondition(f"backbone {backbone.spec.label} was loaded without its language-model head")
        if deterministic and (bank.device.type != "cpu" or bank.dtype != torch.float32 or quantize != "none"):
            raise FailedPrecondition("deterministic answers are to be had in fp32 on CPUs alone")
        causal_attention.register()
        self._head: nn.Module = backbone.lm_head
        # What holds the weights that are packed below is let go of.
        self._backbone = replace(backbone, lm_head=None, language_model=None)
        self._bank = bank
        self._deterministic = deterministic
        self._is_packed = False
        self._shape = KvShape.of(backbone.model.config)
        self._pooling = ChunkedPooling()
        self._check_parity(quantize)
        by_row = bank.device.type == "cpu" and rows.is_available(bank.dtype)
        if by_row:
            # Whatever the length of a segment: by what form a row is computed must not depend on its company.
            bank.implementation = "rows"
        bank.install(backbone.model, list(backbone.family.sites), with_records=by_row)
        self._cache = KvCache.allocate(self._shape, num_pages, bank.dtype, bank.device)

    @property
    def num_pages(self) -> int:
        """Page 0 among them."""
        return self._cache.num_pages

    @torch.inference_mode()
    def run(self, works: Sequence[Work]) -> StepResult:
        """Compute the next tokens of each work: their keys and values are in its pages then.

        Works of one slot should lie together: each change of slot starts a new segment. May be called again with the
        same works, or some of them, if it raised or if what was done with its result did. Whatever values an adapter
        gives its own sequences, no other sequence sees them.

        Raises:
            FailedPrecondition: a work that is not generated has a language model's head (`HEAD_UNSUPPORTED`).
        """
        plan = self._plan(works)
        hidden = self._forward(plan, self._cache)
        features = self._pooling.take_in(works, plan, hidden, lambda work: self._head_spec(work.sequence))
        outputs = self._outputs(works, features)
        generated = [i for i, work in enumerate(works) if work.is_complete and work.sequence.params is not None]
        return StepResult(self._logits(hidden, plan.indptr[1:][generated] - 1), outputs)

    @torch.inference_mode()
    def is_finite_without_adapter(self, request: Request, progress: Callable[[], None]) -> bool:
        """Whether the bare backbone has finite hidden states for a request's tokens.

        Args:
            progress: called after each chunk of them: a long prompt takes longer than an engine may take for a step.
        """
        num_pages = -(-request.num_tokens // PAGE_TOKENS)
        bare = TokenSequence.of(Request.of_tokens(request.token_ids))
        bare.pages = list(range(1, num_pages + 1))
        cache = KvCache.allocate(self._shape, num_pages + 1, self._bank.dtype, self._bank.device)
        while bare.num_pending:
            work = Work(bare, min(_CHECKED_TOKENS, bare.num_pending))
            if not torch.isfinite(self._forward(self._plan([work]), cache)).all():
                return False
            bare.num_computed += work.num_new
            progress()
        return True

    def check_device(self) -> None:
        """Raise the device's own error if it can no longer compute."""
        if self._bank.device.type == "cuda":
            torch.cuda.synchronize(self._bank.device)

    def _plan(self, works: Sequence[Work]) -> StepPlan:
        num_rows = self._padded(sum(work.num_new for work in works))
        spec = self._backbone.spec
        return StepPlan.of(works, num_rows, first_position=self._backbone.first_position, max_tokens=spec.max_tokens)

    def _padded(self, num_rows: int) -> int:
        """The next size of a product, where sizes cost memory and time, or bits depend on them."""
        if self._deterministic:
            return -(-num_rows // BLOCK_ROWS) * BLOCK_ROWS
        return padded_step_rows(num_rows) if self._is_packed else num_rows

    def _forward(self, plan: StepPlan, cache: KvCache) -> torch.Tensor:
        """The last hidden states `[T, H]` of a step."""
        together = to_device(np.stack([plan.token_ids, plan.positions]), self._bank.device)
        with self._bank.batch(plan.segments), paged(plan.batch, cache):
            hidden: torch.Tensor = self._backbone.model(
                input_ids=together[:1], position_ids=together[1:], use_cache=False
            ).last_hidden_state[0]
        return hidden

    def _logits(self, hidden: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        """fp32 `[G, V]` of G rows of hidden states."""
        if not len(rows):
            return hidden.new_zeros(0, self._backbone.spec.vocab_size, dtype=torch.float32)
        padded = np.zeros(self._padded(len(rows)), np.int64)
        padded[: len(rows)] = rows
        logits: torch.Tensor = self._head(hidden.index_select(0, to_device(padded, hidden.device)))
        return logits[: len(rows)].float()

    def _outputs(self, works: Sequence[Work], features: dict[int, torch.Tensor]) -> dict[int, NDArray[np.float32]]:
        if not features:
            return {}
        slots = [works[i].sequence.request.slot for i in features]
        # Each a segment of its own: a product of one row has the same bits in every company.
        each = Segments(np.array(slots, np.int32), np.arange(len(slots) + 1))
        how = "invariant" if self._bank.device.type == "cpu" else None
        outputs = dispatch.head(torch.stack(list(features.values())), each, self._bank.heads, implementation=how)
        together = torch.cat([output.reshape(-1) for output in outputs]).float().cpu().numpy()
        parts = np.split(together, np.cumsum([output.numel() for output in outputs])[:-1])
        return dict(zip(features, parts, strict=True))

    def _head_spec(self, sequence: TokenSequence) -> HeadSpec:
        slot = sequence.request.slot
        spec = self._bank.head_specs[slot]
        if spec is None:
            raise InternalError(f"slot {slot} holds no adapter")
        if spec.type in ("cloze", "causal_lm"):
            raise FailedPrecondition(
                f"a {spec.type} head is the language model's: on a decoder it answers with nothing but texts",
                reason="HEAD_UNSUPPORTED",
            )
        if spec.dense == "backbone":
            raise InternalError("a head wants the backbone's pooler, which a decoder does not have")
        return spec

    @torch.inference_mode()
    def _check_parity(self, quantize: QuantizeName) -> None:
        """Exchange the backbone's parts for fast ones, and refuse it if its answers are then not its own.

        A few sequences are run both ways: each alone by the untouched model, then together over pages, in chunks.
        """
        backbone = self._backbone
        sequences = self._random_sequences()
        ends = np.cumsum([sequence.num_tokens for sequence in sequences]) - 1
        expected = self._alone(sequences)
        expected_logits = self._head(expected[ends])
        frozen = freeze_decoder(
            backbone.model, self._head, backbone.family, deterministic=self._deterministic, quantize=quantize
        )
        self._head, self._is_packed = frozen.head, frozen.is_packed
        backbone.model.set_attn_implementation(causal_attention.IMPLEMENTATION)
        together = self._in_chunks(sequences)
        tolerance = PARITY[torch.bfloat16 if quantize == "bf16" else self._bank.dtype]
        for what, got, wanted in (
            ("hidden states", together, expected),
            ("logits", self._logits(together, ends), expected_logits),
        ):
            difference = ((got.float() - wanted.float()).norm(dim=1) / wanted.float().norm(dim=1)).max().item()
            if not difference <= tolerance:
                raise FailedPrecondition(
                    f"backbone {backbone.spec.label} cannot be run over pages: {what} in chunks and of the whole text "
                    f"differ by {difference:.2%}"
                )

    def _random_sequences(self) -> list[TokenSequence]:
        """A few, with pages of their own from 1 on."""
        spec = self._backbone.spec
        generator = np.random.default_rng(0)
        sequences: list[TokenSequence] = []
        first_page = 1
        for length in (n for n in _PARITY_LENGTHS if n <= spec.max_tokens):
            tokens = generator.integers(0, spec.vocab_size, length, dtype=np.int32)
            sequence = TokenSequence.of(Request.of_tokens(tokens))
            sequence.pages = list(range(first_page, first_page - (-length // PAGE_TOKENS)))
            first_page += len(sequence.pages)
            sequences.append(sequence)
        return sequences

    def _alone(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """The last hidden states of sequences, one after another, by the model as it is, each in one pass."""
        states = []
        for sequence in sequences:
            positions = np.arange(sequence.num_tokens) + self._backbone.first_position
            both = to_device(np.stack([sequence.tokens.astype(np.int64), positions]), self._bank.device)
            states.append(
                self._backbone.model(input_ids=both[:1], position_ids=both[1:], use_cache=False).last_hidden_state[0]
            )
        return torch.cat(states)

    def _in_chunks(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """The same over pages, in steps of a chunk of each."""
        num_pages = sum(len(sequence.pages) for sequence in sequences)
        cache = KvCache.allocate(self._shape, num_pages + 1, self._bank.dtype, self._bank.device)
        states: dict[TokenSequence, list[torch.Tensor]] = {sequence: [] for sequence in sequences}
        while works := [
            Work(sequence, min(_PARITY_CHUNK, sequence.num_pending)) for sequence in sequences if sequence.num_pending
        ]:
            plan = self._plan(works)
            hidden = self._forward(plan, cache)
            for i, work in enumerate(works):
                states[work.sequence].append(hidden[plan.indptr[i] : plan.indptr[i + 1]])
                work.sequence.num_computed += work.num_new
        return torch.cat([chunk for chunks in states.values() for chunk in chunks])

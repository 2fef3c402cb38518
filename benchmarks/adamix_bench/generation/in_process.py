"""The engine without processes or wire: the server's own scheduler, runner and sampler in one loop.

All adapters lie in slots from the start; each run begins with pages that hold nothing, so that no prompt is found.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel

from adamix.backbones.backbone import Backbone
from adamix.errors import AdamixError, FailedPrecondition
from adamix.files import adapter_file
from adamix.modules.heads import shared_copy
from adamix_bench.generation.settings import MOST_AT_ONCE
from adamix_bench.generation.turns import Texts
from adamix_bench.generation.workload import NEW_TOKENS, PROMPT_TOKENS, Workload
from adamix_kernels.paged import PAGE_TOKENS
from adamix_server.channel.engine_frames import GenerateParams, Row
from adamix_server.config import EngineSettings, QuantizeName
from adamix_server.engine.decoder_runner import DecoderRunner
from adamix_server.engine.decoder_scheduler import DecoderScheduler
from adamix_server.engine.pages import Pages
from adamix_server.engine.request import Request
from adamix_server.engine.residency.packing import pack
from adamix_server.engine.residency.slot_bank import SlotBank
from adamix_server.engine.residency.slots import Hold
from adamix_server.engine.sampler import Sampler
from adamix_server.engine.sequence import ending

_TENANT = "default"
_ALIGNMENT_BYTES = 4096
_CHUNK_TOKENS = 64


@dataclass(frozen=True)
class StepSize:
    """Rows of a step's products: of those in the layers, and of the language-model head's."""

    tokens: int
    texts: int


class InProcess:
    """The engine's parts over a copy of a backbone, with adapters in all slots: slot 1 has the first."""

    def __init__(
        self,
        backbone: Backbone,
        adapters: Sequence[bytes],
        most_at_once: int,
        *,
        quantize: QuantizeName = "none",
    ) -> None:
        # A runner takes its backbone over; the weights stay shared until they are packed.
        own = own_copy(backbone)
        packed = [pack(adapter_file.decode(data), torch.float32) for data in adapters]
        room = sum(adapter.num_bytes + 2 * _ALIGNMENT_BYTES for adapter in packed) + _ALIGNMENT_BYTES
        bank = SlotBank(max(1, len(packed)), room, torch.float32, torch.device("cpu"))
        self._num_pages = 1 + most_at_once * -(-(PROMPT_TOKENS[1] + NEW_TOKENS[1]) // PAGE_TOKENS)
        self._runner = DecoderRunner(own, bank, self._num_pages, quantize=quantize)
        offset = 0
        for slot, adapter in enumerate(packed, start=1):
            bank.write(slot, offset, adapter)
            offset += -(-adapter.num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._sampler = Sampler(backbone.spec.vocab_size)
        self._num_adapters = len(packed)
        # Of the last run without adapters.
        self._last: tuple[Workload, list[StepSize]] | None = None

    def steps_of(self, workload: Workload) -> list[StepSize]:
        """What the last run without adapters did, which must have been of this workload."""
        if self._last is None or self._last[0] is not workload:
            raise FailedPrecondition("the engine has not run these requests")
        return self._last[1]

    def generate(self, workload: Workload, num_adapters: int = 0) -> Texts:
        """All texts, with so many different adapters in turns; 0 is the backbone alone.

        Raises:
            AdamixError: nothing can run, or a token cannot be drawn.
        """
        scheduler = DecoderScheduler(
            EngineSettings.max_batch_tokens, Pages(self._num_pages, PAGE_TOKENS), MOST_AT_ONCE, _CHUNK_TOKENS
        )
        steps: list[StepSize] = []
        requests = self._requests(workload, num_adapters)
        texts: list[list[int]] = [[] for _ in requests]
        for request in requests:
            scheduler.add(request)
        while len(scheduler):
            works = scheduler.next_step(lambda _: True, time.monotonic(), 0.0)
            result = self._runner.run(works)
            complete = [work.sequence for work in works if work.is_complete]
            drawn = self._sampler.draw(result.logits, complete)
            steps.append(StepSize(sum(work.num_new for work in works), len(complete)))
            tokens = {sequence: one.token for sequence, one in zip(complete, drawn, strict=True) if one is not None}
            if not works or len(tokens) < len(complete):
                raise AdamixError("nothing can run" if not works else "the model's scores are not finite")
            scheduler.take_in(works, tokens)
            for sequence in complete:
                if ending(sequence) is not None:
                    texts[sequence.request.row.id] = sequence.generated.tolist()
                    scheduler.end(sequence.request)
        if not num_adapters:
            self._last = workload, steps
        return texts

    def _requests(self, workload: Workload, num_adapters: int) -> list[Request]:
        if num_adapters > self._num_adapters:
            raise FailedPrecondition(f"there are {self._num_adapters} adapters, not {num_adapters}")
        requests = []
        for place, (prompt, new_tokens) in enumerate(zip(workload.prompts, workload.new_tokens, strict=True)):
            slot = 1 + place % num_adapters if num_adapters else 0
            row = Row(
                id=place,
                tenant=_TENANT,
                digest=f"{slot:064x}" if slot else "",
                token_ids=np.array(prompt, "<i4").tobytes(),
                deadline=math.inf,
                generate=GenerateParams(max_new_tokens=new_tokens, ignore_eos=True),
            )
            requests.append(Request(row, b"bench", 0.0, Hold(row.digest, since=0.0), slot=slot))
        return requests


def own_copy(backbone: Backbone) -> Backbone:
    """The same weights in modules that may be exchanged."""
    if backbone.language_model is None or backbone.lm_head is None:
        raise FailedPrecondition(f"{backbone.spec.label} was loaded without a language model that generates text")
    body = cast("PreTrainedModel", shared_copy(backbone.model))
    return replace(backbone, model=body, lm_head=shared_copy(backbone.lm_head), language_model=None)

"""Do all ways give the same answers? The largest absolute difference on a sample, by pair of ways.

A benchmark of something that answers wrongly measures nothing. fp32 differs in the order of sums alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adamix.errors import AdamixError
from adamix.evaluation.labelled import predict
from adamix.files import adapter_file
from adamix.modules.attach import attach
from adamix.rows.labelled import TokenRow
from adamix_bench.serving.in_process import BareEngine, MixedEngine
from adamix_bench.serving.load import LoadProcess, Plan
from adamix_bench.serving.peers.padded import PaddedBackbone
from adamix_bench.serving.peers.peft import PeftBackbone
from adamix_bench.serving.synthesis import make_task
from adamix_bench.serving.wire import predict_payloads, read_logits
from adamix_bench.serving.workbench import Workbench
from adamix_bench.serving.workload import Requests
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL

# Above it the ways do not answer the same, and comparing their speeds means nothing. Logits are O(1), in fp32.
TOLERANCE = 1e-3
_SAMPLE = 64
_ALONE = 12
_TOKEN_BUDGET = 1024


def of_engine(bench: Workbench, engine: MixedEngine, requests: Requests) -> dict[str, float]:
    """The engine's mixed batches against each request alone, padded transformers with one adapter attached."""
    sample = _first(requests, _ALONE)
    mixed = engine.logits(sample, sample.batches(_TOKEN_BUDGET))
    alone = []
    for task, ids in zip(sample.tasks, sample.token_ids, strict=True):
        adapter = adapter_file.decode(make_task(bench.backbone.spec, task, bench.seed).data)
        row = TokenRow(tuple(ids.tolist()), None, False)
        alone.append(predict(attach(adapter, bench.backbone), [row], pad_id=bench.pad_id, batch_size=1)[0].numpy())
    return {"engine in process, one request alone": largest(mixed, alone)}


def of_server(engine: MixedEngine, load: LoadProcess, address: str, requests: Requests) -> dict[str, float]:
    """The server's logits against the engine's in process. Raises AdamixError when an input fails."""
    sample = _first(requests, _SAMPLE)
    in_process = engine.logits(sample, sample.batches(_TOKEN_BUDGET))
    return {"server, engine in process": largest(server_logits(load, address, requests), in_process)}


def server_logits(load: LoadProcess, address: str, requests: Requests) -> list[NDArray[np.float32]]:
    """What a server answers to a sample. Raises AdamixError when an input fails."""
    payloads = predict_payloads(_first(requests, _SAMPLE), MAX_INPUTS_PER_CALL, return_logits=True)
    outcome = load.run(Plan(address=address, payloads=payloads, keep_answers=True))
    if outcome.errors:
        raise AdamixError(f"the server did not answer a sample of requests: {', '.join(outcome.errors)}")
    return read_logits(outcome.answers)


def of_peft(peft: PeftBackbone, engine: MixedEngine, requests: Requests) -> dict[str, float]:
    """PEFT's mixed batch against the engine, both with the same LoRAs."""
    sample = _first(requests, _SAMPLE)
    ours = engine.logits(sample, sample.batches(_TOKEN_BUDGET))
    theirs = [wide[: len(narrow)] for wide, narrow in zip(peft.logits(sample), ours, strict=True)]
    return {"PEFT mixed batch, engine in process": largest(theirs, ours)}


def of_bare(bare: BareEngine, padded: PaddedBackbone, requests: Requests) -> dict[str, float]:
    """First hidden states of the packed backbone against the padded one."""
    sample = _first(requests, _SAMPLE)
    packed = bare.first_states(sample, sample.batches(_TOKEN_BUDGET))
    return {"bare packed backbone, padded transformers": largest(list(packed), list(padded.first_states(sample)))}


def failures(equal: Mapping[str, float]) -> dict[str, str]:
    """The pairs of ways that do not give the same answers, and by how much they differ."""
    return {
        pair: f"answers differ by {difference:.2g}, more than {TOLERANCE:g}"
        for pair, difference in equal.items()
        if not difference <= TOLERANCE  # so that a NaN is one
    }


def _first(requests: Requests, count: int) -> Requests:
    return Requests(requests.tasks[:count], requests.texts[:count], requests.token_ids[:count])


def largest(some: Sequence[NDArray[np.float32]], others: Sequence[NDArray[np.float32]]) -> float:
    """The largest absolute difference, element by element; NaN where any is NaN, which is under no bound."""
    return float(np.max([np.abs(a - b).max() for a, b in zip(some, others, strict=True)]))

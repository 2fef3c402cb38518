"""Demo, step g: rows a second of the same requests, four ways, in turns.

The server answers over gRPC from its own processes. The other three run in this one, on tokens made beforehand, so
they pay for neither tokenising nor a network: the packed engine with the same mixed adapters, its bare backbone, and
plain transformers with padding, one task after another.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.data import Example
from adamix.files.adapter_file import AdapterFile
from adamix.modules.attach import attach
from adamix.rows.labelled import TokenRow, collate, tokenize
from adamix_client import Client, Input
from adamix_server.engine import request as engine_request
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.residency.packing import pack
from adamix_server.engine.residency.slot_bank import SlotBank

ROUNDS = 3
INPUTS_PER_CALL = 32
CALLS_IN_FLIGHT = 4
TOKEN_BUDGET = 1024
PADDED_BATCH = 32
_ALIGNMENT = 4096


@dataclass(frozen=True)
class Request:
    task: str
    example: Example


@dataclass(frozen=True)
class Throughput:
    """Medians over the rounds, in rows a second, of the same `rows` requests."""

    rows: int
    server: float
    engine: float
    bare: float
    padded: float

    @property
    def retention(self) -> float:
        """What is left of the bare packed backbone's speed when the server answers mixed tasks."""
        return self.server / self.bare

    @property
    def engine_retention(self) -> float:
        return self.engine / self.bare

    @property
    def over_padded(self) -> float:
        return self.server / self.padded


def sample(texts: dict[str, Sequence[Example]], count: int, seed: int) -> list[Request]:
    """`count` requests, tasks mixed at random in equal shares."""
    generator = random.Random(seed)  # noqa: S311 - a shuffle
    tasks = list(texts)
    chosen = [Request(task, generator.choice(texts[task])) for i in range(count) for task in [tasks[i % len(tasks)]]]
    generator.shuffle(chosen)
    return chosen


def measure(
    address: str,
    adapters: dict[str, AdapterFile],
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[Request],
    on_round: Callable[[int], None],
) -> Throughput:
    """Interleave the four ways for `ROUNDS` rounds after one warm-up round."""
    tokens = _tokenize(adapters, backbone, tokenizer, requests)
    packed_mixed, packed_bare = _packed(adapters, requests, tokens)
    ways: dict[str, Callable[[], None]] = {
        "server": partial(_over_grpc, address, requests),
        "engine": packed_mixed,
        "bare": packed_bare,
        "padded": _padded(adapters, backbone, tokenizer, requests, tokens),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            rates[name].append(len(requests) / (time.perf_counter() - started))
        on_round(turn)
    medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
    return Throughput(rows=len(requests), **medians)


def _tokenize(
    adapters: dict[str, AdapterFile],
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[Request],
) -> list[TokenRow]:
    has_types = backbone.spec.type_vocab_size > 1
    lengths = {adapter.manifest.max_length for adapter in adapters.values()}
    return tokenize(tokenizer, [r.example for r in requests], max_length=min(lengths), has_types=has_types)


def _over_grpc(address: str, requests: Sequence[Request]) -> None:
    inputs = [Input(task=r.task, text=r.example.text, truncate=True) for r in requests]
    calls = [inputs[i : i + INPUTS_PER_CALL] for i in range(0, len(inputs), INPUTS_PER_CALL)]
    with Client(address) as client, ThreadPoolExecutor(CALLS_IN_FLIGHT) as pool:
        list(pool.map(partial(client.predict, return_logits=False), calls))


def _packed(
    adapters: dict[str, AdapterFile], requests: Sequence[Request], tokens: Sequence[TokenRow]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The engine's own runner with the adapters in slots, and the same without any."""
    slots = {task: slot for slot, task in enumerate(adapters, start=1)}
    packed_adapters = {task: pack(adapter, torch.float32) for task, adapter in adapters.items()}
    room = sum(-(-p.num_bytes // _ALIGNMENT) * _ALIGNMENT for p in packed_adapters.values())
    bank = SlotBank(len(slots), room, torch.float32, torch.device("cpu"))
    runner = ModelRunner(backbones.load(next(iter(adapters.values())).manifest.backbone.name), bank)
    offset = 0
    for task, packed in packed_adapters.items():
        bank.write(slots[task], offset, packed)
        offset += -(-packed.num_bytes // _ALIGNMENT) * _ALIGNMENT
    batches = _within_budget([len(row) for row in tokens])

    def mixed() -> None:
        for batch in batches:
            asked = [_asked(tokens[i], slots[requests[i].task]) for i in batch]
            runner.run(sorted(asked, key=lambda request: request.slot))

    def bare() -> None:
        for batch in batches:
            runner.hidden_states([_asked(tokens[i], 0) for i in batch])

    return mixed, bare


def _padded(
    adapters: dict[str, AdapterFile],
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[Request],
    tokens: Sequence[TokenRow],
) -> Callable[[], None]:
    models = {task: attach(adapter, backbone) for task, adapter in adapters.items()}
    pad_id = tokenizer.pad_token_id or 0

    @torch.inference_mode()
    def run() -> None:
        for task, model in models.items():
            mine = [tokens[i] for i, request in enumerate(requests) if request.task == task]
            for start in range(0, len(mine), PADDED_BATCH):
                model(**collate(mine[start : start + PADDED_BATCH], pad_id))

    return run


def _within_budget(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in order of arrival, cut where the token budget is full."""
    batches: list[list[int]] = [[]]
    room = TOKEN_BUDGET
    for index, length in enumerate(lengths):
        if length > room and batches[-1]:
            batches.append([])
            room = TOKEN_BUDGET
        batches[-1].append(index)
        room -= length
    return batches


def _asked(row: TokenRow, slot: int) -> engine_request.Request:
    types = None if row.type_ids is None else np.asarray(row.type_ids, np.int32)
    return engine_request.Request.of_tokens(np.asarray(row.input_ids, np.int32), types, slot)

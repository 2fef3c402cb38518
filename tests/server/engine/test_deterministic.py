"""`--deterministic`: a request's answer is the same to the bit beside any others, and whatever else is resident."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.errors import FailedPrecondition
from adamix.files.adapter_file import AdapterFile
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.request import Request
from adamix_server.engine.residency.packing import pack
from adamix_server.engine.residency.slot_bank import SlotBank

CPU = torch.device("cpu")
EXTENT = 1 << 16
LONGEST = 90

# Widths that fill no vector and no block of a product evenly, so that a tail anywhere would show.
_BERT = {
    "vocab_size": 64,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 52,
    "max_position_embeddings": 100,
}
_DISTILBERT = {"vocab_size": 64, "dim": 40, "n_layers": 2, "n_heads": 4, "hidden_dim": 52}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertModel(BertConfig(**_BERT)),
    "roberta": lambda: RobertaModel(RobertaConfig(pad_token_id=1, **_BERT)),
    "xlm-roberta": lambda: XLMRobertaModel(XLMRobertaConfig(pad_token_id=1, **_BERT)),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(max_position_embeddings=100, **_DISTILBERT)),
}

KINDS: list[dict[str, object]] = [
    {"kind": "bottleneck", "rank": 4, "num_labels": 3},
    {"kind": "bottleneck", "sites": ("attn_out", "mlp_out"), "rank": 7, "num_labels": 2, "pooling": "cls"},
    {"kind": "bottleneck", "sites": ("mlp_norm",), "rank": 5, "num_labels": 5, "dense": "own"},
    {"kind": "bottleneck", "sites": ("attn_norm", "mlp_norm"), "rank": 1, "num_labels": 1},
    {"kind": "lora", "sites": ("attn_q", "attn_v"), "rank": 2, "num_labels": 6},
    {"kind": "lora", "sites": ("attn_k", "mlp_in", "mlp_out"), "rank": 16, "num_labels": 1, "pooling": "cls"},
    {"kind": "bottleneck", "rank": 4, "num_labels": 3},
]


class Both:
    """Two runners of one backbone: one with all adapters, and one that holds only what a request needs."""

    def __init__(self, family: str, make_adapter: Callable[..., AdapterFile]) -> None:
        spec = self._backbone(family).spec
        kinds = [*KINDS, {"kind": "bottleneck", "dense": "backbone"}] if family == "bert" else KINDS
        self.packed = [pack(make_adapter(i, spec=spec, **kind), torch.float32) for i, kind in enumerate(kinds)]
        self.company, self._company_bank = self._runner(family)
        self._lonely, self._lonely_bank = self._runner(family)
        for slot, packed in enumerate(self.packed, start=1):
            self._company_bank.write(slot, (slot - 1) * EXTENT, packed)

    def alone(self, row: Request) -> np.ndarray:
        self._lonely_bank.write(row.slot, 0, self.packed[row.slot - 1])
        try:
            return self._lonely.run([row])[0]
        finally:
            self._lonely_bank.clear(row.slot)

    def _runner(self, family: str) -> tuple[ModelRunner, SlotBank]:
        bank = SlotBank(len(self.packed), EXTENT * len(self.packed), torch.float32, CPU)
        return ModelRunner(self._backbone(family), bank, deterministic=True), bank

    def _backbone(self, family: str) -> Backbone:
        torch.manual_seed(0)
        return backbones.from_model(FAMILIES[family]())


def random_batch(random: np.random.Generator, slots: int) -> list[Request]:
    count = int(random.integers(1, 17))
    longest = int(random.choice([3, 20, LONGEST]))
    rows = []
    for slot in np.sort(random.integers(1, slots + 1, count)).tolist():
        length = int(random.integers(1, longest + 1))
        ids = random.integers(2, 64, length, dtype=np.int32)
        rows.append(Request.of_tokens(ids, (np.arange(length) > length // 2).astype(np.int32), slot))
    return rows


def check_batches(both: Both, seed: int, batches: int, most_alone: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(batches):
        rows = random_batch(random, len(both.packed))
        answers = both.company.run(rows)
        for i in random.permutation(len(rows))[:most_alone].tolist():
            assert answers[i].tobytes() == both.alone(rows[i]).tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_same_bits_in_every_company(family: str, make_adapter: Callable[..., AdapterFile]) -> None:
    check_batches(Both(family, make_adapter), seed=0, batches=40, most_alone=2)


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_same_bits_in_a_thousand_companies(
    family: str, threads: int, make_adapter: Callable[..., AdapterFile]
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_batches(Both(family, make_adapter), seed=threads, batches=1000, most_alone=4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    backbone = backbones.from_model(FAMILIES["bert"]())
    with pytest.raises(FailedPrecondition, match="fp32 on CPUs"):
        ModelRunner(backbone, SlotBank(1, EXTENT, dtype, CPU), deterministic=True)

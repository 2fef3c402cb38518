"""The packed engine: any mixture of adapters in one batch answers as each alone, offline, padded."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
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
from adamix.errors import FailedPrecondition, InternalError
from adamix.evaluation.labelled import predict
from adamix.files.adapter_file import AdapterFile
from adamix.modules.attach import attach
from adamix.rows.labelled import TokenRow
from adamix_server.engine import attention
from adamix_server.engine.attention import PackedLayout, packed
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.request import Request
from adamix_server.engine.residency.packing import pack
from adamix_server.engine.residency.slot_bank import SlotBank

CPU = torch.device("cpu")
EXTENT = 1 << 16

# fp32 on both sides: only the order of sums differs, over two layers of width 32 with O(1) states.
TOLERANCE = 2e-5

KINDS: list[dict[str, object]] = [
    {"kind": "bottleneck", "rank": 4, "num_labels": 3},
    {"kind": "bottleneck", "sites": ("attn_out", "mlp_out"), "rank": 7, "num_labels": 2, "pooling": "cls"},
    {"kind": "bottleneck", "sites": ("mlp_norm",), "rank": 5, "num_labels": 5, "dense": "own"},
    {"kind": "bottleneck", "sites": ("attn_norm", "mlp_norm"), "rank": 1, "num_labels": 1},
    {"kind": "lora", "sites": ("attn_q", "attn_v"), "rank": 2, "num_labels": 6},
    {"kind": "lora", "sites": ("attn_k", "mlp_in", "mlp_out"), "rank": 16, "num_labels": 1, "pooling": "cls"},
    {"kind": "bottleneck", "rank": 4, "num_labels": 4, "pooling": "cls", "dense": "backbone"},
]


def runner_with(backbone: Backbone, adapters: list[AdapterFile]) -> ModelRunner:
    bank = SlotBank(len(adapters), EXTENT * len(adapters), torch.float32, CPU)
    runner = ModelRunner(backbone, bank)
    for slot, adapter in enumerate(adapters, start=1):
        bank.write(slot, (slot - 1) * EXTENT, pack(adapter, torch.float32))
    return runner


def rows_for(slots: list[int], seed: int, longest: int = 24) -> list[Request]:
    random = np.random.default_rng(seed)
    rows = []
    for slot in slots:
        length = int(random.integers(1, longest + 1))
        types = (np.arange(length) > length // 2).astype(np.int32)
        rows.append(Request.of_tokens(random.integers(0, 64, length, dtype=np.int32), types, slot))
    return rows


def offline(adapter: AdapterFile, backbone: Backbone, row: Request) -> np.ndarray:
    assert row.type_ids is not None
    token_row = TokenRow(tuple(row.token_ids.tolist()), tuple(row.type_ids.tolist()), is_truncated=False)
    return predict(attach(adapter, backbone), [token_row], pad_id=0)[0].numpy()


@pytest.mark.parametrize("seed", range(3))
def test_a_mixed_batch_equals_each_request_alone_offline(
    seed: int, make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile]
) -> None:
    adapters = [make_adapter(i, **kind) for i, kind in enumerate(KINDS)]
    slots = sorted(np.random.default_rng(seed).integers(1, len(adapters) + 1, 20).tolist())
    rows = rows_for(slots, seed)
    answers = runner_with(make_backbone(), adapters).run(rows)
    for row, answer in zip(rows, answers, strict=True):
        adapter = adapters[row.slot - 1]
        assert answer.shape == (adapter.manifest.head.num_labels,)
        np.testing.assert_allclose(answer, offline(adapter, make_backbone(), row), atol=TOLERANCE, rtol=1e-4)


def test_rows_in_any_order_get_their_own_answers(
    make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile]
) -> None:
    adapters = [make_adapter(i, num_labels=i + 1) for i in range(3)]
    runner = runner_with(make_backbone(), adapters)
    rows = rows_for([1, 2, 1, 3, 3, 2, 1], seed=7)
    expected = [runner.run([row])[0] for row in rows]
    for got, wanted in zip(runner.run(rows), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE)


def test_rows_without_an_adapter_are_the_bare_backbone(
    make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile]
) -> None:
    runner = runner_with(make_backbone(), [make_adapter(0), make_adapter(1, kind="lora", sites=("attn_q",))])
    rows = rows_for([0, 0, 1, 2], seed=1)
    hidden = runner.hidden_states(rows)
    bare = make_backbone().model
    start = 0
    for row in rows[:2]:
        assert row.type_ids is not None
        with torch.inference_mode():
            alone = bare(
                input_ids=torch.from_numpy(row.token_ids.astype(np.int64))[None],
                token_type_ids=torch.from_numpy(row.type_ids.astype(np.int64))[None],
            ).last_hidden_state[0]
        torch.testing.assert_close(hidden[start : start + len(alone)], alone, atol=TOLERANCE, rtol=1e-4)
        start += len(alone)


def test_a_cleared_slot_answers_nothing_and_leaves_others_alone(
    make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile]
) -> None:
    bank = SlotBank(2, 2 * EXTENT, torch.float32, CPU)
    runner = ModelRunner(make_backbone(), bank)
    for slot in (1, 2):
        bank.write(slot, (slot - 1) * EXTENT, pack(make_adapter(slot), torch.float32))
    row = rows_for([2], seed=3)
    before = runner.run(row)[0]
    bank.clear(1)
    np.testing.assert_array_equal(runner.run(row)[0], before)
    with pytest.raises(InternalError, match="holds no adapter"):
        runner.run(rows_for([1], seed=3))


def test_batches_of_any_size_run_at_few_sizes(make_backbone: Callable[[], Backbone]) -> None:
    """Every size of a matrix product costs the engine memory for good."""
    runner = runner_with(make_backbone(), [])
    seen = set()
    runner._backbone.model.register_forward_hook(lambda _module, _inputs, out: seen.add(out.last_hidden_state.shape[1]))
    for length in range(1, 60):
        row = Request.of_tokens(np.arange(length, dtype=np.int32), None, slot=0)
        assert runner.hidden_states([row, row]).shape[0] == 2 * length
    assert len(seen) <= 8 or not runner._is_frozen


def test_values_that_are_not_finite_stay_with_their_adapter(
    make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short texts share blocks of attention, in which zero times infinity would reach the neighbours."""
    adapters = [make_adapter(0), make_adapter(1, kind="lora", sites=("attn_k", "attn_v")), make_adapter(2)]
    runner = runner_with(make_backbone(), adapters)
    rows = rows_for([1, 1, 2, 2, 2, 3, 3], seed=3, longest=7)
    expected = runner.run(rows)
    packed_adapter = pack(adapters[1], torch.float32)
    runner._bank.clear(2)
    runner._bank.write(2, EXTENT, replace(packed_adapter, data=packed_adapter.data * 1e38))
    passes = []
    forward = runner._forward
    monkeypatch.setattr(runner, "_forward", lambda *arguments: passes.append(1) or forward(*arguments))
    for expected_passes in (2, 1):  # once it is known, it costs nobody anything
        passes.clear()
        answers = runner.run(rows)
        for row, answer, before in zip(rows, answers, expected, strict=True):
            if row.slot == 2:
                assert not np.isfinite(answer).all()
            else:
                np.testing.assert_allclose(answer, before, atol=TOLERANCE)
        assert len(passes) == expected_passes
    runner._bank.clear(2)
    runner._bank.write(2, EXTENT, packed_adapter)
    passes.clear()
    for answer, before in zip(runner.run(rows), expected, strict=True):
        np.testing.assert_allclose(answer, before, atol=TOLERANCE)
    assert len(passes) == 1


def test_adapters_that_are_harmful_only_together_cost_the_others_one_batch(
    make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Huge keys and large queries are finite, their product is not: the one with the keys spoils, and is not spoilt."""
    adapters = [
        make_adapter(1, kind="lora", sites=("attn_k",)),
        make_adapter(2, kind="lora", sites=("attn_q",)),
        make_adapter(3, kind="lora", sites=("attn_q",)),
    ]
    bank = SlotBank(3, 3 * EXTENT, torch.float32, CPU)
    runner = ModelRunner(make_backbone(), bank)
    for slot, (adapter, factor) in enumerate(zip(adapters, (1e18, 1e2, 1e2), strict=True), start=1):
        packed_adapter = pack(adapter, torch.float32)
        data = packed_adapter.data.clone()
        for name, piece in packed_adapter.pieces.items():
            if "lora" in name:
                # Keys in the last layer alone: there is no later one in which what is spoilt spoils its spoiler.
                part = data[piece.offset :][: np.prod(piece.shape)]
                part *= 0 if slot == 1 and name.startswith("layers.0") else factor
        bank.write(slot, (slot - 1) * EXTENT, replace(packed_adapter, data=data))
    # The first two share a block; once the second is apart, the third fits into its place.
    generator = np.random.default_rng(0)
    rows = [
        Request.of_tokens(generator.integers(0, 64, length, dtype=np.int32), None, slot)
        for slot, length in ((1, 36), (2, 24), (3, 20))
    ]
    alone = [runner.run([row])[0] for row in rows]
    assert np.isfinite(np.concatenate(alone)).all()
    passes = []
    forward = runner._forward
    monkeypatch.setattr(runner, "_forward", lambda *arguments: passes.append(1) or forward(*arguments))
    for expected_passes in (3, 1):
        passes.clear()
        for answer, expected in zip(runner.run(rows), alone, strict=True):
            np.testing.assert_allclose(answer, expected, atol=TOLERANCE)
        assert len(passes) == expected_passes


def test_the_bank_refuses_nesting_and_writes_during_a_batch(make_adapter: Callable[..., AdapterFile]) -> None:
    from adamix_kernels.segments import Segments

    bank = SlotBank(1, EXTENT, torch.float32, CPU)
    segments = Segments.from_lengths([0], [1])
    with bank.batch(segments):
        with pytest.raises(InternalError, match="running"), bank.batch(segments):
            pass
        with pytest.raises(InternalError, match="during a forward"):
            bank.write(1, 0, pack(make_adapter(0), torch.float32))


SMALL = {"vocab_size": 64, "max_position_embeddings": 40}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "roberta": lambda: RobertaModel(
        RobertaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, pad_token_id=1, **SMALL
        )
    ),
    "xlm-roberta": lambda: XLMRobertaModel(
        XLMRobertaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, pad_token_id=1, **SMALL
        )
    ),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, **SMALL)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_of_encoders_equal_offline(family: str, make_adapter: Callable[..., AdapterFile]) -> None:
    def make() -> Backbone:
        torch.manual_seed(0)
        return backbones.from_model(FAMILIES[family]())

    spec = make().spec
    adapters = [make_adapter(i, spec=spec, **kind) for i, kind in enumerate(KINDS) if kind.get("dense") != "backbone"]
    rows = [Request.of_tokens(row.token_ids, None, row.slot) for row in rows_for([1, 1, 2, 3, 4, 5, 6, 6], seed=2)]
    # Token 1 is padding to RoBERTa, which gives it no position of its own; real texts do not contain it.
    rows = [Request.of_tokens(np.where(row.token_ids == 1, 2, row.token_ids), None, row.slot) for row in rows]
    for row, answer in zip(rows, runner_with(make(), adapters).run(rows), strict=True):
        token_row = TokenRow(tuple(row.token_ids.tolist()), None, is_truncated=False)
        alone = predict(attach(adapters[row.slot - 1], make()), [token_row], pad_id=1)[0].numpy()
        np.testing.assert_allclose(answer, alone, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # fp32: order of sums and TF32 off; 16-bit: a few units in the last place of O(1) values, through two layers.
    [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1.5e-1)],
)
def test_a_mixed_batch_on_cuda_equals_offline(
    dtype: torch.dtype,
    tolerance: float,
    make_backbone: Callable[[], Backbone],
    make_adapter: Callable[..., AdapterFile],
) -> None:
    cuda = torch.device("cuda")
    backbone = make_backbone()
    modules: list[nn.Module | None] = [backbone.model, backbone.pooler]
    for module in modules:
        assert module is not None
        module.to(device=cuda, dtype=dtype)
    adapters = [make_adapter(i, **kind) for i, kind in enumerate(KINDS)]
    bank = SlotBank(len(adapters), EXTENT * len(adapters), dtype, cuda)
    runner = ModelRunner(backbone, bank)
    for slot, adapter in enumerate(adapters, start=1):
        bank.write(slot, (slot - 1) * EXTENT, pack(adapter, dtype, pin_memory=True))
    rows = rows_for(sorted(list(range(1, len(adapters) + 1)) * 3), seed=0)
    for row, answer in zip(rows, runner.run(rows), strict=True):
        expected = offline(adapters[row.slot - 1], make_backbone(), row)
        np.testing.assert_allclose(answer, expected, atol=tolerance * max(1.0, float(np.abs(expected).max())))
    # What a layer needs is on the device before it is asked for: the host runs ahead until it reads the answers.
    torch.cuda.set_sync_debug_mode("error")
    try:
        runner.hidden_states(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    runner.check_device()


class TestPackedAttention:
    @pytest.mark.parametrize(
        "lengths",
        [
            [1],
            [5, 5, 5],
            [1, 40, 3, 3, 17, 16, 9, 1],
            list(range(1, 30)),
            [64, 64],
            [65, 1, 128, 63],
            [600, 3, 513, 512],
        ],
    )
    def test_equals_attention_of_each_sequence_alone(self, lengths: list[int]) -> None:
        torch.manual_seed(0)
        total = sum(lengths)
        q, k, v = (torch.randn(1, 4, total, 8) for _ in range(3))
        with packed(PackedLayout.of(lengths, CPU, torch.float32)):
            together, _ = attention.packed_attention(nn.Module(), q, k, v, None, scaling=0.3)
        start = 0
        for n in lengths:
            part = slice(start, start + n)
            alone = torch.nn.functional.scaled_dot_product_attention(
                q[:, :, part], k[:, :, part], v[:, :, part], scale=0.3
            )
            torch.testing.assert_close(together[:, part], alone.transpose(1, 2), atol=1e-6, rtol=1e-5)
            start += n

    @given(
        st.lists(st.integers(1, 80) | st.integers(1, 700), min_size=1, max_size=40),
        st.integers(0, 2**40),
        st.booleans(),
    )
    def test_every_row_has_one_place_and_sees_its_own_sequence_only(
        self, lengths: list[int], bits: int, any_apart: bool
    ) -> None:
        apart = [bool(bits >> i & 1) for i in range(len(lengths))] if any_apart else None
        layout = PackedLayout.of(lengths, CPU, torch.float32, apart)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        rows = np.concatenate([group.rows.numpy() for group in layout.groups])
        assert (rows[layout.inverse.numpy()] == np.arange(sum(lengths))).all()
        is_token = np.zeros(len(rows), dtype=bool)
        is_token[layout.inverse.numpy()] = True
        filled = 0
        for group in layout.groups:
            blocks, length = group.shape
            part = slice(filled, filled + blocks * length)
            filled += blocks * length
            owners = np.where(is_token[part], owner[rows[part]], -1).reshape(blocks, length)
            seen = np.ones((blocks, length, length), bool)
            if group.mask is not None:
                seen &= (group.mask[:, 0] == 0).numpy()
            for block_owners, block_seen in zip(owners, seen, strict=True):
                tokens = block_owners >= 0
                same = block_owners[:, None] == block_owners[None, :]
                assert (block_seen[tokens] == same[tokens]).all()
                present = set(block_owners[tokens].tolist())
                assert len(present) == 1 or (apart is None or not any(apart[i] for i in present))
                assert len(present) == 1 or length <= 512

    @pytest.mark.parametrize("keyword", ["sliding_window", "softcap", "is_causal"])
    def test_refuses_what_it_does_not_compute(self, keyword: str) -> None:
        x = torch.randn(1, 2, 3, 4)
        with (
            packed(PackedLayout.of([3], CPU, torch.float32)),
            pytest.raises(FailedPrecondition, match="does not support"),
        ):
            attention.packed_attention(nn.Module(), x, x, x, None, **{keyword: True})

    def test_refuses_to_run_outside_a_batch_or_nested(self) -> None:
        x = torch.randn(1, 2, 3, 4)
        with pytest.raises(InternalError, match="outside"):
            attention.packed_attention(nn.Module(), x, x, x, None)
        layout = PackedLayout.of([3], CPU, torch.float32)
        with packed(layout), pytest.raises(InternalError, match="already"), packed(layout):
            pass

    def test_a_causal_backbone_is_refused_when_it_is_loaded(self) -> None:
        config = BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=48,
            is_decoder=True,
        )
        backbone = backbones.from_model(BertModel(config))
        with pytest.raises(FailedPrecondition):
            ModelRunner(backbone, SlotBank(1, EXTENT, torch.float32, CPU))

"""Decoders in steps over pages: whatever shares a step, a text is the one that its adapter writes alone."""

import dataclasses
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from adamix.backbones import backbone as backbones
from adamix.backbones.decoders import KvShape
from adamix.errors import FailedPrecondition, InvalidConfig
from adamix.evaluation.labelled import predict
from adamix.files.manifest import Kind
from adamix.files.tensors import TensorData
from adamix.modules.attach import attach
from adamix.rows.labelled import TokenRow
from adamix_kernels import native
from adamix_kernels.frozen_linear import is_available
from adamix_server.engine import causal_attention, decoder_runner, frozen_decoder
from adamix_server.engine.decoder_runner import DecoderRunner
from adamix_server.engine.decoder_scheduler import DecoderScheduler
from adamix_server.engine.kv_cache import KvCache, kv_page_bytes
from adamix_server.engine.pages import Pages
from adamix_server.engine.request import Request, Status
from adamix_server.engine.residency.packing import pack
from adamix_server.engine.residency.slot_bank import SlotBank
from adamix_server.engine.sequence import Work, ending
from adamix_testing.adapters import AdapterShape, embedding_adapter, random_adapter, text_adapter
from adamix_testing.decoders import (
    DECODERS,
    VOCABULARY,
    Steps,
    read_sequence,
    runner_with,
    text_adapters,
    text_sequence,
    tiny_decoder,
    written_alone,
)


@cache
def texts(name: str, count: int) -> list[tuple[list[int], int, list[int]]]:
    """(prompt, slot, what is written alone) of random requests of a tiny decoder."""
    backbone = tiny_decoder(name)
    adapters = text_adapters(backbone)
    random = np.random.default_rng(count)
    made = []
    for i in range(count):
        slot = i % (len(adapters) + 1)
        prompt = random.integers(0, backbone.spec.vocab_size, int(random.integers(1, 50))).tolist()
        adapter = adapters[slot - 1] if slot else None
        made.append((prompt, slot, written_alone(backbone, adapter, prompt, int(random.integers(3, 20)))))
    return made


@pytest.fixture(params=["native", "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms of what stands between the products."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip("the native kernels are not built")


@pytest.fixture
def needs_native() -> None:
    if native.load() is None or not is_available(torch.float32):
        pytest.skip("the native kernels are not built, or there are no packed products")


def check_identity(name: str, count: int) -> None:
    expected = texts(name, count)
    backbone = tiny_decoder(name)
    adapters = text_adapters(backbone)
    sequences = [text_sequence(prompt, len(written), slot) for prompt, slot, written in expected]
    arrivals = np.random.default_rng(1).integers(0, 2 * count, count).tolist()
    # Three long texts need more pages than there are.
    steps = Steps(runner_with(backbone, adapters, num_pages=13), num_pages=13)
    steps.run(sequences, arrivals)
    assert steps.num_preemptions > 0
    assert [sequence.generated.tolist() for sequence in sequences] == [written for *_, written in expected]


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", [name for name in DECODERS if name != "linear"])
def test_texts_in_company_are_those_written_alone(name: str) -> None:
    check_identity(name, 8)


@pytest.mark.long
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", DECODERS)
def test_many_texts_in_company_are_those_written_alone(name: str) -> None:
    check_identity(name, 32)


def test_texts_of_a_pretrained_decoder_in_company_are_those_written_alone() -> None:
    backbone = backbones.load("smollm2", language_model=True)
    adapters = [
        text_adapter(backbone.spec, 1, kind="bottleneck", sites=("mlp_out",), rank=8, spread=0.02),
        text_adapter(backbone.spec, 2, kind="lora", sites=("attn_q", "attn_v", "mlp_in"), rank=4, spread=0.02),
    ]
    prompts = [(0, [504, 3575, 282, 4649, 314]), (1, [504, 3575, 282]), (2, list(range(300, 340)))]
    expected = [written_alone(backbone, adapters[slot - 1] if slot else None, ids, 4) for slot, ids in prompts]
    assert len({tuple(written) for written in expected}) == len(expected)
    sequences = [text_sequence(ids, 4, slot) for slot, ids in prompts]
    Steps(runner_with(backbone, adapters, num_pages=16), chunk=17, num_pages=16).run(sequences, [0, 0, 1])
    assert [sequence.generated.tolist() for sequence in sequences] == expected


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", ["qwen2-windows"])
def test_texts_that_begin_alike_are_those_written_alone(name: str) -> None:
    """As the engine's scheduler runs them: pages of equal beginnings are shared."""
    backbone = tiny_decoder(name)
    adapters = text_adapters(backbone)[:2]
    random = np.random.default_rng(0)
    beginning = random.integers(0, VOCABULARY, 36).tolist()
    asked = []
    for i in range(9):
        slot, prompt = i % 3, beginning + random.integers(0, VOCABULARY, int(random.integers(1, 9))).tolist()
        count = int(random.integers(8, 24))
        adapter = adapters[slot - 1] if slot else None
        asked.append((prompt, slot, count, written_alone(backbone, adapter, prompt, count)))
    pages = Pages(14)
    scheduler = DecoderScheduler(64, pages, max_running=6, max_chunk_tokens=13)
    runner = runner_with(backbone, adapters, num_pages=pages.count)
    requests = []
    for number, (prompt, slot, count, _) in enumerate(asked):
        request = text_sequence(prompt, count, slot).request
        request.row = msgspec.structs.replace(request.row, id=number, digest=f"adapter {slot}" if slot else "")
        requests.append(request)
        scheduler.add(request)
    written: dict[Request, list[int]] = {}
    while len(written) < len(requests):
        works = scheduler.next_step(lambda _digest: True, 0.0, 1e4)
        logits = runner.run(works).logits
        complete = [work.sequence for work in works if work.is_complete]
        scheduler.take_in(works, dict(zip(complete, logits.argmax(1).tolist(), strict=True)))
        for sequence in complete:
            if ending(sequence):
                written[sequence.request] = sequence.generated.tolist()
                scheduler.end(sequence.request)
    assert [written[request] for request in requests] == [text for *_, text in asked]
    assert scheduler.num_cached > 0
    assert pages.num_available == pages.count - 1


@dataclass(frozen=True)
class Wish:
    prompt: list[int]
    max_new_tokens: int
    slot: int


def logits_of(
    runner: DecoderRunner, wishes: Sequence[Wish], random: np.random.Generator, **settings: int
) -> list[list[bytes]]:
    """The bits of the logits that each token was drawn from, in any company and order."""
    sequences = [text_sequence(wish.prompt, wish.max_new_tokens, wish.slot) for wish in wishes]
    order = random.permutation(len(wishes)).tolist()
    steps = Steps(runner, **settings)
    steps.run([sequences[i] for i in order], random.integers(0, 9, len(wishes)).tolist())
    return [steps.logits[sequence] for sequence in sequences]


def check_bits(name: str, count: int, num_alone: int, **settings: Any) -> None:
    backbone = tiny_decoder(name)
    adapters = text_adapters(backbone)
    runner = runner_with(backbone, adapters, **settings)
    random = np.random.default_rng(0)
    wishes = [
        Wish(
            random.integers(0, VOCABULARY, int(random.integers(1, 40))).tolist(),
            int(random.integers(1, 9)),
            int(random.integers(0, len(adapters) + 1)),
        )
        for _ in range(count)
    ]
    expected = logits_of(runner, wishes, random, chunk=9, budget=40, most_running=count)
    assert logits_of(runner, wishes, random, chunk=5, budget=16) == expected
    assert logits_of(runner, wishes, random, chunk=64, budget=200, most_running=count) == expected
    assert logits_of(runner, wishes, random, num_pages=9) == expected  # computed again, from the beginning
    for wish, bits in list(zip(wishes, expected, strict=True))[:num_alone]:
        assert logits_of(runner, [wish], random, chunk=64, budget=64) == [bits]


@pytest.mark.usefixtures("needs_native")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {}),
        ("qwen2-windows", {"quantize": "bf16"}),
        ("qwen3", {"deterministic": True}),
    ],
)
def test_a_text_has_the_same_bits_in_every_company(name: str, settings: dict[str, Any]) -> None:
    if "quantize" in settings and not is_available(torch.bfloat16):
        pytest.skip("this processor does not multiply bf16")
    check_bits(name, count=6, num_alone=2, **settings)


@pytest.mark.long
@pytest.mark.usefixtures("needs_native")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", [name for name in DECODERS if name != "gpt2"])
def test_many_texts_have_the_same_bits_in_every_company(name: str, deterministic: bool, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_bits(name, count=32, num_alone=32, deterministic=deterministic)
    finally:
        torch.set_num_threads(before)


HEADS: list[AdapterShape] = [
    {"kind": "bottleneck", "num_labels": 3, "pooling": "last"},
    {"kind": "lora", "sites": ("attn_q", "attn_v"), "num_labels": 2, "pooling": "mean"},
    {"kind": "lora", "sites": ("attn_k", "mlp_out"), "num_labels": 5, "pooling": "last", "dense": "own"},
    {"kind": "bottleneck", "num_labels": 1, "pooling": "cls"},
]


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_heads_answer_as_they_do_offline_beside_texts(name: str) -> None:
    backbone = tiny_decoder(name)
    classifiers = [random_adapter(backbone.spec, seed, **shape) for seed, shape in enumerate(HEADS)]
    embedding = embedding_adapter(backbone.spec)
    adapters = [*classifiers, embedding, *text_adapters(backbone)[:1]]
    random = np.random.default_rng(0)
    read = [(slot, random.integers(0, VOCABULARY, length).tolist()) for slot in range(1, 6) for length in (1, 18, 40)]
    expected = []
    for slot, ids in read:
        row = TokenRow(tuple(ids), None, is_truncated=False)
        expected.append(predict(attach(adapters[slot - 1], backbone), [row], pad_id=0)[0].numpy())
    steps = Steps(runner_with(backbone, adapters))
    sequences = [read_sequence(ids, slot) for slot, ids in read]
    steps.run([*sequences, text_sequence([5, 6], 12, len(adapters)), text_sequence([7], 12)])
    for sequence, wanted in zip(sequences, expected, strict=True):
        np.testing.assert_allclose(steps.outputs[sequence], wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("needs_native")
def test_the_answer_of_a_head_has_the_same_bits_however_its_text_is_cut() -> None:
    backbone = tiny_decoder("llama")
    adapters = [random_adapter(backbone.spec, seed, **shape) for seed, shape in enumerate(HEADS)]
    runner = runner_with(backbone, adapters)
    random = np.random.default_rng(0)
    texts_by_slot = [(i % 4 + 1, random.integers(0, VOCABULARY, 37).tolist()) for i in range(12)]
    answers = []
    for chunk, budget in ((4, 16), (13, 64), (64, 500)):
        steps, sequences = Steps(runner, chunk=chunk, budget=budget), [read_sequence(t, s) for s, t in texts_by_slot]
        steps.run(sequences)
        answers.append([steps.outputs[sequence].tobytes() for sequence in sequences])
    assert answers[0] == answers[1] == answers[2]


def test_a_head_over_the_vocabulary_answers_nothing_but_texts() -> None:
    backbone = tiny_decoder("llama")
    runner = runner_with(backbone, text_adapters(backbone)[:1])
    sequence = read_sequence([1, 2, 3], 1)
    sequence.pages = [1]
    with pytest.raises(FailedPrecondition, match="causal_lm") as refused:
        runner.run([Work(sequence, 3)])
    assert refused.value.reason == "HEAD_UNSUPPORTED"


def test_a_step_that_failed_behind_the_model_is_computed_again_from_what_was_before_it() -> None:
    backbone = tiny_decoder("llama")
    adapters = [random_adapter(backbone.spec, 1, pooling="mean")]
    runner = runner_with(backbone, adapters)
    ids = list(range(20))
    undisturbed, disturbed = read_sequence(ids, 1), read_sequence(ids, 1)
    undisturbed.pages, disturbed.pages = [1, 2], [3, 4]
    for num_new in (7, 13):
        runner.run([Work(disturbed, num_new)])
        wanted = runner.run([Work(undisturbed, num_new)])
        got = runner.run([Work(disturbed, num_new)])
        for sequence in (undisturbed, disturbed):
            sequence.num_computed += num_new
    np.testing.assert_array_equal(got.outputs[0], wanted.outputs[0])


def test_what_has_ended_is_forgotten() -> None:
    backbone = tiny_decoder("llama")
    runner = runner_with(backbone, [random_adapter(backbone.spec, 1, pooling="mean")])
    sequence, other = read_sequence(range(9), 1), text_sequence([1], 1)
    sequence.pages, other.pages = [1], [2]
    runner.run([Work(sequence, 4)])
    kept = weakref.ref(sequence.buffer)
    sequence.request.status = Status.ENDED
    runner.run([Work(other, 1)])
    del sequence
    assert kept() is None


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_values_that_are_not_finite_reach_no_other_text(kind: Kind) -> None:
    """Neither beside them in a step, nor in the pages that they leave behind, nor in a half-filled last page."""
    backbone = tiny_decoder("mistral")
    adapters = text_adapters(backbone)
    sites = ("mlp_out",) if kind == "bottleneck" else ("attn_k", "attn_v")
    harmful = text_adapter(backbone.spec, 9, kind=kind, sites=sites)
    poisoned = dataclasses.replace(
        harmful,
        tensors={
            name: TensorData.from_float32(np.full(tensor.shape, np.nan, np.float32))
            for name, tensor in harmful.tensors.items()
        },
    )
    wishes = [Wish(list(range(length)), 6, slot) for length, slot in ((3, 0), (17, 1), (30, 2), (16, 3))]
    expected = [
        written_alone(backbone, adapters[wish.slot - 1] if wish.slot else None, wish.prompt, 6) for wish in wishes
    ]
    runner = runner_with(backbone, [*adapters, poisoned], num_pages=14)
    slot = len(adapters) + 1
    for _ in range(2):  # first beside them, then in their pages, too
        harm = [text_sequence(list(range(20)), 8, slot), text_sequence([4], 8, slot)]
        sequences = [text_sequence(wish.prompt, 6, wish.slot) for wish in wishes]
        steps = Steps(runner, num_pages=14)
        steps.run([harm[0], *sequences, harm[1]])
        assert [sequence.generated.tolist() for sequence in sequences] == expected
        assert all(not np.isfinite(np.frombuffer(bits, np.float32)).all() for bits in steps.logits[harm[0]])
        request = Request.of_tokens(np.arange(20, dtype=np.int32))
        assert runner.is_finite_without_adapter(request, lambda: None)


def test_a_long_prompt_is_looked_at_without_its_adapter_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    # In one piece it would take longer than the engine may stand still.
    monkeypatch.setattr(decoder_runner, "_CHECKED_TOKENS", 16)
    runner = runner_with(tiny_decoder("llama"), [])
    steps: list[None] = []
    request = Request.of_tokens(np.arange(40, dtype=np.int32))
    assert runner.is_finite_without_adapter(request, lambda: steps.append(None))
    assert len(steps) == 3
    with torch.no_grad():
        runner._backbone.model.get_input_embeddings().weight[35] = torch.nan
    assert not runner.is_finite_without_adapter(request, lambda: steps.append(None))
    assert len(steps) == 5


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}, "'dynamic'"),
        (
            {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 64,
            },
            "'longrope'",
        ),
    ],
    ids=["dynamic", "longrope"],
)
def test_positions_that_depend_on_the_length_are_refused_by_name(rope: dict[str, Any], named: str) -> None:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters=rope,
    )
    backbone = backbones.from_language_model(LlamaForCausalLM(config))
    with pytest.raises(FailedPrecondition, match=named) as refused:
        runner_with(backbone, [])
    assert refused.value.reason == "ROPE_UNSUPPORTED"


def test_a_decoder_without_its_head_is_refused() -> None:
    backbone = dataclasses.replace(tiny_decoder("llama"), lm_head=None)
    with pytest.raises(FailedPrecondition, match="language-model head"):
        runner_with(backbone, [])


def test_equal_bits_are_refused_where_they_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FailedPrecondition, match="equal bits"):
        runner_with(tiny_decoder("gpt2"), [], deterministic=True)
    with pytest.raises(FailedPrecondition, match="deterministic"):
        runner_with(tiny_decoder("llama"), [], deterministic=True, quantize="bf16")
    monkeypatch.setattr(native, "load", lambda: None)
    with pytest.raises(FailedPrecondition, match="native kernels"):
        runner_with(tiny_decoder("llama"), [], deterministic=True)


def test_weights_in_bf16_are_refused_where_they_cannot_be_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_decoder, "is_available", lambda dtype: dtype == torch.float32)
    with pytest.raises(InvalidConfig, match="--quantize") as refused:
        runner_with(tiny_decoder("llama"), [], quantize="bf16")
    assert refused.value.field == "quantize"


def test_a_model_whose_chunks_give_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the layers' windows were not honoured."""
    attend = causal_attention.paged_attention
    monkeypatch.setattr(
        causal_attention, "paged_attention", lambda *tensors, **named: attend(*tensors, **named | {"window": None})
    )
    with pytest.raises(FailedPrecondition, match="over pages"):
        runner_with(tiny_decoder("mistral"), [])


def test_weights_in_bf16_change_logits_little() -> None:
    if not is_available(torch.bfloat16):
        pytest.skip("this processor does not multiply bf16")
    results = []
    for quantize in ("none", "bf16"):
        runner = runner_with(tiny_decoder("qwen2"), [], quantize=quantize)
        sequence = text_sequence(range(30), 1)
        sequence.pages = [1, 2]
        results.append(runner.run([Work(sequence, 30)]).logits[0])
    difference = ((results[0] - results[1]).norm() / results[0].norm()).item()
    assert 1e-4 < difference < 5e-2


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_decoder_in_another_dtype_keeps_its_pages_in_that(name: str) -> None:
    backbone = tiny_decoder(name)
    assert backbone.language_model is not None
    backbone.language_model.to(torch.bfloat16)
    adapters = text_adapters(backbone)[:1]
    bank = SlotBank(1, 1 << 24, torch.bfloat16, torch.device("cpu"))
    runner = DecoderRunner(backbone, bank, 8)
    bank.write(1, 0, pack(adapters[0], torch.bfloat16))
    sequence = text_sequence(range(20), 3, 1)
    sequence.pages = [1, 2]
    logits = runner.run([Work(sequence, 20)]).logits[0]
    reference = runner_with(tiny_decoder(name), adapters)
    expected = reference.run([Work(sequence, 20)]).logits[0]
    assert runner._cache.keys[0].dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert (logits - expected).norm() < 0.1 * expected.norm()


def test_a_decoder_of_few_positions_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fills a step up has no more positions than a text."""
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=5, bos_token_id=0, eos_token_id=0)
    backbone = backbones.from_language_model(GPT2LMHeadModel(config))
    sequence = text_sequence(range(3), 3)
    runner = runner_with(backbone, [])
    monkeypatch.setattr(runner, "_is_packed", True)
    steps = Steps(runner)
    steps.run([sequence, *(text_sequence([i], 5) for i in range(9))])
    assert len(sequence.generated) == 3


def test_a_page_has_room_for_sixteen_tokens_of_all_layers() -> None:
    backbone = tiny_decoder("qwen3")
    shape = KvShape.of(backbone.model.config)
    assert shape == KvShape(num_layers=2, num_heads=4, num_kv_heads=2, head_size=16)
    assert kv_page_bytes(shape, torch.float32) == 2 * 2 * 2 * 16 * 16 * 4
    cache = KvCache.allocate(shape, 5, torch.bfloat16, torch.device("cpu"))
    held = sum(t.numel() * t.element_size() for t in (*cache.keys, *cache.values))
    assert held == 5 * kv_page_bytes(shape, torch.bfloat16)
    assert KvShape.of(tiny_decoder("gpt2").model.config) == KvShape(2, 4, 4, 8)

"""Files of the release: layouts, averaging, the self-test and what it catches, and refusals by name.

The release's files cannot be had here. What is read are files of exactly their layout, made of random tensors.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidAdapter, InvalidConfig
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.tensors import TensorData
from adamix.interop.assembly import ImportOptions
from adamix.interop.microsoft_adamix.forward import self_test
from adamix.interop.microsoft_adamix.layout import Experts
from adamix.interop.microsoft_adamix.weights import import_release
from adamix.merging.merge import merge

MakeClassifier = Callable[..., Any]
State = dict[str, Tensor]


def soup(state: State, prefix: str, width: int, rank: int, down: int, up: int) -> None:
    for side, count, shape in (("A", down, (rank, width)), ("B", up, (width, rank))):
        name = f"{prefix}.ExpertSoup.MoA_{side}"
        state[f"{name}.expert_score_weight"] = torch.zeros(count)
        for expert in range(count):
            state[f"{name}.deepspeed_experts.{expert}.weight"] = torch.randn(shape) * 0.3
            state[f"{name}.deepspeed_experts.{expert}.bias"] = torch.randn(shape[0]) * 0.3


def nlu(
    family: str, layers: int, width: int, rank: int = 3, labels: int = 3, experts: tuple[int, int] = (4, 1)
) -> State:
    torch.manual_seed(3)
    state: State = {}
    for layer in range(layers):
        soup(state, f"{family}.encoder.layer.{layer}.output", width, rank, *experts)
    shapes = {"classifier": (labels, width)}
    if family == "roberta":
        shapes = {"classifier.dense": (width, width), "classifier.out_proj": (labels, width)}
    for name, shape in shapes.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(shape), torch.randn(shape[0])
    return state


def nlg_lora(layers: int, width: int, rank: int = 4, experts: tuple[int, int] = (8, 1)) -> State:
    torch.manual_seed(4)
    state: State = {}
    for layer in range(layers):
        prefix = f"module.transformer.h.{layer}.attn.c_attn"
        state[f"{prefix}.lora_expert_score_weight"] = torch.zeros(max(experts))
        for expert in range(experts[0]):
            state[f"{prefix}.experts_lora_A.{expert}"] = torch.randn(2 * rank, width) * 0.3
        for expert in range(experts[1]):
            state[f"{prefix}.experts_lora_B.{expert}"] = torch.randn(2 * width, rank) * 0.3
    return state


def nlg_adapter(layers: int, width: int) -> State:
    torch.manual_seed(5)
    state: State = {}
    for layer in range(layers):
        soup(state, f"module.transformer.h.{layer}.mlp", width, 8, 8, 1)
    return state


def written(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "source.bin"
    torch.save(value, path)
    return path


@pytest.fixture
def bert(make_classifier: MakeClassifier) -> Backbone:
    return make_classifier("bert").backbone


@pytest.fixture
def gpt2() -> Backbone:
    torch.manual_seed(0)
    return backbones.from_model(
        GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3))
    )


def test_bert_of_the_true_shape(tmp_path: Path) -> None:
    """146 tensors in 8.5 MiB, of which 894,528 parameters are left: the paper's 0.9M."""
    state = nlu("bert", 12, 768, rank=48)
    assert len(state) == 146
    source = written(tmp_path, {name: tensor * 0.05 for name, tensor in state.items()})
    assert source.stat().st_size / 2**20 == pytest.approx(8.49, rel=0.01)
    # The FFN is narrow and the vocabulary small: neither is in the file.
    config = BertConfig(vocab_size=40, intermediate_size=8, max_position_embeddings=16)
    imported = import_release(source, backbones.from_model(BertModel(config)), ImportOptions())
    assert imported.matched == 146
    assert imported.adapter.num_parameters() == (894_528, 3 * 768 + 3)
    assert imported.max_abs_diff is not None
    assert imported.max_abs_diff < 1e-4
    record = imported.adapter.manifest.training
    assert (record.num_experts, record.share, record.merge) == (4, "up", "uniform")
    head = imported.adapter.manifest.head
    assert (head.pooling, head.dense, head.labels) == ("cls", "backbone", ("LABEL_0", "LABEL_1", "LABEL_2"))


def test_roberta_of_24_layers(make_classifier: MakeClassifier, tmp_path: Path) -> None:
    backbone = make_classifier("roberta", num_hidden_layers=24).backbone
    state = nlu("roberta", 24, 16, labels=1)
    assert len(state) == 292
    imported = import_release(written(tmp_path, state), backbone, ImportOptions())
    head = imported.adapter.manifest.head
    assert imported.matched == 292
    assert (head.type, head.dense, head.activation) == ("regression", "own", "tanh")
    assert head.clip is not None
    assert head.clip[0] == 0.0  # the release cuts STS-B's predictions from below, RoBERTa's only


def test_a_given_interval_wins_over_the_release_s(make_classifier: MakeClassifier, tmp_path: Path) -> None:
    source, backbone = written(tmp_path, nlu("roberta", 2, 16, labels=1)), make_classifier("roberta").backbone
    assert import_release(source, backbone, ImportOptions(clip=(0, 5))).adapter.manifest.head.clip == (0, 5)


@pytest.mark.parametrize("experts", [(4, 1), (1, 4), (3, 3), (1, 1)])
def test_sharing_and_experts_are_found(experts: tuple[int, int], bert: Backbone, tmp_path: Path) -> None:
    state = nlu("bert", 2, 16, experts=experts)
    imported = import_release(written(tmp_path, state), bert, ImportOptions(labels=("a", "b", "c")))
    share = {(4, 1): "up", (1, 4): "down"}.get(experts, "none")
    assert imported.mixture is not None
    assert (imported.mixture.manifest.share, imported.mixture.manifest.num_experts) == (share, max(experts))
    key = "bert.encoder.layer.1.output.ExpertSoup.MoA_A.deepspeed_experts.{}.bias"
    expected = torch.stack([state[key.format(e)] for e in range(experts[0])]).mean(0)
    found = imported.adapter.tensors["layers.1.mlp_out.down_proj.bias"].to_float32()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-7)


def test_the_mixture_merges_into_the_import(bert: Backbone, tmp_path: Path) -> None:
    imported = import_release(written(tmp_path, nlu("bert", 2, 16)), bert, ImportOptions())
    assert imported.mixture is not None
    merged = adapter_file.decode(merge(imported.mixture))
    for key, tensor in imported.adapter.tensors.items():
        np.testing.assert_allclose(tensor.to_float32(), merged.tensors[key].to_float32(), rtol=1e-6, atol=1e-7)


def test_scores_weigh_the_experts(bert: Backbone, tmp_path: Path) -> None:
    state = nlu("bert", 2, 16)
    prefix = "bert.encoder.layer.0.output.ExpertSoup.MoA_A"
    state[f"{prefix}.expert_score_weight"] = torch.tensor([2.0, -1.0, 0.0, 0.5])
    imported = import_release(written(tmp_path, state), bert, ImportOptions())
    weights = torch.softmax(torch.tensor([2.0, -1.0, 0.0, 0.5]).double(), 0)
    copies = torch.stack([state[f"{prefix}.deepspeed_experts.{e}.weight"].double() for e in range(4)])
    expected = torch.einsum("e,eij->ij", weights, copies).numpy()
    found = imported.adapter.tensors["layers.0.mlp_out.down_proj.weight"].to_float32()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert imported.adapter.manifest.training.merge == "weighted"
    assert any("scores differ" in note for note in imported.notes)


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6),
    scores=st.lists(st.floats(-20, 20), min_size=1, max_size=8),
)
def test_equal_experts_are_their_own_mean(values: list[float], scores: list[float]) -> None:
    """Whatever their scores; and the mean lies between the smallest and the largest of different ones."""
    copy = np.array([values], dtype=np.float32).astype(np.float64)
    equal = Experts([copy] * len(scores), None, np.array(scores))
    assert (equal.merged()[0].astype(np.float32) == copy.astype(np.float32)).all()
    different = Experts([copy * index for index in range(len(scores))], None, np.array(scores))
    stacked = np.stack(different.weights)
    slack = 1e-12 * np.abs(stacked).max()
    mean = different.merged()[0]
    assert (mean >= stacked.min(0) - slack).all()
    assert (mean <= stacked.max(0) + slack).all()


@pytest.mark.parametrize("experts", [(8, 1), (4, 4), (1, 8)])
def test_lora_of_gpt2(experts: tuple[int, int], gpt2: Backbone, tmp_path: Path) -> None:
    state = nlg_lora(2, 16, experts=experts)
    source = written(tmp_path, {"model_state_dict": state})
    with pytest.raises(InvalidConfig, match=re.escape("give it by --alpha (the release's scripts use 32)")):
        import_release(source, gpt2, ImportOptions())
    imported = import_release(source, gpt2, ImportOptions(), alpha=32)
    manifest = imported.adapter.manifest
    assert (manifest.scaling, manifest.head.type, manifest.head.pooling) == (8.0, "causal_lm", "none")
    assert manifest.prompt == "source"
    assert sorted({site for _, site in imported.adapter.sites()}) == ["attn_q", "attn_v"]
    prefix = "module.transformer.h.1.attn.c_attn"
    a = torch.stack([state[f"{prefix}.experts_lora_A.{e}"] for e in range(experts[0])]).mean(0)
    b = torch.stack([state[f"{prefix}.experts_lora_B.{e}"] for e in range(experts[1])]).mean(0)
    for rows, columns, site in ((slice(0, 4), slice(0, 16), "attn_q"), (slice(4, 8), slice(16, 32), "attn_v")):
        for factor, expected in (("lora_A", a[rows]), ("lora_B", b[columns])):
            found = imported.adapter.tensors[f"layers.1.{site}.{factor}"].to_float32()
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-7)


def test_bottlenecks_of_gpt2(gpt2: Backbone, tmp_path: Path) -> None:
    imported = import_release(written(tmp_path, {"model_state_dict": nlg_adapter(2, 16)}), gpt2, ImportOptions())
    assert imported.adapter.manifest.activation == "gelu_tanh"
    assert imported.adapter.manifest.scaling == 1.0


def test_a_whole_gpt2_has_to_be_the_backbone(gpt2: Backbone, tmp_path: Path) -> None:
    body = {f"module.transformer.{name}": tensor.clone() for name, tensor in gpt2.model.state_dict().items()}
    body["module.lm_head.decoder.weight"] = body["module.transformer.wte.weight"]
    body["module.transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
    state = nlg_lora(2, 16) | body
    imported = import_release(written(tmp_path, {"model_state_dict": state}), gpt2, ImportOptions(), alpha=32)
    assert imported.matched == len(state)
    state["module.transformer.h.1.ln_1.weight"] = state["module.transformer.h.1.ln_1.weight"] + 0.1
    with pytest.raises(InvalidAdapter, match=r"h\.1\.ln_1\.weight: the file holds a whole GPT-2 with other weights"):
        import_release(written(tmp_path, {"model_state_dict": state}), gpt2, ImportOptions(), alpha=32)


def test_the_base_should_ignore_case(bert: Backbone, tmp_path: Path) -> None:
    source = written(tmp_path, nlu("bert", 2, 16))
    assert import_release(source, bert, ImportOptions(), is_uncased=True).notes == ()
    (note,) = import_release(source, bert, ImportOptions(), is_uncased=False).notes
    assert "bert-base-uncased" in note


# Mistakes an importer could make. The self-test has to see each of them.
def _swap(adapter: AdapterFile, first: str, second: str) -> AdapterFile:
    tensors = dict(adapter.tensors)
    for key in adapter.tensors:
        if first in key:
            other = key.replace(first, second)
            tensors[key], tensors[other] = adapter.tensors[other], adapter.tensors[key]
    return _with(adapter, tensors=tensors)


def _with(adapter: AdapterFile, tensors: dict[str, TensorData] | None = None, **manifest: Any) -> AdapterFile:
    replaced = msgspec.structs.replace(adapter.manifest, **manifest)
    return adapter_file.decode(adapter_file.encode(replaced, adapter.tensors if tensors is None else tensors))


def test_the_self_test_sees_mistakes(bert: Backbone, gpt2: Backbone, tmp_path: Path) -> None:
    state = nlu("bert", 2, 16)
    right = import_release(written(tmp_path, state), bert, ImportOptions()).adapter
    key = "layers.1.mlp_out.up_proj.bias"
    wrong_bias = {**right.tensors, key: TensorData.from_float32(right.tensors[key].to_float32() * 1.01)}
    first = state["bert.encoder.layer.0.output.ExpertSoup.MoA_A.deepspeed_experts.0.weight"]
    only_first = {**right.tensors, "layers.0.mlp_out.down_proj.weight": TensorData.from_float32(first.numpy())}
    mistakes = [
        _with(right, activation="relu"),
        _with(right, scaling=0.99),
        _with(right, tensors=wrong_bias),
        _with(right, tensors=only_first),
        _swap(right, "layers.0.", "layers.1."),
    ]
    assert self_test(state, right, bert, None) < 1e-5
    for mistake in mistakes:
        with pytest.raises(InvalidAdapter, match="self-test failed"):
            self_test(state, mistake, bert, None)
    lora = {name.removeprefix("module."): tensor for name, tensor in nlg_lora(2, 16).items()}
    right = import_release(written(tmp_path, {"model_state_dict": lora}), gpt2, ImportOptions(), alpha=32).adapter
    for mistake in (_swap(right, "attn_q", "attn_v"), _with(right, scaling=32.0)):
        with pytest.raises(InvalidAdapter, match="self-test failed"):
            self_test(lora, mistake, gpt2, 32)


def _drop(state: State, part: str) -> State:
    return {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda s: _drop(s, "1.output.ExpertSoup.MoA_B.deepspeed_experts.0.bias"),
            r"1 tensors missing \(bert.*1.*MoA_B.*0\.bias\)$",
        ),
        (lambda s: _drop(s, "layer.0."), r"12 tensors missing \(.*layer\.0\.output"),
        (lambda s: _drop(s, "layer.1."), "is for a bert of 1 layers; tiny is a bert of 2"),
        (
            lambda s: _drop(s, "MoA_A.deepspeed_experts.1."),
            r"4 tensors missing \(.*MoA_A\.deepspeed_experts\.1\.weight",
        ),
        (lambda s: _drop(s, "MoA_A.deepspeed_experts.3."), "expected are 3 finite scores, one an expert"),
        (lambda s: _drop(s, "score_weight"), r"4 tensors missing \(.*expert_score_weight"),
        (lambda s: _drop(s, "classifier"), "the head is missing"),
        (lambda s: s | {"bert.pooler.dense.scale": torch.ones(2)}, r"1 not understood \(bert\.pooler\.dense\.scale\)"),
        (lambda s: nlu("roberta", 2, 16), "is for a roberta of 2 layers"),
        (lambda s: nlu("bert", 2, 24), "has width 16"),
        (lambda s: s | {"classifier.bias": torch.full((3,), torch.nan)}, "non-finite or huge values"),
        (lambda s: s | {"classifier.bias": torch.zeros(3, dtype=torch.int64)}, "has dtype int64"),
        (lambda s: s | {"classifier.weight": torch.zeros(1).expand(3, 1 << 20)}, "not those it holds"),
        (lambda s: s | nlg_lora(2, 16), "several kinds of experts"),
        (lambda s: {"weight": torch.zeros(2)}, "holds no experts of AdaMix; its first names are weight"),
        (lambda s: {}, "holds no state dict"),
        (lambda s: s | {"note": "text"}, "note is no tensor"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    edit: Callable[[State], Any], message: str, bert: Backbone, tmp_path: Path
) -> None:
    state = nlu("bert", 2, 16)
    edited = edit(state)
    if "module.transformer.h.0.attn.c_attn.experts_lora_B.0" in edited:
        edited = {name.removeprefix("module."): tensor for name, tensor in edited.items()}
    with pytest.raises(InvalidAdapter, match=message):
        import_release(written(tmp_path, edited), bert, ImportOptions())


def test_options_that_contradict_the_file_are_refused(bert: Backbone, tmp_path: Path) -> None:
    source = written(tmp_path, nlu("bert", 2, 16))
    with pytest.raises(InvalidConfig, match="2 names for a head with 3 outputs"):
        import_release(source, bert, ImportOptions(labels=("a", "b")))
    with pytest.raises(InvalidConfig, match="--alpha is for LoRA experts"):
        import_release(source, bert, ImportOptions(), alpha=32)
    with pytest.raises(InvalidConfig, match="--max-length: tiny takes at most 40"):
        import_release(source, bert, ImportOptions(max_length=41))

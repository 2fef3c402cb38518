"""The families beside BERT: where their sites are, that padding does not leak, and a whole run on a tiny decoder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
)
from typer.testing import CliRunner

from adamix.backbones.backbone import Backbone, from_model
from adamix.backbones.sites import Point, insert, points
from adamix.cli import app
from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.data import Example, TaskData
from adamix.errors import InvalidConfig, InvalidData
from adamix.evaluation.labelled import predict
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec, HeadSpec, Manifest, TrainingRecord
from adamix.files.tensors import TensorData
from adamix.modules.attach import attach
from adamix.modules.bottleneck import Bottleneck, BottleneckAtLinear
from adamix.modules.heads import recompute_activations, shared_copy
from adamix.modules.mixture import Mixture
from adamix.rows.labelled import TokenRow, tokenize
from adamix.training.run_directory import newest_checkpoint
from adamix.training.train import train
from adamix_testing.manifests import make_manifest

_SIZES: dict[str, Any] = {"vocab_size": 256, "max_position_embeddings": 64, "initializer_range": 0.2}
_ENCODER = _SIZES | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
# Fewer heads of keys and values than of queries: these projections are narrower than the hidden size.
_GROUPED = _ENCODER | {"num_key_value_heads": 2}

BODIES: dict[str, Callable[[], PreTrainedModel]] = {
    "distilbert": lambda: DistilBertModel(DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, **_SIZES)),
    "roberta": lambda: RobertaModel(RobertaConfig(pad_token_id=1, **_ENCODER)),
    "gpt2": lambda: GPT2Model(
        GPT2Config(
            vocab_size=256,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_inner=48,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=None,
        )
    ),
    "llama": lambda: LlamaModel(LlamaConfig(**_GROUPED)),
    "mistral": lambda: MistralModel(MistralConfig(sliding_window=None, **_GROUPED)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**_GROUPED)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(head_dim=16, **_GROUPED)),
}
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    made = {}
    for name, make in BODIES.items():
        torch.manual_seed(0)
        made[name] = from_model(make(), name=name)
    return made


def _ids(lengths: list[int]) -> list[TokenRow]:
    random = np.random.default_rng(0)
    return [TokenRow(tuple(random.integers(3, 64, n).tolist()), None, is_truncated=False) for n in lengths]


def _hidden(body: nn.Module, rows: list[TokenRow] | None = None) -> Tensor:
    ids = torch.tensor([row.input_ids for row in rows or _ids([9, 9])])
    with torch.no_grad():
        hidden: Tensor = body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return hidden


def _adapter(
    spec: BackboneSpec, sites: tuple[str, ...], kind: str = "bottleneck", pooling: str = "mean", seed: int = 0
) -> AdapterFile:
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"head.out_proj.weight": (3, spec.hidden_size), "head.out_proj.bias": (3,)}
    for layer in range(spec.num_layers):
        for site in sites:
            name, (width_in, width_out) = f"layers.{layer}.{site}", spec.sites[site]
            if kind == "lora":
                shapes |= {f"{name}.lora_A": (2, width_in), f"{name}.lora_B": (width_out, 2)}
            else:
                shapes |= {f"{name}.down_proj.weight": (2, width_out), f"{name}.down_proj.bias": (2,)}
                shapes |= {f"{name}.up_proj.weight": (width_out, 2), f"{name}.up_proj.bias": (width_out,)}
    manifest = make_manifest(
        spec,
        HeadSpec(type="classification", pooling=pooling, num_labels=3),  # type: ignore[arg-type]
        kind=kind,  # type: ignore[arg-type]
        scaling=0.5,
        training=TrainingRecord(method="random"),
    )
    tensors = {name: TensorData.from_float32(random.normal(0, 0.3, shape)) for name, shape in shapes.items()}
    return adapter_file.decode(adapter_file.encode(manifest, tensors))


def _linear_sites(backbone: Backbone) -> tuple[str, ...]:
    return tuple(site for site in backbone.spec.sites if "norm" not in site)


@pytest.mark.parametrize("family", BODIES)
def test_a_lora_at_every_linear_is_a_change_of_its_weight(family: str, backbones: dict[str, Backbone]) -> None:
    """`W + s B A` written into a copy of the backbone: into the columns of a fused projection, the right way round."""
    backbone = backbones[family]
    sites = _linear_sites(backbone)
    adapter = _adapter(backbone.spec, sites, kind="lora")
    torch.manual_seed(0)
    folded = BODIES[family]().eval()
    for site in sites:
        for layer, point in enumerate(points(folded, site)):
            a, b = (torch.tensor(adapter.site(layer, site)[name].to_float32()) for name in ("lora_A", "lora_B"))
            weight = point.module.weight
            assert isinstance(weight, Tensor)
            rows = weight.data if isinstance(point.module, nn.Linear) else weight.data.T  # [out, in]
            start, stop = point.window or (0, len(rows))
            assert stop - start == point.out_features
            rows[start:stop] += 0.5 * b @ a
    # Two layers in fp32, values of order 1.
    torch.testing.assert_close(_hidden(attach(adapter, backbone).body), _hidden(folded), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(_hidden(folded), _hidden(backbone.model), atol=1e-2)


@pytest.mark.parametrize("family", BODIES)
def test_a_bottleneck_at_every_linear_reads_and_changes_its_output(family: str, backbones: dict[str, Backbone]) -> None:
    """`h + s up(gelu(down(h)))` by hooks on the untouched backbone."""
    backbone = backbones[family]
    sites = _linear_sites(backbone)
    adapter = _adapter(backbone.spec, sites)
    hooked = shared_copy(backbone.model)

    def change(layer: int, point: Point, h: Tensor) -> Tensor:
        weights = {name: torch.tensor(t.to_float32()) for name, t in adapter.site(layer, point.site).items()}
        start, stop = point.window or (0, h.shape[-1])
        part, result = h[..., start:stop], h.clone()
        units = F.gelu(F.linear(part, weights["down_proj.weight"], weights["down_proj.bias"]))
        result[..., start:stop] = part + 0.5 * F.linear(units, weights["up_proj.weight"], weights["up_proj.bias"])
        return result

    for site in sites:
        for layer, point in enumerate(points(hooked, site)):
            point.module.register_forward_hook(lambda _m, _i, out, layer=layer, point=point: change(layer, point, out))
    torch.testing.assert_close(_hidden(attach(adapter, backbone).body), _hidden(hooked), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", BODIES)
def test_a_padded_batch_answers_as_each_row_alone(family: str, pooling: str, backbones: dict[str, Backbone]) -> None:
    backbone = backbones[family]
    model = attach(_adapter(backbone.spec, ("attn_v", "mlp_out"), pooling=pooling), backbone)
    rows = _ids([12, 1, 5, 30, 5])
    together = predict(model, rows, pad_id=1)
    alone = torch.cat([predict(model, [row], pad_id=1) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    # What stands in the padding is nobody's.
    torch.testing.assert_close(predict(model, rows, pad_id=7), together, atol=1e-6, rtol=1e-5)


def test_the_last_token_is_the_last_of_the_text(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["gpt2"]
    adapter = _adapter(backbone.spec, (), pooling="last")
    (row, _) = rows = _ids([4, 9])
    weight, bias = (torch.tensor(adapter.tensors[f"head.out_proj.{n}"].to_float32()) for n in ("weight", "bias"))
    expected = _hidden(backbone.model, [row])[0, -1] @ weight.T + bias
    torch.testing.assert_close(predict(attach(adapter, backbone), rows, pad_id=0)[0], expected, atol=1e-5, rtol=1e-4)


def test_a_padding_token_in_a_text_takes_a_position_as_any_other(backbones: dict[str, Backbone]) -> None:
    """Someone may write `<pad>`: the server counts it, while RoBERTa's own count of positions passes over it."""
    backbone = backbones["roberta"]
    (row,) = _ids([6])
    row = TokenRow((*row.input_ids[:2], 1, *row.input_ids[2:]), None, is_truncated=False)
    adapter = _adapter(backbone.spec, ())
    with torch.no_grad():
        hidden = backbone.model(
            input_ids=torch.tensor([row.input_ids]), position_ids=torch.arange(2, 9)[None]
        ).last_hidden_state
    weight, bias = (torch.tensor(adapter.tensors[f"head.out_proj.{n}"].to_float32()) for n in ("weight", "bias"))
    expected = hidden.mean(1) @ weight.T + bias
    model = attach(adapter, backbone)
    torch.testing.assert_close(predict(model, [row], pad_id=1), expected, atol=1e-5, rtol=1e-4)
    longer = TokenRow(tuple(range(3, 20)), None, is_truncated=False)
    torch.testing.assert_close(predict(model, [row, longer], pad_id=1)[:1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_mixture_in_evaluation_is_one_adapter_of_mean_weights(
    family: str, kind: str, backbones: dict[str, Backbone]
) -> None:
    backbone = backbones[family]
    config = AdapterConfig(kind=kind, sites=("attn_q", "attn_v", "mlp_out"), rank=3)  # type: ignore[arg-type]
    mixed = shared_copy(backbone.model)
    experts = Mixture(mixed, config, MixtureConfig(num_experts=3, share="none"), torch.Generator().manual_seed(1))
    mixed.eval()
    means: dict[str, TensorData] = {}
    with torch.no_grad():
        for key, projection in experts.projections():
            for parameter in projection.parameters():
                parameter.normal_(0, 0.3)
            weight, bias = projection.merged()
            means[key if kind == "lora" else f"{key}.weight"] = TensorData.from_float32(weight.numpy())
            if bias is not None:
                means[f"{key}.bias"] = TensorData.from_float32(bias.numpy())
    plain = _adapter(backbone.spec, ())
    manifest = Manifest.from_json(
        {
            **plain.manifest.to_json(),
            "kind": kind,
            "scaling": 1.0,
            "activation": ("identity" if kind == "lora" else "gelu"),
        }
    )
    adapter = adapter_file.decode(adapter_file.encode(manifest, plain.tensors | means))
    adapter_file.check_backbone(adapter, backbone.spec)
    torch.testing.assert_close(_hidden(attach(adapter, backbone).body), _hidden(mixed), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", BODIES)
def test_gradients_reach_experts_and_nothing_else(family: str, backbones: dict[str, Backbone]) -> None:
    """With and without recomputed activations, at every site of the family; both ways the same."""
    backbone = backbones[family]
    gradients = []
    for recompute in (False, True):
        body = shared_copy(backbone.model)
        sites = tuple(backbone.spec.sites)
        experts = Mixture(body, AdapterConfig(sites=sites, rank=2), MixtureConfig.single(), torch.Generator())
        if recompute:
            recompute_activations(body)
        body.train()
        for module in body.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        ids = torch.tensor([row.input_ids for row in _ids([9, 9])])
        torch.manual_seed(0)  # of dropout inside the attention
        body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.square().mean().backward()
        trained = {name: p for name, p in body.named_parameters() if p.grad is not None}
        assert {id(p) for p in trained.values()} == {id(p) for _, x in experts.projections() for p in x.parameters()}
        gradients.append([p.grad for p in trained.values()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
    assert all(p.grad is None for p in backbone.model.parameters())


def test_two_bottlenecks_of_one_fused_projection_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    fused = nn.Linear(6, 9)
    first, second = (Bottleneck(nn.Linear(3, 2), nn.Linear(2, 3), "gelu", 1.0) for _ in range(2))
    both = BottleneckAtLinear(BottleneckAtLinear(fused, first, (0, 3)), second, (6, 9))
    x = torch.randn(4, 6)
    h = fused(x)
    expected = h + torch.cat([first(h[:, :3]), torch.zeros(4, 3), second(h[:, 6:])], dim=1)
    torch.testing.assert_close(both(x), expected)


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_has_no_norm_sites(family: str, backbones: dict[str, Backbone]) -> None:
    with pytest.raises(InvalidConfig, match=f"{family} has no site 'mlp_norm'; it has attn_q"):
        insert(shared_copy(backbones[family].model), ["mlp_norm"], lambda point: point.module)


def test_the_first_token_of_a_decoder_is_refused(
    backbones: dict[str, Backbone], tokenizer: PreTrainedTokenizerFast, colours: TaskData, tmp_path: Path
) -> None:
    plan = TrainingPlan(head=HeadConfig(pooling="cls"), train=TrainConfig(max_steps=1, max_length=32))
    with pytest.raises(InvalidConfig, match="sees nothing of the text: use pooling `last`"):
        train(plan, backbones["llama"], tokenizer, colours, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: bytes, no special tokens around a text, none for padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_is_trained_merged_and_evaluated_by_command(
    family: str, byte_level: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The label is the first letter of the text, which a causal body has to carry to the last token."""
    directory, data, out, file = (tmp_path / name for name in ("body", "data.jsonl", "run", "adapter.safetensors"))
    torch.manual_seed(0)
    BODIES[family]().save_pretrained(directory)
    byte_level.save_pretrained(directory)
    random = np.random.default_rng(0)
    lines = []
    for _ in range(120):
        label = str(random.choice(["x", "y"]))
        lines.append({"text": label + "".join(random.choice(list("abcd"), random.integers(1, 4))), "label": label})
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--pooling", "last", "--rank", "16", "--max-steps", "80", "--lr", "0.02", "--max-length", "16"]
    _invoke("train", "--backbone", directory, "--data", data, "--out", out, *flags)
    checkpoint = newest_checkpoint(out)
    assert checkpoint is not None
    names = load_file(checkpoint / "trained.safetensors")
    assert all(".adapter." in name or name.startswith("head.out_proj.") for name in names)
    _invoke("merge", out, "--out", file)
    assert adapter_file.read(file).manifest.head.pooling == "last"
    by_file = _invoke("evaluate", file, "--data", data, "--split", "train", "--json")
    assert json.loads(by_file)["metrics"]["accuracy"] > 0.85
    assert json.loads(_invoke("evaluate", out, "--data", data, "--split", "train", "--json")) == json.loads(by_file)


def _invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_a_text_without_a_token_is_refused(
    byte_level: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(InvalidData, match="makes no token of the text 'zzz'"):
        tokenize(bare, [Example("a", 0), Example("zzz", 0)], max_length=8, has_types=False)
    with pytest.raises(InvalidConfig, match="below the 3 special tokens"):
        tokenize(tokenizer, [Example("red", 0, "blue")], max_length=2, has_types=True)
    assert len(tokenize(byte_level, [Example("zzz", 0)], max_length=8, has_types=False)[0]) == 3

"""PEFT directories in and out: the same logits as the library's own model, and refusals by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from adamix.backbones.backbone import Backbone
from adamix.errors import FailedPrecondition, InvalidAdapter, InvalidConfig
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import Dense, Pooling
from adamix.files.tensors import TensorData
from adamix.interop.assembly import ImportOptions
from adamix.interop.peft.export import export_peft
from adamix.interop.peft.weights import import_peft
from adamix.modules.attach import attach
from adamix_testing.adapters import AdapterShape, MakeRandomAdapter

FAMILIES = ["bert", "roberta", "xlm-roberta", "distilbert", "gpt2", "llama", "mistral", "qwen2", "qwen3"]
# `all-linear` would take DistilBERT's second layer of the head too, which PEFT saves whole.
TARGETS = {"distilbert": r".*\.(q_lin|k_lin|v_lin|out_lin|lin1|lin2)"}
Rows = tuple[Tensor, Tensor]
MakeClassifier = Callable[..., Any]


def adapt(model: Any, **settings: Any) -> PeftModel:
    """A LoRA whose every factor is drawn, heads too: nothing is zero, so nothing can be left out unnoticed."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 7, "init_lora_weights": False, "task_type": "SEQ_CLS"} | settings)
    torch.manual_seed(1)
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    return adapted.eval()


def logits(model: Any, rows: Rows) -> Tensor:
    with torch.inference_mode():
        result = model(input_ids=rows[0], attention_mask=rows[1])
    return result if isinstance(result, Tensor) else result.logits


def saved(model: PeftModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linears_of_every_family_come_in(
    family: str, make_classifier: MakeClassifier, rows: Rows, tmp_path: Path
) -> None:
    """Of GPT-2 the fused projection too, and of BERT the pooler, which becomes the head's own dense layer."""
    base = make_classifier(family)
    plain = logits(base.model, rows)
    model = adapt(base.model, target_modules=TARGETS.get(family, "all-linear"))
    imported = import_peft(saved(model, tmp_path / "peft"), base.backbone, ImportOptions())
    expected = logits(model, rows)
    assert_same(logits(attach(imported.adapter, base.backbone), rows), expected)
    assert (plain - expected).abs().max() > 0.1
    assert imported.matched == len(load_file(tmp_path / "peft" / "adapter_model.safetensors"))
    assert imported.adapter.manifest.head.dense == ("none" if base.backbone.family.is_decoder else "own")


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {"target_modules": ["query", "value"], "use_rslora": True}),
        ("bert", {"target_modules": r".*layer\.1\..*\.(key|dense)", "lora_alpha": 16}),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["pooler"]}),
        ("roberta", {"target_modules": ["query", "key"], "layers_to_transform": [1], "layers_pattern": "layer"}),
        (
            "roberta",
            {
                "target_modules": ["query", "value", "output.dense"],
                "rank_pattern": {"query": 5, "layer.1.output.dense": 2},
                "alpha_pattern": {"value": 11, "^roberta.encoder.layer.0.output.dense": 3},
            },
        ),
        ("llama", {"target_modules": ["q_proj", "v_proj", "gate_proj"], "rank_pattern": {"gate_proj": 1}}),
    ],
)
def test_patterns_ranks_and_scales(
    family: str, settings: dict[str, Any], make_classifier: MakeClassifier, rows: Rows, tmp_path: Path
) -> None:
    base = make_classifier(family)
    model = adapt(base.model, **settings)
    imported = import_peft(saved(model, tmp_path / "peft"), base.backbone, ImportOptions())
    assert_same(logits(attach(imported.adapter, base.backbone), rows), logits(model, rows))


def test_a_pickled_directory_comes_in(make_classifier: MakeClassifier, rows: Rows, tmp_path: Path) -> None:
    base = make_classifier("bert")
    model = adapt(base.model, target_modules=["query"])
    directory = saved(model, tmp_path / "peft")
    weights = directory / "adapter_model.safetensors"
    torch.save(load_file(weights), directory / "adapter_model.bin")
    weights.unlink()
    options = ImportOptions(labels=("a", "b", "c"), max_length=16)
    imported = import_peft(directory, base.backbone, options)
    assert_same(logits(attach(imported.adapter, base.backbone), rows), logits(model, rows))
    assert imported.adapter.manifest.head.labels == ("a", "b", "c")
    assert imported.adapter.manifest.max_length == 16


def test_a_head_of_an_unnamed_task_is_noted(make_classifier: MakeClassifier, directory: Path) -> None:
    edit(directory, task_type=None, base_model_name_or_path="someone/elses-bert")
    base, task = import_peft(directory, make_classifier("bert").backbone, ImportOptions()).notes
    assert "trained on 'someone/elses-bert'" in base
    assert "does not say its task" in task


def test_weights_stay_in_their_dtype(make_classifier: MakeClassifier, tmp_path: Path) -> None:
    base = make_classifier("bert")
    directory = saved(adapt(base.model, target_modules=["query"]), tmp_path / "peft")
    path = directory / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    adapter = import_peft(directory, base.backbone, ImportOptions()).adapter
    assert {tensor.dtype for tensor in adapter.tensors.values()} == {"BF16"}


def test_a_causal_lora_comes_in_without_a_head(make_classifier: MakeClassifier, rows: Rows, tmp_path: Path) -> None:
    base = make_classifier("llama")
    model = adapt(base.model.model, target_modules=["q_proj", "down_proj"], task_type="FEATURE_EXTRACTION")
    directory = saved(model, tmp_path / "peft")
    adapter = import_peft(directory, base.backbone, ImportOptions()).adapter
    assert (adapter.manifest.head.type, adapter.manifest.head.pooling) == ("causal_lm", "none")
    embedding = import_peft(directory, base.backbone, ImportOptions(pooling="mean")).adapter
    assert embedding.manifest.head.type == "embedding"
    with torch.inference_mode():
        states = model(input_ids=rows[0], attention_mask=rows[1]).last_hidden_state
        found = attach(embedding, base.backbone)(*rows)
    mask = rows[1].unsqueeze(-1)
    assert_same(found, (states * mask).sum(1) / mask.sum(1))


def test_one_output_is_a_regression(make_classifier: MakeClassifier, tmp_path: Path) -> None:
    base = make_classifier("roberta", num_labels=1)
    directory = saved(adapt(base.model, target_modules=["query"]), tmp_path / "peft")
    head = import_peft(directory, base.backbone, ImportOptions(clip=(0, 5))).adapter.manifest.head
    assert (head.type, head.clip) == ("regression", (0, 5))
    with pytest.raises(InvalidConfig, match="a regression has no labels"):
        import_peft(directory, base.backbone, ImportOptions(labels=("x",)))


def test_labels_that_no_manifest_holds_are_refused(make_classifier: MakeClassifier, tmp_path: Path) -> None:
    base = make_classifier("bert", num_labels=600)
    directory = saved(adapt(base.model, target_modules=["query"]), tmp_path / "peft")
    labels = tuple(f"{index:03d}" + "x" * 497 for index in range(600))
    with pytest.raises(InvalidAdapter, match="names of the labels") as said:
        import_peft(directory, base.backbone, ImportOptions(labels=labels))
    assert said.value.reason == "MANIFEST_TOO_LARGE"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("DoRA", {"target_modules": ["query"], "use_dora": True}, "use_dora is set: DoRA"),
    ("bias", {"target_modules": ["query"], "bias": "all"}, "bias='all': biases of the backbone were trained"),
    ("lora bias", {"target_modules": ["query"], "lora_bias": True}, "lora_bias is set: B has a bias"),
    ("embedding", {"target_modules": ["query", "word_embeddings"]}, "an embedding is a target"),
    ("tokens", {"target_modules": ["query"], "trainable_token_indices": [3]}, "trainable tokens change"),
    ("norm", {"target_modules": ["query"], "modules_to_save": ["LayerNorm"]}, "whole modules were trained"),
    ("replication", {"target_modules": ["query"], "layer_replication": [[0, 2]]}, "layer_replication is set"),
]


@pytest.mark.parametrize(("settings", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_said_is_refused_by_name(
    settings: dict[str, Any], message: str, make_classifier: MakeClassifier, tmp_path: Path
) -> None:
    base = make_classifier("bert")
    replication = settings.pop("layer_replication", None)
    directory = saved(adapt(base.model, **settings), tmp_path / "peft")
    if replication is not None:
        edit(directory, layer_replication=replication)
    with pytest.raises(InvalidAdapter, match=message):
        import_peft(directory, base.backbone, ImportOptions())


def edit(directory: Path, **entries: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.fixture
def directory(make_classifier: MakeClassifier, tmp_path: Path) -> Path:
    return saved(adapt(make_classifier("bert").model, target_modules=["query"]), tmp_path / "peft")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the weights of the backbone"),
        ({"r": 4}, "has rank 3, and adapter_config.json says 4"),
        ({"r": "3"}, "adapter_config.json: Expected `int`"),
        ({"shiny_new_option": 1}, "unknown options are set: shiny_new_option"),
        ({"rank_pattern": {"(a+)+b": 3}}, "is too involved"),
        ({"alpha_pattern": {"(query": 3}}, "is no regular expression"),
        ({"alpha_pattern": {"a{99999999999999999999}": 3}}, "is no regular expression"),
        ({"peft_type": "\u001b[2J\n"}, r"method '\\x1b\[2J\\n' is not"),
        ({"task_type": "TOKEN_CLS"}, "the task type 'TOKEN_CLS' is not supported"),
        ({"use_rslora": [[[]]]}, "Expected `bool`"),
        ({"lora_alpha": 1e9}, "scaling is not a finite number"),
        ({"peft_type": "IA3"}, "PEFT's method 'IA3' is not supported"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    entries: dict[str, Any], message: str, make_classifier: MakeClassifier, directory: Path
) -> None:
    edit(directory, **entries)
    with pytest.raises(InvalidAdapter, match=message):
        import_peft(directory, make_classifier("bert").backbone, ImportOptions())


def test_other_methods_of_peft_are_refused(make_classifier: MakeClassifier, tmp_path: Path) -> None:
    base = make_classifier("bert")
    config = IA3Config(task_type="SEQ_CLS", target_modules=["key"], feedforward_modules=[])
    directory = saved(get_peft_model(base.model, config), tmp_path / "peft")
    with pytest.raises(InvalidAdapter, match="PEFT's method 'IA3' is not supported; only LORA is"):
        import_peft(directory, base.backbone, ImportOptions())


def test_a_head_that_was_not_saved_whole_is_refused(make_classifier: MakeClassifier, tmp_path: Path) -> None:
    base = make_classifier("distilbert")
    directory = saved(adapt(base.model, target_modules=["q_lin"]), tmp_path / "peft")
    path = directory / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "pre_classifier" not in name}, path)
    with pytest.raises(InvalidAdapter, match="pre_classifier was not saved; it was random"):
        import_peft(directory, base.backbone, ImportOptions())


def test_weights_of_another_backbone_are_refused(make_classifier: MakeClassifier, directory: Path) -> None:
    with pytest.raises(InvalidAdapter, match="no site of roberta"):
        import_peft(directory, make_classifier("roberta").backbone, ImportOptions())
    shallow = make_classifier("bert", num_hidden_layers=1).backbone
    with pytest.raises(InvalidAdapter, match=r"beyond its 1 layers: .*layer\.1\.attention"):
        import_peft(directory, shallow, ImportOptions())
    wide = make_classifier("bert", hidden_size=32).backbone
    with pytest.raises(InvalidAdapter, match="expected"):
        import_peft(directory, wide, ImportOptions())


EXPORTS = [
    ("bert", ("attn_q", "attn_v"), "cls", "backbone"),
    ("bert", ("attn_k", "mlp_out"), "cls", "own"),
    ("roberta", ("attn_q", "attn_out", "mlp_in"), "cls", "own"),
    ("distilbert", ("attn_q", "mlp_out"), "cls", "own"),
    ("gpt2", ("attn_q", "attn_v", "mlp_in"), "last", "none"),
    ("llama", ("attn_q", "attn_v", "mlp_gate"), "last", "none"),
]


def lora(
    make_adapter: MakeRandomAdapter, backbone: Backbone, sites: tuple[str, ...], pooling: Pooling, dense: Dense
) -> AdapterFile:
    """A LoRA of different ranks and scales, with the head of its family's sequence classifier."""
    import msgspec

    shape: AdapterShape = {"kind": "lora", "pooling": pooling, "dense": dense}
    parts = [
        make_adapter(seed, spec=backbone.spec, sites=(site,), rank=2 + seed, **shape) for seed, site in enumerate(sites)
    ]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    family = backbone.spec.model_type
    if backbone.family.is_decoder:
        tensors["head.out_proj.bias"] = TensorData.from_float32(torch.zeros(3).numpy())
    manifest = parts[0].manifest
    head = msgspec.structs.replace(manifest.head, activation={"distilbert": "relu"}.get(family, "tanh"))
    scaling = {site: 0.5 + index for index, site in enumerate(sites)} | {f"layers.1.{sites[0]}": 0.25}
    manifest = msgspec.structs.replace(manifest, head=head if dense == "own" else manifest.head, scaling=scaling)
    return adapter_file.decode(adapter_file.encode(manifest, tensors))


@pytest.mark.parametrize(("family", "sites", "pooling", "dense"), EXPORTS)
def test_peft_computes_what_was_exported(
    family: str,
    sites: tuple[str, ...],
    pooling: str,
    dense: str,
    make_classifier: MakeClassifier,
    make_adapter: MakeRandomAdapter,
    rows: Rows,
    tmp_path: Path,
) -> None:
    base = make_classifier(family)
    adapter = lora(make_adapter, base.backbone, sites, pooling, dense)
    expected = logits(attach(adapter, base.backbone), rows)
    exported = export_peft(adapter, tmp_path / "peft")
    assert exported.task_type == "SEQ_CLS"
    loaded = PeftModel.from_pretrained(base.model, tmp_path / "peft").eval()
    assert_same(logits(loaded, rows), expected)
    again = import_peft(tmp_path / "peft", base.backbone, ImportOptions()).adapter
    assert_same(logits(attach(again, base.backbone), rows), expected)
    assert {key: tensor.shape for key, tensor in again.tensors.items()} == {
        key: tensor.shape for key, tensor in adapter.tensors.items()
    }


def test_some_layers_of_many_are_exported(
    make_classifier: MakeClassifier, make_adapter: MakeRandomAdapter, rows: Rows, tmp_path: Path
) -> None:
    """PEFT shortens long lists of targets; those it finds again have to be the same."""
    base = make_classifier("bert", num_hidden_layers=12)
    whole = lora(make_adapter, base.backbone, ("attn_q", "attn_out", "mlp_out"), "cls", "own")
    kept = {key: value for key, value in whole.tensors.items() if not key.startswith(("layers.0.", "layers.10."))}
    adapter = adapter_file.decode(adapter_file.encode(whole.manifest, kept))
    export_peft(adapter, tmp_path / "peft")
    expected = logits(attach(adapter, base.backbone), rows)
    assert_same(logits(PeftModel.from_pretrained(base.model, tmp_path / "peft").eval(), rows), expected)


def test_the_body_alone_can_be_exported(
    make_classifier: MakeClassifier, make_adapter: MakeRandomAdapter, rows: Rows, tmp_path: Path
) -> None:
    base = make_classifier("bert")
    adapter = lora(make_adapter, base.backbone, ("attn_q",), "mean", "none")
    with pytest.raises(FailedPrecondition, match="pools by `mean`, transformers' by `cls`; --body-only"):
        export_peft(adapter, tmp_path / "peft")
    exported = export_peft(adapter, tmp_path / "peft", body_only=True)
    assert exported.task_type == "FEATURE_EXTRACTION"
    assert "the head was left out" in exported.notes
    model = PeftModel.from_pretrained(base.model.bert, tmp_path / "peft").eval()
    with torch.inference_mode():
        found = model(input_ids=rows[0], attention_mask=rows[1]).last_hidden_state
        expected = attach(adapter, base.backbone).body(*rows).last_hidden_state
    assert_same(found, expected)


def test_what_peft_has_no_words_for_is_refused(
    make_classifier: MakeClassifier, make_adapter: MakeRandomAdapter, tmp_path: Path
) -> None:
    base = make_classifier("bert")
    bottleneck = make_adapter(0, spec=base.backbone.spec)
    with pytest.raises(FailedPrecondition, match="PEFT has no bottleneck adapters, and the activation"):
        export_peft(bottleneck, tmp_path / "peft")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(FailedPrecondition, match="not an empty directory"):
        export_peft(lora(make_adapter, base.backbone, ("attn_q",), "cls", "own"), tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep me"
    decoder = make_classifier("llama").backbone
    with_bias = make_adapter(0, kind="lora", sites=("attn_q",), rank=2, pooling="last", spec=decoder.spec)
    with pytest.raises(FailedPrecondition, match="output layer has a bias, transformers' has none"):
        export_peft(with_bias, tmp_path / "peft")

"""AdapterHub directories: logits equal to those the library recorded, and refusals by name.

The directories in `golden/` were written by the library itself (`golden/make.py`).
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidAdapter, InvalidConfig
from adamix.interop.adapterhub.weights import import_adapterhub
from adamix.interop.assembly import ImportOptions
from adamix.modules.attach import attach

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/expected.json"))


def load_backbone(case: str) -> Backbone:
    return backbones.from_model(AutoModel.from_pretrained(GOLDEN / case / "backbone"), name="golden")


def difference(directory: Path, case: str, backbone: Backbone) -> float:
    """Largest difference between our logits with the adapter in `directory` and those the library had for `case`."""
    expected = json.loads((GOLDEN / case / "expected.json").read_text())
    adapter = import_adapterhub(directory, backbone, ImportOptions()).adapter
    with torch.inference_mode():
        logits = attach(adapter, backbone)(*(torch.tensor(expected[name]) for name in ("input_ids", "attention_mask")))
    return float((logits - torch.tensor(expected["logits"])).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_library(case: str) -> None:
    assert difference(GOLDEN / case / "adapter", case, load_backbone(case)) < 1e-5


@pytest.mark.parametrize(
    ("case", "sites", "activation", "labels"),
    [
        ("bert-seq-bn", {"mlp_norm"}, "relu", ("no", "yes", "perhaps")),
        ("bert-norm-points-pooler", {"attn_norm", "mlp_norm"}, "gelu", ("LABEL_0",)),
        ("roberta-double-seq-bn", {"attn_out", "mlp_out"}, "relu", ("no", "yes", "perhaps")),
        ("bert-double-seq-bn-static", {"attn_out", "mlp_out"}, "silu", ("no", "yes", "perhaps")),
    ],
)
def test_where_adapters_go(case: str, sites: set[str], activation: str, labels: tuple[str, ...]) -> None:
    adapter = import_adapterhub(GOLDEN / case / "adapter", load_backbone(case), ImportOptions()).adapter
    assert {site for _, site in adapter.sites()} == sites
    assert adapter.manifest.activation == activation
    assert adapter.manifest.head.labels == labels


def test_layers_that_were_left_out_stay_plain() -> None:
    case = "distilbert-seq-bn-static"
    adapter = import_adapterhub(GOLDEN / case / "adapter", load_backbone(case), ImportOptions()).adapter
    assert {layer for layer, _ in adapter.sites()} == {0, 2}
    ranks = {layer: adapter.tensors[f"layers.{layer}.mlp_norm.down_proj.weight"].shape[0] for layer in (0, 2)}
    assert ranks == {0: 4, 2: 2}


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """A golden directory that a test may change."""

    def copy(case: str) -> Path:
        return shutil.copytree(GOLDEN / case / "adapter", tmp_path / case)

    return copy


def edit(directory: Path, name: str = "adapter_config.json", **entries: Any) -> None:
    """Replace entries of `config`."""
    path = directory / name
    document = json.loads(path.read_text())
    document["config"] |= entries
    path.write_text(json.dumps(document))


def test_early_files_come_in(copied: Callable[[str], Path]) -> None:
    """Before versions were written, modules had other names and `gelu` was the approximation, `gelu_orig` the exact."""
    case = "bert-norm-points-pooler"
    directory = copied(case)
    edit(directory, non_linearity="gelu_orig")
    for name in ("adapter_config.json", "head_config.json"):
        document = json.loads((directory / name).read_text())
        del document["version"]
        (directory / name).write_text(json.dumps(document))
    weights = directory / "adapter.safetensors"
    state = load_file(weights)
    attention = ".attention.output.adapters."
    save_file(
        {
            name.replace(attention, ".attention.output.attention_text_task_adapters.").replace(
                ".output.adapters.", ".output.layer_text_task_adapters."
            ): tensor
            for name, tensor in state.items()
        },
        weights,
    )
    assert difference(directory, case, load_backbone(case)) < 1e-5
    edit(directory, non_linearity="gelu")
    assert difference(directory, case, load_backbone(case)) > 3e-5


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"is_parallel": True}, r"a parallel adapter \(par_bn\)"),
        ({"phm_layer": True}, "Compacter"),
        ({"inv_adapter": "nice"}, "an invertible adapter"),
        ({"use_gating": True}, "a gate scales"),
        ({"ln_before": True}, "a LayerNorm of its own"),
        ({"cross_adapter": True}, "encoder-decoder"),
        ({"scaling": "learned"}, "scaling is 'learned'"),
        ({"scaling": "channel"}, "scaling is 'channel'"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln is 'post_add'"),
        ({"residual_before_ln": False}, "residual_before_ln is False"),
        ({"original_ln_after": False}, "original_ln_after is off"),
        ({"non_linearity": "leakyrelu"}, "the activation 'leakyrelu' is not supported"),
        ({"architecture": "prefix_tuning"}, "the library's 'prefix_tuning' is not supported"),
        ({"architecture": "lora"}, "the library's 'lora' is not supported"),
        ({"architecture": "union"}, "the library's 'union' is not supported"),
        ({"brand_new": 3}, "unknown options are set: brand_new"),
        ({"mh_adapter": True}, r"8 missing \(bert.encoder.layer.0.attention.output.adapters.task"),
        ({"output_adapter": False, "mh_adapter": True}, "8 missing .* 8 not understood"),
        ({"leave_out": [0]}, r"4 not understood \(bert.encoder.layer.0"),
        ({"leave_out": [0, 1]}, "8 not understood"),
        ({"mh_adapter": "yes"}, "Expected `bool`"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(
    entries: dict[str, Any], message: str, copied: Callable[[str], Path]
) -> None:
    directory = copied("bert-seq-bn")
    edit(directory, **entries)
    with pytest.raises(InvalidAdapter, match=message):
        import_adapterhub(directory, load_backbone("bert-seq-bn"), ImportOptions())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"head_type": "question_answering"}, "heads of type 'question_answering' are not supported"),
        ({"layers": 3}, "3 layers; our heads have at most one"),
        ({"use_pooler": True}, "2 layers on the pooler"),
        ({"activation_function": None}, "missing .*heads.task.3.weight"),
        ({"label2id": {"a": 0, "b": 2, "c": 3}}, "label2id is no numbering"),
        ({"label2id": {"a": 0}}, "the source names 1 labels, its head has 3 outputs"),
    ],
)
def test_heads_that_cannot_be_said_are_refused(
    entries: dict[str, Any], message: str, copied: Callable[[str], Path]
) -> None:
    directory = copied("bert-seq-bn")
    edit(directory, "head_config.json", **entries)
    with pytest.raises(InvalidAdapter, match=message):
        import_adapterhub(directory, load_backbone("bert-seq-bn"), ImportOptions())


def test_a_decoder_has_no_place_for_seq_bn(copied: Callable[[str], Path]) -> None:
    directory = copied("gpt2-double-seq-bn")
    edit(directory, original_ln_before=True)
    with pytest.raises(InvalidAdapter, match="on gpt2 puts the adapter behind the residual sum"):
        import_adapterhub(directory, load_backbone("gpt2-double-seq-bn"), ImportOptions())


def test_without_a_head_the_pooling_has_to_be_given(copied: Callable[[str], Path]) -> None:
    directory = copied("bert-seq-bn")
    (directory / "head_config.json").unlink()
    backbone = load_backbone("bert-seq-bn")
    with pytest.raises(InvalidConfig, match="--pooling mean, cls or last"):
        import_adapterhub(directory, backbone, ImportOptions())
    head = import_adapterhub(directory, backbone, ImportOptions(pooling="cls")).adapter.manifest.head
    assert (head.type, head.pooling) == ("embedding", "cls")


def test_a_head_that_tags_tokens_is_refused(copied: Callable[[str], Path]) -> None:
    """It has a layer of the same name."""
    directory = copied("bert-double-seq-bn-static")
    path = directory / "head_config.json"
    path.write_text(path.read_text().replace("BertForSequenceClassification", "BertForTokenClassification"))
    with pytest.raises(InvalidAdapter, match="the head of a 'BertForTokenClassification' is no sequence classifier"):
        import_adapterhub(directory, load_backbone("bert-double-seq-bn-static"), ImportOptions())


def test_a_multilabel_head_is_one(copied: Callable[[str], Path]) -> None:
    directory = copied("bert-seq-bn")
    edit(directory, "head_config.json", head_type="multilabel_classification")
    head = import_adapterhub(directory, load_backbone("bert-seq-bn"), ImportOptions()).adapter.manifest.head
    assert (head.type, head.threshold) == ("multilabel", 0.5)


def test_another_backbone_is_refused() -> None:
    with pytest.raises(InvalidAdapter, match="made for 'bert' of hidden size 16; golden is roberta of 16"):
        import_adapterhub(GOLDEN / "bert-seq-bn" / "adapter", load_backbone("roberta-double-seq-bn"), ImportOptions())


def test_other_directories_are_named(tmp_path: Path) -> None:
    backbone = load_backbone("bert-seq-bn")
    (tmp_path / "adapter_fusion_config.json").write_text("{}")
    with pytest.raises(InvalidAdapter, match="AdapterFusion combines several adapters"):
        import_adapterhub(tmp_path, backbone, ImportOptions())
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InvalidAdapter, match="a directory of PEFT: `adamix import peft`"):
        import_adapterhub(tmp_path, backbone, ImportOptions())

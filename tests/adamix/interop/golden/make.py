"""Makes the golden directories beside this file with the library that such directories come from.

Run once, in an environment of its own, because `adapters` pins an older transformers than this project's::

    python3.11 -m venv /tmp/adapterhub
    /tmp/adapterhub/bin/pip install torch==2.13.0 adapters==1.3.0
    /tmp/adapterhub/bin/python tests/adamix/interop/golden/make.py

Every case is a tiny random backbone (`backbone/`), an adapter with its head as the library saves them (`adapter/`), and
what the library computed with both on a few padded rows (`expected.json`). Adapters and heads are drawn large, so that
any part that is left out or put elsewhere changes the logits by far more than rounding does.
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import adapters
import torch
from adapters import AutoAdapterModel, DoubleSeqBnConfig, SeqBnConfig
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    RobertaConfig,
)

HERE = Path(__file__).parent
LABELS = {0: "no", 1: "yes", 2: "perhaps"}
ROWS = [[5, 9, 12, 33, 7, 21, 3], [4, 30, 11, 2], [8, 8]]
PAD = 1

ENCODER = {
    "vocab_size": 36,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "pad_token_id": PAD,
    "initializer_range": 0.3,
}
CONFIGS = {
    "bert": BertConfig(**ENCODER),
    "roberta": RobertaConfig(**ENCODER, type_vocab_size=1, bos_token_id=0, eos_token_id=2),
    "distilbert": DistilBertConfig(
        vocab_size=36, dim=16, n_layers=3, n_heads=2, hidden_dim=20, max_position_embeddings=16, pad_token_id=PAD,
        initializer_range=0.3,
    ),
    "gpt2": GPT2Config(
        vocab_size=36, n_embd=16, n_layer=2, n_head=2, n_positions=16, n_inner=20, pad_token_id=PAD, bos_token_id=0,
        eos_token_id=2, initializer_range=0.3,
    ),
    "llama": LlamaConfig(
        vocab_size=36, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=20, max_position_embeddings=16, pad_token_id=PAD, bos_token_id=0, eos_token_id=2,
        initializer_range=0.3,
    ),
}  # fmt: skip


def flex(family: str, config: Any, **head: Any) -> PreTrainedModel:
    """A model with heads of the library's own kind."""
    model = AutoAdapterModel.from_config(copy.deepcopy(CONFIGS[family]))
    model.add_adapter("task", config=config)
    model.add_classification_head("task", **head)
    return model


def static(family: str, config: Any) -> PreTrainedModel:
    """A sequence classifier of transformers, with its own head."""
    config_of_model = copy.deepcopy(CONFIGS[family])
    config_of_model.id2label, config_of_model.label2id = LABELS, {name: i for i, name in LABELS.items()}
    model = AutoModelForSequenceClassification.from_config(config_of_model)
    adapters.init(model)
    model.add_adapter("task", config=config)
    return model


def cases() -> dict[str, PreTrainedModel]:
    houlsby_relu = DoubleSeqBnConfig(reduction_factor=4, non_linearity="relu")
    return {
        "bert-seq-bn": flex("bert", SeqBnConfig(reduction_factor=4), num_labels=3, id2label=LABELS),
        "bert-norm-points-pooler": flex(
            "bert",
            SeqBnConfig(mh_adapter=True, reduction_factor=8, non_linearity="gelu", scaling=0.5),
            num_labels=1,
            layers=1,
            use_pooler=True,
        ),
        "bert-double-seq-bn-static": static("bert", DoubleSeqBnConfig(reduction_factor=4)),
        "roberta-double-seq-bn": flex(
            "roberta", houlsby_relu, num_labels=3, activation_function="gelu_new", id2label=LABELS
        ),
        "roberta-seq-bn-static": static("roberta", SeqBnConfig(reduction_factor=4, non_linearity="gelu_new")),
        "distilbert-seq-bn-static": static(
            "distilbert", SeqBnConfig(mh_adapter=True, reduction_factor={"0": 4, "default": 8}, leave_out=[1])
        ),
        "gpt2-double-seq-bn": flex("gpt2", DoubleSeqBnConfig(reduction_factor=4), num_labels=3, layers=1),
        "llama-double-seq-bn": flex("llama", houlsby_relu, num_labels=3),
    }


def draw(model: PreTrainedModel) -> None:
    """Weights of adapters and heads that matter, biases included; backbone biases too, which start at zero."""
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name or "layer_norm" in name or ".ln_" in name or "norm.weight" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
        elif parameter.dim() == 1 or "adapter_" in name or name.startswith(("heads.", "classifier", "pre_classifier")):
            parameter.data.copy_(torch.randn_like(parameter) * 0.3)


def make(name: str, model: PreTrainedModel, out: Path, use_safetensors: bool) -> None:
    draw(model)
    model.set_active_adapters("task")
    model.eval()
    width = max(map(len, ROWS))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in ROWS])
    mask = (torch.arange(width) < torch.tensor([[len(row)] for row in ROWS])).long()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
        model.set_active_adapters(None)
        if hasattr(model, "active_head"):
            model.active_head = "task"
        plain = model(input_ids=ids, attention_mask=mask).logits
    assert (logits - plain).abs().max() > 0.1, f"{name}: the adapter does nothing that a test could see"
    model.save_adapter(str(out / "adapter"), "task", use_safetensors=use_safetensors, with_head=True)
    body = model.base_model
    weights = {k: v.contiguous() for k, v in body.state_dict().items() if "adapter" not in k and "prefix_tun" not in k}
    weights = {k: v for k, v in weights.items() if not k.startswith(("invertible", "shared_parameters", "prompt_tun"))}
    (out / "backbone").mkdir()
    save_file(weights, out / "backbone" / "model.safetensors", metadata={"format": "pt"})
    (out / "backbone" / "config.json").write_text(body.config.to_json_string())
    expected = {"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "logits": logits.tolist()}
    (out / "expected.json").write_text(json.dumps(expected) + "\n")


def main() -> None:
    torch.manual_seed(0)
    for index, (name, model) in enumerate(cases().items()):
        out = HERE / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        make(name, model, out, use_safetensors=index % 2 == 1)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        print(name, size, sorted(load_file(out / "backbone" / "model.safetensors"))[:2])


if __name__ == "__main__":
    main()

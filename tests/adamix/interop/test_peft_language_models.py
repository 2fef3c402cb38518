"""PEFT's adapters of language models: its own greedy tokens, how they are asked, and what of them is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidAdapter
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.generation.beam_search import attach_adapter
from adamix.interop.assembly import ImportOptions
from adamix.interop.peft.export import export_peft
from adamix.interop.peft.weights import import_peft
from adamix_testing.adapters import MakeRandomAdapter
from adamix_testing.chat_templates import MARKED

_SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "gpt2": lambda **given: GPT2Config(
        **{"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 40}
        | {"bos_token_id": 0, "eos_token_id": 2, "initializer_range": 0.3}
        | given
    ),
    "llama": lambda **given: LlamaConfig(**_SIZES | given),
    "mistral": lambda **given: MistralConfig(**_SIZES | {"sliding_window": 6} | given),
    "qwen2": lambda **given: Qwen2Config(**_SIZES | {"tie_word_embeddings": True} | given),
    "qwen3": lambda **given: Qwen3Config(**_SIZES | {"head_dim": 8, "tie_word_embeddings": True} | given),
}
PROMPTS = ([5, 9, 12, 33, 7, 21, 3, 30], [4])
NEW_TOKENS = 10


def language_model(family: str, **config: object) -> PreTrainedModel:
    """The same weights with every call."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family](**config)).eval()


def backbone_of(family: str, **config: object) -> Backbone:
    return backbones.from_language_model(language_model(family, **config), name="tiny")


def adapted(model: PreTrainedModel, **settings: Any) -> PeftModel:
    """A LoRA whose every factor is drawn: nothing is zero, so nothing can be left out unnoticed."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 7, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | settings)
    torch.manual_seed(1)
    found = get_peft_model(model, config)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    return found.eval()


def saved(model: PeftModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def greedy(model: Any) -> list[list[int]]:
    """The tokens of each prompt, asked alone; none ends early."""
    with torch.inference_mode():
        return [
            model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, len(ids) :].tolist()
            for ids in PROMPTS
        ]


GPT2_TARGETS = {"gpt2 attention": ["c_attn"], "gpt2 both projections": ["c_proj"], "gpt2 all": "all-linear"}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "gpt2", {"target_modules": targets, "fan_in_fan_out": True}) for name, targets in GPT2_TARGETS.items()),
    ("llama all", "llama", {"target_modules": "all-linear", "use_rslora": True}),
    ("llama list", "llama", {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 16}),
    ("llama regex", "llama", {"target_modules": r".*layers\.1\..*\.(gate_proj|down_proj)"}),
    (
        "llama patterns",
        "llama",
        {
            "target_modules": ["q_proj", "o_proj", "up_proj"],
            "rank_pattern": {"o_proj": 5, "^model.layers.1.mlp.up_proj": 1},
            "alpha_pattern": {"q_proj": 11, "layers.0.self_attn.o_proj": 2},
            "use_rslora": True,
        },
    ),
    ("llama layers", "llama", {"target_modules": ["k_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
    ("llama without", "llama", {"target_modules": "all-linear", "exclude_modules": ["v_proj"]}),
    ("mistral all", "mistral", {"target_modules": "all-linear"}),
    ("qwen2 all", "qwen2", {"target_modules": "all-linear"}),
    ("qwen3 all", "qwen3", {"target_modules": "all-linear"}),
]


@pytest.mark.parametrize(("family", "settings"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_an_adapter_gives_the_tokens_that_it_gives_in_peft(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = adapted(language_model(family), **settings)
    backbone = backbone_of(family)
    imported = import_peft(saved(model, tmp_path), backbone, ImportOptions())
    expected = greedy(model)
    assert greedy(attach_adapter(imported.adapter, backbone)) == expected
    assert greedy(language_model(family)) != expected
    assert imported.matched == len(load_file(tmp_path / "adapter_model.safetensors"))
    manifest = imported.adapter.manifest
    assert (manifest.head.type, manifest.prompt, manifest.chat_template) == ("causal_lm", "text", None)
    # A prompt may be as long as the model's window: what a row of training had is not known.
    assert manifest.max_length == 40


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("head as a target", {"target_modules": ["q_proj", "lm_head"]}, "lm_head is a target"),
    ("head in whole", {"modules_to_save": ["lm_head"]}, "lm_head was saved whole"),
    ("embedding in whole", {"modules_to_save": ["embed_tokens"]}, "embed_tokens was saved whole"),
    ("embedding as a target", {"target_modules": ["q_proj", "embed_tokens"]}, "an embedding is a target"),
    ("tokens", {"trainable_token_indices": [3]}, "trainable_token_indices is set: trainable tokens change"),
    ("DoRA", {"use_dora": True}, "use_dora is set: DoRA"),
    ("bias", {"bias": "lora_only"}, "bias='lora_only': biases of the backbone were trained"),
    ("bias of B", {"lora_bias": True}, "lora_bias is set: B has a bias"),
    ("norm in whole", {"modules_to_save": ["norm"]}, "whole modules were trained"),
]


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize(("settings", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_would_change_the_backbone_is_refused_by_name(
    settings: dict[str, Any], message: str, tied: bool, tmp_path: Path
) -> None:
    model = language_model("llama", tie_word_embeddings=tied)
    directory = saved(adapted(model, **{"target_modules": ["q_proj"]} | settings), tmp_path)
    backbone = backbone_of("llama", tie_word_embeddings=tied)
    with pytest.raises(InvalidAdapter, match=message) as said:
        import_peft(directory, backbone, ImportOptions())
    assert said.value.reason == "UNSUPPORTED"


def test_embeddings_of_gpt2_are_refused_by_name(tmp_path: Path) -> None:
    model = adapted(language_model("gpt2"), target_modules=["c_attn"], modules_to_save=["wte"], fan_in_fan_out=True)
    with pytest.raises(InvalidAdapter, match="wte was saved whole, and an adapter leaves the head and the embeddings"):
        import_peft(saved(model, tmp_path), backbone_of("gpt2"), ImportOptions())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return saved(adapted(language_model("llama"), target_modules=["q_proj"]), tmp_path / "peft")


@pytest.fixture
def backbone() -> Backbone:
    return backbone_of("llama")


def prompt_of(directory: Path, backbone: Backbone) -> tuple[str | None, str | None]:
    manifest = import_peft(directory, backbone, ImportOptions()).adapter.manifest
    return manifest.prompt, manifest.chat_template


def test_a_template_beside_an_adapter_makes_it_one_for_chats(directory: Path, backbone: Backbone) -> None:
    config = directory / "tokenizer_config.json"
    assert prompt_of(directory, backbone) == ("text", None)
    config.write_text(json.dumps({"eos_token": "</s>"}))
    assert prompt_of(directory, backbone) == ("text", None)
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": "of two"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert prompt_of(directory, backbone) == ("chat", "of two")
    config.write_text(json.dumps({"chat_template": "of the config"}))
    assert prompt_of(directory, backbone) == ("chat", "of the config")
    (directory / "chat_template.jinja").write_text(MARKED)
    assert prompt_of(directory, backbone) == ("chat", MARKED)
    (note,) = import_peft(directory, backbone, ImportOptions()).notes[-1:]
    assert "brings a chat template" in note


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat_template.jinja", b"{% if %}", r"chat_template.jinja: the chat template is not in jinja2's language"),
        ("chat_template.jinja", b"{% include 'x' %}", "loads another template"),
        ("chat_template.jinja", b"\xff", "is not text in UTF-8"),
        ("chat_template.jinja", b"a" * ((64 << 10) + 1), "chat_template.jinja is over 64 KiB"),
        (
            "tokenizer_config.json",
            b'{"chat_template": {"default": 1}}',
            "tokenizer_config.json: chat_template: Expected",
        ),
        ("tokenizer_config.json", b'{"chat_template": [1]}', "tokenizer_config.json: chat_template: Expected"),
        ("tokenizer_config.json", b"[", "tokenizer_config.json is not JSON"),
        ("adamix_prompt.json", b'{"prompt": "song"}', "adamix_prompt.json: Invalid enum value 'song'"),
        ("adamix_prompt.json", b"{}", "adamix_prompt.json: Object missing required field `prompt`"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(
    name: str, content: bytes, message: str, directory: Path, backbone: Backbone
) -> None:
    (directory / name).write_bytes(content)
    with pytest.raises(InvalidAdapter, match=message):
        import_peft(directory, backbone, ImportOptions())


def test_a_classifier_with_a_tokenizer_beside_it_has_no_prompt(directory: Path, backbone: Backbone) -> None:
    (directory / "chat_template.jinja").write_text("{% if %}")
    manifest = import_peft(directory, backbone, ImportOptions(pooling="mean")).adapter.manifest
    assert (manifest.head.type, manifest.prompt) == ("embedding", None)


@pytest.fixture
def writer(make_adapter: MakeRandomAdapter, backbone: Backbone) -> AdapterFile:
    """A LoRA that was trained here."""
    adapter = make_adapter(3, spec=backbone.spec, kind="lora", sites=("attn_q", "mlp_out"), rank=2, pooling="last")
    return as_writer(adapter)


def as_writer(adapter: AdapterFile, **prompt: Any) -> AdapterFile:
    import msgspec

    head = type(adapter.manifest.head)(type="causal_lm", pooling="none")
    manifest = msgspec.structs.replace(adapter.manifest, head=head, **prompt)
    tensors = {name: tensor for name, tensor in adapter.tensors.items() if not name.startswith("head.")}
    return adapter_file.decode(adapter_file.encode(manifest, tensors))


@pytest.mark.parametrize(
    ("prompt", "files"),
    [
        ({}, {"adamix_prompt.json"}),
        ({"prompt": "source"}, {"adamix_prompt.json"}),
        ({"prompt": "text"}, set()),
        ({"prompt": "text", "chat_template": MARKED}, {"adamix_prompt.json", "chat_template.jinja"}),
        ({"prompt": "chat", "chat_template": MARKED}, {"chat_template.jinja"}),
        ({"prompt": "chat"}, {"adamix_prompt.json"}),
    ],
)
def test_what_is_exported_comes_back_as_it_was_asked(
    prompt: dict[str, Any], files: set[str], writer: AdapterFile, backbone: Backbone, tmp_path: Path
) -> None:
    adapter = as_writer(writer, **prompt)
    exported = export_peft(adapter, tmp_path / "out")
    written = {path.name for path in exported.files}
    assert written == {path.name for path in (tmp_path / "out").iterdir()}
    assert written - {"adapter_config.json", "adapter_model.safetensors"} == files
    again = import_peft(tmp_path / "out", backbone, ImportOptions()).adapter
    assert again.manifest.prompt_form == adapter.manifest.prompt_form
    assert again.manifest.chat_template == adapter.manifest.chat_template
    assert any("separator" in note for note in exported.notes) == (adapter.manifest.prompt_form == "source")
    assert again.tensors.keys() == adapter.tensors.keys()
    assert all((again.tensors[name].array == tensor.array).all() for name, tensor in adapter.tensors.items())


def test_peft_generates_what_was_exported(writer: AdapterFile, backbone: Backbone, tmp_path: Path) -> None:
    export_peft(writer, tmp_path / "out")
    loaded = PeftModel.from_pretrained(language_model("llama"), tmp_path / "out").eval()
    assert greedy(loaded) == greedy(attach_adapter(writer, backbone))
    assert greedy(loaded) != greedy(language_model("llama"))


def test_a_head_without_weights_of_its_own_is_the_backbones(directory: Path, backbone: Backbone) -> None:
    """PEFT saves what is tied to an embedding under the embedding's name: neither comes in unnoticed."""
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"base_model.model.model.embed_tokens.weight": torch.zeros(40, 16)}, path)
    with pytest.raises(InvalidAdapter, match="embed_tokens was saved whole"):
        import_peft(directory, backbone, ImportOptions())

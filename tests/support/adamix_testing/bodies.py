"""Backbones of two small random layers: the same weights with every call."""

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)


def tiny_bert(**changes: Any) -> BertModel:
    """32 wide, 64 tokens, 64 positions; `changes` are fields of `BertConfig`."""
    config = _bert_config(**changes)
    torch.manual_seed(0)
    return BertModel(config)


def tiny_masked_bert(vocab_size: int) -> BertForMaskedLM:
    config = _bert_config(vocab_size=vocab_size, pad_token_id=0, initializer_range=0.2)
    torch.manual_seed(0)
    model = BertForMaskedLM(config)
    model.eval()
    return model


def tiny_gpt2(vocab_size: int) -> GPT2LMHeadModel:
    """16 wide, 48 positions."""
    config = GPT2Config(vocab_size=vocab_size, n_embd=16, n_layer=2, n_head=2, n_positions=48, initializer_range=0.3)
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)


def tiny_llama(vocab_size: int) -> LlamaForCausalLM:
    """16 wide, 48 positions, two heads of queries to each of keys."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def _bert_config(**changes: Any) -> BertConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    return BertConfig(**sizes | changes)

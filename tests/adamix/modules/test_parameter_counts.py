"""Parameter counts of the paper, on models of the true shape without memory (meta device)."""

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

from adamix.config import AdapterConfig, MixtureConfig
from adamix.files.manifest import HeadSpec
from adamix.modules.heads import Head
from adamix.modules.mixture import Mixture


def _bert_base() -> PreTrainedModel:
    return BertModel(BertConfig(), add_pooling_layer=False)


def _roberta_large() -> PreTrainedModel:
    config = RobertaConfig(
        vocab_size=50265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    return RobertaModel(config, add_pooling_layer=False)


@pytest.mark.parametrize(
    ("make_body", "rank", "merged", "trained"),
    [
        (_bert_base, 48, 894_528, {"up": 2_223_360, "down": 2_249_280, "none": 3_578_112}),
        (_roberta_large, 16, 811_392, {"up": 1_992_192, "down": 2_064_768, "none": 3_245_568}),
    ],
)
def test_bottleneck_counts_are_the_paper_s(make_body: object, rank: int, merged: int, trained: dict[str, int]) -> None:
    assert callable(make_body)
    for share, expected in trained.items():
        with torch.device("meta"):
            body = make_body()
            body.requires_grad_(False)
            experts = Mixture(body, AdapterConfig(rank=rank), MixtureConfig(share=share), torch.Generator("cpu"))
        assert experts.num_parameters() == (expected, merged)
        # Only the experts are trained: counted once more, through the body that holds them.
        assert sum(p.numel() for p in body.parameters() if p.requires_grad) == expected


def test_lora_counts_follow_their_factors() -> None:
    """Per layer and site `r * d` for each A and each B; here q and v of BERT-base, r = 4, B shared."""
    with torch.device("meta"):
        body = _bert_base().requires_grad_(False)
        lora = AdapterConfig(kind="lora", sites=("attn_q", "attn_v"), rank=4)
        experts = Mixture(body, lora, MixtureConfig(num_experts=8), torch.Generator("cpu"))
    factor = 12 * 2 * 4 * 768
    assert experts.num_parameters() == (8 * factor + factor, 2 * factor)


def test_roberta_s_own_head_is_larger_than_the_merged_adapter() -> None:
    with torch.device("meta"):
        head = Head(
            HeadSpec(type="classification", pooling="cls", dense="own", num_labels=3, activation="tanh"), 1024, None
        )
    assert sum(p.numel() for p in head.parameters()) == 1_049_600 + 1_025 * 3

"""Settings out of range are refused when they are made, and the message names the setting."""

import math
from typing import Any

import pytest

from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig
from adamix.errors import InvalidConfig


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (AdapterConfig, "kind", "prefix"),
        (AdapterConfig, "rank", 0),
        (AdapterConfig, "rank", 4096),
        (AdapterConfig, "alpha", math.nan),
        (AdapterConfig, "sites", ("mlp_output",)),
        (AdapterConfig, "sites", ("mlp_out", "mlp_out")),
        (AdapterConfig, "activation", "swish"),
        (AdapterConfig, "lora_dropout", 0.1),
        (MixtureConfig, "num_experts", 0),
        (MixtureConfig, "share", "both"),
        (MixtureConfig, "consistency", -1.0),
        (MixtureConfig, "consistency", math.inf),
        (MixtureConfig, "routing_granularity", "token"),
        (HeadConfig, "pooling", "max"),
        (HeadConfig, "dense", "backbone"),
        (HeadConfig, "dropout", 1.0),
        (HeadConfig, "clip", (1.0, 0.0)),
        (HeadConfig, "clip", (1.0, 1.0)),
        (HeadConfig, "clip", (0.0, math.nan)),
        (HeadConfig, "clip", (0.0, math.inf)),
        (HeadConfig, "clip", (0.0, 1e300)),
        (TrainConfig, "batch_size", 0),
        (TrainConfig, "accumulation", 3),
        (TrainConfig, "max_steps", 0),
        (TrainConfig, "learning_rate", math.nan),
        (TrainConfig, "precision", "fp8"),
        (TrainConfig, "seed", -1),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(config: Any, field: str, value: Any) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config(**{field: value})
    assert caught.value.field in (field, "pooling")


def test_a_lora_does_not_sit_at_a_norm() -> None:
    with pytest.raises(InvalidConfig, match="norm point"):
        AdapterConfig(kind="lora", sites=("attn_q", "mlp_norm"))


def test_sites_go_by_kind_unless_given() -> None:
    assert AdapterConfig().sites == ("mlp_out",)
    assert AdapterConfig.of("lora").sites == ("attn_q", "attn_v")
    assert AdapterConfig(kind="lora", sites=()).sites == ()
    assert AdapterConfig(kind="lora", sites=("mlp_in",)).sites == ("mlp_in",)


def test_a_lora_has_no_activation() -> None:
    with pytest.raises(InvalidConfig, match="a LoRA has none") as caught:
        AdapterConfig(kind="lora", activation="relu")
    assert caught.value.field == "activation"


def test_the_scale_is_alpha_over_rank_or_one() -> None:
    assert AdapterConfig(rank=4, alpha=32.0).scale == 8.0
    assert AdapterConfig(rank=4).scale == 1.0


def test_the_baseline_is_one_expert_and_one_pass() -> None:
    single = MixtureConfig.single()
    assert (single.num_experts, single.passes, single.num_down, single.num_up) == (1, 1, 1, 1)


def test_a_shared_side_is_a_mixture_of_one() -> None:
    assert (MixtureConfig(share="up").num_down, MixtureConfig(share="up").num_up) == (4, 1)
    assert (MixtureConfig(share="down").num_down, MixtureConfig(share="down").num_up) == (1, 4)
    assert (MixtureConfig(share="none").num_down, MixtureConfig(share="none").num_up) == (4, 4)


@pytest.mark.parametrize(
    ("settings", "rows", "processes", "steps"),
    [
        ({"epochs": 2.0, "batch_size": 16}, 33, 1, 6),
        ({"epochs": 0.5, "batch_size": 16}, 64, 1, 2),
        ({"epochs": 1.0, "batch_size": 16}, 64, 4, 1),
        ({"epochs": 9.0, "max_steps": 7}, 64, 1, 7),
    ],
)
def test_steps_follow_from_epochs_unless_given(settings: dict[str, Any], rows: int, processes: int, steps: int) -> None:
    assert TrainConfig(**settings).steps(rows, processes) == steps

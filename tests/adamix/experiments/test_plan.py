"""A plan: what its settings, a recipe and defaults decide, and that the command line knows the same settings."""

import inspect
from typing import Any, get_args

import pytest

from adamix.cli.train import train
from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig
from adamix.errors import InvalidConfig
from adamix.experiments.plan import Plan
from adamix.experiments.settings import SETTINGS, Value

NAMED: dict[str, Value] = {"backbone": "minilm", "data": "trec"}
KINDS = {str: "text", int: "integer", float: "number", bool: "switch"}
# Flags of `train` that are no settings of a training.
OTHERS = ["ctx", "out", "resume", "json_", "push", "task", "gate", "push_split"]


def _plan(**settings: Value) -> Plan:
    return Plan.of(NAMED | settings)


def test_what_is_left_open_is_the_default_of_the_configurations() -> None:
    plan = Plan.of(NAMED)
    assert (plan.backbone, plan.data, plan.task_type, plan.few_shot) == ("minilm", "trec", None, None)
    assert (plan.validate, plan.device, plan.recipe) == (True, "auto", None)
    found = (plan.adapter, plan.mixture, plan.head, plan.train)
    assert found == (AdapterConfig(), MixtureConfig(), HeadConfig(), TrainConfig())


def test_settings_are_read_as_they_are_written() -> None:
    plan = _plan(sites="attn_q, mlp_out", expert_init="same", lr=1, few_shot=30, validate=False, clip="-1,2.5")
    assert (plan.adapter.sites, plan.adapter.distinct_init) == (("attn_q", "mlp_out"), False)
    assert (plan.train.learning_rate, type(plan.train.learning_rate)) == (1.0, float)
    assert (plan.few_shot, plan.validate, plan.head.clip) == (30, False, (-1.0, 2.5))
    assert _plan(sites="none").adapter.sites == ()
    assert _plan(method="lora").adapter.sites == ("attn_q", "attn_v")
    words = _plan(head="cloze", verbalizer="no=bad,yes=good", template="{text} {mask}").head.cloze
    assert words is not None
    assert (words.words, words.template) == ((("no", "bad"), ("yes", "good")), "{text} {mask}")


def test_what_is_given_wins_over_the_recipe_and_the_recipe_over_defaults() -> None:
    defaults: dict[str, Value] = {"epochs": 50.0, "batch_size": 8, "accumulation": 2}
    settings = NAMED | {"recipe": "glue-bert-base", "rank": 4}
    plan = Plan.of(settings, defaults)
    assert (plan.adapter.rank, plan.train.epochs, plan.train.batch_size, plan.train.accumulation) == (4, 40.0, 64, 2)
    assert plan.recipe is not None
    assert plan.recipe.instead == {"rank": 4}
    assert plan.recipe.taken["epochs"] == 40.0
    assert Plan.of(NAMED, defaults).train.epochs == 50.0


def test_a_setting_takes_the_place_of_its_alternative() -> None:
    defaults: dict[str, Value] = {"epochs": 50.0}
    for settings in (NAMED, NAMED | {"recipe": "glue-bert-base"}):
        plan = Plan.of(settings | {"max_steps": 3}, defaults)
        assert (plan.train.max_steps, plan.train.epochs) == (3, TrainConfig.epochs)
    plan = _plan(recipe="e2e-gpt2-medium", warmup_ratio=0.5)
    assert (plan.train.warmup_steps, plan.train.warmup_ratio) == (None, 0.5)
    assert plan.recipe is not None
    assert plan.recipe.instead == {"warmup_ratio": 0.5}
    assert "warmup_steps" not in plan.recipe.taken


def test_a_cloze_head_takes_nothing_of_a_recipe_s_plain_one() -> None:
    plan = _plan(recipe="glue-bert-base", head="cloze")
    assert plan.head.dense == "none"
    assert plan.recipe is not None
    assert not plan.recipe.taken.keys() & {"pooling", "dense", "head_dropout"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.1}, "there is no setting 'learning_rate'"),
        ({"lr": 20}, "lr must be in 0.0..10.0"),
        ({"lr": 10**400}, "lr is too large"),
        ({"experts": 0}, "experts must be in 1..64"),
        ({"rank": 10**400}, "rank must be in 1..1024"),
        ({"head_dropout": 1}, "head-dropout must be in"),
        ({"epochs": 1, "max_steps": 1}, "give --epochs or --max-steps, not both"),
        ({"pooling": "cls", "head": "cloze"}, "--pooling is for --head plain"),
        ({"template": "{text}"}, "--template is for --head cloze"),
        ({"recipe": "none"}, "--recipe none is none of"),
    ],
)
def test_a_wrong_setting_is_called_by_its_name(settings: dict[str, Value], message: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^{message}"):
        Plan.of(NAMED | settings)
    with pytest.raises(InvalidConfig, match="Missing option '--data'"):
        Plan.of({"backbone": "minilm"})


def test_the_flags_of_train_are_the_settings_with_the_same_kinds_and_defaults() -> None:
    flags = dict(inspect.signature(train).parameters)
    assert [name for name in flags if name not in SETTINGS] == OTHERS
    assert [name for name in flags if name in SETTINGS] == list(SETTINGS)
    plan = Plan.of(NAMED)
    for name, setting in SETTINGS.items():
        declared = get_args(flags[name].annotation)[0]
        kinds = [KINDS[kind] for kind in (get_args(declared) or (declared,)) if kind in KINDS]
        assert kinds == [setting.kind], name
        default: Any = flags[name].default
        if name != "head" and default not in (None, inspect.Parameter.empty):
            part = plan if setting.part == "plan" else getattr(plan, setting.part)
            assert setting.of(default) == getattr(part, setting.field), name

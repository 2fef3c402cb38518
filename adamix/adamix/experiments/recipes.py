"""The settings of the published runs, by name.

A recipe names a value for every setting that the paper's released scripts fix, and where each value is from. It knows
neither how they are given on a command line nor how a training uses them; a setting that is given as well wins.

The sources: the scripts of the released code (github.com/microsoft/AdaMix), of which the NLU half has those of MNLI
alone, and the paper, arXiv 2205.12410.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.errors import InvalidConfig
from adamix.experiments.settings import ALTERNATIVES, PLAIN_HEAD, SETTINGS, Value, spelled

# `release`: the released scripts or code. `paper`: the paper alone, where the code has something else or nothing.
Provenance = Literal["release", "paper"]


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingPlan):
    """Published settings of one kind of run.

    Attributes:
        model_type: of the backbones it is for.
        backbone: the hub id of the published one.
        hidden_size, num_layers: of that one; a smaller or larger one of the family is allowed.
        task_type: what it trains; None where the data say it.
        provenance: of every setting that the recipe fixes, by the names of `SETTINGS`. The configurations have their
            defaults everywhere else.
    """

    name: str
    model_type: str
    backbone: str
    hidden_size: int
    num_layers: int
    provenance: Mapping[str, Provenance]
    task_type: str | None = None

    def __post_init__(self) -> None:
        unnamed = sorted(_changed(self) - set(self.provenance))
        if unnamed:
            raise InvalidConfig(f"recipe {self.name} sets {unnamed[0]} and does not say where it is from")

    def settings(self) -> dict[str, Value]:
        """Every setting that the recipe fixes, as it is written."""
        found: dict[str, Value] = {} if self.task_type is None else {"task_type": self.task_type}
        for name, setting in SETTINGS.items():
            if name in self.provenance:
                found[name] = spelled(getattr(getattr(self, setting.part), setting.field))
        return found

    def check_backbone(self, model_type: str) -> None:
        """Raise InvalidConfig unless the recipe is for backbones of this type."""
        if model_type != self.model_type:
            raise InvalidConfig(
                f"recipe {self.name} is for {self.model_type} backbones such as {self.backbone}, "
                f"and this one is a {model_type}",
                field="recipe",
            )


@dataclass(frozen=True)
class Settled:
    """What a recipe set in a training and what was given instead, by the names of settings and as they are written."""

    recipe: Recipe
    taken: Mapping[str, Value]
    instead: Mapping[str, Value]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.recipe.name, "settings": dict(self.taken), "given": dict(self.instead)}


def settle(recipe: Recipe, given: Mapping[str, Value]) -> Settled:
    """Sort a recipe's settings by whether something was given instead; a cloze head has no plain one's settings."""
    unread = PLAIN_HEAD if given.get("head") == "cloze" else ()
    settings = {name: value for name, value in recipe.settings().items() if name not in unread}
    instead = {name: given[name] for name in settings if name in given}
    for name, other in ALTERNATIVES.items():
        if name in settings and name not in given and other in given:
            del settings[name]
            instead[other] = given[other]
    return Settled(recipe, {name: value for name, value in settings.items() if name not in instead}, instead)


def find(name: str) -> Recipe:
    """The recipe of a name, or InvalidConfig naming all there are."""
    if name not in RECIPES:
        raise InvalidConfig(f"--recipe {name[:60]} is none of {', '.join(RECIPES)}", field="recipe")
    return RECIPES[name]


def _changed(recipe: Recipe) -> set[str]:
    """Settings that differ from their defaults; the field's name for one that has no setting."""
    names: dict[tuple[str, str], str] = {(setting.part, setting.field): name for name, setting in SETTINGS.items()}
    changed = set()
    for part in fields(TrainingPlan):
        ours, default = getattr(recipe, part.name), getattr(TrainingPlan(), part.name)
        for field in fields(ours):
            if getattr(ours, field.name) != getattr(default, field.name):
                changed.add(names.get((part.name, field.name), field.name))
    return changed


def _from_release(*names: str) -> dict[str, Provenance]:
    return dict.fromkeys(names, "release")


_SCHEDULE = ("max_length", "epochs", "lr", "batch_size", "weight_decay", "max_grad_norm", "label_smoothing")
_GLUE = _from_release(
    *("method", "rank", "sites", "activation", "experts", "share", "consistency", "routing_granularity", "task_loss"),
    *("pooling", "dense", "head_dropout", "warmup_ratio", *_SCHEDULE),
)
_BOTTLENECK_NLG = _from_release(
    *("method", "rank", "sites", "activation", "experts", "share", "consistency", "routing_granularity", "task_loss"),
    *("warmup_steps", "backbone_dropout", *_SCHEDULE),
)
_LORA_NLG = _from_release("alpha", "lora_dropout", *(name for name in _BOTTLENECK_NLG if name != "activation"))


def _glue(name: str, backbone: str, model_type: str, size: tuple[int, int], **settings: Any) -> Recipe:
    return Recipe(
        name=name,
        model_type=model_type,
        backbone=backbone,
        hidden_size=size[0],
        num_layers=size[1],
        adapter=AdapterConfig(rank=settings["rank"], sites=("mlp_out",)),
        mixture=MixtureConfig(num_experts=4, share="up", consistency=1.0),
        head=HeadConfig(pooling="cls", dense=settings["dense"], dropout=0.1),
        train=TrainConfig(
            learning_rate=settings["lr"],
            epochs=settings["epochs"],
            batch_size=64,
            max_length=128,
            weight_decay=0.1,
            warmup_ratio=0.06,
            max_grad_norm=1.0,
        ),
        provenance=_GLUE | settings.get("provenance", {}),
    )


def _nlg(data: str, method: str, *, epochs: int, warmup: int, decay: float, dropout: float, smoothing: float) -> Recipe:
    is_lora = method == "lora"
    return Recipe(
        name=f"{data}-gpt2-medium" if is_lora else f"{data}-gpt2-medium-adapter",
        model_type="gpt2",
        backbone="openai-community/gpt2-medium",
        hidden_size=1024,
        num_layers=24,
        task_type="generation",
        adapter=AdapterConfig(kind="lora", rank=4, alpha=32.0, sites=("attn_q", "attn_v"), lora_dropout=dropout)
        if is_lora
        else AdapterConfig(rank=8, sites=("mlp_out",), activation="gelu_tanh"),
        mixture=MixtureConfig(num_experts=8, share="up", consistency=100.0),
        train=TrainConfig(
            learning_rate=2e-4,
            epochs=float(epochs),
            batch_size=8,
            max_length=512,
            weight_decay=decay,
            warmup_steps=warmup,
            label_smoothing=smoothing,
            max_grad_norm=0.0,
            backbone_dropout=False,  # the release has a GPT-2 of its own, without any dropout
        ),
        provenance=_LORA_NLG if is_lora else _BOTTLENECK_NLG,
    )


def _all() -> list[Recipe]:
    # The released code has no consistency loss for BERT at all, the paper has; its weight is that of RoBERTa.
    bert = {"rank": 48, "dense": "backbone", "lr": 4e-4, "epochs": 40.0, "provenance": {"consistency": "paper"}}
    roberta = {"rank": 16, "dense": "own", "lr": 3e-4, "epochs": 20.0}
    found = [
        _glue("glue-bert-base", "google-bert/bert-base-uncased", "bert", (768, 12), **bert),
        _glue("glue-roberta-large", "FacebookAI/roberta-large", "roberta", (1024, 24), **roberta),
    ]
    for method in ("lora", "bottleneck"):
        found += [
            _nlg("e2e", method, epochs=20, warmup=2000, decay=0.01, dropout=0.1, smoothing=0.1),
            _nlg("webnlg", method, epochs=25, warmup=2500, decay=0.01, dropout=0.1, smoothing=0.1),
            _nlg("dart", method, epochs=20, warmup=2000, decay=0.0, dropout=0.0, smoothing=0.0),
        ]
    return found


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _all()}

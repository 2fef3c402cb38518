"""One training as a value: what is trained on what, and how. Made of settings, of which a recipe may say the rest.

Plain data, checked when it is made: no torch, and of the disk whether packages are there. `experiments.run` carries a
plan out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adamix.config import AdapterConfig, ClozeConfig, HeadConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.errors import InvalidConfig
from adamix.experiments import recipes
from adamix.experiments.recipes import Settled
from adamix.experiments.settings import ALTERNATIVES, PLAIN_HEAD, SETTINGS, Part, Value, flag_of, named_as_settings
from adamix.experiments.trackers import check_installed

if TYPE_CHECKING:
    from adamix.data.named import Source


@dataclass(frozen=True, kw_only=True)
class Plan(TrainingPlan):
    """One training.

    Attributes:
        backbone: a directory, a hub id or a packaged one.
        data: the data set by the name it is asked for, or in memory.
        task_type: of the data, as `data.named` has it; None lets them say it.
        few_shot: rows to train on in all, drawn by the seed; None takes every row.
        validate: whether the merged adapter is measured on the validation split, if there is one.
        device: auto, cpu or cuda.
        recipe: what a recipe set; None without one.
        report_to: the trackers that the curves are sent to.
    """

    backbone: str
    data: "Source"
    task_type: str | None = None
    few_shot: int | None = None
    validate: bool = True
    device: str = "auto"
    recipe: Settled | None = None
    report_to: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Value], defaults: Mapping[str, Value] | None = None) -> "Plan":
        """The plan that settings name; what they leave open is the recipe's, and else the configurations' default.

        Args:
            settings: by the names of `SETTINGS`, as they are written.
            defaults: give way to a recipe as well as to `settings`.

        Raises:
            InvalidConfig: a setting is wrong, missing, or does not go with another one. The message has its name.
        """
        with named_as_settings():
            given = {name: _typed(name, value) for name, value in settings.items()}
            settled = None
            if "recipe" in given:
                settled = recipes.settle(recipes.find(str(given.pop("recipe"))), given)
            chosen = {**(defaults or {}), **({} if settled is None else settled.taken), **given}
            for name, other in ALTERNATIVES.items():
                if name in given and other in given:
                    raise InvalidConfig(f"give --{flag_of(name)} or --{flag_of(other)}, not both")
                if other in given:
                    chosen.pop(name, None)
            for name in ("backbone", "data"):
                if name not in chosen:
                    raise InvalidConfig(f"Missing option '--{name}'.", field=name)
            adapter = AdapterConfig.of(**{"kind": AdapterConfig.kind, **_fields("adapter", chosen)})
            mixture = MixtureConfig(**_fields("mixture", chosen))
            head = _head(chosen, given)
            train = TrainConfig(**_fields("train", chosen))
            own = _fields("plan", chosen) | {"head": head}
            plan = cls(adapter=adapter, mixture=mixture, train=train, recipe=settled, **own)
            check_installed(plan.report_to)
            return plan


def _typed(name: str, value: Value) -> Value:
    if name not in SETTINGS:
        raise InvalidConfig(f"there is no setting {name[:60]!r}", field=name)
    if SETTINGS[name].kind != "number":
        return value
    try:
        return float(value)
    except OverflowError:
        raise InvalidConfig(f"{flag_of(name)} is too large", field=name) from None


def _fields(part: Part, chosen: Mapping[str, Value]) -> dict[str, Any]:
    """The fields of one configuration."""
    return {
        setting.field: setting.of(chosen[name])
        for name, setting in SETTINGS.items()
        if setting.part == part and name in chosen
    }


def _head(chosen: Mapping[str, Value], given: Mapping[str, Value]) -> HeadConfig:
    """A plain head or a cloze. What a recipe says of a plain head does not concern a cloze."""
    kind = str(chosen.get("head", "plain"))
    if kind not in ("plain", "cloze"):
        raise InvalidConfig(f"--head must be plain or cloze, not {kind[:40]!r}", field="head")
    if kind == "plain":
        for name in ("template", "verbalizer"):
            if name in chosen:
                raise InvalidConfig(f"--{name} is for --head cloze", field=name)
        return HeadConfig(**_fields("head", chosen))
    for name in PLAIN_HEAD:
        if name in given:
            raise InvalidConfig(f"--{flag_of(name)} is for --head plain", field=name)
    return HeadConfig(cloze=ClozeConfig(**_fields("cloze", chosen)))

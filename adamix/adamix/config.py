"""Every setting of training, each default written once. Command-line flags read their defaults from here.

Plain data, checked when it is made: no torch, no disk. What a setting means to the mathematics is said where it is
used, in `modules/`.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from adamix.errors import InvalidConfig
from adamix.files.manifest import (
    MAX_CLIP,
    MAX_EXPERTS,
    MAX_TEMPLATE,
    NORM_SITES,
    SITES,
    Activation,
    Dense,
    HeadSpec,
    Kind,
    Pooling,
    RoutingGranularity,
    Share,
)

LossPasses = Literal["first", "both"]
Unrouted = Literal["skip", "momentum"]
Precision = Literal["fp32", "bf16"]

DEFAULT_SITES: dict[Kind, tuple[str, ...]] = {"bottleneck": ("mlp_out",), "lora": ("attn_q", "attn_v")}


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The adapter that every expert is a copy of. The defaults are those of a bottleneck; `of` has those of a kind.

    Attributes:
        sites: names of `manifest.SITES`; empty means a head and no adapter.
        rank: rows of the down projection (bottleneck units, or the rank of a LoRA).
        alpha: the adapter's output is multiplied by `alpha / rank`; by 1 where alpha is None (the paper's bottleneck
            has no factor).
        activation: between the projections of a bottleneck; a LoRA has none.
        lora_dropout: on the input of a LoRA during training.
        init_std: standard deviation of a bottleneck's initial weights, down and up (0.02 in the released code).
        distinct_init: draw the weights of every expert anew, as the paper says. The released code does so for
            bottlenecks, but copies one A to all experts of a LoRA, which then differ only through the batches they
            meet. Experts with a common start can be merged by what they learned since (TIES, DARE).
    """

    kind: Kind = "bottleneck"
    sites: tuple[str, ...] = DEFAULT_SITES["bottleneck"]
    rank: int = 16
    alpha: float | None = None
    activation: Activation = "gelu"
    lora_dropout: float = 0.0
    init_std: float = 0.02
    distinct_init: bool = True

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, get_args(Kind))
        _one_of("activation", self.activation, get_args(Activation))
        for site in self.sites:
            _one_of("sites", site, SITES)
            if self.kind == "lora" and site in NORM_SITES:
                raise InvalidConfig(f"a LoRA cannot sit at the norm point {site}", field="sites")
        if len(set(self.sites)) != len(self.sites):
            raise InvalidConfig(f"a site is named twice: {', '.join(self.sites)}", field="sites")
        _in_range("rank", self.rank, 1, 1024)
        _in_range("lora_dropout", self.lora_dropout, 0.0, 0.9)
        _in_range("init_std", self.init_std, 0.0, 1.0)
        if self.alpha is not None:
            _in_range("alpha", self.alpha, 0.0, 10_000.0)
        if self.kind == "bottleneck" and self.lora_dropout:
            raise InvalidConfig("lora_dropout belongs to a LoRA; a bottleneck has none", field="lora_dropout")
        if self.kind == "lora" and self.activation != AdapterConfig.activation:
            raise InvalidConfig("activation belongs to a bottleneck; a LoRA has none", field="activation")

    @classmethod
    def of(cls, kind: Kind, **settings: Any) -> "AdapterConfig":
        """An adapter of a kind; where `settings` name no sites, at those that are usual for it."""
        return replace(cls(kind=kind, sites=DEFAULT_SITES.get(kind, ())), **settings)

    @property
    def scale(self) -> float:
        """The factor on the adapter's output."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """How many experts there are and how rows are routed among them while training.

    Attributes:
        share: the projection that all experts have in common (for a LoRA, `up` is B and `down` is A).
        consistency: weight of the consistency loss between two passes over the same rows; 0 makes one pass a step.
        routing_granularity: `batch` draws one route for all rows of a pass (the released code), `instance` one for
            each row (the wording of the paper).
        task_loss: the passes whose mean is the task's loss: the `first` alone (the released code) or `both`.
    """

    num_experts: int = 4
    share: Share = "up"
    consistency: float = 1.0
    routing_granularity: RoutingGranularity = "batch"
    task_loss: LossPasses = "first"

    def __post_init__(self) -> None:
        _in_range("num_experts", self.num_experts, 1, MAX_EXPERTS)
        _one_of("share", self.share, get_args(Share))
        _in_range("consistency", self.consistency, 0.0, 10_000.0)
        _one_of("routing_granularity", self.routing_granularity, get_args(RoutingGranularity))
        _one_of("task_loss", self.task_loss, get_args(LossPasses))
        if self.task_loss == "both" and self.consistency == 0:
            raise InvalidConfig("without consistency a step has one pass: task_loss must be `first`", field="task_loss")

    @classmethod
    def single(cls) -> "MixtureConfig":
        """The baseline: one adapter, one pass."""
        return cls(num_experts=1, share="none", consistency=0.0)

    @property
    def passes(self) -> int:
        """Stochastic passes over the rows of one step."""
        return 2 if self.consistency > 0 else 1

    @property
    def num_down(self) -> int:
        """Down projections per point."""
        return 1 if self.share == "down" else self.num_experts

    @property
    def num_up(self) -> int:
        """Up projections per point."""
        return 1 if self.share == "up" else self.num_experts


@dataclass(frozen=True, kw_only=True)
class ClozeConfig:
    """Reading a label off as the word that the backbone's own language model puts into a text.

    Attributes:
        template: what a row becomes: `{text}`, `{pair}` for the second text of a pair, and `{mask}` where the word is
            missing. A decoder predicts what comes next, so there the mask is at the end or left out. None takes the
            one of `adamix.rows.cloze`.
        words: (label, word) of each label that another word than its name stands for.
    """

    template: str | None = None
    words: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if len({label for label, _ in self.words}) != len(self.words):
            raise InvalidConfig("the verbalizer names a label twice", field="words")
        if any(not word or word.isspace() for _, word in self.words):
            raise InvalidConfig("a word of the verbalizer is empty", field="words")
        template = self.template
        if template is None:
            return
        if template.count("{text}") != 1 or template.count("{pair}") > 1 or template.count("{mask}") > 1:
            raise InvalidConfig("a template has {text} once, and {pair} and {mask} at most once", field="template")
        if len(template) > MAX_TEMPLATE or any("\ud800" <= char <= "\udfff" for char in template):
            raise InvalidConfig(f"a template is valid text of at most {MAX_TEMPLATE} characters", field="template")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What sits on the backbone's last hidden states.

    The default, the mean over tokens and one linear, suits sentence encoders. BERT's paper is `cls` and the frozen
    pooler (`dense="backbone"`); RoBERTa's is `cls` and a dense layer of the task's own (`dense="own"`). Of a decoder
    only the `last` token has seen the whole text.

    Attributes:
        activation: after the `own` dense layer.
        dropout: during training, before each linear of the head.
        clip: interval that predictions of a regression are cut to.
        threshold: score from which a label of a multi-label task counts as given.
        cloze: instead of all of the above, for a classification: nothing of the head is trained.
    """

    pooling: Pooling = "mean"
    dense: Dense = "none"
    activation: Activation = "tanh"
    dropout: float = 0.1
    clip: tuple[float, float] | None = None
    threshold: float = HeadSpec.DEFAULT_THRESHOLD
    cloze: ClozeConfig | None = None

    def __post_init__(self) -> None:
        _one_of("pooling", self.pooling, ("cls", "mean", "last"))
        _one_of("dense", self.dense, get_args(Dense))
        _one_of("activation", self.activation, get_args(Activation))
        _in_range("dropout", self.dropout, 0.0, 0.9)
        _in_range("threshold", self.threshold, 0.0, 1.0)
        if self.dense == "backbone" and self.pooling != "cls":
            raise InvalidConfig("the backbone's pooler reads the first token: use pooling `cls`", field="pooling")
        if self.cloze is not None and self.dense != "none":
            raise InvalidConfig("a cloze head has no dense layer of its own", field="dense")
        if self.clip is not None and not -MAX_CLIP <= self.clip[0] < self.clip[1] <= MAX_CLIP:
            low, high = self.clip
            raise InvalidConfig(
                f"clip must be two numbers within -{MAX_CLIP:g}..{MAX_CLIP:g}, the lower first, not {low:g},{high:g}",
                field="clip",
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimiser's settings. Schedule, warm-up and decay are those of the released code.

    Attributes:
        epochs: passes over the training rows; without effect where `max_steps` is given.
        max_steps: optimiser steps.
        batch_size: rows a step of the optimiser sees, per process.
        accumulation: batches of `batch_size / accumulation` rows that make one optimiser step.
        warmup_ratio: share of the steps in which the learning rate rises, before it falls linearly to 0.
        warmup_steps: their number, instead of the share.
        max_grad_norm: gradients are scaled down to this norm; 0 clips nothing.
        max_length: tokens; longer texts are cut.
        label_smoothing: share of a class's probability that its target spreads over all classes.
        unrouted: what a step does to an expert that was routed before and not now. `skip` leaves it alone, `momentum`
            lets AdamW move it by its momentum and decay, as torch before 2.0 did with gradients of zero.
        precision: `bf16` runs the forward pass under autocast; weights stay fp32.
        group_by_length: put texts of like length into one batch (less padding); the order stays random.
        backbone_dropout: keep the dropout of the backbone while training, as the released code does for BERT and
            RoBERTa; its GPT-2 has none. It also makes the two passes of a step differ, which is what the consistency
            loss punishes.
        gradient_checkpointing: recompute the layers in the backward pass: less memory, more time.
        log_every: steps between two readings of the loss.
        save_every: steps between two checkpoints; there is always one at the end.
    """

    epochs: float = 10.0
    max_steps: int | None = None
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_ratio: float = 0.06
    warmup_steps: int | None = None
    max_grad_norm: float = 1.0
    max_length: int = 128
    label_smoothing: float = 0.0
    unrouted: Unrouted = "skip"
    seed: int = 0
    precision: Precision = "fp32"
    group_by_length: bool = True
    backbone_dropout: bool = True
    gradient_checkpointing: bool = False
    log_every: int = 10
    save_every: int = 500

    def __post_init__(self) -> None:
        _in_range("epochs", self.epochs, 1e-6, 1e6)
        if self.max_steps is not None:
            _in_range("max_steps", self.max_steps, 1, 10**9)
        _in_range("batch_size", self.batch_size, 1, 65_536)
        _in_range("accumulation", self.accumulation, 1, self.batch_size)
        if self.batch_size % self.accumulation:
            raise InvalidConfig("accumulation must divide batch_size", field="accumulation")
        _in_range("learning_rate", self.learning_rate, 0.0, 10.0)
        _in_range("weight_decay", self.weight_decay, 0.0, 10.0)
        _in_range("warmup_ratio", self.warmup_ratio, 0.0, 1.0)
        if self.warmup_steps is not None:
            _in_range("warmup_steps", self.warmup_steps, 0, 10**9)
        _in_range("max_grad_norm", self.max_grad_norm, 0.0, 1e6)
        _in_range("max_length", self.max_length, 4, 1_048_576)
        _in_range("label_smoothing", self.label_smoothing, 0.0, 0.9)
        _one_of("unrouted", self.unrouted, get_args(Unrouted))
        _in_range("seed", self.seed, 0, 2**32 - 1)
        _one_of("precision", self.precision, get_args(Precision))
        _in_range("log_every", self.log_every, 1, 10**9)
        _in_range("save_every", self.save_every, 1, 10**9)

    def steps(self, num_rows: int, num_processes: int = 1) -> int:
        """Optimiser steps of a run over `num_rows` rows."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, math.ceil(self.epochs * math.ceil(num_rows / (self.batch_size * num_processes))))

    def warmup(self, steps: int) -> int:
        """Steps with a rising learning rate, of a run of so many.

        Raises:
            InvalidConfig: `warmup_steps` are as many or more: the rate would never reach its peak.
        """
        if self.warmup_steps is None:
            return math.ceil(steps * self.warmup_ratio)
        if self.warmup_steps >= steps:
            raise InvalidConfig(
                f"warmup_steps {self.warmup_steps} is not below the {steps} steps of the run: "
                "train longer, or give fewer warm-up steps or a ratio",
                field="warmup_steps",
            )
        return self.warmup_steps


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """All settings of a training: what its weights depend on beside the backbone and the rows."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidConfig(f"{name} must be in {low}..{high}, not {value}", field=name)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidConfig(f"{name} must be one of {', '.join(allowed)}, not {value!r}", field=name)

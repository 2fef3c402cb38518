"""The ablations of training: what each switch changes, by hand, and that all their combinations train and evaluate."""

import dataclasses
import json
import signal
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from adamix.backbones.backbone import Backbone
from adamix.cli import app
from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.data import TaskData
from adamix.errors import Cancelled, InvalidConfig
from adamix.files.mixture_file import MixtureFile, read_mixture
from adamix.modules.heads import shared_copy
from adamix.routing.choice import parse_routing
from adamix.routing.probe import MixtureProbe
from adamix.training.loop import MixtureTrainer
from adamix.training.train import Progress, train

ADAPTER = AdapterConfig(rank=2)
LORA = AdapterConfig(kind="lora", rank=2, sites=("attn_q",))
TRAIN = TrainConfig(max_steps=6, batch_size=8, learning_rate=1e-2, max_length=32, log_every=1)
FAST = dataclasses.replace(TRAIN, max_steps=2)


Run = Callable[..., MixtureFile]


@pytest.fixture
def run(backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData) -> Run:
    """`train` with the tiny parts filled in; returns what it wrote."""

    def call(
        out: Path, backbone: Backbone = backbone, data: TaskData = colours, validation: Any = None, **changes: Any
    ) -> MixtureFile:
        options = {name: changes.pop(name) for name in ("callbacks", "resume") if name in changes}
        plan = TrainingPlan(**{"adapter": ADAPTER, "train": TRAIN, **changes})
        train(plan, backbone, tokenizer, data, validation, out, **options)
        return read_mixture(out)

    return call


@dataclasses.dataclass
class Trace:
    """What the optimiser saw of one parameter: its gradient (None: none) and its value after each step."""

    values: list[Tensor] = dataclasses.field(default_factory=list)
    gradients: list[Tensor | None] = dataclasses.field(default_factory=list)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> dict[str, Trace]:
    """Filled by a training, by the names of the experts' parameters; and the rates under `rates`."""
    found: dict[str, Trace] = defaultdict(Trace)
    create = MixtureTrainer.create_optimizer

    def recorded(self: MixtureTrainer, *args: Any) -> torch.optim.Optimizer:
        optimizer = create(self, *args)
        assert self.model is not None
        experts = {name: p for name, p in self.model.named_parameters() if p.requires_grad and ".adapter." in name}

        def before(*_: Any) -> None:
            for name, parameter in experts.items():
                # Copied here, after the hook that fills what is missing: hooks run in the order of registration.
                gradient = None if parameter.grad is None else parameter.grad.clone()
                found[name].gradients.append(gradient)
            found["rates"].values.append(torch.tensor(optimizer.param_groups[0]["lr"]))

        def after(*_: Any) -> None:
            for name, parameter in experts.items():
                found[name].values.append(parameter.detach().clone())

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        for name, parameter in experts.items():
            found[name].values.append(parameter.detach().clone())
        return optimizer

    monkeypatch.setattr(MixtureTrainer, "create_optimizer", recorded)
    return found


def _adamw(trace: Trace, rates: list[Tensor], decay: float) -> list[Tensor]:
    """Decoupled weight decay (Loshchilov and Hutter 2019) in fp64; a missing gradient leaves a parameter alone."""
    value = trace.values[0].double()
    m, v, steps, values = torch.zeros_like(value), torch.zeros_like(value), 0, []
    for gradient, rate in zip(trace.gradients, rates, strict=True):
        if gradient is not None:
            steps += 1
            m = 0.9 * m + 0.1 * gradient.double()
            v = 0.999 * v + 0.001 * gradient.double() ** 2
            value = value * (1 - rate.double() * decay)
            step = (m / (1 - 0.9**steps)) / ((v / (1 - 0.999**steps)).sqrt() + 1e-8)
            value = value - rate.double() * step
        values.append(value)
    return values


@pytest.mark.parametrize("unrouted", ["skip", "momentum"])
def test_experts_without_rows_rest_or_move_by_momentum(
    run: Run, tmp_path: Path, traces: dict[str, Trace], unrouted: Any
) -> None:
    """Two of eight experts are routed a step (one for each pass). AdamW is written out by hand for each of them."""
    run(tmp_path, mixture=MixtureConfig(num_experts=8), train=dataclasses.replace(TRAIN, unrouted=unrouted))
    rates = traces.pop("rates").values
    idle_after_history = never_routed = 0
    for name, trace in traces.items():
        decay = TRAIN.weight_decay if ".weights." in name else 0.0
        for found, expected in zip(trace.values[1:], _adamw(trace, rates, decay), strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
        has_history = False
        for index, gradient in enumerate(trace.gradients):
            rests = torch.equal(trace.values[index], trace.values[index + 1])
            if gradient is not None and gradient.any():
                has_history = True
                assert not rests or rates[index] == 0
            elif not has_history:
                # As with torch before 2.0, where no gradient existed before the first one.
                assert gradient is None
                assert rests
            elif unrouted == "skip":
                idle_after_history += 1
                assert gradient is None
                assert rests
            else:
                idle_after_history += 1
                assert gradient is not None
                assert not rests or rates[index] == 0
        never_routed += not has_history
    assert idle_after_history > 10
    assert never_routed > 0


def test_momentum_survives_a_resumed_run(run: Run, tmp_path: Path) -> None:
    settings = dataclasses.replace(TRAIN, unrouted="momentum", save_every=3)
    mixture = MixtureConfig(num_experts=8)
    whole = run(tmp_path / "whole", train=settings, mixture=mixture)

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Cancelled):
        run(tmp_path / "resumed", train=settings, mixture=mixture, callbacks=[stop])
    resumed = run(tmp_path / "resumed", train=settings, mixture=mixture, resume=True)
    assert resumed.encode() == whole.encode()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("passes", ["first", "both"])
def test_the_loss_of_a_step_written_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: Any, smoothing: float
) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    compute = MixtureTrainer.compute_loss

    def spied(self: MixtureTrainer, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        logits: list[Tensor] = []
        hook = self.model.register_forward_hook(lambda _m, _i, out: logits.append(out.detach()))  # type: ignore[union-attr]
        loss = compute(self, model, inputs, *args, **kwargs)
        hook.remove()
        seen.append((logits[0], inputs["targets"], loss.detach()))
        return loss

    monkeypatch.setattr(MixtureTrainer, "compute_loss", spied)
    mixture = MixtureConfig(consistency=0.5, task_loss=passes)
    run(tmp_path, mixture=mixture, train=dataclasses.replace(FAST, label_smoothing=smoothing))
    assert len(seen) == 2
    for logits, targets, loss in seen:
        goal = (1 - smoothing) * F.one_hot(targets, 3) + smoothing / 3
        one, two = (z.double().log_softmax(-1) for z in logits.chunk(2))
        entropies = [-(goal * logs).sum(-1).mean() for logs in (one, two)]
        kl = 0.5 * ((one.exp() - two.exp()) * (one - two)).sum(-1).mean()
        task = entropies[0] if passes == "first" else (entropies[0] + entropies[1]) / 2
        torch.testing.assert_close(loss.double(), task + 0.5 * kl, rtol=1e-5, atol=1e-6)
        assert not torch.isclose(entropies[0], entropies[1], atol=1e-6)


@pytest.mark.parametrize("granularity", ["batch", "instance"])
def test_both_losses_accumulate_as_one_batch(
    run: Run, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granularity: Any
) -> None:
    """With plain descent, which hides no factor, no dropout and an incomplete last batch."""

    def plain_descent(self: MixtureTrainer, *_: Any) -> torch.optim.Optimizer:
        parameters = [p for p in self.model.parameters() if p.requires_grad]  # type: ignore[union-attr]
        self.optimizer = torch.optim.SGD(parameters, lr=self.args.learning_rate)
        return self.optimizer

    monkeypatch.setattr(MixtureTrainer, "create_optimizer", plain_descent)
    body = shared_copy(backbone.model)
    for module in body.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    settings = dataclasses.replace(
        TRAIN, max_steps=4, batch_size=20, learning_rate=0.1, max_grad_norm=0.0, label_smoothing=0.1
    )
    files = [
        run(
            tmp_path / str(accumulation),
            backbone=dataclasses.replace(backbone, model=body),
            head=HeadConfig(dropout=0.0),
            mixture=MixtureConfig(task_loss="both", share="none", routing_granularity=granularity),
            train=dataclasses.replace(settings, accumulation=accumulation),
        )
        for accumulation in (1, 4)
    ]
    for key, tensor in files[0].tensors.items():
        # What remains is the order of fp32 sums; the weights moved by about 0.1.
        np.testing.assert_allclose(tensor.array, files[1].tensors[key].array, atol=1e-5)


@pytest.mark.parametrize("adapter", [ADAPTER, LORA], ids=["bottleneck", "lora"])
def test_experts_with_a_common_start_keep_it_in_the_file(run: Run, tmp_path: Path, adapter: AdapterConfig) -> None:
    """A rate of zero shows the weights of step 0; a trained run of the same seed started from the same."""
    same = dataclasses.replace(adapter, distinct_init=False)
    still = dataclasses.replace(FAST, learning_rate=1e-30, weight_decay=0.0)
    begun = run(tmp_path / "begun", adapter=same, train=still)
    trained = run(tmp_path / "trained", adapter=same)
    assert begun.manifest.common_start
    start = {}
    for key, projection in begun.projections().items():
        for part, stack in (("weight", projection.weight), ("bias", projection.bias)):
            if stack is None or len(stack) == 1:
                continue
            assert stack.initial is not None
            for copy in stack.copies:
                np.testing.assert_allclose(copy, stack.initial, atol=1e-12)
            start[key, part] = stack.initial
    assert len(start) == (4 if adapter.kind == "bottleneck" else 2)
    moved = 0
    for key, projection in trained.projections().items():
        for part, stack in (("weight", projection.weight), ("bias", projection.bias)):
            if (key, part) in start:
                assert stack is not None
                assert np.array_equal(stack.initial, start[key, part])
                moved += len(np.unique(stack.copies.reshape(len(stack), -1), axis=0)) > 1
    assert moved == len(start)


@pytest.mark.parametrize("adapter", [ADAPTER, LORA], ids=["bottleneck", "lora"])
def test_distinct_experts_keep_no_start(run: Run, tmp_path: Path, adapter: AdapterConfig) -> None:
    found = run(tmp_path, adapter=adapter, train=dataclasses.replace(FAST, learning_rate=1e-30, weight_decay=0.0))
    assert not found.manifest.common_start
    assert not [key for key in found.tensors if key.startswith("initial.")]
    mixed = [p for key, p in found.projections().items() if p.num_experts > 1]
    assert len(mixed) == 2
    for projection in mixed:
        assert len(np.unique(projection.weight.copies.reshape(4, -1), axis=0)) == 4


@pytest.mark.parametrize("granularity", ["batch", "instance"])
@pytest.mark.parametrize("share", ["up", "down", "none"])
@pytest.mark.parametrize("num_experts", [1, 2, 4, 8])
def test_every_mixture_trains_and_evaluates(
    run: Run,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    colours: TaskData,
    tmp_path: Path,
    num_experts: int,
    share: Any,
    granularity: Any,
) -> None:
    mixture = MixtureConfig(num_experts=num_experts, share=share, routing_granularity=granularity)
    found = run(tmp_path, mixture=mixture, train=dataclasses.replace(FAST, max_steps=1))
    counts = {key.rpartition(".")[2]: p.num_experts for key, p in found.projections().items()}
    assert counts == {
        "down_proj": 1 if share == "down" else num_experts,
        "up_proj": 1 if share == "up" else num_experts,
    }
    few = dataclasses.replace(colours, examples=colours.examples[:8])
    for routing in ("merged", "random:token", f"fixed:{num_experts - 1}"):
        assert MixtureProbe(found, backbone, tokenizer, few).evaluate(parse_routing(routing)).rows == 8


def test_the_flags_reach_the_run(tmp_path: Path, backbone_directory: Path, colours: TaskData) -> None:
    rows = tmp_path / "colours.csv"
    lines = [f"{e.text},{colours.labels[int(e.label)]}" for e in colours.examples]  # type: ignore[arg-type]
    rows.write_text("\n".join(["text,label", *lines]) + "\n")

    def invoke(out: str, *flags: str) -> Any:
        fixed = ("--backbone", str(backbone_directory), "--data", str(rows), "--max-steps", "1", "--max-length", "32")
        return CliRunner().invoke(app, ["train", *fixed, "--out", str(tmp_path / out), *flags])

    flags = ("--task-loss", "both", "--unrouted", "momentum", "--label-smoothing", "0.1", "--expert-init", "same")
    done = invoke("run", *flags)
    assert done.exit_code == 0, done.stderr
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    settings = settings.get("settings", settings)
    assert settings["mixture"]["task_loss"] == "both"
    assert settings["train"]["unrouted"] == "momentum"
    assert settings["train"]["label_smoothing"] == 0.1
    assert settings["adapter"]["distinct_init"] is False
    assert read_mixture(tmp_path / "run").manifest.common_start
    for wrong in (
        ("--task-loss", "second"),
        ("--unrouted", "freeze"),
        ("--label-smoothing", "1.5"),
        ("--expert-init", "equal"),
        ("--task-loss", "both", "--consistency", "0"),
    ):
        refused = invoke("wrong", *wrong)
        assert (refused.exit_code, refused.stdout) == (2, ""), wrong
        assert not (tmp_path / "wrong").exists()


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="one pass"):
        MixtureConfig(task_loss="both", consistency=0.0)
    for wrong in ({"unrouted": "freeze"}, {"label_smoothing": -0.1}, {"label_smoothing": 0.95}):
        with pytest.raises(InvalidConfig):
            TrainConfig(**wrong)  # type: ignore[arg-type]

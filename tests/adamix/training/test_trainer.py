"""A whole training run on the tiny backbone: what it changes, what it repeats exactly, how it stops and continues."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.data import TaskData
from adamix.errors import Cancelled, FailedPrecondition, InvalidAdapter, InvalidConfig, InvalidData
from adamix.evaluation.labelled import evaluate
from adamix.files import adapter_file
from adamix.files.manifest import SITES
from adamix.merging.merge import MIXTURE_FILE, merge, read_mixture
from adamix.rows.order import EpochOrder
from adamix.training.loop import MixtureTrainer
from adamix.training.run_directory import newest_checkpoint
from adamix.training.train import Progress, TrainResult, train

ADAPTER = AdapterConfig(rank=4)
TRAIN = TrainConfig(max_steps=6, batch_size=8, learning_rate=5e-3, log_every=2, max_length=32)
# Enough for the random body to learn a word; the thresholds below are far from what guessing reaches.
LARGER = AdapterConfig(rank=16)
LONGER = dataclasses.replace(TRAIN, max_steps=100, batch_size=16, learning_rate=2e-2)


Run = Callable[..., TrainResult]


@pytest.fixture
def run(backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData) -> Run:
    """`train` with the tiny parts filled in."""

    def call(out: Path, data: TaskData = colours, validation: Any = None, **changes: Any) -> TrainResult:
        options = {name: changes.pop(name) for name in ("callbacks", "resume") if name in changes}
        plan = TrainingPlan(**{"adapter": ADAPTER, "train": TRAIN, **changes})
        return train(plan, backbone, tokenizer, data, validation, out, **options)

    return call


def _tensors(out: Path) -> dict[str, Any]:
    return {key: tensor.array for key, tensor in read_mixture(out).tensors.items()}


def _largest_difference(first: Path, second: Path) -> float:
    a, b = _tensors(first), _tensors(second)
    assert a.keys() == b.keys()
    return max(float(abs(a[key] - b[key]).max()) for key in a)


def _without_dropout(backbone: Backbone) -> Backbone:
    from adamix.modules.heads import shared_copy

    body = shared_copy(backbone.model)
    for module in body.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return dataclasses.replace(backbone, model=body)


def test_a_run_learns_the_task_and_leaves_the_backbone_alone(
    run: Run, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData, tmp_path: Path
) -> None:
    before = {name: p.clone() for name, p in backbone.model.named_parameters()}
    seen: list[Progress] = []
    result = run(tmp_path, adapter=LARGER, train=LONGER, validation=colours, callbacks=[seen.append])
    assert result.path == tmp_path / MIXTURE_FILE
    assert [progress.step for progress in seen] == list(range(1, 101))
    assert seen[0].loss is None
    assert seen[-1].loss < seen[4].loss
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert not backbone.model.training
    adapter = adapter_file.decode(merge(tmp_path))
    evaluation = evaluate(adapter, backbone, tokenizer, colours)
    assert evaluation.metrics["accuracy"] > 0.8
    # What was measured at the end of training is what the merged file does.
    assert result.metrics == evaluation.metrics
    recorded = {f"validation_{name}": value for name, value in result.metrics.items()}
    assert adapter.manifest.training.metrics == recorded


def test_only_experts_and_head_are_trained(run: Run, tmp_path: Path) -> None:
    result = run(tmp_path)
    names = set(_checkpoint_tensors(tmp_path))
    assert all(".adapter." in name or name.startswith("head.out_proj.") for name in names)
    per_point = 4 * (32 * 4 + 4) + (32 * 4 + 32)
    assert result.trained_parameters == 2 * per_point
    assert result.merged_parameters == 2 * (2 * 32 * 4 + 4 + 32)
    assert result.head_parameters == 32 * 3 + 3


def _checkpoint_tensors(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    checkpoint = newest_checkpoint(out)
    assert checkpoint is not None
    return load_file(checkpoint / "trained.safetensors")


def test_equal_seeds_give_equal_files_and_others_do_not(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "a")
    torch.rand(5)
    run(tmp_path / "b")
    run(tmp_path / "c", train=dataclasses.replace(TRAIN, seed=1))
    files = [(tmp_path / name / MIXTURE_FILE).read_bytes() for name in "abc"]
    assert files[0] == files[1]
    assert files[0] != files[2]


@pytest.mark.parametrize(
    ("mixture", "rows", "batch_size", "group_by_length"),
    [
        (MixtureConfig.single(), 48, 8, True),
        (MixtureConfig.single(), 48, 8, False),
        (MixtureConfig(share="none"), 30, 16, True),
        (MixtureConfig(share="none", routing_granularity="instance"), 30, 16, True),
        (MixtureConfig(share="none", routing_granularity="instance"), 21, 16, False),
    ],
)
def test_accumulating_four_batches_is_one_large_batch(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    colours: TaskData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mixture: MixtureConfig,
    rows: int,
    batch_size: int,
    group_by_length: bool,
) -> None:
    """Same rows, same routes, no dropout, incomplete last batches. Among the traps is a loss that is not divided by
    the accumulation steps: Adam and clipping would hide the factor, so the gradients are applied as they are."""

    def plain_descent(self: MixtureTrainer, model: object = None) -> torch.optim.Optimizer:
        parameters = [p for p in self.model.parameters() if p.requires_grad]  # type: ignore[union-attr]
        self.optimizer = torch.optim.SGD(parameters, lr=self.args.learning_rate)
        return self.optimizer

    monkeypatch.setattr(MixtureTrainer, "create_optimizer", plain_descent)
    still = _without_dropout(backbone)
    losses = []
    for accumulation in (1, 4):
        settings = dataclasses.replace(
            TRAIN,
            batch_size=batch_size,
            accumulation=accumulation,
            group_by_length=group_by_length,
            learning_rate=0.1,
            max_grad_norm=0.0,
        )
        plan = TrainingPlan(adapter=ADAPTER, mixture=mixture, head=HeadConfig(dropout=0.0), train=settings)
        some = dataclasses.replace(colours, examples=colours.examples[:rows])
        result = train(plan, still, tokenizer, some, None, tmp_path / str(accumulation))
        losses.append(result.loss)
    # Six steps move the weights by about 0.1; what remains is the order of fp32 sums.
    assert _largest_difference(tmp_path / "1", tmp_path / "4") < 1e-5
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize(
    ("stop_after", "changes"),
    [
        (10, {}),
        (6, {}),  # the end of the first epoch: 48 rows, batches of 8
        (7, {"mixture": MixtureConfig(routing_granularity="instance", share="none")}),
        (9, {"train": dataclasses.replace(TRAIN, accumulation=2, group_by_length=False)}),
        (
            8,  # inside an epoch of seven steps, of which the last has too few rows and batches
            {
                "mixture": MixtureConfig(routing_granularity="instance", share="none"),
                "train": dataclasses.replace(TRAIN, batch_size=7, accumulation=7, group_by_length=False),
            },
        ),
        (5, {"adapter": AdapterConfig(kind="lora", sites=("attn_q", "attn_v"), rank=4, lora_dropout=0.1)}),
    ],
)
def test_stopped_by_ctrl_c_and_resumed_a_run_ends_the_same(
    run: Run, tmp_path: Path, stop_after: int, changes: dict[str, Any]
) -> None:
    """Weights, optimiser, schedule, order of rows, dropout and routes all continue where they were."""
    settings = dataclasses.replace(changes.get("train", TRAIN), max_steps=20)
    whole = {**changes, "train": settings}
    run(tmp_path / "whole", **whole)

    def interrupt(progress: Progress) -> None:
        if progress.step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Cancelled, match=f"after step {stop_after} of 20"):
        run(tmp_path / "parts", callbacks=[interrupt], **whole)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "parts" / MIXTURE_FILE).exists()
    seen: list[int] = []
    run(tmp_path / "parts", callbacks=[lambda progress: seen.append(progress.step)], resume=True, **whole)
    assert seen == list(range(stop_after + 1, 21))
    assert (tmp_path / "parts" / MIXTURE_FILE).read_bytes() == (tmp_path / "whole" / MIXTURE_FILE).read_bytes()


def test_resuming_a_finished_run_trains_no_further(run: Run, tmp_path: Path) -> None:
    first = run(tmp_path)
    data = first.path.read_bytes()
    first.path.unlink()
    seen: list[Progress] = []
    again = run(tmp_path, resume=True, callbacks=[seen.append])
    assert (seen, again.steps) == ([], 6)
    assert again.path.read_bytes() == data


def test_a_torn_checkpoint_is_passed_over(run: Run, tmp_path: Path) -> None:
    """The state file is written last: a process killed in between leaves a checkpoint without it."""
    settings = dataclasses.replace(TRAIN, save_every=3)
    data = run(tmp_path, train=settings).path.read_bytes()
    (tmp_path / "checkpoints" / "checkpoint-6" / "trainer_state.json").write_text('{"torn')
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "checkpoint-3"
    assert run(tmp_path, train=settings, resume=True).path.read_bytes() == data


def test_resume_in_a_new_directory_begins(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "new", resume=True).steps == 6


def test_resume_with_other_settings_is_refused_by_name(run: Run, tmp_path: Path, numbers: TaskData) -> None:
    run(tmp_path)
    with pytest.raises(InvalidConfig, match=r"adapter\.rank was 4, now 8"):
        run(tmp_path, resume=True, adapter=AdapterConfig(rank=8))
    with pytest.raises(InvalidConfig, match=r"data\."):
        run(tmp_path, resume=True, data=numbers)


def test_a_directory_that_is_in_use_is_refused(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(FailedPrecondition, match="--resume"):
        run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(FailedPrecondition, match="holds no training run"):
        run(tmp_path / "other", resume=True)
    with pytest.raises(InvalidConfig, match="is a file"):
        run(tmp_path / "other" / "notes.txt")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(FailedPrecondition, match="damaged"):
        run(tmp_path / "run", resume=True)


def test_what_does_not_fit_is_refused_before_the_directory_is_made(
    run: Run, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InvalidConfig, match="64 positions"):
        run(out, train=dataclasses.replace(TRAIN, max_length=65))
    with pytest.raises(InvalidData, match="no rows"):
        run(out, data=dataclasses.replace(colours, examples=()))
    plan = TrainingPlan(adapter=ADAPTER, head=HeadConfig(pooling="cls", dense="backbone"), train=TRAIN)
    with pytest.raises(InvalidConfig, match="no pooler"):
        train(plan, dataclasses.replace(backbone, pooler=None), tokenizer, colours, None, out)
    assert not out.exists()


def test_what_no_file_could_hold_is_refused_before_training(run: Run, colours: TaskData, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InvalidConfig, match="4096 tensors"):
        run(
            out,
            adapter=AdapterConfig(sites=SITES[:4] + SITES[5:], rank=1),
            mixture=MixtureConfig(num_experts=64, share="none"),
        )
    with pytest.raises(InvalidConfig, match="4096 tensors"):  # of which 64 are the common starts
        run(
            out,
            adapter=AdapterConfig(sites=SITES[:4] + SITES[5:], rank=1, distinct_init=False),
            mixture=MixtureConfig(num_experts=63, share="none"),
        )
    with pytest.raises(InvalidAdapter, match="a name is too long"):
        run(out, data=dataclasses.replace(colours, labels=("red", "green", "b" * 600)))
    with pytest.raises(InvalidConfig, match="bert has no site"):
        run(out, adapter=AdapterConfig(sites=("mlp_gate",)))
    assert not out.exists()


def test_a_diverging_run_says_so(run: Run, tmp_path: Path) -> None:
    wild = dataclasses.replace(TRAIN, max_steps=40, learning_rate=10.0, max_grad_norm=0.0, weight_decay=10.0)
    with pytest.raises(FailedPrecondition) as caught:
        run(tmp_path, train=wild, adapter=AdapterConfig(rank=4, activation="identity", alpha=10_000.0))
    assert caught.value.reason == "DIVERGED"
    assert "learning rate" in caught.value.message


def test_a_run_that_diverges_after_its_last_reading_writes_nothing(run: Run, tmp_path: Path) -> None:
    wild = dataclasses.replace(
        TRAIN, max_steps=40, log_every=1000, learning_rate=10.0, max_grad_norm=0.0, weight_decay=10.0
    )
    with pytest.raises(FailedPrecondition, match="use a lower learning rate") as caught:
        run(tmp_path, train=wild, adapter=AdapterConfig(rank=4, activation="identity", alpha=10_000.0))
    assert caught.value.reason == "DIVERGED"
    assert not (tmp_path / MIXTURE_FILE).exists()


@pytest.mark.parametrize("mean", [260_000.0, -3e9])
def test_a_regression_with_large_targets_makes_a_file(
    run: Run, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, numbers: TaskData, tmp_path: Path, mean: float
) -> None:
    """Prices are in units; the output layer holds their mean and deviation."""
    examples = tuple(dataclasses.replace(e, label=mean + 0.1 * mean * (int(e.label) - 130)) for e in numbers.examples)
    result = run(tmp_path, data=dataclasses.replace(numbers, examples=examples), validation=numbers)
    assert result.path.exists()
    adapter = adapter_file.decode(merge(tmp_path))
    bias = adapter.head()["out_proj.bias"].to_float32()[0]
    assert abs(bias) > 65_504
    assert all(abs(logits[0]) > 65_504 for logits in evaluate(adapter, backbone, tokenizer, numbers).logits)


def test_a_regression_answers_in_natural_units(
    run: Run, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, numbers: TaskData, tmp_path: Path
) -> None:
    """Targets are 110 to 150, standardised for training; the file's logits must not be."""
    run(tmp_path, data=numbers, adapter=LARGER, train=LONGER)
    result = evaluate(adapter_file.decode(merge(tmp_path)), backbone, tokenizer, numbers)
    assert result.metrics["pearson"] > 0.75
    assert result.metrics["mse"] < 150.0  # the variance is about 200
    assert all(80 < logits[0] < 180 for logits in result.logits)


def test_constant_regression_targets_are_learned(run: Run, numbers: TaskData, tmp_path: Path) -> None:
    constant = tuple(dataclasses.replace(e, label=7.0) for e in numbers.examples)
    run(tmp_path, data=dataclasses.replace(numbers, examples=constant))
    bias = adapter_file.decode(merge(tmp_path)).head()["out_proj.bias"].to_float32()
    assert abs(float(bias[0]) - 7.0) < 0.5


def test_a_multilabel_task_is_learned(
    run: Run, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, palettes: TaskData, tmp_path: Path
) -> None:
    run(tmp_path, data=palettes, adapter=LARGER, train=LONGER)
    adapter = adapter_file.decode(merge(tmp_path))
    assert adapter.manifest.head.threshold == 0.5
    result = evaluate(adapter, backbone, tokenizer, palettes)
    assert result.metrics["micro_f1"] > 0.6
    assert set(result.metrics) == {"micro_f1", "macro_f1", "exact_match"}


@pytest.mark.parametrize(
    ("head", "adapter"),
    [
        (HeadConfig(pooling="cls", dense="backbone"), ADAPTER),
        (HeadConfig(pooling="cls", dense="own"), AdapterConfig(rank=4, sites=("mlp_norm",))),
        (HeadConfig(), AdapterConfig(kind="lora", sites=("attn_q", "mlp_in"), rank=4, alpha=8.0)),
        (HeadConfig(), AdapterConfig(sites=())),
    ],
)
def test_every_head_and_placement_makes_a_file_that_evaluates(
    run: Run,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    colours: TaskData,
    tmp_path: Path,
    head: HeadConfig,
    adapter: AdapterConfig,
) -> None:
    run(tmp_path, head=head, adapter=adapter)
    merged = adapter_file.decode(merge(tmp_path))
    adapter_file.check_backbone(merged, backbone.spec)
    assert {site for _, site in merged.sites()} == set(adapter.sites)
    assert merged.manifest.head.dense == head.dense
    assert (merged.manifest.backbone.pooler_fingerprint is not None) == (head.dense == "backbone")
    assert evaluate(merged, backbone, tokenizer, colours).rows == 48


def test_gradient_checkpointing_and_bf16_train_too(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "plain")
    run(tmp_path / "recomputed", train=dataclasses.replace(TRAIN, gradient_checkpointing=True))
    assert _largest_difference(tmp_path / "plain", tmp_path / "recomputed") < 2e-4
    assert run(tmp_path / "bf16", train=dataclasses.replace(TRAIN, precision="bf16")).steps == 6


def test_the_run_file_says_what_the_run_depends_on(run: Run, backbone: Backbone, tmp_path: Path) -> None:
    run(tmp_path)
    settings = json.loads((tmp_path / "run.json").read_text())
    assert settings["backbone"]["fingerprint"] == backbone.spec.fingerprint
    assert settings["adapter"]["rank"] == 4
    assert set(settings) == {"backbone", "data", "adapter", "mixture", "head", "train"}


def test_nothing_is_printed(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    assert capfd.readouterr().out == ""


class TestOrderOfRows:
    LENGTHS = tuple((i * 7) % 23 + 1 for i in range(100))

    def _order(self, epoch: int = 0, seed: int = 0, group_by_length: bool = True) -> list[int]:
        order = EpochOrder(self.LENGTHS, 8, seed, group_by_length=group_by_length)
        order.set_epoch(epoch)
        return list(order)

    @pytest.mark.parametrize("group_by_length", [True, False])
    def test_every_row_comes_once_an_epoch_in_an_order_of_seed_and_epoch(self, group_by_length: bool) -> None:
        first = self._order(0, 0, group_by_length)
        assert sorted(first) == list(range(100))
        assert first == self._order(0, 0, group_by_length)
        assert first != self._order(1, 0, group_by_length)
        assert first != self._order(0, 1, group_by_length)

    def test_grouping_saves_padding(self) -> None:
        def padded(order: list[int]) -> int:
            batches = [order[i : i + 8] for i in range(0, 100, 8)]
            return sum(len(batch) * max(self.LENGTHS[row] for row in batch) for batch in batches)

        assert padded(self._order()) < 0.8 * padded(self._order(group_by_length=False))


def test_labels_that_no_manifest_holds_are_refused_before_training(run: Run, colours: TaskData, tmp_path: Path) -> None:
    names = tuple(f"{index:03d}" + "x" * 497 for index in range(600))
    with pytest.raises(InvalidAdapter, match="names of the labels"):
        run(tmp_path / "out", dataclasses.replace(colours, labels=names))
    assert not (tmp_path / "out").exists()

"""Demo: the eight steps in order, each measured, nothing asserted but what must hold."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerFast

from adamix.backbones import backbone as backbones
from adamix.data import TaskData
from adamix.errors import Cancelled, FailedPrecondition, InvalidConfig
from adamix.evaluation.labelled import evaluate
from adamix_bench.demo import generation, report, throughput
from adamix_bench.demo.traffic import Tally, Traffic
from adamix_bench.demo.training import BACKBONE, BASELINE_TASK, BETTER, SEED, TASKS, DemoTrainer, Trained
from adamix_client import Client, Input, Predictions
from adamix_server.engine.host_memory import keep_freed_memory
from adamix_server.local_server import LocalServer

MARKER = ".adamix-demo"
# fp32 on both sides; the order of sums is all that differs (packed rows against padded ones).
MAX_LOGIT_DIFFERENCE = 1e-4
_EQUALITY_ROWS = 120
_BENCH_ROWS = 384
_ANSWERS_PER_VERSION = 40


def run(out: Path, console: Console) -> dict[str, Any]:
    """Run the demo into `out` and return its numbers (`{"steps": …}`); everything else goes to `console`.

    Raises:
        InvalidConfig: `out` holds something that is not an earlier demo.
        FailedPrecondition: a promise did not hold: a request failed during a swap, or answers differ from offline.
    """
    # As the engine does, so that the comparison of step g is of like with like.
    keep_freed_memory()
    _prepare(out)
    steps: dict[str, Any] = {}
    with _progress(console) as progress:
        trained, baselines, better = _train(out, progress)
    console.print(report.training_table(trained, baselines, better))
    steps["train"] = report.training_summary(trained, baselines, better)

    backbone = backbones.load(BACKBONE)
    backbone_bytes = sum(p.numel() * p.element_size() for p in backbone.model.parameters())
    console.print(report.size_table([*trained, better], backbone_bytes))
    steps["merge"] = report.size_summary([*trained, better], backbone_bytes)

    tokenizer = backbones.load_tokenizer(BACKBONE)
    trainer = DemoTrainer(backbone, tokenizer, out, lambda *_: None)
    tests = {task.name: trainer.test_split(task.name) for task in TASKS}
    texts = {name: [example.text for example in data.examples] for name, data in tests.items()}

    console.print("\n[bold]Starting the server[/] (its log: " + str(out / "server.log") + ")")
    with LocalServer(BACKBONE, out / "store", out / "server.log") as server, Client(server.address) as client:
        with Traffic(server.address, texts) as traffic:
            steps["register"] = _register(client, traffic, trained)
            console.print(report.registration_text(steps["register"], server.address))

            response = client.predict([Input(task=name, text=texts[name][0]) for name in texts], on_error="return")
            steps["mixed"] = _mixed(response)
            console.print(report.mixed_table(texts, response))

            steps["swap"] = _swap(client, traffic, trained[0], better)
        _check_traffic(traffic.tally)
        console.print(report.swap_text(steps["swap"]))

        latest = {t.task: t for t in trained} | {better.task: better}
        steps["equality"] = {"max_abs_diff": _equality(client, latest, tests, backbone, tokenizer)}
        console.print(
            f"Equality: server answers in mixed batches against `adamix evaluate` on {_EQUALITY_ROWS} texts a task: "
            f"largest difference of logits [bold]{steps['equality']['max_abs_diff']:.1e}[/]"
        )

        requests = throughput.sample({n: d.examples for n, d in tests.items()}, _BENCH_ROWS, SEED)
        adapters = {name: t.adapter for name, t in latest.items()}
        with _progress(console) as progress:
            bar = progress.add_task("throughput, rounds", total=throughput.ROUNDS + 1)
            rates = throughput.measure(
                server.address, adapters, backbone, tokenizer, requests, lambda _: progress.advance(bar)
            )
    steps["bench"] = report.bench_summary(rates)
    console.print(report.bench_table(rates))
    plot = report.plot(out / "demo.png", trained, baselines, better, rates)
    console.print(f"Plot: {plot}")
    steps["generate"] = _generate(out, console)
    return {"steps": steps}


def _prepare(out: Path) -> None:
    """An empty directory; an earlier demo in it is removed, anything else is not ours to remove."""
    if out.exists():
        if not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise InvalidConfig(f"{out} holds something that is not an earlier demo; name another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).touch()


def _train(out: Path, progress: Progress) -> tuple[list[Trained], list[Trained], Trained]:
    bars: dict[str, TaskID] = {}

    def show(label: str, step: int, steps: int) -> None:
        if label not in bars:
            bars[label] = progress.add_task(f"training {label}", total=steps)
        progress.update(bars[label], completed=step)

    trainer = DemoTrainer(backbones.load(BACKBONE), backbones.load_tokenizer(BACKBONE), out, show)
    try:
        trained = [trainer.adamix(task) for task in TASKS]
        baselines = [trainer.head_only(BASELINE_TASK), trainer.single_adapter(BASELINE_TASK)]
        return trained, baselines, trainer.adamix(BETTER, "v2")
    except Cancelled:
        # The trainer's own words offer to resume the run, which a demo does not.
        raise Cancelled("interrupted; the demo starts afresh next time") from None


def _register(client: Client, traffic: Traffic, trained: Sequence[Trained]) -> dict[str, Any]:
    """Register one task after another while clients call those that are there."""
    versions = {}
    for item in trained:
        digest = client.register(item.task, item.path).version.digest
        versions[item.task] = digest
        traffic.add(item.task)
        _wait(traffic, item.task, digest)
    return {"tasks": versions, "requests_meanwhile": traffic.tally.sent, "failed": traffic.tally.failed}


def _swap(client: Client, traffic: Traffic, old: Trained, new: Trained) -> dict[str, int]:
    """Register a second version under load; count who answered from the start of the registration on."""
    sent, failed = traffic.tally.sent, traffic.tally.failed
    before = traffic.tally.versions.copy()
    _wait(traffic, old.task, old.adapter.digest, more=_ANSWERS_PER_VERSION)
    client.register(new.task, new.path)
    _wait(traffic, new.task, new.adapter.digest, more=_ANSWERS_PER_VERSION)
    answered = traffic.tally.versions.copy()
    return {
        "sent": traffic.tally.sent - sent,
        "failed": traffic.tally.failed - failed,
        "old": answered[old.task, old.adapter.digest] - before[old.task, old.adapter.digest],
        "new": answered[new.task, new.adapter.digest],
    }


def _wait(traffic: Traffic, task: str, digest: str, more: int = 8) -> None:
    wanted = traffic.tally.versions[task, digest] + more
    if not traffic.wait_for(task, digest, wanted):
        raise FailedPrecondition(f"version {digest[:12]} of {task} does not answer")


def _check_traffic(tally: Tally) -> None:
    if tally.failed:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in tally.errors.items())
        raise FailedPrecondition(f"{tally.failed} of {tally.sent} requests failed while adapters changed: {reasons}")


def _mixed(response: Predictions) -> list[dict[str, Any]]:
    return [
        {"task": prediction.task, "version": prediction.version, **msgspec.to_builtins(prediction.result)}
        for prediction in response.predictions
    ]


def _equality(
    client: Client,
    latest: dict[str, Trained],
    tests: dict[str, TaskData],
    backbone: backbones.Backbone,
    tokenizer: PreTrainedTokenizerFast,
) -> float:
    """The largest difference between a logit of the server, in mixed batches, and of the offline evaluation."""
    subsets = {name: replace(data, examples=data.examples[:_EQUALITY_ROWS]) for name, data in tests.items()}
    offline = {
        name: evaluate(latest[name].adapter, backbone, tokenizer, subset).logits for name, subset in subsets.items()
    }
    asked = [(name, i) for i in range(_EQUALITY_ROWS) for name in subsets if i < len(subsets[name].examples)]
    largest = 0.0
    for start in range(0, len(asked), 48):
        part = asked[start : start + 48]
        inputs = [Input(task=name, text=subsets[name].examples[i].text, truncate=True) for name, i in part]
        for (name, i), prediction in zip(part, client.predict(inputs, return_logits=True).predictions, strict=True):
            if prediction.error is not None:
                raise prediction.error
            difference = np.abs(np.asarray(prediction.logits) - np.asarray(offline[name][i])).max()
            largest = max(largest, float(difference))
    if not largest <= MAX_LOGIT_DIFFERENCE:
        raise FailedPrecondition(
            f"the server's answers differ from `adamix evaluate` by {largest:.1e}, more than {MAX_LOGIT_DIFFERENCE:g}"
        )
    return largest


def _generate(out: Path, console: Console) -> dict[str, Any]:
    """Train an adapter of a decoder, and stream what it writes from a server of its own."""
    console.print(f"\n[bold]A decoder[/] ({generation.BACKBONE}), which learns from texts that a program wrote")
    with _progress(console) as progress:
        bar = progress.add_task(f"training {generation.TASK}", total=generation.STEPS)
        writer = generation.train(out, lambda _, step, steps: progress.update(bar, completed=step, total=steps))
    console.print(report.writer_text(writer))
    store, log = out / "decoder-store", out / "decoder-server.log"
    with LocalServer(generation.BACKBONE, store, log) as server, Client(server.address) as client:
        console.print("[bold]with the adapter, as it comes:[/]", end="")
        step = generation.serve(writer, client, lambda text: console.print(text, end="", markup=False, soft_wrap=True))
    console.print()
    console.print(report.generation_text(step))
    return step


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)

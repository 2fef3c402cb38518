"""Demo: tables for people, dictionaries for `--json`, and one plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from adamix_bench import reports
from adamix_bench.demo.generation import Writer
from adamix_bench.demo.throughput import CALLS_IN_FLIGHT, INPUTS_PER_CALL, Throughput
from adamix_bench.demo.training import Trained
from adamix_client import Classification, Predictions, Regression


def training_table(trained: Sequence[Trained], baselines: Sequence[Trained], better: Trained) -> Table:
    table = Table("task", "method", "rows", "steps", "seconds", "test metric", title="Training, as measured")
    for item in (*trained, *baselines, better):
        name, value = item.metric
        table.add_row(
            item.task, item.method, str(item.rows), str(item.steps), f"{item.seconds:.0f}", f"{name} {value:.3f}"
        )
    return table


def training_summary(trained: Sequence[Trained], baselines: Sequence[Trained], better: Trained) -> list[dict[str, Any]]:
    return [
        {
            "task": item.task,
            "method": item.method,
            "rows": item.rows,
            "steps": item.steps,
            "seconds": round(item.seconds, 2),
            "test_rows": item.result.rows,
            "metrics": item.result.metrics,
        }
        for item in (*trained, *baselines, better)
    ]


def size_table(trained: Sequence[Trained], backbone_bytes: int) -> Table:
    table = Table("adapter", "file", "parameters (adapter + head)", "of the backbone", title="Merged, one file each")
    for item in trained:
        adapter, head = item.adapter.num_parameters()
        share = item.adapter.num_bytes / backbone_bytes
        table.add_row(item.path.name, f"{item.adapter.num_bytes:,} B", f"{adapter:,} + {head:,}", f"{share:.2%}")
    return table


def size_summary(trained: Sequence[Trained], backbone_bytes: int) -> dict[str, Any]:
    return {
        "backbone_bytes": backbone_bytes,
        "adapters": [
            {"task": t.task, "file": t.path.name, "digest": t.adapter.digest, "bytes": t.adapter.num_bytes}
            for t in trained
        ],
    }


def registration_text(step: Mapping[str, Any], address: str) -> str:
    return (
        f"Registered {', '.join(step['tasks'])} on {address} while {step['requests_meanwhile']} requests were answered "
        f"([bold]{step['failed']} failed[/])"
    )


def mixed_table(texts: Mapping[str, Sequence[str]], response: Predictions) -> Table:
    table = Table("task", "text", "answer", "scores", title="One call, three tasks, three head widths")
    for prediction in response.predictions:
        answer, scores = str(prediction.error or ""), ""
        if isinstance(prediction.result, Classification):
            answer = prediction.result.label
            scores = " ".join(f"{score:.2f}" for score in prediction.result.scores)
        elif isinstance(prediction.result, Regression):
            answer = f"{prediction.result.score:.2f}"
        table.add_row(prediction.task, texts[prediction.task][0][:60], answer, scores)
    timing = response.timing
    table.caption = f"answered in batches of up to {timing.batch_requests} requests of {timing.batch_tasks} adapters"
    return table


def swap_text(step: Mapping[str, int]) -> str:
    return (
        f"Second version under load: {step['sent']} requests sent to all tasks, [bold]{step['failed']} failed[/]; "
        f"of this task's, {step['old']} were answered by the old version and {step['new']} by the new one"
    )


def bench_table(rates: Throughput) -> Table:
    table = Table("way", "rows/s", "of the bare backbone", title=f"Throughput, {rates.rows} mixed requests")
    for name, rate in _ways(rates):
        table.add_row(name, f"{rate:,.0f}", f"{rate / rates.bare:.2f}")
    table.caption = f"server over padded transformers: {rates.over_padded:.2f}x"
    return table


def bench_summary(rates: Throughput) -> dict[str, Any]:
    return {
        "rows": rates.rows,
        "rows_per_s": {"server": rates.server, "engine": rates.engine, "bare": rates.bare, "padded": rates.padded},
        "retention": rates.retention,
        "engine_retention": rates.engine_retention,
        "over_padded": rates.over_padded,
    }


def writer_text(writer: Writer) -> str:
    return f"{escape(writer.source)}\n[bold]the backbone alone:[/] {escape(' '.join(writer.before.split()))}"


def generation_text(step: Mapping[str, Any]) -> str:
    equal = "the same" if step["equals_offline"] else "[bold]not the same[/]"
    return (
        f"{step['usage']['generated_tokens']} tokens, {step['tokens_per_s']:.0f} a second, from an adapter of "
        f"{step['bytes']:,} B that was trained for {step['steps']} steps ({step['seconds']:.0f} s); "
        f"{equal} as offline"
    )


def plot(
    path: Path, trained: Sequence[Trained], baselines: Sequence[Trained], better: Trained, rates: Throughput
) -> Path:
    """Write the quality and speed of the demo as one picture."""
    figure, (quality, speed) = reports.pyplot().subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    bars = [(f"{t.task}\n{t.method}", t) for t in (*baselines, trained[0])] + [(f"{better.task}\nversion 2", better)]
    bars += [(f"{t.task}\n{t.method}", t) for t in trained[1:]]
    colours = {"adamix": "#1f6f8b", "single": "#99a8b2", "head": "#c9d1d3"}
    values = [item.metric[1] for _, item in bars]
    drawn = quality.bar(range(len(bars)), values, color=[colours[item.method] for _, item in bars])
    quality.bar_label(drawn, [f"{value:.3f}" for value in values])
    quality.set_xticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    quality.set(title="Test split (accuracy; movie-score: Spearman)", ylim=(0, 1.08))
    names, speeds = zip(*_ways(rates), strict=True)
    drawn = speed.barh(range(len(names)), speeds, color=["#1f6f8b", "#1f6f8b", "#99a8b2", "#c9d1d3"])
    speed.bar_label(drawn, [f" {value:,.0f}" for value in speeds])
    speed.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names], fontsize=8)
    speed.invert_yaxis()
    speed.margins(x=0.15)
    speed.set(title=f"Rows a second, the same {rates.rows} requests")
    return reports.save_figure(figure, path)


def _ways(rates: Throughput) -> list[tuple[str, float]]:
    return [
        (f"server over gRPC, {CALLS_IN_FLIGHT} calls of {INPUTS_PER_CALL}", rates.server),
        ("packed engine in process, mixed adapters", rates.engine),
        ("packed backbone in process, no adapters", rates.bare),
        ("padded transformers, one task at a time", rates.padded),
    ]

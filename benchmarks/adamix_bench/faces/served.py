"""What needs a server: calls over HTTP beside those over gRPC, and the rows of a file, both beside the bare engine.

One server speaks both; its front end's processor time is what a call costs there. The ways of a part take turns.
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from pathlib import Path

import torch

from adamix.errors import AdamixError, Unavailable
from adamix_bench.faces.http_loadgen import HttpLoadProcess
from adamix_bench.faces.programs import cpu_of_children_s
from adamix_bench.faces.report import Report
from adamix_bench.faces.settings import Settings
from adamix_bench.measure import Spread, in_turns, timed
from adamix_bench.serving import settings as serving_settings
from adamix_bench.serving.against import Turn, costs_ms, metered
from adamix_bench.serving.in_process import MixedEngine
from adamix_bench.serving.load import LoadProcess, Outcome, Plan
from adamix_bench.serving.processes import Processes, running_processes
from adamix_bench.serving.servers import Say, serve_flags, warm_up
from adamix_bench.serving.synthesis import fill_store, task_name
from adamix_bench.serving.wire import predict_payloads
from adamix_bench.serving.workbench import Workbench
from adamix_bench.serving.workload import Requests
from adamix_server.engine.host_memory import keep_freed_memory
from adamix_server.local_server import LocalServer

IN_FLIGHT, INPUTS_PER_CALL = 4, 32
# Everything is sent twice, so that the first batch and the last, which are not full, weigh little.
_TIMES_OVER = 2
_LOOK_S = 0.05
_MIB = 1 << 20


@dataclass(frozen=True)
class _Stage:
    """A server, the same engine in this process, and what both are asked."""

    bench: Workbench
    server: LocalServer
    processes: Processes
    engine: MixedEngine
    requests: Requests
    batches: Sequence[Sequence[int]]

    def run_engine(self) -> None:
        self.engine.run(self.requests, self.batches)


@contextmanager
def _stage(settings: Settings, num_tasks: int, report: Report, say: Say) -> Iterator[_Stage]:
    say(f"loading the backbone, starting a server with {num_tasks} tasks")
    torch.set_num_threads(settings.num_threads)
    keep_freed_memory()
    sizes = settings.sizes
    serving = serving_settings.Settings(backbone=settings.backbone, threads=settings.threads, tasks=num_tasks)
    bench = Workbench.load(settings.backbone, settings.seed)
    tasks = list(bench.tasks(num_tasks))
    requests = bench.requests(sizes.requests, "uniform", num_tasks)
    with tempfile.TemporaryDirectory(prefix="adamix-bench-") as name:
        store, log_path = Path(name) / "store", report.out / "server-faces.log"
        fill_store(store, bench.backbone.spec, tasks, lambda: None)
        flags = serve_flags(serving, num_tasks, max(len(task.data) for task in tasks))
        with LocalServer(settings.backbone, store, log_path, *flags, "--http", "127.0.0.1:0") as server:
            yield _Stage(
                bench,
                server,
                Processes.of("the benchmark", server.pid, running_processes(), serving.front_ends),
                MixedEngine(bench.backbone, tasks, num_tasks),
                requests,
                requests.batches(serving.max_batch_tokens),
            )


def http(settings: Settings, report: Report, say: Say) -> None:
    """`http.cpu` and `http.retention`, and gRPC's beside them. Raises AdamixError if a call fails."""
    sizes = settings.sizes
    with ExitStack() as stack:
        stage = stack.enter_context(_stage(settings, sizes.tasks, report, say))
        over_grpc, over_http = stack.enter_context(LoadProcess()), stack.enter_context(HttpLoadProcess())
        warm_up(over_grpc, stage.bench, stage.server.address, sizes.tasks)
        singles = _first(stage.requests, sizes.singles)
        for inputs_per_call, requests, in_flight in ((1, singles, 1), (INPUTS_PER_CALL, stage.requests, IN_FLIGHT)):
            payloads = _TIMES_OVER * predict_payloads(requests, inputs_per_call)
            bodies = _TIMES_OVER * json_bodies(requests, inputs_per_call)
            connections = in_flight
            grpc_plan = Plan(
                address=stage.server.address, payloads=payloads, in_flight=in_flight, connections=connections
            )
            http_plan = Plan(address=stage.server.http, payloads=bodies, in_flight=in_flight)
            ways: dict[str, Callable[[], Turn | float]] = {
                "grpc": metered(over_grpc, grpc_plan, stage.processes),
                "http": metered(over_http, http_plan, stage.processes),
            }
            if inputs_per_call > 1:
                ways["engine"] = timed(stage.run_engine)

            def tell(turn: int, _: object, inputs: int = inputs_per_call) -> None:
                say(f"http, calls of {inputs}: turn {turn} of {sizes.repetitions}")

            found = in_turns(ways, sizes.repetitions, tell, there_and_back=True)
            turns = {name: [turn for turn in results if isinstance(turn, Turn)] for name, results in found.items()}
            for name in ("grpc", "http"):
                costs = costs_ms(turns[name], _TIMES_OVER * len(requests), len(payloads))
                report.cpu_ms[f"{name}, calls of {inputs_per_call}"] = costs
            _report_cost(report, turns, inputs_per_call)
            if inputs_per_call > 1:
                seconds = [value for value in found["engine"] if isinstance(value, float)]
                _report_retention(report, turns, Spread(tuple(len(requests) / value for value in seconds)))


def file(settings: Settings, report: Report, say: Say) -> None:
    """`file.rate`, and the memory that the command takes. Raises AdamixError if it fails."""
    sizes = settings.sizes
    with _stage(settings, 1, report, say) as stage, tempfile.TemporaryDirectory(prefix="adamix-bench-") as name:
        peaks: list[int] = []
        costs: list[dict[str, float]] = []

        def ask(num_rows: int) -> float:
            before = stage.processes.cpu_s()
            found = predict_file(Path(name), stage.requests.texts, num_rows, stage.server.address)
            after = stage.processes.cpu_s()
            peaks.append(found.peak_bytes)
            spent = {role: after[role] - before[role] for role in before} | {"command": found.cpu_s}
            costs.append({who: seconds * 1e3 / num_rows for who, seconds in spent.items()})
            return num_rows / found.seconds

        say(f"file: {sizes.fewer_rows:,} rows")
        stage.run_engine()
        ask(sizes.fewer_rows)
        engine, rates = [_rate(stage)], []
        for turn in range(1, sizes.file_turns + 1):
            say(f"file: {sizes.rows:,} rows, turn {turn} of {sizes.file_turns}")
            rates.append(ask(sizes.rows))
            engine.append(_rate(stage))
        # What the machine did else meets the engine before and after.
        beside = Spread(tuple((before + after) / 2 for before, after in pairwise(engine)))
        report.rates |= {"engine, one task": beside, "predict --file": Spread(tuple(rates))}
        fewer, *rest = peaks
        report.facts["file"] = {"rows": sizes.rows, "peak_bytes": max(rest), "peak_bytes_of_fewer_rows": fewer}
        report.cpu_ms["predict --file"] = {
            f"{who}, a row": Spread(tuple(cost[who] for cost in costs[1:])) for who in costs[0]
        }
        note = (
            f"{sizes.rows:,} rows, the whole command; {max(rest) // _MIB} MiB at most, {fewer // _MIB} MiB with "
            f"{sizes.fewer_rows:,} rows"
        )
        what = "rows a second of `predict --file` over the engine in process"
        report.add("file.rate", what, Spread(tuple(rates)).over(beside), 0.85, at_least=True, note=note)
        shares = Spread(tuple(cost["engine"] / sum(cost.values()) for cost in costs[1:]))
        note = ", ".join(f"{who} {spread.median:.3f} ms" for who, spread in report.cpu_ms["predict --file"].items())
        report.add("file.cpu", "engine's share of all processor time for a row", shares, note=note)
        growth = Spread(tuple(peak / fewer for peak in rest))
        what = f"peak memory of the command with {sizes.rows:,} rows over that with {sizes.fewer_rows:,}"
        report.add("file.memory", what, growth)


PARTS = {"http": http, "file": file}


def json_bodies(requests: Requests, inputs_per_call: int) -> list[bytes]:
    """Bodies of `POST /v1/predict`, for the same calls as `predict_payloads`."""
    inputs = [
        {"task": task_name(task), "text": text} for task, text in zip(requests.tasks, requests.texts, strict=True)
    ]
    return [
        json.dumps({"inputs": inputs[start : start + inputs_per_call]}).encode()
        for start in range(0, len(inputs), inputs_per_call)
    ]


@dataclass(frozen=True)
class Predicted:
    """What `adamix predict --file` took: seconds, those of processor time, and the most bytes that it had in memory."""

    seconds: float
    cpu_s: float
    peak_bytes: int


def predict_file(directory: Path, texts: Sequence[str], num_rows: int, address: str) -> Predicted:
    """Answer so many rows by that command.

    Raises:
        Unavailable: it failed, or did not answer every row.
    """
    source, out = directory / "rows.csv", directory / "answers.csv"
    with source.open("w", newline="", encoding="utf-8") as rows:
        writer = csv.writer(rows)
        writer.writerow(("id", "text"))
        writer.writerows(enumerate(islice(cycle(texts), num_rows)))
    command = [sys.executable, "-m", "adamix_server", "predict", task_name(0), "--file", str(source), "--out", str(out)]
    command += ["--server", address, "--overwrite", "--json"]
    before, began = cpu_of_children_s(), time.perf_counter()
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, _peak_bytes(process.pid))
            time.sleep(_LOOK_S)
        seconds = time.perf_counter() - began
        said = process.stdout.read() if process.stdout is not None else b""
    document = json.loads(said or b"{}")
    with out.open(newline="", encoding="utf-8") as rows:
        answered = sum(1 for row in csv.DictReader(rows) if row["label"])
    if process.returncode or document.get("failed") or answered != num_rows:
        raise Unavailable(f"predict --file ended with {process.returncode}: {answered} of {num_rows} rows are answered")
    return Predicted(seconds, cpu_of_children_s() - before, peak)


def _peak_bytes(pid: int) -> int:
    """The most memory that a process had so far; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def _rate(stage: _Stage) -> float:
    return len(stage.requests) / timed(stage.run_engine)()


def _first(requests: Requests, count: int) -> Requests:
    return Requests(requests.tasks[:count], requests.texts[:count], requests.token_ids[:count])


def _report_cost(report: Report, turns: dict[str, list[Turn]], inputs_per_call: int) -> None:
    grpc, http_ = (Spread(tuple(turn.cpu_s["front ends"] for turn in turns[name])) for name in ("grpc", "http"))
    name = "http.cpu" if inputs_per_call == 1 else f"http.cpu.{inputs_per_call}"
    ms = {
        way: report.cpu_ms[f"{way}, calls of {inputs_per_call}"]["front ends, a call"].median
        for way in ("http", "grpc")
    }
    note = f"{ms['http']:.3f} ms and {ms['grpc']:.3f} ms a call"
    inputs = "one input" if inputs_per_call == 1 else f"{inputs_per_call} inputs"
    what = f"front end's processor time for a call of {inputs}: over HTTP, over gRPC"
    report.add(name, what, http_.over(grpc), 1.5 if inputs_per_call == 1 else None, note=note)


def _report_retention(report: Report, turns: dict[str, list[Turn]], engine: Spread) -> None:
    report.rates["engine"] = engine
    for name, target in (("http", 0.9), ("grpc", None)):
        found = report.rates[name] = Spread(tuple(_inputs_per_s(turn.outcome) for turn in turns[name]))
        what = (
            f"over {'HTTP' if name == 'http' else 'gRPC'} by {IN_FLIGHT} calls of {INPUTS_PER_CALL}, over the process"
        )
        report.add(f"{name}.retention", what, found.over(engine), target, at_least=True)


def _inputs_per_s(outcome: Outcome) -> float:
    if not outcome.wall_s:
        raise AdamixError("the load generator measured no time")
    return sum(outcome.answered) / outcome.wall_s

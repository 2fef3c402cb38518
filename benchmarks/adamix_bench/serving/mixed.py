"""One setting: the same requests answered by the bare backbone, the engine in process, a server, and peers if asked.

All take turns in one run. In process everything is asked at once; over the wire calls come as `--loop` says.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from adamix_bench.measure import Goal, in_turns, timed
from adamix_bench.serving import equality
from adamix_bench.serving.in_process import BareEngine, MixedEngine
from adamix_bench.serving.load import LoadProcess, Outcome, Plan
from adamix_bench.serving.peers.padded import PaddedBackbone
from adamix_bench.serving.peers.peft import PeftBackbone
from adamix_bench.serving.report import Report, Way
from adamix_bench.serving.servers import Say, own_server, running_server, warm_up
from adamix_bench.serving.settings import Settings
from adamix_bench.serving.wire import predict_payloads
from adamix_bench.serving.workbench import Workbench
from adamix_bench.serving.workload import Requests, draw_arrivals

BARE, ENGINE, SERVER = "bare backbone", "engine in process", "server"
DETERMINISTIC = "engine in process, deterministic"
_CONNECTIONS = 4


def measure(settings: Settings, report: Report, say: Say) -> None:
    """Fill `report`. Raises what starting a server and asking it raises."""
    say("loading the backbone, making adapters")
    bench = Workbench.load(settings.backbone, settings.seed)
    requests = bench.requests(settings.requests, settings.popularity, settings.tasks)
    ways: dict[str, Callable[[], float | Outcome]] = {}
    engine = MixedEngine(bench.backbone, bench.tasks(settings.tasks), settings.tasks)
    if settings.server is None:
        # Of another machine's server this machine's speed says nothing.
        batches = requests.batches(settings.max_batch_tokens)
        bare = BareEngine(bench.backbone)
        ways[BARE] = timed(lambda: bare.run(requests, batches))
        ways[ENGINE] = timed(lambda: engine.run(requests, batches))
        if settings.deterministic:
            invariant = MixedEngine(bench.backbone, bench.tasks(settings.tasks), settings.tasks, deterministic=True)
            ways[DETERMINISTIC] = timed(lambda: invariant.run(requests, batches))
        if settings.peers:
            ways |= _peers(bench, bare, requests, settings, report)

    def keep(turn: int, found: Mapping[str, Sequence[float | Outcome]]) -> None:
        say(f"turn {turn} of {settings.repetitions}")
        _keep(report, found, requests, settings)

    with _server(settings, bench, engine.adapter_bytes, report.out, say) as address, LoadProcess() as load:
        warm_up(load, bench, address, settings.tasks)
        report.equal |= equality.of_server(engine, load, address, requests)
        report.equal |= equality.of_engine(bench, engine, requests)
        plan = _plan(settings, bench, requests, address)
        ways[SERVER] = lambda: load.run(plan)
        _keep(report, in_turns(ways, settings.repetitions, keep), requests, settings)
    if settings.deterministic:
        report.facts["processor_s"] = {
            name: _processor_s(partial(each.run, requests, batches))
            for name, each in ((ENGINE, engine), (DETERMINISTIC, invariant))
        }
    if settings.server is None:
        report.facts["resident_share"] = min(1.0, settings.num_slots / settings.tasks)


def _processor_s(work: Callable[[], None]) -> float:
    """Of all threads of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def _keep(
    report: Report, found: Mapping[str, Sequence[float | Outcome]], requests: Requests, settings: Settings
) -> None:
    """Enter the results of all turns so far."""
    report.ways = {
        name: Way.of_any(results, requests, settings.slo_ms / 1e3) for name, results in found.items() if results
    }
    speeds = {name: way.inputs_per_s for name, way in report.ways.items()}
    if settings.loop == "open":
        # An open loop's throughput is what was asked for.
        speeds.pop(SERVER, None)
    report.goals = [
        Goal("retention", f"{name} over {BARE}", speed.over(speeds[BARE]))
        for name, speed in speeds.items()
        if BARE in speeds and name != BARE
    ]
    if ENGINE in speeds and DETERMINISTIC in speeds:
        cost = speeds[DETERMINISTIC].over(speeds[ENGINE])
        report.goals.append(Goal("deterministic", f"{DETERMINISTIC} over {ENGINE}", cost))
    if ENGINE in speeds and SERVER in speeds:
        report.goals.append(Goal("wire", f"{SERVER} over {ENGINE}", speeds[SERVER].over(speeds[ENGINE])))


def _peers(
    bench: Workbench, bare: BareEngine, requests: Requests, settings: Settings, report: Report
) -> dict[str, Callable[[], float | Outcome]]:
    """The peers as ways; their answers are compared first."""
    loras = list(bench.tasks(settings.tasks, kind="lora"))
    padded, peft = PaddedBackbone(bench.backbone, bench.pad_id), PeftBackbone(bench.backbone, loras, bench.pad_id)
    report.equal |= equality.of_bare(bare, padded, requests)
    report.equal |= equality.of_peft(peft, MixedEngine(bench.backbone, loras, settings.tasks), requests)
    return {
        "padded transformers, no adapters": timed(lambda: padded.run(requests)),
        "PEFT, mixed batch (LoRA only)": timed(lambda: peft.run_mixed(requests)),
        "PEFT, task after task (LoRA only)": timed(lambda: peft.run_switching(requests)),
    }


def _plan(settings: Settings, bench: Workbench, requests: Requests, address: str) -> Plan:
    payloads = predict_payloads(requests, settings.inputs_per_call)
    arrivals_s = None
    if settings.rate is not None and settings.loop == "open":
        arrivals_s = draw_arrivals(settings.rate, settings.cv, len(payloads), bench.arrivals_random()).tolist()
    return Plan(
        address=address,
        payloads=payloads,
        in_flight=settings.in_flight,
        arrivals_s=arrivals_s,
        seconds=settings.seconds if arrivals_s is None else None,
        connections=min(_CONNECTIONS, settings.in_flight),
    )


@contextmanager
def _server(settings: Settings, bench: Workbench, adapter_bytes: int, out: Path, say: Say) -> Iterator[str]:
    spec, tasks = bench.backbone.spec, bench.tasks(settings.tasks)
    if settings.server is not None:
        say(f"registering {settings.tasks} tasks with {settings.server}")
        with running_server(settings.server, spec, tasks) as address:
            yield address
        return
    say("starting a server")
    with own_server(settings, spec, tasks, settings.tasks, adapter_bytes, out / "server.log", say) as address:
        yield address

"""`--against DIR`: what a call and an input cost this checkout's server, and that of another one, in processor time.

Both servers run at the same time with the same backbone, the same adapters, registered over the wire, and take turns at
the same requests. What is compared is user and system time of the engine and of the front ends, so that it matters
little what else the machine does. Knows of the other checkout only its directory, its command line and its wire.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from adamix.errors import InvalidConfig, Unavailable
from adamix_bench.measure import Goal, Spread, in_turns
from adamix_bench.serving import equality
from adamix_bench.serving.checkouts import Checkout
from adamix_bench.serving.generator_process import GeneratorProcess
from adamix_bench.serving.load import LoadProcess, Outcome, Plan
from adamix_bench.serving.processes import ROLES, Processes, Role, running_processes
from adamix_bench.serving.report import Report, Way
from adamix_bench.serving.servers import Say, serve_flags, warm_up
from adamix_bench.serving.settings import Settings
from adamix_bench.serving.wire import predict_payloads
from adamix_bench.serving.workbench import Workbench
from adamix_bench.serving.workload import Requests
from adamix_client import Client
from adamix_server.local_server import LocalServer

THIS, OTHER = "this", "other"
# What the comparison chooses itself: the same work for both, whatever time it takes.
CHOSEN = ("loop", "rate", "seconds", "server", "peers")

# Calls of many inputs cost most by the input, those of one by the call. These come one at a time: how many of several
# meet in a batch, and so what each costs, would be as chance has it.
_SINGLE, _SINGLES_IN_FLIGHT = 1, 1
_CONNECTIONS = 4
# Everything is sent twice, so that the first batch and the last, which are not full, weigh little.
_TIMES_OVER = 2


@dataclass(frozen=True)
class Turn:
    """What came of sending all requests once, and the processor seconds it took."""

    outcome: Outcome
    cpu_s: Mapping[Role, float]


@dataclass(frozen=True)
class Traffic:
    """The requests, cut into calls of so many inputs."""

    inputs_per_call: int
    in_flight: int
    payloads: list[bytes]

    @classmethod
    def of(cls, requests: Requests, inputs_per_call: int, in_flight: int) -> Self:
        return cls(inputs_per_call, in_flight, predict_payloads(requests, inputs_per_call) * _TIMES_OVER)

    def way(self, whose: str) -> str:
        return f"{whose}, calls of {self.inputs_per_call}"

    def plan(self, address: str) -> Plan:
        connections = min(_CONNECTIONS, self.in_flight)
        return Plan(address=address, payloads=self.payloads, in_flight=self.in_flight, connections=connections)


def measure(settings: Settings, other: Checkout, report: Report, say: Say) -> None:
    """Fill `report`.

    Raises:
        InvalidConfig: the other checkout reads another backbone of that name.
        AdamixError: a server did not start, or did not answer.
    """
    this = Checkout.this()
    report.facts["checkouts"] = {
        whose: {"directory": str(found.directory), "commit": found.commit}
        for whose, found in ((THIS, this), (OTHER, other))
    }
    say("loading the backbone, making adapters")
    bench = Workbench.load(settings.backbone, settings.seed)
    requests = bench.requests(settings.requests, settings.popularity, settings.tasks)
    sizes = {settings.inputs_per_call: settings.in_flight}
    sizes.setdefault(_SINGLE, _SINGLES_IN_FLIGHT)
    traffics = [Traffic.of(requests, inputs_per_call, in_flight) for inputs_per_call, in_flight in sizes.items()]
    with ExitStack() as stack:
        load = stack.enter_context(LoadProcess())
        ways: dict[str, Callable[[], Turn]] = {}
        servers = {}
        for whose, checkout in ((THIS, this), (OTHER, other)):
            say(f"starting the server of {checkout.directory}, registering {settings.tasks} tasks")
            servers[whose] = stack.enter_context(_server(whose, checkout, settings, bench, report.out))
        logits = {}
        for whose, (address, _) in servers.items():
            warm_up(load, bench, address, settings.tasks)
            logits[whose] = equality.server_logits(load, address, requests)
        report.equal["this server, the other one"] = equality.largest(logits[THIS], logits[OTHER])
        for traffic in traffics:
            for whose, (address, processes) in servers.items():
                ways[traffic.way(whose)] = metered(load, traffic.plan(address), processes)

        def keep(turn: int, found: Mapping[str, Sequence[Turn]]) -> None:
            say(f"turn {turn} of {settings.repetitions}")
            _keep(report, found, traffics, requests, settings)

        found = in_turns(ways, settings.repetitions, keep, there_and_back=True)
        _keep(report, found, traffics, requests, settings)


def metered(load: GeneratorProcess[Plan, Outcome], plan: Plan, processes: Processes) -> Callable[[], Turn]:
    """A way that carries out a plan, and gives what it took of the server. It raises Unavailable for refusals."""

    def run() -> Turn:
        before = processes.cpu_s()
        outcome = load.run(plan)
        after = processes.cpu_s()
        if outcome.errors:
            # What is refused costs less: no comparison.
            found = ", ".join(f"{count} {code}" for code, count in outcome.errors.items())
            raise Unavailable(f"the server of {processes.name} did not answer all: {found}")
        return Turn(outcome, {role: after[role] - before[role] for role in before})

    return run


@contextmanager
def _server(
    whose: str, checkout: Checkout, settings: Settings, bench: Workbench, out: Path
) -> Iterator[tuple[str, Processes]]:
    """The server of a checkout, with all tasks: its address, and its processes."""
    tasks = list(bench.tasks(settings.tasks))
    adapter_bytes = max(len(task.data) for task in tasks)
    with tempfile.TemporaryDirectory(prefix="adamix-bench-") as name:
        flags = serve_flags(settings, settings.tasks, adapter_bytes)
        log_path = out / f"server-{whose}.log"
        process = LocalServer(
            settings.backbone,
            Path(name) / "store",
            log_path,
            *flags,
            python=checkout.python,
            environment=checkout.environment,
        )
        with process as server:
            with Client(server.address) as client:
                if client.server_info().backbone["fingerprint"] != bench.backbone.spec.fingerprint:
                    raise InvalidConfig(
                        f"{checkout.directory} has another backbone than this checkout for --backbone "
                        f"{settings.backbone}",
                        field="backbone",
                    )
                for task in tasks:
                    client.register(task.name, task.data)
            found = Processes.of(str(checkout.directory), server.pid, running_processes(), settings.front_ends)
            yield server.address, found


def _keep(
    report: Report,
    found: Mapping[str, Sequence[Turn]],
    traffics: Sequence[Traffic],
    requests: Requests,
    settings: Settings,
) -> None:
    """Enter the results of all turns so far."""
    report.goals = []
    for traffic in traffics:
        turns = {whose: found[traffic.way(whose)] for whose in (THIS, OTHER)}
        if not all(turns.values()):
            return
        inputs, calls = len(requests) * _TIMES_OVER, len(traffic.payloads)
        for whose, results in turns.items():
            outcomes = [turn.outcome for turn in results]
            tokens_per_input = requests.num_tokens / len(requests)
            report.ways[traffic.way(whose)] = Way.of(outcomes, tokens_per_input, settings.slo_ms / 1e3)
            report.cpu_ms[traffic.way(whose)] = costs_ms(results, inputs, calls)
        report.goals += ratios(turns[THIS], turns[OTHER], traffic.inputs_per_call)


def costs_ms(turns: Sequence[Turn], inputs: int, calls: int) -> dict[str, Spread]:
    """Milliseconds of processor time of each role for an input and for a call, over the turns."""
    costs = {}
    for role in ROLES.values():
        seconds = [turn.cpu_s[role] for turn in turns]
        costs[f"{role}, an input"] = Spread(tuple(value * 1e3 / inputs for value in seconds))
        costs[f"{role}, a call"] = Spread(tuple(value * 1e3 / calls for value in seconds))
    return costs


def ratios(this: Sequence[Turn], other: Sequence[Turn], inputs_per_call: int) -> list[Goal]:
    """Processor time of each role, this over the other, turn by turn.

    The same for a call and for an input, of which both answered as many.
    """
    goals = []
    for role in ROLES.values():
        name = f"{role.replace(' ', '-')}.{inputs_per_call}"
        what = f"processor time of the {role}, calls of {inputs_per_call}: this over the other"
        mine, theirs = (Spread(tuple(turn.cpu_s[role] for turn in turns)) for turns in (this, other))
        goals.append(Goal(name, what, mine.over(theirs)))
    return goals

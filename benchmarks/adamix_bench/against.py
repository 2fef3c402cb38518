"""`--against DIR`: what a call and an input cost this checkout's server, and that of another one, in processor time.

Both servers run at the same time with the same backbone, the same adapters, registered over the wire, and take turns at
the same requests. What is compared is user and system time of the engine and of the front ends, so that it matters
little what else the machine does. Knows of the other checkout only its directory, its command line and its wire.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from adamix.errors import InvalidConfig, Unavailable
from adamix_bench import equality
from adamix_bench.load import LoadProcess, Outcome, Plan
from adamix_bench.measure import Goal, Spread, in_turns
from adamix_bench.report import Report, Way
from adamix_bench.servers import Say, serve_flags, warm_up
from adamix_bench.settings import Settings
from adamix_bench.wire import predict_payloads
from adamix_bench.workbench import Workbench
from adamix_bench.workload import Requests
from adamix_server.client import Client
from adamix_server.local_server import LocalServer

THIS, OTHER = "this", "other"
# What the comparison chooses itself: the same work for both, whatever time it takes.
CHOSEN = ("loop", "rate", "seconds", "server", "peers")

Role = Literal["engine", "front ends"]
# By the module that a process was started with.
_ROLES: dict[str, Role] = {"adamix_server.engine": "engine", "adamix_server.frontend": "front ends"}

# Calls of many inputs cost most by the input, those of one by the call. These come one at a time: how many of several
# meet in a batch, and so what each costs, would be as chance has it.
_SINGLE, _SINGLES_IN_FLIGHT = 1, 1
_CONNECTIONS = 4
# Everything is sent twice, so that the first batch and the last, which are not full, weigh little.
_TIMES_OVER = 2
_PROBE_S = 60.0
_PROBE = "import adamix_server; print(adamix_server.__file__)"


@dataclass(frozen=True)
class Checkout:
    """A directory with the source of adamix, and the interpreter that runs it.

    Attributes:
        environment: of its processes.
        commit: what git calls its state; empty where git does not know.
    """

    directory: Path
    python: str
    environment: Mapping[str, str]
    commit: str

    @classmethod
    def this(cls) -> Self:
        """The one whose code this is, run as this process is."""
        directory = Path(__file__).resolve().parents[2]
        return cls(directory, sys.executable, dict(os.environ), _commit(directory))

    @classmethod
    def at(cls, directory: Path) -> Self:
        """Another one, run by the interpreter of its `.venv`.

        Raises:
            InvalidConfig: there is none, or it cannot be run.
        """
        directory = directory.resolve()
        if _project(directory) != "adamix":
            raise InvalidConfig(f"--against {directory} is not a checkout of adamix", field="against")
        python = directory / ".venv" / "bin" / "python"
        if not python.exists():
            raise InvalidConfig(f"--against {directory} has no .venv: run `make setup` there", field="against")
        # Its own packages: neither those that this process was told of, nor what lies in the current directory.
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        environment["PYTHONSAFEPATH"] = "1"
        source = _server_source(str(python), environment)
        if source is None or not source.is_relative_to(directory):
            found = "no server" if source is None else f"the server of {source.parent}"
            raise InvalidConfig(
                f"--against {directory}: its .venv has {found}; run `make setup` there", field="against"
            )
        return cls(directory, str(python), environment, _commit(directory))


@dataclass(frozen=True)
class Process:
    """A running process: its number, that of the one that started it, and its command line."""

    pid: int
    parent: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Processes:
    """The processes of one server that answer calls. `name` says whose it is."""

    name: str
    pids: Mapping[Role, tuple[int, ...]]

    @classmethod
    def of(cls, name: str, supervisor: int, running: Iterable[Process], front_ends: int) -> Self:
        """Those that the supervisor has started, by the modules they run.

        Raises:
            Unavailable: there are not one engine and so many front ends.
        """
        pids: dict[Role, list[int]] = {"engine": [], "front ends": []}
        for process in running:
            role = _role(process.arguments)
            if process.parent == supervisor and role is not None:
                pids[role].append(process.pid)
        counts = (len(pids["engine"]), len(pids["front ends"]))
        if counts != (1, front_ends):
            raise Unavailable(
                f"the server of {name} runs {counts[0]} engines and {counts[1]} front ends, not 1 and {front_ends}"
            )
        return cls(name, {role: tuple(found) for role, found in pids.items()})

    def cpu_s(self) -> dict[Role, float]:
        """Processor time so far. Raises Unavailable when one of them has ended."""
        try:
            return {role: sum(map(cpu_s, pids)) for role, pids in self.pids.items()}
        except OSError:
            raise Unavailable(f"a process of the server of {self.name} has ended; see its log") from None


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
                ways[traffic.way(whose)] = _run(load, traffic.plan(address), processes)

        def keep(turn: int, found: Mapping[str, Sequence[Turn]]) -> None:
            say(f"turn {turn} of {settings.repetitions}")
            _keep(report, found, traffics, requests, settings)

        found = in_turns(ways, settings.repetitions, keep, there_and_back=True)
        _keep(report, found, traffics, requests, settings)


def _run(load: LoadProcess, plan: Plan, processes: Processes) -> Callable[[], Turn]:
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
    for role in _ROLES.values():
        seconds = [turn.cpu_s[role] for turn in turns]
        costs[f"{role}, an input"] = Spread(tuple(value * 1e3 / inputs for value in seconds))
        costs[f"{role}, a call"] = Spread(tuple(value * 1e3 / calls for value in seconds))
    return costs


def ratios(this: Sequence[Turn], other: Sequence[Turn], inputs_per_call: int) -> list[Goal]:
    """Processor time of each role, this over the other, turn by turn.

    The same for a call and for an input, of which both answered as many.
    """
    goals = []
    for role in _ROLES.values():
        name = f"{role.replace(' ', '-')}.{inputs_per_call}"
        what = f"processor time of the {role}, calls of {inputs_per_call}: this over the other"
        mine, theirs = (Spread(tuple(turn.cpu_s[role] for turn in turns)) for turns in (this, other))
        goals.append(Goal(name, what, mine.over(theirs)))
    return goals


def running_processes() -> list[Process]:
    """All processes of the machine that may be looked at."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
            parent = parent_of((directory / "stat").read_text(errors="replace"))
        except OSError:
            continue  # it has ended, or is another user's
        found.append(Process(int(directory.name), parent, tuple(arguments)))
    return found


def parent_of(stat: str) -> int:
    """Of the text of `/proc/PID/stat`: the second field after the name, which may hold blanks and brackets."""
    return int(stat.rpartition(")")[2].split()[1])


def cpu_s(pid: int) -> float:
    """User and system time of all threads of a process, in seconds. Raises OSError when it has ended.

    What `/proc/PID/stat` tells in ticks of 10 ms, to the nanosecond: the clock that clock_getcpuclockid(3) names, which
    Python has for threads alone.
    """
    return time.clock_gettime(~pid << 3 | 2)


def _role(arguments: Sequence[str]) -> Role | None:
    """Of `python … -m MODULE …`; None of anything else."""
    modules = [module for flag, module in itertools.pairwise(arguments) if flag == "-m"]
    return _ROLES.get(modules[0]) if modules else None


def _project(directory: Path) -> str:
    """The name in its `pyproject.toml`; empty if there is none."""
    try:
        document = tomllib.loads((directory / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    project = document.get("project")
    return str(project.get("name", "")) if isinstance(project, dict) else ""


def _server_source(python: str, environment: Mapping[str, str]) -> Path | None:
    """The file that `import adamix_server` reads there; None if it cannot."""
    try:
        done = subprocess.run(
            [python, "-c", _PROBE], capture_output=True, text=True, env=environment, timeout=_PROBE_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(done.stdout.strip()).resolve()


def _commit(directory: Path) -> str:
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""

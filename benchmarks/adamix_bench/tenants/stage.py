"""A real server that scenarios are carried out on: its tenants have keys, and its calls come from another process."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from adamix.errors import AdamixError, InvalidConfig, Unavailable
from adamix_bench.serving.processes import Processes, running_processes
from adamix_bench.serving.synthesis import MAX_LENGTH
from adamix_bench.serving.workbench import Workbench
from adamix_bench.serving.workload import draw_texts
from adamix_bench.tenants import administration, stores
from adamix_bench.tenants.load import Due, Group, LoadProcess, Outcome, Plan
from adamix_bench.tenants.meter import Meter, free_port
from adamix_bench.tenants.scenarios import Scenario
from adamix_bench.tenants.stores import Keys, Member, task_name
from adamix_bench.tenants.trace import SETTLED_S, Trace
from adamix_bench.tenants.traffic import Caller, Template, draw_calls, draw_templates
from adamix_protos.v1 import inference_pb2
from adamix_server.local_server import LocalServer

_TEXTS = 7
# A connection is some front end's: of so many each front end has some.
_CONNECTIONS, _EACH_FRONT_END = 4, 4
# Between scenarios, for what is left of one to be gone.
_PAUSE_S = 0.2
# The engine tells of the last second a little later.
_AFTER_S = 0.5


@dataclass(frozen=True)
class Running:
    """A server that answers. `keys`: None where nobody is asked for one; `metrics_port`: of its metrics."""

    address: str
    keys: Keys | None
    processes: Processes
    front_ends: int
    metrics_port: int


@contextmanager
def running(
    bench: Workbench,
    backbone: str,
    members: Mapping[str, Member],
    log_path: Path,
    *,
    threads: int,
    auth: str = "keys",
    front_ends: int = 1,
) -> Iterator[Running]:
    """`adamix serve` over a store with these tenants, until the block ends. Raises Unavailable if it does not start."""
    with TemporaryDirectory(prefix="adamix-bench-") as name:
        store = Path(name) / "store"
        keys = stores.fill(store, bench.backbone.spec, members, bench.seed)
        count = sum(sum(member.tasks.values()) for member in members.values())
        metrics_port = free_port()
        flags = {
            "--auth": auth,
            "--metrics-port": metrics_port,
            "--device": "cpu",
            "--dtype": "float32",
            "--host-cache-mib": max(64, 2 * count),
            "--threads": threads,
            "--front-ends": front_ends,
        }
        words = [str(word) for pair in flags.items() for word in pair]
        with LocalServer(backbone, store, log_path, *words) as server:
            found = Processes.of("the benchmark", server.pid, running_processes(), front_ends)
            yield Running(server.address, keys if auth != "none" else None, found, front_ends, metrics_port)


class Texts:
    """Requests with texts of so many tokens."""

    def __init__(self, bench: Workbench) -> None:
        self._words = bench.words
        self._special = bench.tokenizer.num_special_tokens_to_add()
        self._random = np.random.default_rng([bench.seed, _TEXTS])
        if bench.backbone.spec.max_tokens < MAX_LENGTH:
            raise InvalidConfig(f"the backbone must take texts of {MAX_LENGTH} tokens", field="backbone")

    def payload(self, owner: str, template: Template) -> bytes:
        """A serialised request for tasks of the caller's own tenant."""
        texts = draw_texts(self._words, [length for _, length in template], self._special, self._random)
        inputs = [
            inference_pb2.PredictInput(task=task_name(owner, task), text=text)
            for (task, _), text in zip(template, texts, strict=True)
        ]
        return inference_pb2.PredictRequest(inputs=inputs).SerializeToString()


class ServerStage:
    """Scenarios on a running server.

    Attributes:
        knee: tokens a second; a guess until it is measured.
        costs: by scenario: how long it took, processor seconds of each process, what they were spent on, and tokens
            and seconds of batches (their means).
    """

    def __init__(self, server: Running, load: LoadProcess, texts: Texts, seed: int, knee: float) -> None:
        self.server = server
        self.knee = knee
        self.costs: dict[str, dict[str, float]] = {}
        self._load = load
        self._texts = texts
        self._seed = seed
        self._groups: dict[Caller, Group] = {}

    def run(self, scenario: Scenario) -> Trace:
        """Raises AdamixError if the server cannot be brought to it, or does not answer."""
        if scenario.loads_s:
            raise Unavailable("how long an adapter takes to load can only be chosen with --simulate")
        before, began = self.server.processes.cpu_s(), time.monotonic()
        with Meter(self.server.metrics_port) as meter:
            outcome = self.send(scenario)
        after, elapsed_s = self.server.processes.cpu_s(), time.monotonic() - began
        spent = {role: after[role] - before[role] for role in before}
        tokens = sum(call.answered for call in outcome.calls)
        batches = max(1, len(outcome.batches))
        self.costs[scenario.name] = {
            "elapsed_s": elapsed_s,
            "batch_tokens": sum(count for count, _ in outcome.batches) / batches,
            "batch_s": sum(seconds for _, seconds in outcome.batches) / batches,
            "engine_cpu_s": spent["engine"],
            "front_ends_cpu_s": spent["front ends"],
            "generator_cpu_s": outcome.cpu_s,
            "generator_most_late_s": outcome.most_late_s,
            "answered_tokens": float(tokens),
        }
        failed = [call for call in outcome.calls if call.outcome == "failed"]
        if len(failed) > len(outcome.calls) / 2:
            raise AdamixError(f"the server fails: {failed[0].reason}")
        served = [(call.ended_s, call.tenant, call.answered) for call in outcome.calls if call.answered]
        computed = meter.tokens_per_s(SETTLED_S, scenario.seconds + _AFTER_S)
        time.sleep(_PAUSE_S)
        return Trace(scenario.seconds, outcome.calls, served, outcome.late_s, outcome.batches, computed)

    def send(self, scenario: Scenario) -> Outcome:
        """All calls of a scenario, with its changes meanwhile."""
        plan = self.plan(scenario.callers, scenario.seconds, scenario.cut_s)
        if not scenario.changes:
            return self._load.run(plan)
        # Before anything is sent, so that a server that cannot is found out now.
        changes = [(at, tenant, shares.weight) for at, tenant, shares in scenario.changes]
        for _, tenant, _ in changes:
            self._set_weight(tenant, 1)
        timers = [threading.Timer(at, self._set_weight, (tenant, weight)) for at, tenant, weight in changes]
        for timer in timers:
            timer.start()
        try:
            return self._load.run(plan)
        finally:
            for timer in timers:
                timer.cancel()
                timer.join()

    def plan(self, callers: Sequence[Caller], seconds: float, cut_s: float = 60.0) -> Plan:
        calls = draw_calls(callers, seconds, self.knee, self._seed)
        return Plan(
            address=self.server.address,
            groups=[self._group(caller) for caller in callers],
            calls=[Due(c.due_s, c.caller, c.template, c.deadline_s, c.retries) for c in calls],
            seconds=seconds,
            cut_s=cut_s,
            connections=max(_CONNECTIONS, _EACH_FRONT_END * self.server.front_ends),
        )

    def _group(self, caller: Caller) -> Group:
        if (known := self._groups.get(caller)) is not None:
            return known
        templates, keys = draw_templates(caller, self._seed), self.server.keys
        group = self._groups[caller] = Group(
            tenant=caller.tenant,
            key="" if keys is None else keys.first(caller.tenant),
            payloads=[self._texts.payload(caller.owner, template) for template in templates],
            lengths=[[length for _, length in template] for template in templates],
        )
        return group

    def _set_weight(self, tenant: str, weight: int) -> None:
        if self.server.keys is None:
            raise Unavailable("a server that asks nobody who they are has no tenants to change")
        administration.set_weight(self.server.address, self.server.keys.operator, tenant, weight)

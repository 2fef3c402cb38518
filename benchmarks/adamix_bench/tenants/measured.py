"""The proof on real servers, each of which is started when a part needs it first.

One with keys carries out the scenarios, one that asks nobody anything is compared with it, and one with three front
ends has rates to lend out and keys to revoke.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property, partial

import torch

from adamix_bench.serving.workbench import Workbench
from adamix_bench.tenants import costs, flows, revocations, scenarios
from adamix_bench.tenants.load import LoadProcess
from adamix_bench.tenants.proof import Proof, Say, attempt
from adamix_bench.tenants.report import Report
from adamix_bench.tenants.settings import PARTS, Settings, Sizes
from adamix_bench.tenants.simulation.hardware import Hardware
from adamix_bench.tenants.stage import Running, ServerStage, Texts, running
from adamix_bench.tenants.stores import Member
from adamix_bench.tenants.trace import fit
from adamix_server.access.quotas import Quotas
from adamix_server.config import DEFAULT_TENANT

_FRONT_ENDS = 3
# Asked for more than it can do, a machine shows what it can; of more than so much of it, it may be able to do more.
_SATURATED = 0.9
_MOST_DOUBLINGS = 6
_LIGHT_S = 2.0
_ALL_QUOTAS = Quotas(
    input_tokens_per_s=10_000_000, concurrent_calls=10_000, concurrent_streams=10_000, queued_tokens=10_000_000
)


def measure(settings: Settings, report: Report, say: Say) -> None:
    """Fill `report`, part by part. Raises AdamixError when the first server does not start."""
    with ExitStack() as stack:
        servers = _Servers(settings, report, say, stack)
        own = {"cost": servers.cost, "rates": servers.rates, "revocation": servers.revocation}
        for part in PARTS:
            if settings.wants(part):
                attempt(report, part, own[part] if part in own else partial(servers.show, part), say)
        servers.tell()


class _Servers:
    """The servers and what they share: one backbone, one set of texts, one load generator."""

    def __init__(self, settings: Settings, report: Report, say: Say, stack: ExitStack) -> None:
        self._settings, self._report, self._say, self._stack = settings, report, say, stack
        torch.set_num_threads(self._threads)
        say("loading the backbone")
        self._bench = Workbench.load(settings.backbone, settings.seed)
        self._texts = Texts(self._bench)
        self._load = stack.enter_context(LoadProcess())

    @cached_property
    def stage(self) -> ServerStage:
        """A server with keys and all tenants; its knee is measured."""
        server = self._start("keys", members_of(self._settings.sizes), auth="keys")
        stage = self._stage(server, Hardware().knee)
        self._measure_knee(stage)
        return stage

    @cached_property
    def _proof(self) -> Proof:
        return Proof(self.stage, self._settings.sizes, self._report, self._say)

    @cached_property
    def _lending(self) -> Running:
        members = {
            flows.LIMITED: Member(quotas=Quotas(input_tokens_per_s=flows.RATE), tasks={flows.LIMITED: 1}),
            revocations.REVOKED: Member(keys=revocations.KEYS, tasks={revocations.REVOKED: 1}),
        }
        return self._start("front-ends", members, auth="keys", front_ends=_FRONT_ENDS)

    def show(self, part: str) -> None:
        """A part that is made of scenarios."""
        self._proof.parts()[part]()

    def cost(self) -> None:
        with_keys = self.stage
        with ExitStack() as stack:
            members = {DEFAULT_TENANT: Member(tasks={scenarios.VICTIM.tenant: scenarios.VICTIM.tasks})}
            without = stack.enter_context(self._running("none", members, auth="none"))
            costs.measure(
                with_keys,
                self._stage(without, with_keys.knee),
                self._load,
                self._settings.sizes,
                self._report,
                self._say,
            )

    def rates(self) -> None:
        flows.measure(self._stage(self._lending, Hardware().knee), self._settings.sizes.rate_s, self._report, self._say)

    def revocation(self) -> None:
        revocations.measure(self._lending, self._texts, self._report, self._say)

    def tell(self) -> None:
        """What else a reader of the numbers needs."""
        if "stage" in self.__dict__:
            self._report.costs = self.stage.costs

    def _measure_knee(self, stage: ServerStage) -> None:
        for _ in range(_MOST_DOUBLINGS):
            scenario = scenarios.knee(self._settings.sizes.knee_s)
            self._say(f"knee: {scenario.callers[0].knees * stage.knee:,.0f} tokens a second asked for")
            trace = stage.run(scenario)
            found, asked = trace.tokens_per_s(), scenario.callers[0].knees * stage.knee
            if found < _SATURATED * asked:
                break
            stage.knee *= 2
        self._say(f"knee: {found:,.0f} tokens a second")
        stage.knee = found
        self._report.traces[scenario.name] = trace
        self._report.facts["knee_tokens_per_s"] = found
        light = stage.run(scenarios.light(_LIGHT_S))
        self._report.facts["rates_of_machine"] = rates_of([*trace.batches, *light.batches], found)

    def _start(self, name: str, members: Mapping[str, Member], *, auth: str, front_ends: int = 1) -> Running:
        return self._stack.enter_context(self._running(name, members, auth=auth, front_ends=front_ends))

    def _running(
        self, name: str, members: Mapping[str, Member], *, auth: str, front_ends: int = 1
    ) -> AbstractContextManager[Running]:
        self._say(f"starting a server, --auth {auth}, {front_ends} front ends")
        log_path = self._report.out / f"server-{name}.log"
        return running(
            self._bench,
            self._settings.backbone,
            members,
            log_path,
            threads=self._threads,
            auth=auth,
            front_ends=front_ends,
        )

    def _stage(self, server: Running, knee: float) -> ServerStage:
        return ServerStage(server, self._load, self._texts, self._settings.seed, knee)

    @property
    def _threads(self) -> int:
        return self._settings.threads or len(os.sched_getaffinity(0))


def members_of(sizes: Sizes) -> dict[str, Member]:
    """All tenants of all scenarios, with their tasks."""
    one = 1.0
    some = [
        scenarios.knee(one),
        scenarios.alone(one),
        *scenarios.floods(one, sizes.many_tasks),
        scenarios.weights(one),
        scenarios.lengths(one),
        scenarios.others_adapter(one),
        scenarios.overload(one, 2.0, 1.0, tenants=scenarios.SEVERAL),
        scenarios.batch_class(one),
        scenarios.beside_batch_class(one),
        *(scenario for pair in scenarios.traps(one, one).values() for scenario in pair),
    ]
    tasks: dict[str, dict[str, int]] = {costs.METERED: {scenarios.VICTIM.tenant: scenarios.VICTIM.tasks}}
    for (tenant, owner), count in scenarios.every_caller(some).items():
        tasks.setdefault(tenant, {})[owner] = count
    quotas = {costs.METERED: _ALL_QUOTAS}
    return {
        tenant: Member(shares=scenarios.shares_of(tenant), quotas=quotas.get(tenant, Quotas()), tasks=of)
        for tenant, of in tasks.items()
    }


def rates_of(batches: Sequence[tuple[int, float]], knee: float) -> dict[str, float] | None:
    """Seconds of a batch and of a token, such that full batches make up the knee that was measured."""
    if (found := fit(batches)) is None:
        return None
    batch_s, token_s = found
    hardware = Hardware(batch_s=batch_s, token_s=token_s)
    scale = hardware.knee / knee
    return {"batch_s": batch_s * scale, "token_s": token_s * scale}

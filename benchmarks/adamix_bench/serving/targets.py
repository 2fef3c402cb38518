"""`--targets`: every number of serving that has a target, and its neighbours, in one run.

Letters name the parts: a mixed adapters against the bare backbone; b the bare backbone against its matrix products;
c peers; d the wire against the process; e few tasks against many; f registering under load; g the memory of a front
end. The ways of a part take turns.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec

from adamix.errors import AdamixError
from adamix_bench.measure import Goal, Spread, in_turns, timed
from adamix_bench.serving import equality
from adamix_bench.serving.in_process import BareEngine, MixedEngine
from adamix_bench.serving.load import LoadProcess, Outcome, Plan
from adamix_bench.serving.matmuls import BareProducts
from adamix_bench.serving.memory import footprint
from adamix_bench.serving.op_times import op_times
from adamix_bench.serving.peers.padded import PaddedBackbone
from adamix_bench.serving.peers.peft import PeftBackbone
from adamix_bench.serving.registering import p99s
from adamix_bench.serving.report import Report, Way
from adamix_bench.serving.servers import Say, own_server, warm_up
from adamix_bench.serving.settings import Settings
from adamix_bench.serving.wire import predict_payloads, stream_payloads
from adamix_bench.serving.workbench import Workbench
from adamix_bench.serving.workload import Requests, draw_tasks


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        few, some, many, most: numbers of tasks that are compared.
        register_s: seconds of each run under load, with registrations and without.
        resident_few, resident_many: numbers of tasks between which the memory of a front end is compared.
    """

    few: int
    some: int
    many: int
    most: int
    register_s: float
    peer_repetitions: int
    register_repetitions: int
    resident_few: int
    resident_many: int


FULL = Sizes(
    few=5,
    some=32,
    many=128,
    most=2000,
    register_s=10,
    peer_repetitions=3,
    register_repetitions=3,
    resident_few=2_000,
    resident_many=50_000,
)
QUICK = Sizes(
    few=2,
    some=3,
    many=4,
    most=8,
    register_s=1,
    peer_repetitions=1,
    register_repetitions=1,
    resident_few=1_000,
    resident_many=10_000,
)

IN_FLIGHT, INPUTS_PER_CALL, SINGLES_IN_FLIGHT = 4, 32, 64
_CONNECTIONS = 4
# Over the wire everything is sent twice, so that the first batch and the last, which are not full, weigh little.
_TIMES_OVER = 2
# Of what single-input calls reach at most: registering is compared where waiting does not yet come from load alone.
_LOAD_SHARE = 0.5


def measure(settings: Settings, sizes: Sizes, report: Report, say: Say) -> None:
    """Fill `report`, part by part; each is saved as soon as it is measured. A part that fails leaves the others be."""
    with ExitStack() as stack:
        run = _Targets(settings, sizes, report, say, stack)
        parts = (run.in_process, run.peers, run.memory, run.start_servers, run.wire, run.many_tasks, run.registering)
        for part in parts:
            try:
                part()
            except AdamixError as error:
                say(f"{part.__name__} failed: {error.message}")
                report.failures[part.__name__] = error.message
                if part == run.start_servers:
                    break
            report.save()


class _Targets:
    """The parts, and what they share: one backbone, one set of texts, the servers from `start_servers` on."""

    def __init__(self, settings: Settings, sizes: Sizes, report: Report, say: Say, stack: ExitStack) -> None:
        self._settings, self._sizes, self._report, self._say, self._stack = settings, sizes, report, say, stack
        say(f"loading the backbone, making {sizes.most} adapters")
        self._bench = Workbench.load(settings.backbone, settings.seed)
        self._requests = self._bench.requests(settings.requests, "uniform", sizes.some)
        self._batches = self._requests.batches(settings.max_batch_tokens)
        self._engine = MixedEngine(self._bench.backbone, self._bench.tasks(sizes.most), sizes.most)
        self._bare = BareEngine(self._bench.backbone)
        self._load = stack.enter_context(LoadProcess())
        self._addresses: dict[int, str] = {}
        report.facts["sizes"] = asdict(sizes)
        self._singles_per_s = 0.0

    def in_process(self) -> None:
        sizes, bench = self._sizes, self._bench
        counts = (sizes.few, sizes.some, sizes.many, sizes.most)
        asked = {f"engine, {count} tasks": self._asking(count) for count in counts}
        turns = bench.draw_tasks("distinct", len(self._requests), sizes.many)
        asked[f"engine, {sizes.many} tasks in turns"] = self._requests.with_tasks(turns)
        padded = PaddedBackbone(bench.backbone, bench.pad_id)
        self._report.equal |= equality.of_engine(bench, self._engine, self._requests)
        self._report.equal |= equality.of_bare(self._bare, padded, self._requests)
        products = BareProducts(bench.backbone, max(map(self._tokens, self._batches)))
        tokens = [self._tokens(batch) for batch in self._batches]
        ways: dict[str, Callable[[], None]] = {
            "matrix products": partial(products.run, tokens),
            "bare backbone": self._run_bare,
        }
        ways |= {name: partial(self._engine.run, requests, self._batches) for name, requests in asked.items()}
        speeds = self._turns("a, b", {name: timed(work) for name, work in ways.items()}, self._settings.repetitions)
        bare = speeds["bare backbone"]
        for count, target in zip(counts, (None, 0.93, 0.90, None), strict=True):
            what = f"mixed adapters and heads over the bare backbone, {count} tasks"
            self._goal(f"a.{count}", what, speeds[f"engine, {count} tasks"].over(bare), target)
        what = f"the same, {sizes.many} tasks in turns: no two neighbours alike"
        self._goal(f"a.{sizes.many}.turns", what, speeds[f"engine, {sizes.many} tasks in turns"].over(bare))
        self._goal("b", "bare packed backbone over its matrix products", bare.over(speeds["matrix products"]), 0.82)
        for name in ("bare backbone", *(f"engine, {count} tasks" for count in (sizes.some, sizes.many))):
            self._report.shares[name] = op_times(ways[name]).shares

    def peers(self) -> None:
        mixed, same = "engine over PEFT's mixed batch", "the same, the engine with PEFT's LoRAs"
        if find_spec("peft") is None:
            for name, what in (("c", mixed), ("c.lora", same)):
                self._goal(name, what, None, 3.0, note="PEFT is not installed: pip install 'adamix[bench]'")
            return
        bench, requests, count = self._bench, self._requests, self._sizes.some
        loras = list(bench.tasks(count, kind="lora"))
        engine = MixedEngine(bench.backbone, loras, count)
        padded, peft = PaddedBackbone(bench.backbone, bench.pad_id), PeftBackbone(bench.backbone, loras, bench.pad_id)
        self._report.equal |= equality.of_peft(peft, engine, requests)
        ways = {
            "engine, beside peers": partial(self._engine.run, requests, self._batches),
            "engine, LoRA only": partial(engine.run, requests, self._batches),
            "padded transformers, no adapters": partial(padded.run, requests),
            "PEFT, mixed batch (LoRA only)": partial(peft.run_mixed, requests),
            "PEFT, task after task (LoRA only)": partial(peft.run_switching, requests),
        }
        speeds = self._turns("c", {name: timed(work) for name, work in ways.items()}, self._sizes.peer_repetitions)
        ours, ours_lora, plain, mixed_batch, switching = speeds.values()
        self._goal("c", mixed, ours.over(mixed_batch), 3.0, note="PEFT has LoRA only")
        self._goal("c.lora", same, ours_lora.over(mixed_batch), 3.0)
        self._goal(
            "c.padded", "engine over padded transformers without adapters, arrival order by 32", ours.over(plain)
        )
        self._goal("c.switching", "engine over PEFT, task after task", ours.over(switching))

    def memory(self) -> None:
        few, many = self._sizes.resident_few, self._sizes.resident_many
        self._say(f"g: a server with {few} tasks, then with {many}")
        found = footprint(self._settings, self._bench, few, many, self._report.out / "server-memory.log", self._say)
        self._report.facts["footprint"] = asdict(found)
        note = (
            f"{found.few_bytes >> 20} MiB with {few}, {found.many_bytes >> 20} MiB with {many}, the same bytes in all"
        )
        what = "bytes of a front end's memory a registered task"
        self._goal("g", what, Spread((found.bytes_per_task,)), 1024, at_least=False, note=note)

    def start_servers(self) -> None:
        """One server for each of two numbers of registered tasks; every adapter is in host memory afterwards."""
        spec, width = self._bench.backbone.spec, self._engine.adapter_bytes
        for count in (self._sizes.many, self._sizes.most):
            self._say(f"starting a server with {count} tasks")
            log_path = self._report.out / f"server-{count}.log"
            tasks = self._bench.tasks(count)
            server = own_server(self._settings, spec, tasks, count, width, log_path, self._say)
            self._addresses[count] = self._stack.enter_context(server)
            warm_up(self._load, self._bench, self._addresses[count], count)

    def wire(self) -> None:
        requests, address = self._asking(self._sizes.many), self._addresses[self._sizes.many]
        self._report.equal |= equality.of_server(self._engine, self._load, address, requests)
        calls = self._plan(address, predict_payloads(requests, INPUTS_PER_CALL), IN_FLIGHT)
        singles = self._plan(address, predict_payloads(requests, 1), SINGLES_IN_FLIGHT)
        stream = Plan(
            address=address,
            rpc="PredictStream",
            payloads=_TIMES_OVER * stream_payloads(requests),
            in_flight=SINGLES_IN_FLIGHT,
        )
        ways: dict[str, Callable[[], float | Outcome]] = {
            "engine, beside the server": timed(partial(self._engine.run, requests, self._batches)),
            f"server, {IN_FLIGHT} calls of {INPUTS_PER_CALL}": partial(self._load.run, calls),
            f"server, {SINGLES_IN_FLIGHT} calls of 1": partial(self._load.run, singles),
        }
        refusals = self._load.run(stream).errors
        if not refusals:
            ways[f"server, stream with {SINGLES_IN_FLIGHT} in flight"] = partial(self._load.run, stream)
        engine, by_calls, by_singles, *rest = self._turns("d", ways, self._settings.repetitions).values()
        self._singles_per_s = by_singles.median
        what = f"over gRPC by {IN_FLIGHT} calls of {INPUTS_PER_CALL}, over the process"
        self._goal("d", what, by_calls.over(engine), 0.90)
        what = f"over gRPC by {SINGLES_IN_FLIGHT} calls of 1, over the process"
        self._goal("d.single", what, by_singles.over(engine), 0.80)
        what = f"over one gRPC stream with {SINGLES_IN_FLIGHT} in flight, over the process"
        self._goal("d.stream", what, rest[0].over(engine) if rest else None, note=", ".join(refusals))

    def many_tasks(self) -> None:
        few, many, most = self._sizes.few, self._sizes.many, self._sizes.most
        asked = ((few, self._addresses[many]), (many, self._addresses[many]), (most, self._addresses[most]))
        ways = {f"server, {count} tasks": self._asking_anew(count, address) for count, address in asked}
        of_few, of_many, of_most = self._turns("e", ways, self._settings.repetitions).values()
        share = min(1.0, self._settings.num_slots / most)
        self._report.facts["resident_share"] = {str(most): share}
        note = f"{share:.0%} in slots, all in host memory"
        self._goal("e", f"{most} registered tasks over {many}, asked uniformly", of_most.over(of_many), 0.95, note=note)
        self._goal(
            "e.few", f"{most} registered tasks over {many} of which {few} are asked", of_most.over(of_few), note=note
        )

    def registering(self) -> None:
        if not self._singles_per_s:
            raise AdamixError("the load to register under is a share of what was not measured")
        address, seconds = self._addresses[self._sizes.many], self._sizes.register_s
        rate = max(1.0, _LOAD_SHARE * self._singles_per_s)
        payloads = predict_payloads(self._asking(self._sizes.many), 1)
        self._say(f"f: registering under an open loop of {rate:.0f} calls a second")
        quiet, loud, counts = p99s(
            self._bench, self._load, address, payloads, rate, seconds, self._sizes.register_repetitions, self._say
        )
        self._report.facts["registering"] = {
            "calls_per_s": rate,
            "seconds": seconds,
            "registered": counts,
            "p99_ms_without": quiet.to_json(),
            "p99_ms_with": loud.to_json(),
        }
        note = f"p99 {quiet.median:.0f} ms without, {loud.median:.0f} ms with; {sum(counts)} registered"
        what = "p99 of other calls while tasks are registered, over p99 without"
        self._goal("f", what, loud.over(quiet), 1.5, at_least=False, note=note)

    def _asking(self, num_tasks: int) -> Requests:
        """The same texts asked of so many tasks, uniformly."""
        return self._requests.with_tasks(self._bench.draw_tasks("uniform", len(self._requests), num_tasks))

    def _asking_anew(self, num_tasks: int, address: str) -> Callable[[], Outcome]:
        """A way that draws the tasks anew whenever it runs: a fixed draw would ask 2,000 tasks for the same third."""
        random = self._bench.tasks_random(num_tasks)

        def ask() -> Outcome:
            drawn = [draw_tasks("uniform", len(self._requests), num_tasks, random) for _ in range(_TIMES_OVER)]
            payloads = [
                p for tasks in drawn for p in predict_payloads(self._requests.with_tasks(tasks), INPUTS_PER_CALL)
            ]
            return self._load.run(
                Plan(address=address, payloads=payloads, in_flight=IN_FLIGHT, connections=_CONNECTIONS)
            )

        return ask

    def _tokens(self, batch: Sequence[int]) -> int:
        return sum(len(self._requests.token_ids[index]) for index in batch)

    def _run_bare(self) -> None:
        self._bare.run(self._requests, self._batches)

    def _plan(self, address: str, payloads: list[bytes], in_flight: int) -> Plan:
        return Plan(address=address, payloads=_TIMES_OVER * payloads, in_flight=in_flight, connections=_CONNECTIONS)

    def _turns(
        self, part: str, ways: Mapping[str, Callable[[], float | Outcome]], repetitions: int
    ) -> dict[str, Spread]:
        """Inputs a second of each way, turn by turn; the report has them from the first turn on."""

        def keep(turn: int, found: Mapping[str, Sequence[float | Outcome]]) -> None:
            self._say(f"{part}: turn {turn} of {repetitions}")
            for name, results in found.items():
                if results:
                    self._add_way(name, results)

        found = in_turns(ways, repetitions, keep)
        return {name: self._add_way(name, results) for name, results in found.items()}

    def _add_way(self, name: str, results: Sequence[float | Outcome]) -> Spread:
        way = Way.of_any(results, self._requests, self._settings.slo_ms / 1e3)
        self._report.ways[name] = way
        return way.inputs_per_s

    def _goal(
        self,
        name: str,
        what: str,
        measured: Spread | None,
        target: float | None = None,
        *,
        at_least: bool = True,
        note: str = "",
    ) -> None:
        self._report.goals.append(Goal(name, what, measured, target, at_least, note))

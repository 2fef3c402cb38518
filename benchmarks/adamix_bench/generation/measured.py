"""Every way of generating, in turns on the same requests, at each concurrency; then a server's callers by chance."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.errors import AdamixError, FailedPrecondition
from adamix_bench.generation.adapters import make_adapter
from adamix_bench.generation.floor import Floor
from adamix_bench.generation.in_process import InProcess
from adamix_bench.generation.peers.continuous import ContinuousBatching
from adamix_bench.generation.peers.plain import PlainGenerate
from adamix_bench.generation.profiling import profile
from adamix_bench.generation.report import Cell, Report
from adamix_bench.generation.served import Served
from adamix_bench.generation.settings import BF16, CONTINUOUS, FLOOR, FP32, PLAIN, SERVED, Settings
from adamix_bench.generation.turns import Turn, timed
from adamix_bench.generation.workload import MEAN_TOKENS, Workload
from adamix_bench.measure import in_turns
from adamix_server.engine.host_memory import keep_freed_memory

Say = Callable[[str], None]

# One request after another is as fast for two of them as for all.
_MOST_ONE_BY_ONE = 2
# What each way does before it is timed: so many requests, of so many tokens.
_WARM_REQUESTS, _WARM_TOKENS = 4, 4
# Texts of the open loop, and the share of what was written for the largest round that they ask for.
_ARRIVALS, _LOAD = 48, 0.6
# Of the largest round, beside none and one for each request.
_FEWER_ADAPTERS = (1, 8)


@dataclass
class _Ways:
    """What has been started."""

    continuous: ContinuousBatching
    plain: PlainGenerate | None = None
    fp32: InProcess | None = None
    bf16: InProcess | None = None
    floor: Floor | None = None
    served: Served | None = None
    # By cell, how a workload is generated and timed.
    runs: dict[Cell, Callable[[Workload], Turn]] = field(default_factory=dict)

    def add(self, cell: Cell, run: Callable[[Workload], Turn]) -> None:
        self.runs[cell] = run


def measure(settings: Settings, report: Report, say: Say) -> None:
    """Fill `report`.

    Raises:
        AdamixError: the backbone writes no text, or a way that is always measured failed.
    """
    # As the server's engine does. All ways but the server share this process, so all of them have it.
    keep_freed_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    say("loading the backbone, making adapters")
    backbone = backbones.load(settings.backbone, language_model=True)
    report.facts["native_kernels"] = _has_native_kernels()
    adapters = [make_adapter(backbone.spec, index, settings.seed) for index in range(max(settings.concurrency))]
    with _started(settings, backbone, adapters, report, say) as ways:
        for concurrency in settings.concurrency:
            workload = Workload.draw(concurrency, backbone.spec.vocab_size, settings.seed)
            ways.runs.clear()
            _choose(ways, concurrency, is_largest=concurrency == max(settings.concurrency))
            few = workload.first(_WARM_REQUESTS)
            warm = Workload(few.prompts, [_WARM_TOKENS] * len(few))
            runs = {cell: _warmed(run, warm, workload) for cell, run in ways.runs.items()}

            def keep(turn: int, found: Mapping[Cell, Sequence[Turn]], concurrency: int = concurrency) -> None:
                say(f"{concurrency} at once: turn {turn} of {settings.repetitions}")
                report.enter(found)
                report.save()

            # Always in one order: the floor has the steps of the run before it.
            found = in_turns(runs, settings.repetitions, keep)
            report.enter(found)
            report.same_texts(found)
            if settings.profile and ways.fp32 is not None:
                say(f"{concurrency} at once: where the engine's time goes")
                report.enter_profile(concurrency, profile(partial(_steps, ways.fp32, workload)))
                report.save()
        if ways.served is not None:
            say(f"{_ARRIVALS} texts that come by themselves")
            with _attempt(report, "open loop", say):
                _open_loop(ways.served, backbone.spec.vocab_size, settings, report)


@contextmanager
def _started(
    settings: Settings, backbone: Backbone, adapters: Sequence[bytes], report: Report, say: Say
) -> Iterator[_Ways]:
    if backbone.language_model is None:
        raise FailedPrecondition(f"{backbone.spec.label} writes no text", field="backbone")
    most = max(settings.concurrency)
    with ExitStack() as stack:
        ways = _Ways(stack.enter_context(ContinuousBatching(backbone.language_model, most)))
        if settings.wants(PLAIN):
            ways.plain = PlainGenerate(backbone.language_model)
        if settings.wants(FP32) or settings.wants(FLOOR):
            ways.fp32 = InProcess(backbone, adapters, most)
        if settings.wants(FLOOR):
            ways.floor = Floor(backbone)
        if settings.wants(BF16):
            with _attempt(report, BF16, say):
                ways.bf16 = InProcess(backbone, adapters, most, quantize="bf16")
        if settings.wants(SERVED):
            say(f"starting a server with {len(adapters)} tasks")
            with _attempt(report, SERVED, say):
                log_path = Path(report.out) / "server-generation.log"
                served = Served(settings.backbone, backbone.spec, adapters, settings.threads, log_path)
                ways.served = stack.enter_context(served)
        yield ways


def _choose(ways: _Ways, concurrency: int, *, is_largest: bool) -> None:
    """The cells of one round, in the order of a turn."""
    if (engine := ways.fp32) is not None:
        fewer = [count for count in _FEWER_ADAPTERS if count < concurrency] if is_largest else []
        for count in (0, *fewer, concurrency):
            ways.add(Cell(FP32, concurrency, count), _in_process(engine, count))
    ways.add(Cell(CONTINUOUS, concurrency), lambda asked: timed(lambda: ways.continuous.generate(asked), asked))
    if (half := ways.bf16) is not None:
        ways.add(Cell(BF16, concurrency), _in_process(half, 0))
    if (served := ways.served) is not None:
        ways.add(
            Cell(SERVED, concurrency, concurrency),
            lambda asked: timed(lambda: served.generate(asked, concurrency), asked, served.cpu_s),
        )
    if (floor := ways.floor) is not None and engine is not None:
        # Of a run without adapters, which the same requests make with the same steps.
        ways.add(Cell(FLOOR, concurrency), lambda asked: timed(lambda: floor.run(asked, engine.steps_of(asked)), asked))
    if (plain := ways.plain) is not None:

        def one_by_one(asked: Workload) -> Turn:
            few = asked.first(_MOST_ONE_BY_ONE)
            return timed(lambda: plain.generate(few), few)

        ways.add(Cell(PLAIN, concurrency), one_by_one)


def _in_process(engine: InProcess, num_adapters: int) -> Callable[[Workload], Turn]:
    return lambda asked: timed(lambda: engine.generate(asked, num_adapters), asked)


def _steps(engine: InProcess, workload: Workload) -> int:
    engine.generate(workload)
    return len(engine.steps_of(workload))


def _warmed(run: Callable[[Workload], Turn], warm: Workload, workload: Workload) -> Callable[[], Turn]:
    """The first call, which does not count, is another one."""
    waiting = [warm]
    return lambda: run(waiting.pop() if waiting else workload)


def _open_loop(served: Served, vocab_size: int, settings: Settings, report: Report) -> None:
    """Texts at random times, fewer than the server has just shown that it can write."""
    most = max(settings.concurrency)
    turns = report.turns[Cell(SERVED, most, most)]
    rate = _LOAD * statistics.median(turn.tokens_per_s for turn in turns) / MEAN_TOKENS
    random = np.random.default_rng([settings.seed, _ARRIVALS])
    due_s = np.cumsum(random.exponential(1 / rate, _ARRIVALS)).tolist()
    waited = served.arrive(Workload.draw(_ARRIVALS, vocab_size, settings.seed), due_s)
    report.enter_open_loop(rate, waited.first_token_s, waited.inter_token_s)


@contextmanager
def _attempt(report: Report, way: str, say: Say) -> Iterator[None]:
    """A way that cannot be had on this machine is left out, and the report says why."""
    try:
        yield
    except AdamixError as error:
        report.failures[way] = error.message
        say(f"{way} is left out: {error.message}")


def _has_native_kernels() -> bool:
    from adamix_kernels import native

    return native.load() is not None

"""What another tenant has, and what nobody has: one way through the code, and no difference in time."""

import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, cast

import pytest

from adamix.errors import NotFound
from adamix.files.manifest import BackboneSpec
from adamix_protos.v1 import adapters_pb2, inference_pb2
from adamix_server.access.principal import Principal
from adamix_server.catalog.rows import Name, Snapshot, TaskRow
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.inference.stages import Item, Stages
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing
from adamix_testing.identities import Callers, of_role, said
from adamix_testing.refusals import refusal

ME = "acme"


class Seen(Mapping[Name, TaskRow]):
    """Tasks that remember what was looked for."""

    def __init__(self) -> None:
        self.asked: list[Name] = []

    def __getitem__(self, name: Name) -> TaskRow:
        self.asked.append(name)
        if name in ((ME, "mine"), ("other", "theirs")):
            return cast("TaskRow", None)
        raise KeyError(name)

    def __iter__(self) -> Iterator[Name]:
        raise AssertionError("nobody looks through all tasks for one")

    def __len__(self) -> int:
        return 2


def _way(stages: Stages, task: str, principal: Principal) -> list[tuple[str, int]]:
    """The lines that run until a task is not found."""
    lines: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line" and "adamix" in frame.f_code.co_filename and frame.f_code.co_filename != __file__:
            lines.append((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        stages.resolve(Item.of(task, 0.0), "", principal, "task", "version")
    except NotFound:
        return lines
    finally:
        sys.settrace(before)
    raise AssertionError(f"{task} was found")


def test_nobody_looks_for_what_a_caller_may_not_see(spec: BackboneSpec) -> None:
    tasks = Seen()
    view = CatalogView(None, spec, None, None)  # type: ignore[arg-type] # none of these is asked
    view._snapshot = Snapshot(revision=1, tasks=tasks)
    stages = Stages(view, None, None, None, None, None, None)  # type: ignore[arg-type] # nor of these
    me, narrowed = of_role("publisher", ME), of_role("publisher", ME, "x*")
    ways = [
        _way(stages, "tenants/other/tasks/theirs", me),
        _way(stages, "tenants/other/tasks/nothing", me),
        _way(stages, "tenants/nobody/tasks/nothing", me),
        _way(stages, f"tenants/{ME}/tasks/mine", narrowed),
        _way(stages, f"tenants/{ME}/tasks/xnothing", narrowed),
    ]
    assert len(ways[0]) > 10
    assert all(way == ways[0] for way in ways), "the same lines, whatever there is"
    assert tasks.asked == [("", "")] * 4 + [(ME, "xnothing")]


def _welch(first: list[float], second: list[float]) -> float:
    """Welch's t of two samples, each without its slowest tenth: what the machine did meanwhile."""
    kept = [sorted(sample)[: len(sample) * 9 // 10] for sample in (first, second)]
    means = [statistics.fmean(sample) for sample in kept]
    error = sum(statistics.variance(sample) / len(sample) for sample in kept) ** 0.5
    return (means[0] - means[1]) / error


def test_a_difference_would_show() -> None:
    draw = random.Random(0)
    slow = [draw.gauss(1.02, 0.1) for _ in range(5_000)]
    fast, like = ([draw.gauss(1.0, 0.1) for _ in range(5_000)] for _ in range(2))
    assert abs(_welch(fast, slow)) > 4.5
    assert abs(_welch(fast, like)) < 4.5


@pytest.mark.long
@pytest.mark.parametrize("method", ["Predict", "GetTask"])
async def test_no_clock_tells_whether_another_tenant_has_a_task(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, method: str
) -> None:
    """10,000 calls, one after the other, in pairs in an order that is drawn: so both see the same machine."""
    seed("theirs", make_adapter(), tenant="other")
    harness = await start_serving(callers=Callers({"me": of_role("publisher", ME)}))
    took: dict[str, list[float]] = {"theirs": [], "nobody": []}
    draw = random.Random(0)
    for number in range(5_250):
        for task in draw.sample(sorted(took), 2):
            began = time.perf_counter()
            found = await refusal(_ask(harness, method, f"tenants/other/tasks/{task}"))
            if number >= 250:
                took[task].append(time.perf_counter() - began)
            assert found[1] == "NOT_FOUND"
    t = _welch(took["theirs"], took["nobody"])
    medians = {task: f"{1e6 * statistics.median(sample):.1f} us" for task, sample in took.items()}
    print(f"{method}: t = {t:.2f}, medians {medians}")
    assert abs(t) < 4.5


def _ask(harness: Harness, method: str, task: str) -> Any:
    if method == "GetTask":
        return harness.adapters.GetTask(adapters_pb2.GetTaskRequest(task=task), metadata=said("me"))
    inputs = [inference_pb2.PredictInput(task=task, text="w1")]
    return harness.inference.Predict(inference_pb2.PredictRequest(inputs=inputs), metadata=said("me"))

"""What two looks at a server say together: how much a second, how full its batches, how busy its device. Pure."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adamix_server.cli.metrics_page import Page

METRICS = frozenset(
    (
        "adamix_requests_total",
        "adamix_request_seconds",
        "adamix_rejected_total",
        "adamix_batch_requests",
        "adamix_batch_tokens",
        "adamix_compute_seconds",
        "adamix_generated_tokens_total",
        "adamix_kv_cache_usage_ratio",
        "adamix_queue_requests",
        "adamix_resident_adapters",
        "adamix_slots",
        "adamix_task_requests_total",
    )
)
_MOST_TASKS = 5
# In the names of methods, which are those of gRPC whatever a call came over.
_INFERENCE = "InferenceService"


@dataclass(frozen=True)
class BusyTask:
    tenant: str
    task: str
    inputs_per_s: float


@dataclass(frozen=True)
class Rates:
    """Between two pages. What nothing was seen of is None.

    Attributes:
        calls_per_s: of the data plane.
        batch_inputs, batch_tokens: of a mean batch.
        batch_fill: its share of the largest that there may be.
        busy: share of the time in which a batch was computed.
        p50_s, p99_s: of calls that ended; the upper bounds of the buckets they are in.
        residency, slots: adapters by tier, slots by state, now.
        busiest: tasks with the most inputs a second.
    """

    calls_per_s: float
    failed_per_s: float
    refused_per_s: float
    inputs_per_s: float
    tokens_per_s: float
    generated_tokens_per_s: float
    batches_per_s: float
    batch_inputs: float | None
    batch_tokens: float | None
    batch_fill: float | None
    busy: float
    p50_s: float | None
    p99_s: float | None
    kv_usage: float | None
    residency: Mapping[str, int]
    slots: Mapping[str, int]
    busiest: tuple[BusyTask, ...]

    @property
    def document(self) -> dict[str, Any]:
        return asdict(self)


def rates(before: Page, after: Page, max_batch_tokens: int) -> Rates:
    """What happened between two pages of one server. A server that began anew between them has begun at nothing."""
    seconds = max(after.at - before.at, 1e-9)
    before, after = _of_inference(before), _of_inference(after)

    def grown(name: str, **labels: str) -> float:
        now, then = after.total(name, **labels), before.total(name, **labels)
        return now - then if now >= then else now

    batches = grown("adamix_batch_tokens_count")
    tokens, inputs = grown("adamix_batch_tokens_sum"), grown("adamix_batch_requests_sum")
    calls, well = grown("adamix_requests_total"), grown("adamix_requests_total", code="OK")
    fill = tokens / batches / max_batch_tokens if batches and max_batch_tokens else None
    return Rates(
        calls_per_s=calls / seconds,
        failed_per_s=max(calls - well, 0.0) / seconds,
        refused_per_s=grown("adamix_rejected_total") / seconds,
        inputs_per_s=inputs / seconds,
        tokens_per_s=tokens / seconds,
        generated_tokens_per_s=grown("adamix_generated_tokens_total") / seconds,
        batches_per_s=batches / seconds,
        batch_inputs=inputs / batches if batches else None,
        batch_tokens=tokens / batches if batches else None,
        batch_fill=fill,
        busy=min(grown("adamix_compute_seconds_sum") / seconds, 1.0),
        p50_s=_quantile(before, after, 0.5),
        p99_s=_quantile(before, after, 0.99),
        kv_usage=after.total("adamix_kv_cache_usage_ratio") if "adamix_kv_cache_usage_ratio" in after.series else None,
        residency=_counts(after, "adamix_resident_adapters", "tier"),
        slots=_counts(after, "adamix_slots", "state"),
        busiest=_busiest(before, after, seconds),
    )


def _of_inference(page: Page) -> Page:
    """Without the calls that ask for no answer of a task, such as those of who looks on."""
    kept = {
        name: {labels: value for labels, value in of.items() if _INFERENCE in dict(labels).get("method", _INFERENCE)}
        for name, of in page.series.items()
    }
    return Page(page.at, kept)


def _quantile(before: Page, after: Page, share: float) -> float | None:
    """The upper bound of the bucket in which a call of this rank lies; None of no call, or beyond the last bound."""
    name = "adamix_request_seconds_bucket"
    then, now = before.by(name, "le"), after.by(name, "le")
    grown = sorted((float(bound), max(count - then.get(bound, 0.0), 0.0)) for bound, count in now.items())
    if not grown or grown[-1][1] <= 0:
        return None
    bound = next(bound for bound, count in grown if count >= share * grown[-1][1])
    return bound if math.isfinite(bound) else None


def _counts(page: Page, name: str, label: str) -> dict[str, int]:
    return {key: int(value) for key, value in sorted(page.by(name, label).items())}


def _busiest(before: Page, after: Page, seconds: float) -> tuple[BusyTask, ...]:
    name = "adamix_task_requests_total"
    then = before.series.get(name, {})
    grown = []
    for labels, value in after.series.get(name, {}).items():
        # A series that was smaller has begun anew.
        since = value - then.get(labels, 0.0) if value >= then.get(labels, 0.0) else value
        if since > 0:
            of = dict(labels)
            grown.append(BusyTask(of.get("tenant", ""), of.get("task", ""), since / seconds))
    return tuple(sorted(grown, key=lambda busy: (-busy.inputs_per_s, busy.tenant, busy.task))[:_MOST_TASKS])

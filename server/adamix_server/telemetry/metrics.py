"""Every metric, declared once as data, and where a process records them.

A process records into a `Recorder`, and sends what it drains once a second to the supervisor, whose `registry.py` adds
it up. Nothing here knows what the numbers mean, nor Prometheus.
"""

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from adamix.errors import Code
from adamix_server.access.refusal import KINDS
from adamix_server.channel.supervisor_frames import Sample
from adamix_server.limits import TABLE
from adamix_server.telemetry import logs

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FEW_SECONDS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0)
_POWERS_OF_TWO = tuple(float(1 << i) for i in range(17))

LOG_RECORDS_DROPPED = "adamix_log_records_dropped_total"
# What a child keeps for a supervisor that does not listen now: so many tasks apart, and the ends of so many; so many
# tenants.
MAX_WAITING_TASKS = 4_096
MAX_WAITING_TENANTS = 4_096
# So many tenants have series of their own in a gauge that has one for each.
MAX_TENANTS_IN_GAUGE = 1_000
OTHER = "other"


@dataclass(frozen=True)
class Metric:
    """One metric family. `per_task` ones have the labels (tenant, task) and a cap on distinct values.

    Attributes:
        per_tenant: the first label is a tenant's, and there is a cap on those; never a gauge.
        known: label values that are there at 0 before anybody has said anything: who reads a rate misses the first
            event of a series that begins with it. A counter or a histogram without labels always is.
        across: what becomes of a gauge that several processes set.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    per_task: bool = False
    per_tenant: bool = False
    known: tuple[tuple[str, ...], ...] = ()
    across: Literal["sum", "max"] = "sum"


# What the server refuses for want of room.
_REFUSALS = sorted({(limit.reason,) for limit in TABLE if limit.code is Code.RESOURCE_EXHAUSTED and limit.reason})


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("adamix_requests_total", "counter", "Finished calls, over gRPC and HTTP.", ("method", "code")),
        Metric("adamix_request_seconds", "histogram", "Duration of calls, over gRPC and HTTP.", ("method",), _SECONDS),
        Metric(
            "adamix_http_requests_total",
            "counter",
            "Answered requests over HTTP, by path as the server names it and status.",
            ("route", "status"),
        ),
        Metric(
            "adamix_rejected_total",
            "counter",
            "Inputs and calls refused to protect the server.",
            ("reason",),
            known=tuple(_REFUSALS),
        ),
        Metric(
            "adamix_auth_failures_total",
            "counter",
            "Credentials that were refused, by cause.",
            ("kind",),
            known=tuple((kind,) for kind in KINDS),
        ),
        Metric(
            "adamix_tenant_rejected_total",
            "counter",
            "Inputs and calls of a tenant that were refused.",
            ("tenant", "reason"),
            per_tenant=True,
        ),
        Metric(
            "adamix_tenant_tokens_total",
            "counter",
            "Tokens of a tenant's answered inputs, and those generated for it.",
            ("tenant", "kind"),
            per_tenant=True,
        ),
        Metric("adamix_task_requests_total", "counter", "Inputs per task.", ("tenant", "task"), per_task=True),
        Metric(
            "adamix_task_seconds",
            "histogram",
            "Duration of the calls a task's inputs came in.",
            ("tenant", "task"),
            _FEW_SECONDS,
            per_task=True,
        ),
        Metric(
            "adamix_time_to_first_token_seconds",
            "histogram",
            "Time from a call's arrival to the first token of its answer.",
            (),
            _SECONDS,
        ),
        Metric(
            "adamix_inter_token_seconds", "histogram", "Time from one token of an answer to the next.", (), _SECONDS
        ),
        Metric("adamix_queue_seconds", "histogram", "Time from arrival in the engine to its batch.", (), _SECONDS),
        Metric("adamix_queue_requests", "gauge", "Inputs waiting in the engine."),
        Metric("adamix_tenant_queue_tokens", "gauge", "Tokens waiting in the engine, per tenant.", ("tenant",)),
        Metric("adamix_running_requests", "gauge", "Inputs in the largest batch of the last second."),
        Metric("adamix_generated_tokens_total", "counter", "Tokens that were generated."),
        Metric("adamix_preemptions_total", "counter", "Texts that lost their pages to others, and were computed anew."),
        Metric(
            "adamix_prefix_tokens_total",
            "counter",
            "Tokens of prompts to be gone on with, by whether they were found computed.",
            ("result",),
            known=(("hit",), ("miss",)),
        ),
        Metric(
            "adamix_kv_cache_usage_ratio",
            "gauge",
            "Share of a decoder's pages that hold something that is needed now.",
            across="max",
        ),
        Metric("adamix_kv_pages", "gauge", "Pages of a decoder's keys and values, by state.", ("state",)),
        Metric("adamix_batch_tokens", "histogram", "Tokens per batch.", (), _POWERS_OF_TWO),
        Metric("adamix_batch_requests", "histogram", "Inputs per batch.", (), _POWERS_OF_TWO),
        Metric("adamix_batch_tasks", "histogram", "Distinct adapters per batch.", (), _POWERS_OF_TWO),
        Metric("adamix_compute_seconds", "histogram", "Time of one batch on the device.", (), _SECONDS),
        Metric(
            "adamix_adapter_loads_total",
            "counter",
            "Adapter loads, by source.",
            ("from", "result"),
            known=(("store", "ok"), ("store", "error"), ("host", "ok")),
        ),
        Metric(
            "adamix_adapter_load_seconds",
            "histogram",
            "Time of one adapter load.",
            ("from",),
            _SECONDS,
            known=(("store",), ("host",)),
        ),
        Metric(
            "adamix_adapter_evictions_total",
            "counter",
            "Adapters that lost their place.",
            ("tier",),
            known=(("device",), ("host",)),
        ),
        Metric("adamix_resident_adapters", "gauge", "Adapters held, by tier.", ("tier",)),
        Metric("adamix_quarantined_versions", "gauge", "Versions that are not run because their inputs failed."),
        Metric("adamix_slots", "gauge", "Slots of the device arena, by state.", ("state",)),
        Metric(
            "adamix_engine_stalled", "gauge", "1 while the engine makes no progress, else 0.", known=((),), across="max"
        ),
        Metric(LOG_RECORDS_DROPPED, "counter", "Log records that were dropped because nobody took them."),
    )
}


_PER_TASK = tuple(metric.name for metric in METRICS.values() if metric.per_task)
_Labels = tuple[str, ...]


class Recorder:
    """Collects changes of metrics in a child process. Thread-safe.

    What waits for the next drain is of one size, however long that takes to come: increments are summed, of a gauge the
    last value stays, and observations are counted by bucket. Tasks beyond `MAX_WAITING_TASKS` share the label `other`,
    and so do tenants beyond theirs.

    An unknown name or a wrong number of labels is a bug and raises at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, _Labels], list[float]] = {}
        self._tasks: set[_Labels] = set()
        self._tenants_apart: set[str] = set()
        # Gauges that are set as a whole, and of which tenants the last drain told.
        self._tenant_gauges: dict[str, Mapping[str, float]] = {}
        self._told_gauges: dict[str, Mapping[str, float]] = {}
        # A dictionary for its order: the oldest are forgotten first.
        self._ended: dict[_Labels, None] = {}

    def inc(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Add `by` to a counter."""
        metric = _check(name, "counter", labels)
        with self._lock:
            values = self._pending.get((name, labels)) or self._begin(metric, labels)
            values[0] += by

    def set(self, name: str, *labels: str, value: float) -> None:
        """Set a gauge; the last value before a drain wins."""
        _check(name, "gauge", labels)
        with self._lock:
            self._pending[name, labels] = [value]

    def set_tenants(self, name: str, values: Mapping[str, float]) -> None:
        """Set a gauge of tenants as a whole: the series of those that are not among `values` end.

        Of more than `MAX_TENANTS_IN_GAUGE` those with the largest values have their own; the rest share `other`.
        """
        _check(name, "gauge", (OTHER,))
        if len(values) > MAX_TENANTS_IN_GAUGE:
            largest = sorted(values.keys() - {OTHER}, key=lambda tenant: (-values[tenant], tenant))[
                :MAX_TENANTS_IN_GAUGE
            ]
            own = {tenant: values[tenant] for tenant in largest}
            values = {**own, OTHER: sum(values.values()) - sum(own.values())}
        with self._lock:
            self._tenant_gauges[name] = values

    def observe(self, name: str, *labels: str, value: float) -> None:
        """Add one observation to a histogram."""
        metric = _check(name, "histogram", labels)
        with self._lock:
            values = self._pending.get((name, labels)) or self._begin(metric, labels)
            values[0] += value
            values[1 + bisect_left(metric.buckets, value)] += 1

    def remove_task(self, tenant: str, task: str) -> None:
        """End the series of a task that was deleted; what is recorded of it afterwards starts new ones."""
        labels = (tenant, task)
        with self._lock:
            self._ended.pop(labels, None)
            self._ended[labels] = None
            if len(self._ended) > MAX_WAITING_TASKS:
                # Its series stays where it is read, among the bounded number of those that have one.
                del self._ended[next(iter(self._ended))]
            self._tasks.discard(labels)
            for name in _PER_TASK:
                self._pending.pop((name, labels), None)

    def drain(self) -> list[Sample]:
        """Everything since the last drain. A sample without values ends its series; those come first."""
        if dropped := logs.take_dropped():
            self.inc(LOG_RECORDS_DROPPED, by=dropped)
        with self._lock:
            ended, self._ended = self._ended, {}
            pending, self._pending = self._pending, {}
            self._tasks, self._tenants_apart = set(), set()
            told, self._told_gauges = self._told_gauges, dict(self._tenant_gauges)
            tenants = self._told_gauges
        return [
            *(Sample(name=name, labels=labels, values=[]) for labels in ended for name in _PER_TASK),
            *(
                Sample(name=name, labels=(tenant,), values=[])
                for name, values in tenants.items()
                for tenant in told.get(name, {}).keys() - values.keys()
            ),
            *(
                Sample(name=name, labels=(tenant,), values=[value])
                for name, values in tenants.items()
                for tenant, value in values.items()
            ),
            *(Sample(name=name, labels=labels, values=values) for (name, labels), values in pending.items()),
        ]

    def _begin(self, metric: Metric, labels: _Labels) -> list[float]:
        """The values of a series that has none since the last drain."""
        if metric.per_task and labels not in self._tasks:
            if len(self._tasks) >= MAX_WAITING_TASKS:
                labels = (OTHER, OTHER)
            else:
                self._tasks.add(labels)
        elif metric.per_tenant and labels[0] not in self._tenants_apart:
            if len(self._tenants_apart) >= MAX_WAITING_TENANTS:
                labels = (OTHER, *labels[1:])
            else:
                self._tenants_apart.add(labels[0])
        width = 1 if metric.kind == "counter" else 2 + len(metric.buckets)
        return self._pending.setdefault((metric.name, labels), [0.0] * width)


def _check(name: str, kind: str, labels: _Labels) -> Metric:
    metric = METRICS[name]
    if metric.kind != kind or len(labels) != len(metric.labels):
        raise ValueError(f"{name} is a {metric.kind} with the labels {metric.labels}")
    return metric

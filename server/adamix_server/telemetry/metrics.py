"""Every metric, declared once as data, and the two ends it passes between.

Children record into a `Recorder` and send what it drains once a second; the supervisor applies those samples to the
`Registry`, which alone knows prometheus_client and owns the port. Nothing here knows what the numbers mean.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import prometheus_client

from adamix_server.channel.supervisor_frames import Sample

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FEW_SECONDS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0)
_POWERS_OF_TWO = tuple(float(1 << i) for i in range(17))

MAX_TASK_SERIES = 1_000
# What a child keeps for a supervisor that does not listen now: so many tasks apart, and the ends of so many.
MAX_WAITING_TASKS = 4_096
OTHER = "other"


@dataclass(frozen=True)
class Metric:
    """One metric family. `per_task` ones have the labels (tenant, task) and a cap on distinct values."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    per_task: bool = False


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("adamix_requests_total", "counter", "Finished gRPC calls.", ("method", "code")),
        Metric("adamix_request_seconds", "histogram", "Duration of gRPC calls.", ("method",), _SECONDS),
        Metric("adamix_rejected_total", "counter", "Inputs and calls refused to protect the server.", ("reason",)),
        Metric("adamix_task_requests_total", "counter", "Inputs per task.", ("tenant", "task"), per_task=True),
        Metric(
            "adamix_task_seconds",
            "histogram",
            "Duration of the calls a task's inputs came in.",
            ("tenant", "task"),
            _FEW_SECONDS,
            per_task=True,
        ),
        Metric("adamix_queue_seconds", "histogram", "Time from arrival in the engine to its batch.", (), _SECONDS),
        Metric("adamix_queue_requests", "gauge", "Inputs waiting in the engine."),
        Metric("adamix_engine_stalled", "gauge", "1 while the engine makes no progress, else 0."),
        Metric("adamix_running_requests", "gauge", "Inputs in the largest batch of the last second."),
        Metric("adamix_batch_tokens", "histogram", "Tokens per batch.", (), _POWERS_OF_TWO),
        Metric("adamix_batch_requests", "histogram", "Inputs per batch.", (), _POWERS_OF_TWO),
        Metric("adamix_batch_tasks", "histogram", "Distinct adapters per batch.", (), _POWERS_OF_TWO),
        Metric("adamix_compute_seconds", "histogram", "Time of one batch on the device.", (), _SECONDS),
        Metric("adamix_adapter_loads_total", "counter", "Adapter loads, by source.", ("from", "result")),
        Metric("adamix_adapter_load_seconds", "histogram", "Time of one adapter load.", ("from",), _SECONDS),
        Metric("adamix_adapter_evictions_total", "counter", "Adapters that lost their place.", ("tier",)),
        Metric("adamix_resident_adapters", "gauge", "Adapters held, by tier.", ("tier",)),
        Metric("adamix_slots", "gauge", "Slots of the device arena, by state.", ("state",)),
    )
}


_PER_TASK = tuple(metric.name for metric in METRICS.values() if metric.per_task)
_Labels = tuple[str, ...]


class Recorder:
    """Collects changes of metrics in a child process. Thread-safe.

    What waits for the next drain is of one size, however long that takes to come: increments are summed, of a gauge the
    last value stays, and observations are counted by bucket. Tasks beyond `MAX_WAITING_TASKS` share the label `other`.

    An unknown name or a wrong number of labels is a bug and raises at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, _Labels], list[float]] = {}
        self._tasks: set[_Labels] = set()
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
        with self._lock:
            ended, self._ended = self._ended, {}
            pending, self._pending = self._pending, {}
            self._tasks = set()
        return [
            *(Sample(name=name, labels=labels, values=[]) for labels in ended for name in _PER_TASK),
            *(Sample(name=name, labels=labels, values=values) for (name, labels), values in pending.items()),
        ]

    def _begin(self, metric: Metric, labels: _Labels) -> list[float]:
        """The values of a series that has none since the last drain."""
        if metric.per_task and labels not in self._tasks:
            if len(self._tasks) >= MAX_WAITING_TASKS:
                labels = (OTHER, OTHER)
            else:
                self._tasks.add(labels)
        width = 1 if metric.kind == "counter" else 2 + len(metric.buckets)
        return self._pending.setdefault((metric.name, labels), [0.0] * width)


class Registry:
    """The sums over all children, and the port they can be read on. Lives in the supervisor.

    At most `max_task_series` tasks have series of their own: the first ones that had traffic. The rest share the
    label `other`, until a deleted task makes room.
    """

    def __init__(self, max_task_series: int = MAX_TASK_SERIES) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._families = {metric.name: _family(metric, self._registry) for metric in METRICS.values()}
        self._max_task_series = max_task_series
        self._tasks: set[tuple[str, ...]] = set()

    def apply(self, samples: Iterable[Sample]) -> None:
        """Add what a child drained."""
        for sample in samples:
            metric = METRICS[sample.name]
            family, labels = self._families[metric.name], sample.labels
            if metric.per_task:
                if not sample.values:
                    self._forget(labels)
                    continue
                labels = self._admit(labels)
            series = family.labels(*labels) if labels else family
            if metric.kind == "counter":
                series.inc(sum(sample.values))
            elif metric.kind == "gauge":
                series.set(sample.values[-1])
            else:
                series.add(sample.values[0], sample.values[1:])

    def serve(self, port: int, address: str = "127.0.0.1") -> int:
        """Answer scrapes on `address:port` from a daemon thread; returns the real port (0 asks for a free one)."""
        server, _ = prometheus_client.start_http_server(port, addr=address, registry=self._registry)
        return int(server.server_port)

    def _admit(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        if labels not in self._tasks and (labels == (OTHER, OTHER) or len(self._tasks) >= self._max_task_series):
            return (OTHER, OTHER)
        self._tasks.add(labels)
        return labels

    def _forget(self, labels: tuple[str, ...]) -> None:
        if labels in self._tasks:
            self._tasks.remove(labels)
            for metric in METRICS.values():
                if metric.per_task:
                    self._families[metric.name].remove(*labels)


class _Histogram(prometheus_client.Histogram):
    """One that takes what was counted elsewhere."""

    def add(self, total: float, counts: Sequence[float]) -> None:
        """As calls of `observe`: their sum, and how many fell into each bucket, the last being without end."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


def _family(metric: Metric, registry: prometheus_client.CollectorRegistry) -> Any:
    if metric.kind == "histogram":
        return _Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)
    kind = prometheus_client.Counter if metric.kind == "counter" else prometheus_client.Gauge
    return kind(metric.name, metric.help, metric.labels, registry=registry)


def _check(name: str, kind: str, labels: _Labels) -> Metric:
    metric = METRICS[name]
    if metric.kind != kind or len(labels) != len(metric.labels):
        raise ValueError(f"{name} is a {metric.kind} with the labels {metric.labels}")
    return metric

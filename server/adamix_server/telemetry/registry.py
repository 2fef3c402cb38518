"""What all processes of this server have recorded, as a scrape shows it. Lives in the supervisor.

Counters and histograms are sums over every process there ever was: they only grow, whoever is replaced. A gauge is
said by processes that run, and goes with them. Nothing here knows what the numbers mean.
"""

import itertools
import os
import threading
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from adamix_server.channel.supervisor_frames import Sample
from adamix_server.telemetry.metrics import METRICS, OTHER, Metric
from adamix_server.telemetry.processes import Processes

MAX_TASK_SERIES = 1_000
MAX_TENANT_SERIES = 1_000
# What this process is called, beside its children.
SUPERVISOR = "supervisor"

_Labels = tuple[str, ...]


class Registry(Collector):
    """See the module's docstring. Fed by one thread and read by any.

    At most `max_task_series` tasks have series of their own: the first ones that had traffic. The rest share the
    label `other`, until a deleted task makes room. Of tenants it is the same with `max_tenant_series`, for good.

    Attributes:
        collectors: what is to be written of it, the processes' own metrics included.
    """

    def __init__(self, max_task_series: int = MAX_TASK_SERIES, max_tenant_series: int = MAX_TENANT_SERIES) -> None:
        self._lock = threading.Lock()
        # Of a counter its value; of a histogram the sum and then the numbers of the buckets, as samples have them.
        self._totals: dict[str, dict[_Labels, list[float]]] = {
            metric.name: {labels: [0.0] * _width(metric) for labels in _known(metric)}
            for metric in METRICS.values()
            if metric.kind != "gauge"
        }
        # By process. Only those that run are in here.
        self._gauges: dict[str, dict[tuple[str, _Labels], float]] = {}
        self._max_task_series = max_task_series
        self._max_tenant_series = max_tenant_series
        self._tasks: set[_Labels] = set()
        self._tenants: set[str] = set()
        self._processes = Processes()
        self.collectors = CollectorRegistry()
        self.collectors.register(self)
        self.collectors.register(self._processes)
        self.began(SUPERVISOR, os.getpid())

    def began(self, process: str, pid: int) -> None:
        """A process runs, in place of the last one of this name if there was one."""
        with self._lock:
            self._gauges[process] = {}
        self._processes.began(process, pid)

    def ended(self, process: str) -> None:
        """A process has ended, and with it everything that it said of itself."""
        with self._lock:
            self._gauges.pop(process, None)
        self._processes.ended(process)

    def apply(self, process: str, samples: Iterable[Sample]) -> None:
        """Add what a process drained; nothing of one that has ended: its last words would speak for the next one."""
        with self._lock:
            if (gauges := self._gauges.get(process)) is None:
                return
            for sample in samples:
                metric = METRICS[sample.name]
                if metric.kind == "gauge" and not sample.values:
                    gauges.pop((metric.name, sample.labels), None)
                elif metric.kind == "gauge":
                    (gauges[metric.name, sample.labels],) = sample.values
                elif metric.per_task and not sample.values:
                    self._forget(sample.labels)
                else:
                    self._add(metric, self._admit(metric, sample.labels), sample.values)

    def collect(self) -> Iterable[Family]:
        """One family a metric."""
        with self._lock:
            totals = {
                name: {labels: list(values) for labels, values in series.items()}
                for name, series in self._totals.items()
            }
            gauges = [dict(of_process) for of_process in self._gauges.values()]
        for metric in METRICS.values():
            if metric.kind == "gauge":
                yield _gauge(metric, gauges)
            else:
                yield (_counter if metric.kind == "counter" else _histogram)(metric, totals[metric.name])

    def _add(self, metric: Metric, labels: _Labels, values: list[float]) -> None:
        totals = self._totals[metric.name].setdefault(labels, [0.0] * _width(metric))
        for place, value in enumerate(values):
            totals[place] += value

    def _admit(self, metric: Metric, labels: _Labels) -> _Labels:
        """The labels under which something is counted."""
        if metric.per_tenant:
            return (self._admit_tenant(labels[0]), *labels[1:])
        return self._admit_task(labels) if metric.per_task else labels

    def _admit_tenant(self, tenant: str) -> str:
        if tenant not in self._tenants:
            if tenant == OTHER or len(self._tenants) >= self._max_tenant_series:
                return OTHER
            self._tenants.add(tenant)
        return tenant

    def _admit_task(self, labels: _Labels) -> _Labels:
        if labels not in self._tasks:
            if labels == (OTHER, OTHER) or len(self._tasks) >= self._max_task_series:
                return (OTHER, OTHER)
            self._tasks.add(labels)
        return labels

    def _forget(self, labels: _Labels) -> None:
        if labels in self._tasks:
            self._tasks.remove(labels)
            for metric in METRICS.values():
                if metric.per_task:
                    self._totals[metric.name].pop(labels, None)


def _known(metric: Metric) -> tuple[_Labels, ...]:
    """The series that are there from the start."""
    return metric.known if metric.labels else ((),)


def _width(metric: Metric) -> int:
    return 1 if metric.kind == "counter" else 2 + len(metric.buckets)


def _counter(metric: Metric, series: dict[_Labels, list[float]]) -> Family:
    family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, values in series.items():
        family.add_metric(labels, values[0])
    return family


def _gauge(metric: Metric, processes: list[dict[tuple[str, _Labels], float]]) -> Family:
    """The values of all processes that have said one, made one."""
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    said: dict[_Labels, list[float]] = {labels: [0.0] for labels in metric.known}
    for gauges in processes:
        for (name, labels), value in gauges.items():
            if name == metric.name:
                said.setdefault(labels, []).append(value)
    for labels, values in said.items():
        family.add_metric(labels, max(values) if metric.across == "max" else sum(values))
    return family


def _histogram(metric: Metric, series: dict[_Labels, list[float]]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(str, metric.buckets), "+Inf"]
    for labels, (total, *counts) in series.items():
        family.add_metric(labels, list(zip(bounds, itertools.accumulate(counts), strict=True)), total)
    return family

"""What the system says of each process of this server, read when somebody asks.

The standard `process_*` metrics of prometheus_client, of several processes at once: told apart by the label `process`.
One that has ended has none. Knows no process's part.
"""

import threading
from collections.abc import Iterable

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LABEL = "process"


class Processes(Collector):
    """The processes that run now. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._collectors: dict[str, ProcessCollector] = {}

    def began(self, name: str, pid: int) -> None:
        """Tell of a process from now on, in place of an earlier one of this name."""
        collector = ProcessCollector(pid=lambda: pid, registry=None)
        with self._lock:
            self._collectors[name] = collector

    def ended(self, name: str) -> None:
        with self._lock:
            self._collectors.pop(name, None)

    def collect(self) -> Iterable[Metric]:
        """One family a metric, with a sample of each process that could be read."""
        with self._lock:
            collectors = dict(self._collectors)
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for name, collector in collectors.items():
            for found in collector.collect():
                kind = CounterMetricFamily if found.type == "counter" else GaugeMetricFamily
                family = families.setdefault(found.name, kind(found.name, found.documentation, labels=[LABEL]))
                for sample in found.samples:
                    family.add_metric([name], sample.value)
        return families.values()

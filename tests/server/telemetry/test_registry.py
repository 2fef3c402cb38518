"""What a scrape shows of processes that come and go, and of what has not happened yet."""

import os
from collections.abc import Callable

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from adamix_server.channel.supervisor_frames import Sample
from adamix_server.telemetry.metrics import METRICS, Recorder
from adamix_server.telemetry.registry import SUPERVISOR, Registry


def series(registry: Registry, name: str) -> dict[tuple[str, ...], float]:
    """The values of one name by their labels' values, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry.collectors).decode())
        for sample in family.samples
        if sample.name == name
    }


def recorded(*record: Callable[[Recorder], None]) -> list[Sample]:
    recorder = Recorder()
    for one in record:
        one(recorder)
    return recorder.drain()


def gauge(name: str, *labels: str, value: float) -> list[Sample]:
    return recorded(lambda recorder: recorder.set(name, *labels, value=value))


COUNT = "adamix_rejected_total"


def counted() -> list[Sample]:
    return recorded(lambda recorder: recorder.inc(COUNT, "OVERLOADED", by=3))


def test_a_gauge_ends_with_its_process_and_a_counter_goes_on() -> None:
    registry = Registry()
    for generation in (1, 2):
        registry.began("engine-0", os.getpid())
        # The new one has said nothing yet: the old value is nobody's.
        assert series(registry, "adamix_queue_requests") == {}
        registry.apply("engine-0", [*gauge("adamix_queue_requests", value=7), *counted()])
        assert series(registry, "adamix_queue_requests") == {(): 7}
        registry.ended("engine-0")
        assert series(registry, "adamix_queue_requests") == {}
        assert series(registry, COUNT)["OVERLOADED",] == 3 * generation


def test_last_words_that_come_late_are_not_taken_for_the_next_ones() -> None:
    registry = Registry()
    registry.began("engine-0", os.getpid())
    registry.ended("engine-0")
    registry.apply("engine-0", [*gauge("adamix_queue_requests", value=7), *counted()])
    registry.began("engine-0", os.getpid())
    assert series(registry, "adamix_queue_requests") == {}
    assert series(registry, COUNT)["OVERLOADED",] == 0


def test_the_gauges_of_several_processes_are_one() -> None:
    registry = Registry()
    for number, name in enumerate(("engine-0", "engine-1")):
        registry.began(name, os.getpid())
        registry.apply(name, gauge("adamix_slots", "free", value=10 + number))
        registry.apply(name, gauge("adamix_engine_stalled", value=number))
    assert series(registry, "adamix_slots") == {("free",): 21}
    # One that is stuck is not made good by one that is not.
    assert series(registry, "adamix_engine_stalled") == {(): 1}
    registry.ended("engine-1")
    assert series(registry, "adamix_slots") == {("free",): 10}
    assert series(registry, "adamix_engine_stalled") == {(): 0}


@pytest.mark.parametrize("metric", [m for m in METRICS.values() if m.kind != "gauge"], ids=lambda m: m.name)
def test_what_can_be_known_before_it_happens_is_there_at_0(metric: object) -> None:
    assert isinstance(metric, type(METRICS[COUNT]))
    registry = Registry()
    shown = series(registry, metric.name + ("" if metric.kind == "counter" else "_count"))
    assert set(shown.values()) <= {0.0}
    if not metric.labels:
        assert shown == {(): 0.0}
    else:
        assert len(shown) == len(metric.known)


def test_where_adapters_come_from_and_go_and_why_calls_are_refused_is_known_before_it_happens() -> None:
    registry = Registry()
    assert set(series(registry, "adamix_adapter_loads_total")) == {("store", "ok"), ("store", "error"), ("host", "ok")}
    assert set(series(registry, "adamix_adapter_evictions_total")) == {("device",), ("host",)}
    assert {("OVERLOADED",), ("TOO_MANY_UPLOADS",), ("TOO_MANY_WATCHERS",)} <= set(series(registry, COUNT))


def test_whether_the_engine_is_stalled_is_said_from_the_start() -> None:
    registry = Registry()
    assert series(registry, "adamix_engine_stalled") == {(): 0}
    registry.apply(SUPERVISOR, gauge("adamix_engine_stalled", value=1))
    assert series(registry, "adamix_engine_stalled") == {(): 1}


def test_every_process_that_runs_has_its_own_process_metrics() -> None:
    registry = Registry()
    registry.began("frontend-0", os.getppid())
    # One that has ended, before anybody said so.
    registry.began("frontend-1", 2**22 + 1)
    both = {("supervisor",), ("frontend-0",)}
    for name in ("cpu_seconds_total", "resident_memory_bytes", "virtual_memory_bytes", "start_time_seconds"):
        assert set(series(registry, f"process_{name}")) == both
    assert series(registry, "process_resident_memory_bytes")["supervisor",] > 1 << 20
    open_fds, max_fds = (series(registry, f"process_{name}")["supervisor",] for name in ("open_fds", "max_fds"))
    assert 0 < open_fds < max_fds
    registry.ended("frontend-0")
    assert set(series(registry, "process_cpu_seconds_total")) == {("supervisor",)}


def test_so_many_tenants_have_series_of_their_own_and_the_rest_share_one() -> None:
    name = "adamix_tenant_rejected_total"
    registry = Registry(max_tenant_series=2)
    registry.began("frontend-0", os.getpid())

    def refuse(tenant: str, reason: str, by: int = 1) -> None:
        registry.apply("frontend-0", recorded(lambda recorder: recorder.inc(name, tenant, reason, by=by)))

    for tenant in ("a", "b", "c", "d", "a"):
        refuse(tenant, "OVERLOADED")
    refuse("b", "TENANT_QUEUE_FULL", by=5)
    refuse("c", "TENANT_QUEUE_FULL")
    assert series(registry, name) == {
        ("OVERLOADED", "a"): 2,
        ("OVERLOADED", "b"): 1,
        ("OVERLOADED", "other"): 2,
        ("TENANT_QUEUE_FULL", "b"): 5,
        ("TENANT_QUEUE_FULL", "other"): 1,
    }

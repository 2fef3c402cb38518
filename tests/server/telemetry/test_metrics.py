"""Recorder -> samples -> registry -> text: what a scrape shows of what the children saw."""

import os
import threading

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from adamix_server.channel.codec import from_child
from adamix_server.channel.supervisor_frames import Stats
from adamix_server.telemetry.metrics import (
    MAX_TENANTS_IN_GAUGE,
    MAX_WAITING_TASKS,
    MAX_WAITING_TENANTS,
    METRICS,
    Recorder,
)
from adamix_server.telemetry.registry import MAX_TASK_SERIES, Registry


def begun(max_task_series: int = MAX_TASK_SERIES) -> Registry:
    """A registry that one front end tells of itself."""
    registry = Registry(max_task_series)
    registry.began("frontend-0", os.getpid())
    return registry


def values(registry: Registry) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every exposed value by (name, label values in the order of the labels' names)."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry.collectors).decode())
        for sample in family.samples
    }


def test_what_is_recorded_is_what_a_scrape_shows() -> None:
    recorder, registry = Recorder(), begun()
    for _ in range(3):
        recorder.inc("adamix_requests_total", "Predict", "OK")
    recorder.inc("adamix_requests_total", "Predict", "INTERNAL", by=2)
    recorder.set("adamix_slots", "free", value=7)
    recorder.set("adamix_slots", "free", value=5)
    recorder.observe("adamix_batch_tokens", value=3)
    recorder.observe("adamix_batch_tokens", value=100)
    # Over the pipe and back, as between processes.
    stats = from_child.decode(from_child.encode(Stats(samples=recorder.drain())))
    assert isinstance(stats, Stats)
    registry.apply("frontend-0", stats.samples)
    found = values(registry)
    assert found["adamix_requests_total", ("OK", "Predict")] == 3
    assert found["adamix_requests_total", ("INTERNAL", "Predict")] == 2
    assert found["adamix_slots", ("free",)] == 5
    assert found["adamix_batch_tokens_count", ()] == 2
    assert found["adamix_batch_tokens_sum", ()] == 103
    assert found["adamix_batch_tokens_bucket", ("4.0",)] == 1


def test_counters_of_several_children_add_up_and_a_drain_forgets() -> None:
    registry, children = begun(), [Recorder(), Recorder()]
    for recorder in children:
        recorder.inc("adamix_rejected_total", "OVERLOADED")
        registry.apply("frontend-0", recorder.drain())
        assert recorder.drain() == []
    assert values(registry)["adamix_rejected_total", ("OVERLOADED",)] == 2


def test_only_so_many_tasks_have_series_of_their_own() -> None:
    recorder, registry = Recorder(), begun(max_task_series=2)
    for number in range(100):
        recorder.inc("adamix_task_requests_total", "default", f"task-{number}")
    registry.apply("frontend-0", recorder.drain())
    series = {key[1]: value for key, value in values(registry).items() if key[0] == "adamix_task_requests_total"}
    assert series == {("task-0", "default"): 1, ("task-1", "default"): 1, ("other", "other"): 98}


def test_a_deleted_task_takes_its_series_along_and_makes_room() -> None:
    recorder, registry = Recorder(), begun(max_task_series=1)
    recorder.inc("adamix_task_requests_total", "default", "old")
    recorder.observe("adamix_task_seconds", "default", "old", value=0.1)
    registry.apply("frontend-0", recorder.drain())
    recorder.remove_task("default", "old")
    recorder.remove_task("default", "never-seen")
    # Between the same two drains.
    recorder.inc("adamix_task_requests_total", "default", "new")
    registry.apply("frontend-0", recorder.drain())
    tasks = {key[1] for key in values(registry) if key[0].startswith("adamix_task_requests")}
    assert tasks == {("new", "default")}


def test_a_wrong_name_kind_or_number_of_labels_is_a_bug() -> None:
    recorder = Recorder()
    with pytest.raises(KeyError):
        recorder.inc("adamix_nonsense_total")
    with pytest.raises(ValueError, match="labels"):
        recorder.inc("adamix_requests_total", "Predict")
    with pytest.raises(ValueError, match="gauge"):
        recorder.inc("adamix_slots", "free")


_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("inc"), st.sampled_from(["a", "b", "c"]), st.integers(1, 100)),
        st.tuples(st.just("set"), st.sampled_from(["free", "idle"]), st.integers(0, 100)),
        # Also at the very bound of a bucket. Binary fractions: their sums do not depend on the order.
        st.tuples(st.just("observe"), st.sampled_from(["a", "b"]), st.sampled_from([0.0, 0.125, 0.5, 2.5, 10.0, 99.0])),
        st.tuples(st.just("remove"), st.sampled_from(["a", "b", "c"]), st.none()),
        st.just(("drain", "", None)),
    ),
    max_size=60,
)


def play(events: list[tuple[str, str, float | None]], *, with_drains: bool) -> dict[tuple[str, tuple[str, ...]], float]:
    recorder, registry = Recorder(), begun()
    for what, name, value in events:
        match what:
            case "inc":
                recorder.inc("adamix_task_requests_total", "default", name, by=value or 0.0)
            case "set":
                recorder.set("adamix_slots", name, value=value or 0.0)
            case "observe":
                recorder.observe("adamix_task_seconds", "default", name, value=value or 0.0)
            case "remove":
                recorder.remove_task("default", name)
            case "drain" if with_drains:
                registry.apply("frontend-0", recorder.drain())
    registry.apply("frontend-0", recorder.drain())
    return {key: value for key, value in values(registry).items() if not key[0].startswith("process_")}


@settings(max_examples=40)
@given(_EVENTS)
def test_what_waited_for_a_long_time_is_the_sum_of_what_was_sent_at_once(
    events: list[tuple[str, str, float | None]],
) -> None:
    assert play(events, with_drains=False) == play(events, with_drains=True)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0.0, 0.001, 0.0011, 1.0, 59.0, 60.0, 61.0])))
def test_a_histogram_shows_what_single_observations_would(seconds: list[float]) -> None:
    recorder, registry = Recorder(), begun()
    alone = prometheus_client.CollectorRegistry()
    metric = METRICS["adamix_compute_seconds"]
    histogram = prometheus_client.Histogram(metric.name, metric.help, buckets=metric.buckets, registry=alone)
    for value in seconds:
        recorder.observe(metric.name, value=value)
        histogram.observe(value)
    registry.apply("frontend-0", recorder.drain())

    def shown(of: prometheus_client.CollectorRegistry) -> list[str]:
        lines = generate_latest(of).decode().splitlines()
        return [line for line in lines if metric.name in line and "_created" not in line and "_sum" not in line]

    assert shown(registry.collectors) == shown(alone)
    assert values(registry)[metric.name + "_sum", ()] == pytest.approx(sum(seconds))


def test_an_hour_that_nobody_listened_to_is_as_large_as_a_second() -> None:
    recorder = Recorder()

    def size(count: int) -> int:
        for number in range(count):
            recorder.observe("adamix_queue_seconds", value=number % 7)
        return len(from_child.encode(Stats(samples=recorder.drain())))

    assert size(10_000) == size(10)


def test_a_child_nobody_listens_to_keeps_so_many_tasks_apart_and_no_more() -> None:
    recorder = Recorder()
    for number in range(MAX_WAITING_TASKS + 2):
        for _ in range(2):
            recorder.inc("adamix_task_requests_total", "default", f"task-{number}")
            recorder.observe("adamix_task_seconds", "default", f"task-{number}", value=0.1)
    # Those at the limit are still counted apart.
    counts = {sample.labels: sample.values[0] for sample in recorder.drain() if sample.name.endswith("_total")}
    assert len(counts) == MAX_WAITING_TASKS + 1
    assert counts["default", f"task-{MAX_WAITING_TASKS - 1}"] == 2
    assert counts["other", "other"] == 4
    for number in range(MAX_WAITING_TASKS + 2):
        recorder.remove_task("default", f"task-{number}")
    ended = {sample.labels[1] for sample in recorder.drain()}
    assert len(ended) == MAX_WAITING_TASKS
    assert "task-1" not in ended
    assert f"task-{MAX_WAITING_TASKS + 1}" in ended


def test_a_child_nobody_listens_to_keeps_so_many_tenants_apart_and_no_more() -> None:
    recorder = Recorder()
    for number in range(MAX_WAITING_TENANTS + 2):
        for why in ("OVERLOADED", "TENANT_QUEUE_FULL"):
            recorder.inc("adamix_tenant_rejected_total", f"tenant-{number}", why)
    counts = {sample.labels: sample.values[0] for sample in recorder.drain()}
    assert len(counts) == 2 * (MAX_WAITING_TENANTS + 1)
    assert counts[f"tenant-{MAX_WAITING_TENANTS - 1}", "OVERLOADED"] == 1
    assert counts["other", "TENANT_QUEUE_FULL"] == 2


def test_threads_lose_no_increment() -> None:
    recorder = Recorder()

    def work() -> None:
        for _ in range(1000):
            recorder.inc("adamix_rejected_total", "OVERLOADED")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.drain()[0].values == [4000]


def test_every_metric_is_documented_and_named_by_the_rules() -> None:
    for metric in METRICS.values():
        assert metric.name.startswith("adamix_")
        assert metric.help.endswith(".")
        assert metric.name.endswith("_total") is (metric.kind == "counter")
        assert bool(metric.buckets) is (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(metric.buckets)
        assert all(len(values) == len(metric.labels) for values in metric.known)


def test_a_gauge_of_tenants_is_of_those_it_was_last_set_for() -> None:
    recorder, registry = Recorder(), begun()
    name = "adamix_tenant_queue_tokens"

    def shown() -> dict[tuple[str, ...], float]:
        registry.apply("frontend-0", recorder.drain())
        return {labels: value for (found, labels), value in values(registry).items() if found == name}

    recorder.set_tenants(name, {"a": 3, "b": 4})
    assert shown() == {("a",): 3, ("b",): 4}
    recorder.set_tenants(name, {"c": 1})
    recorder.set_tenants(name, {"b": 5})
    assert shown() == shown() == {("b",): 5}
    recorder.set_tenants(name, {})
    assert shown() == {}


def test_tenants_beyond_the_cap_share_a_series() -> None:
    recorder, registry = Recorder(), begun()
    tokens = {f"t{number}": number for number in range(MAX_TENANTS_IN_GAUGE + 3)}
    recorder.set_tenants("adamix_tenant_queue_tokens", {**tokens, "other": 10_000})
    registry.apply("frontend-0", recorder.drain())
    series = {key[1]: value for key, value in values(registry).items() if key[0] == "adamix_tenant_queue_tokens"}
    assert len(series) == MAX_TENANTS_IN_GAUGE + 1
    assert series["other",] == 10_000 + 0 + 1 + 2
    assert series["t1002",] == 1002

"""Recorder -> samples -> registry -> text: what a scrape shows of what the children saw."""

import threading
import urllib.request

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from adamix_server.channel.codec import from_child
from adamix_server.channel.supervisor_frames import Stats
from adamix_server.telemetry.metrics import MAX_OBSERVATIONS, METRICS, Recorder, Registry


def values(registry: Registry) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every exposed value by (name, label values in the order of the labels' names)."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry._registry).decode())
        for sample in family.samples
    }


def test_what_is_recorded_is_what_a_scrape_shows() -> None:
    recorder, registry = Recorder(), Registry()
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
    registry.apply(stats.samples)
    found = values(registry)
    assert found["adamix_requests_total", ("OK", "Predict")] == 3
    assert found["adamix_requests_total", ("INTERNAL", "Predict")] == 2
    assert found["adamix_slots", ("free",)] == 5
    assert found["adamix_batch_tokens_count", ()] == 2
    assert found["adamix_batch_tokens_sum", ()] == 103
    assert found["adamix_batch_tokens_bucket", ("4.0",)] == 1


def test_counters_of_several_children_add_up_and_a_drain_forgets() -> None:
    registry, children = Registry(), [Recorder(), Recorder()]
    for recorder in children:
        recorder.inc("adamix_rejected_total", "OVERLOADED")
        registry.apply(recorder.drain())
        assert recorder.drain() == []
    assert values(registry)["adamix_rejected_total", ("OVERLOADED",)] == 2


def test_only_so_many_tasks_have_series_of_their_own() -> None:
    recorder, registry = Recorder(), Registry(max_task_series=2)
    for number in range(100):
        recorder.inc("adamix_task_requests_total", "default", f"task-{number}")
    registry.apply(recorder.drain())
    series = {key[1]: value for key, value in values(registry).items() if key[0] == "adamix_task_requests_total"}
    assert series == {("task-0", "default"): 1, ("task-1", "default"): 1, ("other", "other"): 98}


def test_a_deleted_task_takes_its_series_along_and_makes_room() -> None:
    recorder, registry = Recorder(), Registry(max_task_series=1)
    recorder.inc("adamix_task_requests_total", "default", "old")
    recorder.observe("adamix_task_seconds", "default", "old", value=0.1)
    registry.apply(recorder.drain())
    recorder.remove_task("default", "old")
    recorder.remove_task("default", "never-seen")
    # Between the same two drains.
    recorder.inc("adamix_task_requests_total", "default", "new")
    registry.apply(recorder.drain())
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


def test_a_child_nobody_listens_to_does_not_grow_without_bound() -> None:
    recorder = Recorder()
    for _ in range(MAX_OBSERVATIONS + 10):
        recorder.observe("adamix_queue_seconds", value=0.1)
    (sample,) = recorder.drain()
    assert len(sample.values) == MAX_OBSERVATIONS


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


def test_the_port_answers_on_loopback_only() -> None:
    registry = Registry()
    port = registry.serve(0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        assert b"adamix_queue_requests" in response.read()


def test_every_metric_is_documented_and_named_by_the_rules() -> None:
    for metric in METRICS.values():
        assert metric.name.startswith("adamix_")
        assert metric.help.endswith(".")
        assert metric.name.endswith("_total") is (metric.kind == "counter")
        assert bool(metric.buckets) is (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(metric.buckets)

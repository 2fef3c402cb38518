"""The main job over a real server: register, predict in mixed batches, swap, roll back, restart, drain."""

import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adamix.backbones import backbone
from adamix.data import Example, TaskData
from adamix.errors import AdamixError, Code, NotFound
from adamix.evaluation.labelled import evaluate
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix_client import Classification, Input, Regression
from adamix_testing.servers import Server, StartServer

MakeAdapter = Callable[..., AdapterFile]

TEXTS = ["the cat sleeps", "a big red dog runs over the lazy bird", "fish", "not the quick blue cat and a small dog"]


def data_of(adapter: AdapterFile) -> bytes:
    return adapter_file.encode(adapter.manifest, adapter.tensors)


def test_a_mixed_batch_equals_offline_evaluation(
    server: Server, make_adapter: MakeAdapter, spec: BackboneSpec, backbone_directory: Path
) -> None:
    adapters = {
        "three": make_adapter(1, num_labels=3, spec=spec),
        "two": make_adapter(2, kind="lora", sites=("attn_q", "attn_v"), num_labels=2, spec=spec),
        "score": make_adapter(3, num_labels=1, sites=("mlp_norm",), spec=spec),
    }
    loaded = backbone.load(str(backbone_directory))
    tokenizer = backbone.load_tokenizer(str(backbone_directory))
    with server.client() as client:
        for task, adapter in adapters.items():
            registered = client.register(task, data_of(adapter))
            assert registered.version.digest == adapter.digest
            assert registered.version.live
            assert client.register(task, data_of(adapter)).already_exists
        inputs = [Input(task=task, text=text) for text in TEXTS for task in adapters]
        answers = client.predict(inputs, return_logits=True).predictions
    for asked, answer in zip(inputs, answers, strict=True):
        adapter = adapters[asked.task]
        assert answer.task == asked.task
        assert answer.version == adapter.digest
        head = adapter.manifest.head
        kind = "regression" if head.num_labels == 1 else "classification"
        labels = () if kind == "regression" else head.labels
        assert asked.text is not None
        task_data = TaskData("t", kind, labels, (Example(asked.text, 0.0 if kind == "regression" else 0),))
        offline = evaluate(adapter, loaded, tokenizer, task_data).logits[0]
        np.testing.assert_allclose(answer.logits, offline, atol=1e-4)
        if isinstance(answer.result, Classification):
            assert answer.result.label == head.labels[int(np.argmax(offline))]
            assert sum(answer.result.scores) == pytest.approx(1.0, abs=1e-5)
        else:
            assert isinstance(answer.result, Regression)


def test_swap_rollback_and_pinned_versions(server: Server, make_adapter: MakeAdapter, spec: BackboneSpec) -> None:
    old, new = make_adapter(10, spec=spec), make_adapter(11, spec=spec)
    with server.client() as client:

        def live() -> str:
            return client.predict(task="swapped", texts=["the cat"]).predictions[0].version

        client.register("swapped", data_of(old))
        assert live() == old.digest
        client.register("swapped", data_of(new))
        assert live() == new.digest
        explicit = client.predict([Input(task="swapped", text="the cat", version=old.digest)])
        assert explicit.predictions[0].version == old.digest
        assert [v.digest for v in client.versions("swapped")] == [new.digest, old.digest]
        client.rollback("swapped")
        assert live() == old.digest
        client.set_traffic("swapped", new.digest)
        assert live() == new.digest
        with pytest.raises(AdamixError) as stale:
            client.set_traffic("swapped", old.digest, etag="stale")
        assert stale.value.code == Code.ABORTED
        assert "swapped" in [task.task for task in client.tasks()]
        client.delete_task("swapped")
        with pytest.raises(AdamixError) as gone:
            live()
        assert gone.value.code == Code.NOT_FOUND


def test_no_request_fails_while_versions_change(server: Server, make_adapter: MakeAdapter, spec: BackboneSpec) -> None:
    versions = [make_adapter(20 + i, spec=spec) for i in range(6)]
    stop, failures, seen = threading.Event(), [], []

    def call() -> None:
        with server.client() as client:
            while not stop.is_set():
                try:
                    answer = client.predict(task="busy", texts=["the cat", "a dog"])
                    seen.append({p.version for p in answer.predictions})
                except AdamixError as error:
                    failures.append(error)

    with server.client() as client:
        client.register("busy", data_of(versions[0]))
        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in versions[1:]:
            client.register("busy", data_of(version))
            assert client.predict(task="busy", texts=["fish"]).predictions[0].version == version.digest
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert {digest for versions_seen in seen for digest in versions_seen} <= {v.digest for v in versions}
    assert len(seen) > 5


def test_a_kill_and_a_restart_change_nothing_that_was_acknowledged(
    start_server: StartServer, make_adapter: MakeAdapter, spec: BackboneSpec
) -> None:
    first, second, deleted = (make_adapter(30 + i, spec=spec) for i in range(3))
    server = start_server().wait()
    with server.client() as client:
        client.register("kept", data_of(first))
        client.register("kept", data_of(second))
        before = client.predict(task="kept", texts=TEXTS, return_logits=True)
        registered = client.register("changed", data_of(deleted), request_id="first")
        client.register("changed", data_of(second))
        client.delete_version("changed", deleted.digest)
    server.kill()
    server = start_server().wait()
    with server.client() as client:
        after = client.predict(task="kept", texts=TEXTS, return_logits=True)
        assert client.rollback("kept").traffic[0][0] == first.digest
        assert client.register("changed", data_of(deleted), request_id="first") == registered, "it was answered before"
        assert [version.digest for version in client.versions("changed")] == [second.digest]
        with pytest.raises(NotFound):
            client.predict([Input("changed", text="the cat", version=deleted.digest)])
    for a, b in zip(before.predictions, after.predictions, strict=True):
        assert a.version == b.version == second.digest
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)
    assert server.terminate() == 0


def test_drain_loses_no_accepted_request(
    start_server: StartServer, make_adapter: MakeAdapter, spec: BackboneSpec
) -> None:
    server = start_server().wait()
    outcomes: list[Code | None] = []
    lock = threading.Lock()

    def call() -> None:
        with server.client() as client:
            while True:
                try:
                    client.predict(task="t", texts=TEXTS)
                    code = None
                except AdamixError as error:
                    code = error.code
                with lock:
                    outcomes.append(code)
                if code is not None:
                    return

    with server.client() as client:
        client.register("t", data_of(make_adapter(40, spec=spec)))
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 20:
        time.sleep(0.01)
    assert server.terminate() == 0
    for thread in threads:
        thread.join(30)
    # Every call was answered in full or refused as a whole; nobody was cut off.
    assert set(outcomes) == {None, Code.UNAVAILABLE}


def test_metrics_are_exposed_on_loopback(server: Server, make_adapter: MakeAdapter, spec: BackboneSpec) -> None:
    record = server.find(process="supervisor", message="metrics")
    assert record is not None
    with server.client() as client:
        client.register("measured", data_of(make_adapter(60, spec=spec)))
        client.predict(task="measured", texts=TEXTS)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        text = urllib.request.urlopen(f"http://{record['address']}/metrics", timeout=5).read().decode()
        if 'adamix_task_requests_total{task="measured",tenant="default"} 4.0' in text:
            break
        time.sleep(0.3)
    for wanted in (
        'adamix_task_requests_total{task="measured",tenant="default"} 4.0',
        "adamix_batch_tokens_bucket",
        'adamix_adapter_loads_total{from="store",result="ok"}',
        'adamix_slots{state="free"}',
    ):
        assert wanted in text


def test_server_info(server: Server, spec: BackboneSpec) -> None:
    with server.client() as client:
        info = client.server_info()
    assert info.backbone["fingerprint"] == spec.fingerprint
    assert info.compute_dtype == "float32"
    assert int(info.limits["max_inputs_per_call"]) == 64

"""Loading, unloading and pinning on a real server, over the death of its engine and of all of it."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from adamix.errors import AdamixError, Code
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix_client import Client, Version
from adamix_testing.servers import Server, StartServer

MakeAdapter = Callable[..., AdapterFile]


def data_of(adapter: AdapterFile) -> bytes:
    return adapter_file.encode(adapter.manifest, adapter.tensors)


def version_of(client: Client, task: str, digest: str) -> Version:
    (found,) = [version for version in client.versions(task) if version.digest == digest]
    return found


def until_device(client: Client, task: str, digest: str) -> Version:
    """Poll until the version is in a slot. Nothing here asks for it; errors while the engine starts are passed over."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            found = version_of(client, task, digest)
            if found.residency == "DEVICE":
                return found
        except AdamixError as error:
            if error.code is not Code.UNAVAILABLE:
                raise
        time.sleep(0.1)
    raise AssertionError("the version did not come back")


@pytest.fixture(scope="module")
def small(start_module_server: Callable[..., Server]) -> Any:
    """A server of four slots."""
    return start_module_server("--slots", "4")


def test_load_unload_and_the_limit_of_pins(small: Any, make_adapter: MakeAdapter, spec: BackboneSpec) -> None:
    adapters = [make_adapter(i, spec=spec) for i in range(3)]
    with small.client() as client:
        for i, adapter in enumerate(adapters):
            client.register(f"t{i}", data_of(adapter))
        assert version_of(client, "t0", adapters[0].digest).residency == "HOST"
        assert client.load_version("t0", adapters[0].digest).residency == "DEVICE"
        assert client.unload_version("t0", adapters[0].digest).residency == "STORE"
        assert version_of(client, "t0", adapters[0].digest).residency == "STORE"
        assert client.predict(task="t0", texts=["the cat"]).predictions[0].error is None, "loaded again when asked for"
        for i in range(2):
            pinned = client.pin_version(f"t{i}", adapters[i].digest)
            assert (pinned.pinned, pinned.residency) == (True, "DEVICE")
        with pytest.raises(AdamixError) as refused:
            client.pin_version("t2", adapters[2].digest)
        assert (refused.value.code, refused.value.reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_PINNED")
        assert refused.value.retry_after_s is None
        assert not version_of(client, "t2", adapters[2].digest).pinned
        with pytest.raises(AdamixError) as refused:
            client.unload_version("t0", adapters[0].digest)
        assert refused.value.reason == "VERSION_PINNED"
        assert not client.pin_version("t0", adapters[0].digest, pinned=False).pinned
        assert client.pin_version("t2", adapters[2].digest).pinned
        assert client.unload_version("t0", adapters[0].digest).residency == "STORE"


def test_what_requests_use_is_not_unloaded(small: Any, make_adapter: MakeAdapter, spec: BackboneSpec) -> None:
    adapter = make_adapter(10, spec=spec)
    stop, failures = threading.Event(), list[AdamixError]()

    def call() -> None:
        with small.client() as client:
            while not stop.is_set():
                answers = client.predict("busy", ["the cat sleeps and a dog runs"] * 64, on_error="return")
                failures.extend(answer.error for answer in answers if answer.error is not None)

    with small.client() as client:
        client.register("busy", data_of(adapter))
        callers = [threading.Thread(target=call) for _ in range(2)]
        for caller in callers:
            caller.start()
        outcomes = set[str]()
        deadline = time.monotonic() + 60
        while "VERSION_IN_USE" not in outcomes and time.monotonic() < deadline:
            try:
                client.unload_version("busy", adapter.digest)
                outcomes.add("")
            except AdamixError as error:
                outcomes.add(error.reason)
        stop.set()
        for caller in callers:
            caller.join()
    assert {"VERSION_IN_USE"} <= outcomes <= {"VERSION_IN_USE", ""}
    # Whatever was unloaded under them came back for those who asked next.
    assert not failures


def test_pins_outlive_the_engine_and_the_server(
    start_server: StartServer, make_adapter: MakeAdapter, spec: BackboneSpec
) -> None:
    pinned, other = make_adapter(20, spec=spec), make_adapter(21, spec=spec)
    server = start_server("--slots", "2").wait()
    with server.client() as client:
        client.register("kept", data_of(pinned))
        client.register("other", data_of(other))
        client.pin_version("kept", pinned.digest)
        before = client.predict(task="kept", texts=["the cat"], return_logits=True).predictions[0]
        os.kill(server.child("adamix_server.engine"), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while version_of(client, "kept", pinned.digest).residency == "DEVICE":
            assert time.monotonic() < deadline
        assert until_device(client, "kept", pinned.digest).pinned
        assert version_of(client, "other", other.digest).residency in ("STORE", "HOST")
    server.kill()
    server = start_server("--slots", "2", "--front-ends", "2").wait()
    with server.client() as client:
        assert until_device(client, "kept", pinned.digest).pinned
        # One slot is left, and enough for everybody else.
        for i in range(3):
            client.register(f"t{i}", data_of(make_adapter(30 + i, spec=spec)))
            assert client.predict(task=f"t{i}", texts=["fish"]).predictions[0].error is None
        assert version_of(client, "kept", pinned.digest).residency == "DEVICE"
        after = client.predict(task="kept", texts=["the cat"], return_logits=True).predictions[0]
        assert after.logits == pytest.approx(before.logits, abs=1e-5)
        client.delete_task("kept")
        client.pin_version("other", other.digest)
    assert server.terminate() == 0

"""A tenant's quotas over three front ends of a real server: kept together, and not lost with one of them."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from adamix.errors import AdamixError, QuotaExceeded
from adamix.files import adapter_file
from adamix.files.manifest import BackboneSpec
from adamix_client import Client, Input, StreamInput
from adamix_server.access.quotas import NO_QUOTAS, Quotas
from adamix_server.catalog.store import Catalog
from adamix_server.limits.quotas import LEASE_S, LENDER_SILENCE_S
from adamix_testing.servers import Eventually, Server

FRONT_ENDS = 3
CLIENTS = 12
# [CLS] the cat [SEP], sixteen times.
TOKENS = 64
ONE = StreamInput("a", Input("made", "the cat"))


@pytest.fixture(scope="module")
def server(start_module_server: Callable[..., Server]) -> Server:
    return start_module_server("--front-ends", str(FRONT_ENDS), "--metrics-port", "0")


@pytest.fixture
def clients(server: Server, spec: BackboneSpec, make_adapter: Callable[..., Any]) -> Iterator[list[Client]]:
    """As many connections as are likely to reach all front ends."""
    adapter = make_adapter(310, spec=spec)
    with ExitStack() as stack:
        opened = [stack.enter_context(server.client()) for _ in range(CLIENTS)]
        opened[0].register("made", adapter_file.encode(adapter.manifest, adapter.tensors))
        yield opened


def call(client: Client) -> QuotaExceeded | None:
    """One call of 64 tokens; why it was refused."""
    try:
        client.predict([Input("made", "the cat")] * 16)
    except QuotaExceeded as error:
        return error
    return None


@contextmanager
def quotas(server: Server, spec: BackboneSpec, limits: Quotas) -> Iterator[None]:
    """Those of tenant `default` for the length of the block; front ends see them within a second."""
    catalog = Catalog(server.store, backbone_fingerprint=spec.fingerprint, make=False)
    try:
        catalog.tenants.update("default", quotas=limits)
        time.sleep(1.3)
        yield
    finally:
        catalog.tenants.update("default", quotas=NO_QUOTAS)
        catalog.close()


def test_a_rate_is_kept_over_all_front_ends(
    server: Server, clients: list[Client], spec: BackboneSpec, eventually: Eventually
) -> None:
    rate, seconds = 2_000, 3.0

    def flood(client: Client) -> int:
        admitted, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            error = call(client)
            admitted += error is None
            if error is not None:
                assert error.reason == "QUOTA_INPUT_TOKENS_PER_S"
                assert error.retry_after_s is not None
                time.sleep(min(error.retry_after_s, 0.05))
        return admitted

    with quotas(server, spec, Quotas(input_tokens_per_s=rate)), ThreadPoolExecutor(CLIENTS) as pool:
        began = time.monotonic()
        admitted = TOKENS * sum(pool.map(flood, clients))
        elapsed_s = time.monotonic() - began
    most = rate * elapsed_s + rate + FRONT_ENDS * LEASE_S * rate + TOKENS
    assert rate * seconds / 2 < admitted <= most
    reason = "QUOTA_INPUT_TOKENS_PER_S"
    eventually(lambda: server.metric("adamix_rejected_total", reason=reason) > 0, "refusals among the metrics")


def test_a_slot_is_found_wherever_it_is_and_comes_back_from_a_front_end_that_was_killed(
    server: Server, clients: list[Client], spec: BackboneSpec, eventually: Eventually
) -> None:
    with quotas(server, spec, Quotas(concurrent_calls=1)):
        # One after the other over all connections, without a pause.
        assert [call(client) for _ in range(3) for client in clients] == [None] * 3 * CLIENTS
    with quotas(server, spec, Quotas(concurrent_streams=1)):
        is_over = threading.Event()

        def inputs() -> Iterator[StreamInput]:
            yield ONE
            is_over.wait(60)

        with ExitStack() as stack:
            stack.callback(is_over.set)
            held = iter(clients[0].predict_stream(inputs()))
            next(held)
            for client in clients[1:]:
                with pytest.raises(QuotaExceeded, match="concurrent_streams"):
                    list(client.predict_stream([ONE]))
            for pid in server.pids("adamix_server.frontend"):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: _streams(server), "a stream after the front ends' end")


def _streams(server: Server) -> bool:
    with server.client() as client:
        try:
            client.wait_until_serving(30)
            return len(list(client.predict_stream([ONE]))) == 1
        except AdamixError:
            return False


def test_a_supervisor_that_stands_still_stops_nobody(server: Server, clients: list[Client], spec: BackboneSpec) -> None:
    with quotas(server, spec, Quotas(input_tokens_per_s=100_000, concurrent_calls=50)):
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            time.sleep(2 * LEASE_S)
            began = time.monotonic()
            assert [call(client) for client in clients] == [None] * CLIENTS
            # Each front end waits once for it, and for either quota.
            assert time.monotonic() - began < CLIENTS * LENDER_SILENCE_S
            began = time.monotonic()
            assert [call(client) for client in clients] == [None] * CLIENTS
            assert time.monotonic() - began < CLIENTS * LENDER_SILENCE_S / 4
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert call(clients[0]) is None

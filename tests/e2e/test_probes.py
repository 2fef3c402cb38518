"""What operators' programs are told by a real server, whatever hangs on its port."""

import os
import signal
import socket
import urllib.error
import urllib.request
from contextlib import ExitStack

import pytest

from adamix_testing.servers import Eventually, Server, StartServer

DESCRIPTORS = 256


def ask(server: Server, path: str) -> tuple[int, str]:
    record = server.find(process="supervisor", message="metrics")
    assert record is not None
    try:
        with urllib.request.urlopen(f"http://{record['address']}{path}", timeout=15) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.long
def test_idle_connections_keep_neither_scrapers_out_nor_the_engine_down(
    start_server: StartServer, eventually: Eventually
) -> None:
    limited = ("prlimit", f"--nofile={DESCRIPTORS // 2}:{DESCRIPTORS}")
    server = start_server("--metrics-listen", "127.0.0.1:0", before=limited).wait()
    record = server.find(process="supervisor", message="metrics")
    assert record is not None
    host, port = record["address"].split(":")
    with ExitStack() as idle:
        for _ in range(2 * DESCRIPTORS):
            idle.enter_context(socket.create_connection((host, int(port)), timeout=15))
        assert ask(server, "/readyz") == (200, "ok\n")
        text = ask(server, "/metrics")[1]
        # The limit was raised, for children too.
        for process in ("supervisor", "engine-0", "frontend-0"):
            assert f'process_max_fds{{process="{process}"}} {DESCRIPTORS}.0' in text
        engine = server.child("adamix_server.engine")
        os.kill(engine, signal.SIGKILL)
        eventually(lambda: ask(server, "/readyz")[0] == 503, "the server says that it does not serve")
        assert ask(server, "/readyz")[1] == "frontend-0: ENGINE_RESTARTING\n"
        # No value of the dead engine is left, though its counters are.
        text = ask(server, "/metrics")[1]
        assert "\nadamix_queue_requests " not in text
        assert 'adamix_adapter_loads_total{from="store",result="ok"}' in text
        eventually(lambda: ask(server, "/readyz") == (200, "ok\n"), "a new engine serves")
        assert server.child("adamix_server.engine") != engine
    assert server.terminate() == 0

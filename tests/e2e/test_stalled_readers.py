"""A supervisor that is stopped, and a log that nobody reads: the server answers, counts and ends all the same."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix_client import Client, Input, Predictions
from adamix_testing.servers import Callers, Eventually, StartServer

MakeAdapter = Callable[..., AdapterFile]

# More than any child may be silent.
PAUSE_S = 25.0


@pytest.mark.long
def test_a_supervisor_that_is_stopped_for_a_while_loses_no_child_and_no_count(
    start_server: StartServer, eventually: Eventually, make_adapter: MakeAdapter, spec: BackboneSpec
) -> None:
    server = start_server("--metrics-port", "0").wait()
    adapter = make_adapter(1, spec=spec)
    with server.client() as client:
        client.register("one", adapter_file.encode(adapter.manifest, adapter.tensors))
    children = sorted(server.children())
    with Callers(server, [[Input(task="one", text="the cat sleeps")] * 4], count=4) as callers:
        os.kill(server.process.pid, signal.SIGSTOP)
        time.sleep(PAUSE_S)
        assert len(callers.answered_since(time.monotonic() - 2.0)) > 10, "predictions go on"
        os.kill(server.process.pid, signal.SIGCONT)
    assert all(isinstance(outcome.answer, Predictions) for outcome in callers.outcomes)
    count = 4 * len(callers.outcomes)
    eventually(lambda: server.metric("adamix_task_requests_total", task="one") == count, f"{count} inputs are counted")
    assert sorted(server.children()) == children
    assert server.terminate() == 0


@pytest.mark.long
def test_a_server_whose_log_is_not_read_answers_and_ends(backbone_directory: Path, tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-m", "adamix_server", "serve", "--backbone", str(backbone_directory)]
    command += ["--store", str(tmp_path / "store"), "--listen", "127.0.0.1:0", "--drain-delay", "0", "--threads", "1"]
    with subprocess.Popen([*command, "--log-level", "debug"], stderr=write_fd) as server:
        os.close(write_fd)
        said = b""
        while b'"logger": "adamix_server.cli.main", "message": "serving"' not in said:
            said += os.read(read_fd, 65_536)
        address = said.rpartition(b'"address": "')[2].partition(b'"')[0].decode()
        with Client(address) as client:
            for _ in range(1_000):
                client.tasks()
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
    os.close(read_fd)

"""A server that its machine does not let start: what is said, and that nothing is left open."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adamix.errors import InvalidConfig
from adamix_server.config import EngineSettings, ServerConfig
from adamix_server.supervisor import child
from adamix_server.supervisor.supervisor import Supervisor
from adamix_testing.harness import start_front_end


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_process_that_cannot_be_started_leaves_no_pipe_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(child.sys, "executable", "/nowhere/python")
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        asyncio.run(child.Child.start("adamix_server.frontend", start_front_end(tmp_path, tmp_path), {}))
    assert open_descriptors() == before


@pytest.mark.parametrize("field", ["metrics_port", "metrics_listen"])
def test_a_port_for_metrics_that_is_taken_is_said(field: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        where = {"metrics_port": port} if field == "metrics_port" else {"metrics_listen": f"127.0.0.1:{port}"}
        engine = EngineSettings(backbone="x")
        config = ServerConfig(engine=engine, store=tmp_path / "store", listen="127.0.0.1:0", **where)
        with pytest.raises(InvalidConfig, match=f"cannot listen on 127.0.0.1:{port}: another program uses it") as said:
            asyncio.run(Supervisor(config, lambda address, hello: None).run())
    assert said.value.field == field


def test_a_sentence_that_nobody_reads_does_not_keep_the_command_from_ending() -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_fd, b"x" * 4096)
    os.set_blocking(write_fd, True)
    command = [sys.executable, "-m", "adamix_server", "serve", "--backbone", "x", "--listen"]
    commands = [[*command, "0.0.0.0:1"], [*command[:4], "--no-such-flag"]]
    ending = [subprocess.Popen(command, stderr=write_fd) for command in commands]
    os.close(write_fd)
    try:
        assert [process.wait(30) for process in ending] == [2, 2]
    finally:
        for process in ending:
            process.kill()
        os.close(read_fd)

"""A server that its machine does not let start: what is said, and that nothing is left open."""

import asyncio
import socket
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

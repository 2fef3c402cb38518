"""The control plane of a real server: files of the server, a canary, watching."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import Unavailable
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix_client import Client, Input
from adamix_testing.servers import Server, StartServer

MakeAdapter = Callable[..., AdapterFile]

TEXT = "the cat sleeps"


def data_of(adapter: AdapterFile) -> bytes:
    return adapter_file.encode(adapter.manifest, adapter.tensors)


def adamix(*arguments: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "adamix_server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_canary_from_the_servers_disk(
    start_server: StartServer, make_adapter: MakeAdapter, spec: BackboneSpec, tmp_path: Path
) -> None:
    old, new = make_adapter(1, spec=spec), make_adapter(2, spec=spec)
    root = tmp_path / "adapters"
    (root / "team").mkdir(parents=True)
    (root / "team" / "new.safetensors").write_bytes(data_of(new))
    server = start_server("--adapter-root", str(root), "--drain-grace", "600").wait()
    with server.client() as client:
        client.register("sst2", data_of(old))
        alone = {adapter.digest: logits_of(client, adapter.digest) for adapter in (old,)}
        arguments = ["sst2", "team/new.safetensors", "--on-server", "--no-make-live", "--server", server.address]
        registered = json.loads(adamix("register", *arguments, "--json"))
        assert (registered["version"]["digest"], registered["version"]["live"]) == (new.digest, False)
        alone[new.digest] = logits_of(client, new.digest)

        changes = client.watch_tasks(patience_s=0)
        first = next(changes).task
        assert first is not None
        assert first.traffic == ((old.digest, 1),)
        client.set_traffic("sst2", {old.digest: 3, new.digest: 1})
        second = next(changes).task
        assert second is not None
        assert dict(second.traffic) == {old.digest: 3, new.digest: 1}
        shown = adamix("tasks", "--server", server.address)
        assert "75.0%" in shown
        assert "25.0%" in shown

        answers = client.predict([Input("sst2", text=TEXT)] * 64, return_logits=True).predictions
        assert {answer.version for answer in answers} == set(alone)
        for answer in answers:
            assert answer.logits == pytest.approx(alone[answer.version], abs=1e-5)
        with pytest.raises(Unavailable, match="shutting down"):
            drain(server, changes)
        assert server.process.wait(60) == 0, "the watcher must not hold it up for the grace period"


def logits_of(client: Client, digest: str) -> tuple[float, ...]:
    """What one version answers."""
    return client.predict([Input("sst2", text=TEXT, version=digest)], return_logits=True).predictions[0].logits


def drain(server: Server, changes: Any) -> None:
    """Ask the server to end, and listen to the last."""
    server.process.terminate()
    for _ in changes:
        pass

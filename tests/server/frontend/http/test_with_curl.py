"""curl, as it is: predict, upload, watch, tensors, and what it is told when something is wrong."""

import asyncio
import hashlib
import json
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from adamix_testing.adapters import MakeAdapter
from adamix_testing.harness import Harness, StartServing, judge_here


async def curl(harness: Harness, path: str, *flags: str) -> tuple[int, Any]:
    """The status, and what the body says as JSON."""
    url = f"http://{harness.http}{path}"
    process = await asyncio.create_subprocess_exec("curl", "-sS", *flags, "-w", "\n%{http_code}", url, stdout=PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    body, _, status = output.rpartition(b"\n")
    return int(status), json.loads(body) if body else None


async def test_curl(
    start_serving: StartServing, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_here(monkeypatch)
    (file := tmp_path / "adapter.safetensors").write_bytes(make_adapter())
    digest = hashlib.sha256(make_adapter()).hexdigest()
    harness = await start_serving(http="127.0.0.1:0")
    watch = await asyncio.create_subprocess_exec("curl", "-sSN", f"http://{harness.http}/v1/tasks:watch", stdout=PIPE)
    assert watch.stdout is not None
    assert [await watch.stdout.readline() for _ in range(2)] == [b"id: 1\n", b"event: synchronised\n"]

    status, uploaded = await curl(harness, f"/v1/tasks/mine/adapter?expected_digest={digest}", "-T", str(file))
    assert (status, uploaded["version"]["digest"], uploaded["version"]["live"]) == (200, digest, True)
    lines = [await watch.stdout.readline() for _ in range(5)]
    assert lines[2:4] == [b"id: 2\n", b"event: task\n"]
    assert json.loads(lines[4].removeprefix(b"data: "))["task"]["name"] == "tenants/default/tasks/mine"
    watch.terminate()
    await watch.wait()

    inputs = {"inputs": [{"task": "mine", "text": "w1 w2"}]}
    status, predicted = await curl(harness, "/v1/predict", "--json", json.dumps(inputs))
    label = predicted["predictions"][0]["classification"]["label"]
    assert (status, predicted["predictions"][0]["version"]) == (200, digest)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["w1 w2"]}
    status, inferred = await curl(harness, "/v2/models/mine/infer", "--json", json.dumps({"inputs": [tensor]}))
    assert (status, inferred["outputs"][0]["data"]) == (200, [label])

    status, shown = await curl(harness, "/v1/tasks/mine")
    traffic = json.dumps({"traffic": [{"digest": digest, "weight": 2}]})
    flags = ("-X", "PATCH", "--json", traffic, "-H", f'If-Match: "{shown["task"]["etag"]}"')
    assert (await curl(harness, "/v1/tasks/mine/traffic", *flags))[0] == 200
    status, stale = await curl(harness, "/v1/tasks/mine/traffic", *flags)
    assert (status, stale["error"]["status"], stale["error"]["reason"]) == (409, "ABORTED", "STALE_ETAG")
    status, missing = await curl(harness, "/v1/tasks/nobody")
    assert (status, missing["error"]["reason"]) == (404, "NOT_FOUND")
    status, wrong = await curl(harness, "/v1/tasks/mine/adapter", "-T", __file__)
    assert (status, wrong["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert await curl(harness, "/v1/tasks/mine", "-X", "DELETE") == (200, {})

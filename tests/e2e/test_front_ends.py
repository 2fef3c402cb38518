"""Two front ends on one port: what one has acknowledged both serve, and either may die."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import AdamixError, Code
from adamix.files import adapter_file
from adamix.files.manifest import BackboneSpec
from adamix_client import Client, Input, Predictions
from adamix_testing.servers import Callers, Eventually, Server

# `tritonclient.http`, in a process of its own.
STOCK_HTTP_CLIENT = Path(__file__).parents[1] / "server" / "frontend" / "http" / "stock_http_client.py"
ROUNDS = 20
FRESH = 4


@pytest.fixture
def files(make_adapter: Callable[..., Any], spec: BackboneSpec) -> dict[str, bytes]:
    """Three adapters by digest."""
    adapters = [make_adapter(seed, spec=spec) for seed in (300, 301, 302)]
    return {adapter.digest: adapter_file.encode(adapter.manifest, adapter.tensors) for adapter in adapters}


@pytest.fixture(scope="module")
def pair(start_module_server: Callable[..., Server]) -> Server:
    return start_module_server("--front-ends", "2", "--metrics-port", "0", "--http", "127.0.0.1:0")


def front_ends(server: Server) -> list[int]:
    return sorted(server.pids("adamix_server.frontend"))


def connections(server: Server) -> Counter[int]:
    """How many established connections each front end has, by process id."""
    port = f":{int(server.address.rpartition(':')[2]):04X}"
    inodes = {
        fields[9]
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
        if (fields := line.split())[1].endswith(port) and fields[3] == "01"
    }
    found: Counter[int] = Counter()
    for pid in front_ends(server):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            match = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
            found[pid] += match is not None and match[1] in inodes
    return found


def version_of(client: Client, task: str) -> str:
    return client.predict(task=task, texts=["the cat"]).predictions[0].version


def on_both(server: Server, stack: ExitStack) -> list[Client]:
    """Clients that are connected to all front ends, at least one each."""
    clients: list[Client] = []
    while len(clients) < 32:
        client = stack.enter_context(server.client())
        client.server_info()
        clients.append(client)
        if min(connections(server).values()) > 0:
            return clients
    raise AssertionError("all connections went to one front end")


def test_what_is_acknowledged_every_front_end_answers(pair: Server, files: dict[str, bytes]) -> None:
    old, new, _ = files
    asked: Counter[int] = Counter()
    with pair.client() as operator, ExitStack() as stack:
        operator.register("made", files[old])
        operator.register("made", files[new], make_live=False)
        connected = on_both(pair, stack)
        for number in range(ROUNDS):
            live = (old, new)[number % 2]
            operator.set_traffic("made", live)
            with ExitStack() as fresh:
                clients = [*connected, *(fresh.enter_context(pair.client()) for _ in range(FRESH))]
                assert [version_of(client, "made") for client in clients] == [live] * len(clients)
                asked += connections(pair)
        assert len(asked) == 2
        for number in range(3):
            operator.register(f"new-{number}", files[old])
            assert [version_of(client, f"new-{number}") for client in connected] == [old] * len(connected)
        operator.delete_task("made")
        for client in connected:
            with pytest.raises(AdamixError) as gone:
                version_of(client, "made")
            assert gone.value.code is Code.NOT_FOUND


def test_no_version_comes_back_while_traffic_flows_through_both(pair: Server, files: dict[str, bytes]) -> None:
    """Versions go up by one; what a caller saw acknowledged before it asked is the least it is answered."""
    order = list(files)
    acknowledged, stop = [0], threading.Event()
    wrong: list[Any] = []
    counts: Counter[int] = Counter()

    def call(client: Client, number: int) -> None:
        while not stop.is_set():
            at_least = acknowledged[0]
            try:
                version = version_of(client, "ascending")
            except AdamixError as error:
                wrong.append(error)
                return
            if order.index(version) < at_least:
                wrong.append((version, at_least))
            counts[number] += 1

    with pair.client() as operator, ExitStack() as stack:
        for _ in range(4):
            acknowledged[0] = 0
            for digest in order:
                operator.register("ascending", files[digest], make_live=digest == order[0])
            clients = on_both(pair, stack)
            stop.clear()
            threads = [threading.Thread(target=call, args=(client, i)) for i, client in enumerate(clients)]
            for thread in threads:
                thread.start()
            for step in range(1, len(order)):
                before = sum(counts.values())
                operator.set_traffic("ascending", order[step])
                acknowledged[0] = step
                while sum(counts.values()) < before + 4 * len(clients) and not wrong:
                    time.sleep(0.005)
            stop.set()
            for thread in threads:
                thread.join(30)
            operator.delete_task("ascending")
    assert not wrong


def test_deleted_versions_are_purged(pair: Server, files: dict[str, bytes], eventually: Eventually) -> None:
    digest = list(files)[2]
    with pair.client() as operator, ExitStack() as stack:
        operator.register("passing", files[digest])
        for client in on_both(pair, stack):
            version_of(client, "passing")
        operator.delete_task("passing")
        blob = pair.store / "blobs" / "sha256" / digest[:2] / digest
        eventually(lambda: not blob.exists(), "the bytes of a deleted version are gone")


def test_the_load_is_that_of_the_one_engine(pair: Server, files: dict[str, bytes]) -> None:
    with ExitStack() as stack:
        clients = on_both(pair, stack)
        clients[0].register("loaded", next(iter(files.values())))
        clients[0].predict(task="loaded", texts=["the cat"] * 8)
        for client in clients:
            load = client.load_report()
            assert load.slots == 512
            assert load.resident_adapters >= 1
            assert load.queued_inputs == load.queued_tokens == 0


def test_metrics_of_both_add_up(pair: Server, files: dict[str, bytes], eventually: Eventually) -> None:
    labels = {"tenant": "default", "task": "counted"}
    with ExitStack() as stack:
        clients = on_both(pair, stack)
        clients[0].register("counted", next(iter(files.values())))
        for client in clients:
            client.predict(task="counted", texts=["fish"] * 3)
        name = "adamix_task_requests_total"
        eventually(lambda: pair.metric(name, **labels) == 3.0 * len(clients), "every input is counted once")
        # Both have series of the task to end, whichever of them deletes it.
        clients[0].delete_task("counted")
        eventually(lambda: pair.metric(name, **labels) == 0.0, "a deleted task has no series")


def test_a_second_server_is_refused_the_port(
    pair: Server, server_type: type[Server], backbone_directory: Path, tmp_path: Path
) -> None:
    second = server_type(backbone_directory, tmp_path / "other", "--front-ends", "2", "--listen", pair.address)
    try:
        assert second.wait_for_end() == 2
        said = " ".join(record["message"] for record in second.records)
        assert f"cannot listen on {pair.address}: another program uses it" in said
    finally:
        second.kill()


def test_one_that_is_killed_is_replaced_while_the_other_goes_on(
    pair: Server, files: dict[str, bytes], callers: type[Callers], eventually: Eventually
) -> None:
    digests = list(files)
    with pair.client() as operator, ExitStack() as stack:
        operator.register("kept", files[digests[0]])
        operator.register("kept", files[digests[1]], make_live=False)
        before = front_ends(pair)
        with callers(pair, [[Input(task="kept", text="the cat")]], count=12) as load:
            eventually(lambda: min(connections(pair).values()) > 0 and len(load.outcomes) > 60, "both are in use")
            victim = before[0]
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            eventually(lambda: len(load.answered_since(killed)) > 20, "the other one goes on")
            # A change needs every front end that lives, and no other. Its own connection may have been to the dead one.
            retried(lambda: operator.set_traffic("kept", digests[1]))
            eventually(lambda: len(ready := front_ends(pair)) == 2 and victim not in ready, "there are two again")
            eventually(lambda: bool(started_again(pair)), "the new one serves")
            retried(lambda: operator.register("after", files[digests[2]]))
            clients = on_both(pair, stack)
            assert {version_of(client, "after") for client in clients} == {digests[2]}
            assert {version_of(client, "kept") for client in clients} == {digests[1]}
            operator.set_traffic("kept", digests[0])
            assert {version_of(client, "kept") for client in clients} == {digests[0]}
    failures = [o.answer for o in load.outcomes if not isinstance(o.answer, Predictions)]
    assert {error.code for error in failures} <= {Code.UNAVAILABLE}
    # A caller was cut off when its front end died, and called the other after that.
    assert len(failures) < len(load.outcomes) / 2


def started_again(server: Server) -> set[str]:
    """The front ends that have said more than once that they serve."""
    said = Counter(r["process"] for r in list(server.records) if r["message"] == "serving")
    return {name for name, count in said.items() if count > 1}


def retried(work: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            work()
        except AdamixError as error:
            if error.code is not Code.UNAVAILABLE or time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


def test_a_drain_by_call_loses_nothing(
    start_module_server: Callable[..., Server], files: dict[str, bytes], callers: type[Callers], eventually: Eventually
) -> None:
    server = start_module_server("--front-ends", "2")
    digest, data = next(iter(files.items()))
    with server.client() as operator:
        operator.register("t", data)
        with callers(server, [[Input(task="t", text="the cat")]], count=12) as load:
            eventually(lambda: min(connections(server).values()) > 0 and len(load.outcomes) > 60, "both are in use")
            asked = time.monotonic()
            operator.drain()
            assert server.process.wait(60) == 0
    early = [o.answer for o in load.outcomes if o.began < asked]
    assert {p.version for a in early for p in getattr(a, "predictions", ())} == {digest}
    # A call may begin before the drain and reach the server after it: then it is refused, which loses nothing.
    assert {answer.reason for answer in early if isinstance(answer, AdamixError)} <= {"DRAINING"}
    # Later calls were answered in full or refused as a whole; nobody was cut off.
    late = {error.code for o in load.outcomes if isinstance(error := o.answer, AdamixError)}
    assert late == {Code.UNAVAILABLE}


def loads_http(pid: int) -> bool:
    """Whether a process has loaded what parses HTTP."""
    return "httptools" in Path(f"/proc/{pid}/maps").read_text()


def test_stock_clients_are_told_the_same_over_http(pair: Server, files: dict[str, bytes]) -> None:
    texts = ["the cat sleeps", "a big red dog runs over the lazy bird"]
    with pair.client() as client:
        client.register("stock", next(iter(files.values())))
        called = client.predict_json([Input("stock", text=text) for text in texts])["predictions"]
    calls = [("infer", {"model": "stock", "texts": texts, "binary": is_binary}) for is_binary in (True, False)]
    process = subprocess.run(
        [sys.executable, str(STOCK_HTTP_CLIENT), pair.http],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for told in json.loads(process.stdout):
        assert told["value"]["label"] == [found["classification"]["label"] for found in called]
        expected = [found["classification"]["scores"] for found in called]
        for row, scores in zip(told["value"]["scores"], expected, strict=True):
            assert row == pytest.approx(scores, abs=1e-5)


def test_http_is_answered_by_every_front_end(pair: Server, files: dict[str, bytes], server: Server) -> None:
    with pair.client() as client:
        client.register("over-http", next(iter(files.values())))
        expected = client.predict_json(task="over-http", texts=["the cat"])
    body = json.dumps({"inputs": [{"task": "over-http", "text": "the cat"}]}).encode()
    headers = {"content-type": "application/json"}
    processes = set()
    # Each over a connection of its own; the ids that a process makes begin alike.
    for _ in range(64):
        request = urllib.request.Request(f"http://{pair.http}/v1/predict", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)
            processes.add(answer.headers["x-request-id"].partition("-")[0])
        (one,), (other,) = found["predictions"], expected["predictions"]
        assert (one.keys(), one["version"]) == (other.keys(), other["version"])
        assert one["classification"]["scores"] == pytest.approx(other["classification"]["scores"])
        if len(processes) == 2:
            break
    assert len(processes) == 2, "all connections went to one front end"
    # The page of metrics is the supervisor's, and this leads to it.
    with urllib.request.urlopen(f"http://{pair.http}/metrics", timeout=30) as page:
        assert "adamix_requests_total" in page.read().decode()
    deadline = time.monotonic() + 10
    while pair.metric("adamix_http_requests_total", route="/v1/predict", status="200") < len(processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert all(map(loads_http, front_ends(pair)))
    assert not any(map(loads_http, front_ends(server))), "who has not asked for HTTP does not pay for it"

"""The control plane over HTTP: what gRPC says, as JSON; etags, uploads, pages; and what is refused, by its name."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from adamix.errors import Unauthenticated
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import admin_pb2, server_pb2
from adamix_server.access.principal import Principal
from adamix_server.config import FrontEndSettings
from adamix_server.frontend.entrance import Entrance
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing, judge_here
from adamix_testing.identities import Callers, of_role

HTTP = "127.0.0.1:0"


def plain(message: Message) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def client_of(harness: Harness, **headers: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=f"http://{harness.http}", headers=headers, timeout=20)


def error_of(answer: httpx2.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    assert error["code"] == answer.status_code
    return answer.status_code, error["reason"], error["field"]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_what_is_asked_is_what_grpc_says(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    for task in ("a", "b", "c"):
        seed(task, make_adapter(seed=1))
    seed("a", make_adapter(seed=2))
    harness = await start_serving(http=HTTP)
    async with client_of(harness) as client:
        listed = await harness.adapters.ListTasks(pb.ListTasksRequest())
        assert (await client.get("/v1/tasks")).json() == plain(listed)
        first = (await client.get("/v1/tasks", params={"page_size": "2"})).json()
        assert [task["name"][-1] for task in first["tasks"]] == ["a", "b"]
        rest = await client.get("/v1/tasks", params={"page_size": "2", "page_token": first["next_page_token"]})
        assert [task["name"][-1] for task in rest.json()["tasks"]] == ["c"]
        assert rest.json()["next_page_token"] == ""
        shown = await harness.adapters.GetTask(pb.GetTaskRequest(task="a"))
        for path in ("/v1/tasks/a", "/v1/tasks/tenants%2Fdefault%2Ftasks%2Fa", "/v1/tenants/default/tasks/a"):
            answer = await client.get(path)
            assert answer.json() == plain(shown)
            assert answer.headers["etag"] == f'"{shown.task.etag}"'
        versions = await harness.adapters.ListVersions(pb.ListVersionsRequest(task="a"))
        assert (await client.get("/v1/tasks/a/versions")).json() == plain(versions)
        info = await harness.server.GetServerInfo(server_pb2.GetServerInfoRequest())
        assert (await client.get("/v1/info")).json() == plain(info)
        load = await harness.server.GetLoad(server_pb2.GetLoadRequest())
        assert (await client.get("/v1/load")).json() == plain(load)
        who = await harness.admin.WhoAmI(admin_pb2.WhoAmIRequest())
        assert (await client.get("/v1/whoami")).json() == plain(who)


async def test_the_life_of_a_task(
    start_serving: StartServing, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_here(monkeypatch)
    old, new = make_adapter(seed=1), make_adapter(seed=2)
    harness = await start_serving(http=HTTP)
    async with client_of(harness) as client:
        checked = await client.put("/v1/tasks/t/adapter?validate_only=true", content=old)
        assert checked.json()["version"]["state"] == "VERSION_STATE_VALIDATING"
        assert error_of(await client.get("/v1/tasks/t")) == (404, "NOT_FOUND", None)
        put = await client.put("/v1/tasks/t/adapter", params={"expected_digest": digest_of(old)}, content=old)
        assert put.status_code == 200, put.text
        assert (put.json()["version"]["live"], put.json()["already_exists"]) == (True, False)
        assert (await client.put("/v1/tasks/t/adapter", content=old)).json()["already_exists"] is True
        beside = await client.put("/v1/tasks/t/adapter?make_live=false&request_id=7", content=new)
        assert beside.json()["version"]["live"] is False
        mismatch = await client.put("/v1/tasks/t/adapter", params={"expected_digest": "0" * 64}, content=old)
        assert error_of(mismatch) == (400, "DIGEST_MISMATCH", None)

        etag = (await client.get("/v1/tasks/t")).headers["etag"]
        split = {"traffic": [{"digest": digest_of(old), "weight": 9}, {"digest": digest_of(new), "weight": 1}]}
        changed = await client.patch("/v1/tasks/t/traffic", json=split, headers={"if-match": etag})
        shares = {share["digest"]: share["weight"] for share in changed.json()["task"]["traffic"]}
        assert shares == {digest_of(old): 9, digest_of(new): 1}
        assert changed.headers["etag"] == f'"{changed.json()["task"]["etag"]}"' != etag
        stale = await client.patch("/v1/tasks/t/traffic", json=split, headers={"if-match": etag})
        assert error_of(stale) == (409, "STALE_ETAG", None)
        assert error_of(await client.post("/v1/tasks/t:rollback", headers={"if-match": etag}))[:2] == (
            409,
            "STALE_ETAG",
        )
        back = await client.post("/v1/tasks/t:rollback", headers={"if-match": changed.headers["etag"]})
        assert [share["digest"] for share in back.json()["task"]["traffic"]] == [digest_of(old)]

        version = f"/v1/tasks/t/versions/{digest_of(old)}"
        for order, (field, value) in {
            "load": ("residency", "RESIDENCY_DEVICE"),
            "pin": ("pinned", True),
            "unpin": ("pinned", False),
            "unload": ("digest", digest_of(old)),
        }.items():
            answer = await client.post(f"{version}:{order}")
            assert answer.json()["version"][field] == value, (order, answer.text)

        gone = f"/v1/tasks/t/versions/{digest_of(new)}"
        assert error_of(await client.delete(gone, headers={"if-match": etag}))[:2] == (409, "STALE_ETAG")
        assert (await client.delete(gone, headers={"if-match": "*"})).json() == {}
        etag = (await client.get("/v1/tasks/t")).headers["etag"]
        assert error_of(await client.delete("/v1/tasks/t", headers={"if-match": '"x"'}))[:2] == (409, "STALE_ETAG")
        assert (await client.delete("/v1/tasks/t", headers={"if-match": etag})).json() == {}
        assert error_of(await client.get("/v1/tasks/t")) == (404, "NOT_FOUND", None)


async def test_a_file_of_the_server(
    start_serving: StartServing, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_here(monkeypatch)
    (root := tmp_path / "root").mkdir()
    (root / "a.safetensors").write_bytes(make_adapter())
    harness = await start_serving(http=HTTP, adapter_root=root)
    async with client_of(harness) as client:
        put = await client.put("/v1/tasks/t/adapter?file=a.safetensors")
        assert put.json()["version"]["digest"] == digest_of(make_adapter())
        more = await client.put("/v1/tasks/t/adapter?file=a.safetensors", content=b"x")
        assert error_of(more) == (400, "CHUNK_UNEXPECTED", "chunk")
        out = await client.put("/v1/tasks/t/adapter", params={"file": "../store/catalog.db"})
        assert out.status_code == 400


async def test_what_is_refused_and_how(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("t", make_adapter())
    harness = await start_serving(http=HTTP)
    digest = digest_of(make_adapter())
    json_, share = {"content-type": "application/json"}, {"digest": digest, "weight": 1}
    cases: list[tuple[str, str, dict[str, Any], tuple[int, str, str | None]]] = [
        ("GET", "/v1/tasks?page_size=x", {}, (400, "QUERY_INVALID", "page_size")),
        ("GET", "/v1/tasks?page_size=1&page_size=2", {}, (400, "QUERY_INVALID", "page_size")),
        ("GET", "/v1/tasks?pagesize=1", {}, (400, "QUERY_INVALID", "pagesize")),
        ("GET", "/v1/tasks?page_size=-1", {}, (400, "INVALID_REQUEST", "page_size")),
        ("GET", "/v1/tasks?page_token=%00%ff", {}, (400, "QUERY_INVALID", None)),
        ("GET", "/v1/tasks?page_token=x", {}, (400, "INVALID_REQUEST", "page_token")),
        ("GET", "/v1/tasks/t?verbose=1", {}, (400, "QUERY_INVALID", "verbose")),
        ("GET", "/v1/tasks/T", {}, (400, "ID_INVALID", "task")),
        ("GET", "/v1/tasks/a..b", {}, (400, "ID_INVALID", "task")),
        ("GET", "/v1/tasks/%2e%2e", {}, (400, "ID_INVALID", "task")),
        ("GET", "/v1/tasks/%2e%2e%2f%2e%2e%2fetc%2fpasswd", {}, (400, "ID_INVALID", "task")),
        ("GET", "/v1/tasks/%252e", {}, (400, "ID_INVALID", "task")),
        ("GET", "/v1/tasks/t%00", {}, (400, "PATH_INVALID", "task")),
        ("GET", "/v1/tasks/%ff", {}, (400, "PATH_INVALID", "task")),
        ("GET", "/v1/tasks/t:rollback", {}, (405, "METHOD_NOT_ALLOWED", None)),
        ("GET", "/v1/tasks/t:other", {}, (400, "ID_INVALID", "task")),
        ("GET", "/v1/tenants/a%2Fb/tasks/t", {}, (400, "ID_INVALID", "task")),
        ("GET", "/v1/tenants/other/tasks/t", {}, (404, "NOT_FOUND", None)),
        ("GET", "/v1/tasks/" + "a" * 64, {}, (400, "ID_INVALID", "task")),
        ("GET", "/v1/tasks/nobody/versions", {}, (404, "NOT_FOUND", None)),
        ("GET", "/v1/tasks/", {}, (404, "ROUTE_UNKNOWN", None)),
        ("GET", "/v1/tasks//versions", {}, (404, "ROUTE_UNKNOWN", None)),
        ("POST", "/v1/tasks/t", {}, (405, "METHOD_NOT_ALLOWED", None)),
        ("DELETE", "/v1/tasks/t", {"headers": {"if-match": 'W/"1"'}}, (400, "ETAG_INVALID", "If-Match")),
        ("DELETE", "/v1/tasks/t", {"headers": {"if-match": '"1", "2"'}}, (400, "ETAG_INVALID", "If-Match")),
        ("DELETE", "/v1/tasks/t?etag=1", {}, (400, "QUERY_INVALID", "etag")),
        ("POST", "/v1/tasks/t/versions/latest:load", {}, (400, "DIGEST_INVALID", "digest")),
        ("POST", f"/v1/tasks/t/versions/{'0' * 64}:pin", {}, (404, "NOT_FOUND", None)),
        ("DELETE", f"/v1/tasks/nobody/versions/{digest}", {}, (404, "NOT_FOUND", None)),
        ("PATCH", "/v1/tasks/t/traffic", {"json": {"traffic": [share] * 17}}, (400, "TRAFFIC_INVALID", "traffic")),
        ("PATCH", "/v1/tasks/t/traffic", {"json": {"traffic": [share] * 1025}}, (400, "FIELD_INVALID", "traffic")),
        ("PATCH", "/v1/tasks/t/traffic", {"json": {"traffic": []}}, (400, "TRAFFIC_INVALID", "traffic")),
        ("PATCH", "/v1/tasks/t/traffic", {"content": b"{", "headers": json_}, (400, "MALFORMED_MESSAGE", None)),
        ("PATCH", "/v1/tasks/t/traffic", {"content": b"{}"}, (415, "CONTENT_TYPE_UNSUPPORTED", None)),
        ("PATCH", "/v1/tasks/t/traffic", {"json": {"traffic": [], "x": 1}}, (400, "UNKNOWN_FIELD", "x")),
        # The task is judged first.
        ("PATCH", "/v1/tasks/nobody/traffic", {"content": b"{", "headers": json_}, (404, "NOT_FOUND", None)),
        ("PATCH", "/v1/tasks/nobody/traffic", {"json": {"x": 1}}, (404, "NOT_FOUND", None)),
        ("PUT", "/v1/tasks/../adapter", {"content": b"x"}, (404, "ROUTE_UNKNOWN", None)),
        ("PUT", "/v1/tasks/%2e%2e/adapter", {"content": b"x"}, (400, "ID_INVALID", "header.task")),
        ("PUT", "/v1/tasks/t/adapter?make_live=maybe", {"content": b"x"}, (400, "QUERY_INVALID", "make_live")),
        ("PUT", "/v1/tasks/t/adapter?expected_digest=x", {}, (400, "DIGEST_INVALID", "header.expected_digest")),
        ("PUT", "/v1/tasks/t/adapter?file=a", {}, (400, "NO_ADAPTER_ROOT", None)),
    ]
    async with client_of(harness) as client:
        for method, path, options, expected in cases:
            answer = await client.request(method, path, **options)
            assert error_of(answer) == expected, (method, path, answer.text)
        assert (await client.get("/v1/tasks/t")).status_code == 200


async def test_rights_are_those_of_the_call(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("t", make_adapter())
    callers = ByHeader({"reader": of_role("caller"), "owner": of_role("publisher")})
    harness = await start_serving(http=HTTP, callers=callers)
    async with client_of(harness) as client:
        assert error_of(await client.get("/v1/tasks"))[:2] == (401, "KEY_INVALID")
        # Nothing is read of what nobody known sends.
        assert error_of(await client.put("/v1/tasks/t/adapter?x=1", content=b"x"))[:2] == (401, "KEY_INVALID")
        reader, owner = ({"adamix-caller": name} for name in ("reader", "owner"))
        assert error_of(await client.delete("/v1/tasks/t", headers=reader))[:2] == (403, "RIGHT_MISSING")
        assert (await client.get("/v1/tasks/t", headers=owner)).status_code == 200


class ByHeader(Callers):
    """Who calls, by the word in a header that the boundary is told of."""

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        super().__init__(principals)
        self._basis = (object(),)

    def revoke(self, word: str) -> None:
        del self.principals[word]
        self._basis = (object(),)

    def enter(self, *_: Any) -> Entrance:
        return Entrance(identify=self.identify, basis=lambda: self._basis)

    def identify(self, context: Any) -> Principal:
        who = dict(context.invocation_metadata()).get("adamix-caller", "")
        if who not in self.principals:
            raise Unauthenticated("no valid credential", reason="KEY_INVALID")
        return self.principals[who]


class Events:
    """Reads server-sent events."""

    def __init__(self, answer: httpx2.Response) -> None:
        self._lines = answer.aiter_lines()

    async def next(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        async for line in self._lines:
            if not line:
                break
            name, _, value = line.partition(": ")
            found[name] = json.loads(value) if name in ("data", "id") else value
        return found


async def test_a_watch_is_told_what_grpc_tells(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    for task in ("a", "b"):
        seed(task, make_adapter())
    harness = await start_serving(http=HTTP)
    watch = harness.adapters.WatchTasks(pb.WatchTasksRequest())
    async with client_of(harness) as client, client.stream("GET", "/v1/tasks:watch") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["x-request-id"]
        events = Events(answer)
        names = []
        for number in range(1, 4):
            found, message = await events.next(), await watch.read()
            assert (found["id"], found["data"]) == (number, plain(message))
            names.append(found["event"])
        assert names == ["task", "task", "synchronised"]
        await harness.adapters.DeleteTask(pb.DeleteTaskRequest(task="b"))
        found = await events.next()
        assert (found["event"], found["id"], found["data"]) == ("deleted", 4, plain(await watch.read()))
        watch.cancel()
        harness.drain()
        found = await events.next()
        assert (found["event"], found["data"]["error"]["reason"]) == ("error", "DRAINING")
        assert await events.next() == {}


async def test_a_watcher_that_leaves_is_gone(start_serving: StartServing) -> None:
    harness = await start_serving(http=HTTP)
    ended: Counter[str] = Counter()

    def have_left() -> bool:
        for sample in harness.front_end._recorder.drain():
            if sample.name == "adamix_requests_total" and sample.labels[0] == "adamix.v1.AdapterService/WatchTasks":
                ended[sample.labels[1]] += int(sum(sample.values))
        return ended["CANCELLED"] == 3

    async with client_of(harness) as client:
        for _ in range(3):
            async with client.stream("GET", "/v1/tasks:watch") as answer:
                assert (await Events(answer).next())["event"] == "synchronised"
        await harness.until(have_left)
        assert (await client.head("/v1/tasks:watch")).headers["content-type"] == "text/event-stream"
        refused = await client.get("/v1/tasks:watch?since=3")
        assert error_of(refused) == (400, "QUERY_INVALID", "since")


async def test_a_watch_ends_with_its_credential(start_serving: StartServing) -> None:
    callers = ByHeader({"reader": of_role("publisher")})
    harness = await start_serving(http=HTTP, callers=callers)
    async with (
        client_of(harness) as client,
        client.stream("GET", "/v1/tasks:watch", headers={"adamix-caller": "reader"}) as answer,
    ):
        events = Events(answer)
        assert (await events.next())["event"] == "synchronised"
        callers.revoke("reader")
        found = await events.next()
        assert (found["event"], found["data"]["error"]["reason"]) == ("error", "KEY_INVALID")
        assert await events.next() == {}


async def test_silence_is_broken_by_heartbeats(start_serving: StartServing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamix_server.frontend.control.watch.HEARTBEAT_S", 0.05)
    harness = await start_serving(http=HTTP)
    async with client_of(harness) as client, client.stream("GET", "/v1/tasks:watch") as answer:
        events = Events(answer)
        found = [await events.next() for _ in range(3)]
        assert [(event["event"], event["id"]) for event in found] == [
            ("synchronised", 1),
            ("heartbeat", 2),
            ("heartbeat", 3),
        ]


async def test_an_upload_comes_in_parts(
    start_serving: StartServing, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_here(monkeypatch)
    data = make_adapter()

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]
            await asyncio.sleep(0)

    harness = await start_serving(http=HTTP)
    async with client_of(harness) as client:
        put = await client.put("/v1/tasks/t/adapter", content=parts())
        assert put.json()["version"]["digest"] == digest_of(data)
        broken = await client.put("/v1/tasks/t/adapter", content=data[: len(data) // 2])
        assert broken.status_code == 400
        assert error_of(await client.put("/v1/tasks/t/adapter", content=b""))[0] == 400


def begins(num_bytes: int) -> bytes:
    """An upload whose body is so long, and follows."""
    return f"PUT /v1/tasks/t/adapter HTTP/1.1\r\nHost: localhost\r\ncontent-length: {num_bytes}\r\n\r\n".encode()


async def test_an_upload_that_stalls_is_ended(start_serving: StartServing) -> None:
    harness = await start_serving(http=HTTP, settings=FrontEndSettings(max_upload_s=1.0))
    host, _, port = harness.http.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(begins(1000) + bytes(100))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 504 ")
    assert json.loads(await reader.readuntil(b"}}"))["error"]["reason"] == "UPLOAD_TOO_SLOW"
    writer.close()


async def test_an_upload_whose_client_leaves_is_gone(start_serving: StartServing) -> None:
    harness = await start_serving(http=HTTP)
    host, _, port = harness.http.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    # More than waits in memory: it has a file.
    writer.write(begins(1 << 20) + bytes(1 << 17))
    await harness.until(lambda: bool(harness.temporaries()))
    writer.close()
    await harness.until(lambda: not harness.temporaries())

"""The routes of the control plane: each is one call of `AdapterService`, `ServerService` or `AdminService`.

Answers are those of the call as JSON. An etag comes back as `ETag` and is given as `If-Match`. A task is named as in a
call: by its id, or with its tenant, `/v1/tenants/{tenant}/tasks/{task}`. Knows no catalog and no right.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from adamix.errors import AdamixError
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import admin_pb2, server_pb2
from adamix_server.frontend.http.bodies import check_json
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.control import asking
from adamix_server.frontend.http.control.documents import document, page
from adamix_server.frontend.http.control.watching import Watching
from adamix_server.frontend.http.name_first import NameFirst
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request
from adamix_server.frontend.http.route import Route
from adamix_server.frontend.http.server_events import CONTENT_TYPE
from adamix_server.limits.control import MAX_CHUNK_BYTES

TAG = "control plane"
_OCTETS = "application/octet-stream"

M = TypeVar("M", bound=Message)
Answer = Callable[[Request], Awaitable[Reply | None]]


def routes(calls: Calls) -> list[Route]:
    """All of them."""
    tasks, about = _Tasks(calls), _About(calls)
    found = [
        Route("GET", "/v1/info", about.info, summary="What the server is.", tag=TAG),
        Route("GET", "/v1/load", about.load, summary="How it is doing.", tag=TAG),
        Route("GET", "/v1/whoami", about.whoami, summary="Who calls, and what that may do.", tag=TAG),
        Route("GET", "/v1/tasks", tasks.list, summary="Tasks, by pages.", tag=TAG, query=asking.PAGE_QUERY),
        Route(
            "GET",
            "/v1/tasks:watch",
            Watching(calls).follow,
            summary="Every task, and then each change as it happens.",
            tag=TAG,
            gives=CONTENT_TYPE,
        ),
    ]
    for task in ("/v1/tasks/{task}", "/v1/tenants/{tenant}/tasks/{task}"):
        version = f"{task}/versions/{{digest}}"
        found += [
            Route("POST", f"{task}:rollback", tasks.roll_back, summary="What answered before answers again.", tag=TAG),
            Route("POST", f"{version}:load", tasks.load, summary="Brings a version to the device.", tag=TAG),
            Route("POST", f"{version}:unload", tasks.unload, summary="Takes it from there.", tag=TAG),
            Route("POST", f"{version}:pin", tasks.pin, summary="Keeps it there.", tag=TAG),
            Route("POST", f"{version}:unpin", tasks.unpin, summary="Keeps it no longer.", tag=TAG),
            Route("DELETE", version, tasks.delete_version, summary="Deletes a version.", tag=TAG),
            Route("GET", task, tasks.show, summary="One task.", tag=TAG),
            Route("DELETE", task, tasks.delete, summary="Deletes a task and its versions.", tag=TAG),
            Route(
                "GET",
                f"{task}/versions",
                tasks.versions,
                summary="Versions of a task, the newest first.",
                tag=TAG,
                query=asking.PAGE_QUERY,
            ),
            Route(
                "PUT",
                f"{task}/adapter",
                tasks.upload,
                summary="Uploads an adapter file as a new version.",
                tag=TAG,
                takes=_OCTETS,
                query=asking.UPLOAD_QUERY,
            ),
            Route(
                "PATCH",
                f"{task}/traffic",
                tasks.set_traffic,
                summary="Sets which versions answer.",
                tag=TAG,
                takes=asking.Traffic,
            ),
        ]
    return found


class _About:
    """What the server says of itself and of its caller."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def info(self, request: Request) -> Reply:
        asked = _only(server_pb2.GetServerInfoRequest())
        method = "/adamix.v1.ServerService/GetServerInfo"
        return Reply(document(await self._calls.one(request, method, asked, server_pb2.GetServerInfoResponse)))

    async def load(self, request: Request) -> Reply:
        asked = _only(server_pb2.GetLoadRequest())
        method = "/adamix.v1.ServerService/GetLoad"
        return Reply(document(await self._calls.one(request, method, asked, server_pb2.GetLoadResponse)))

    async def whoami(self, request: Request) -> Reply:
        asked = _only(admin_pb2.WhoAmIRequest())
        method = "/adamix.v1.AdminService/WhoAmI"
        return Reply(document(await self._calls.one(request, method, asked, admin_pb2.WhoAmIResponse)))


class _Tasks:
    """Tasks and their versions."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def list(self, request: Request) -> Reply:
        async def read(request: Request) -> pb.ListTasksRequest:
            size, token = asking.to_page(request.query(*asking.PAGE_QUERY))
            return pb.ListTasksRequest(page_size=size, page_token=token)

        found = await self._one(request, "ListTasks", read, pb.ListTasksResponse)
        return Reply(await page("tasks", found.tasks, found.next_page_token))

    async def versions(self, request: Request) -> Reply:
        async def read(request: Request) -> pb.ListVersionsRequest:
            size, token = asking.to_page(request.query(*asking.PAGE_QUERY))
            return pb.ListVersionsRequest(task=_task(request), page_size=size, page_token=token)

        found = await self._one(request, "ListVersions", read, pb.ListVersionsResponse)
        return Reply(await page("versions", found.versions, found.next_page_token))

    async def show(self, request: Request) -> Reply:
        read = _only(pb.GetTaskRequest(task=_task(request)))
        return _of_task(await self._one(request, "GetTask", read, pb.GetTaskResponse))

    async def delete(self, request: Request) -> Reply:
        async def read(request: Request) -> pb.DeleteTaskRequest:
            request.query()
            return pb.DeleteTaskRequest(task=_task(request), etag=_etag(request))

        return Reply(document(await self._one(request, "DeleteTask", read, pb.DeleteTaskResponse)))

    async def delete_version(self, request: Request) -> Reply:
        async def read(request: Request) -> pb.DeleteVersionRequest:
            request.query()
            digest = request.params["digest"]
            return pb.DeleteVersionRequest(task=_task(request), digest=digest, etag=_etag(request))

        return Reply(document(await self._one(request, "DeleteVersion", read, pb.DeleteVersionResponse)))

    async def roll_back(self, request: Request) -> Reply:
        async def read(request: Request) -> pb.RollbackRequest:
            request.query()
            return pb.RollbackRequest(task=_task(request), etag=_etag(request))

        return _of_task(await self._one(request, "Rollback", read, pb.RollbackResponse))

    async def set_traffic(self, request: Request) -> Reply:
        async def read(request: Request) -> pb.SetTrafficRequest:
            request.query()
            check_json(request)
            return asking.to_traffic(_task(request), await request.body(), _etag(request))

        body = NameFirst(read, pb.SetTrafficRequest(task=_task(request)))
        try:
            return _of_task(await self._one(request, "SetTraffic", body, pb.SetTrafficResponse))
        except AdamixError as error:
            raise body.told(error) from None

    async def upload(self, request: Request) -> Reply:
        async def read(request: Request) -> AsyncIterator[pb.RegisterAdapterRequest]:
            header = asking.to_header(_task(request), request.query(*asking.UPLOAD_QUERY))
            yield pb.RegisterAdapterRequest(header=header)
            async for chunk in request.chunks():
                for start in range(0, len(chunk), MAX_CHUNK_BYTES):
                    yield pb.RegisterAdapterRequest(chunk=chunk[start : start + MAX_CHUNK_BYTES])

        return Reply(document(await self._one(request, "RegisterAdapter", read, pb.RegisterAdapterResponse)))

    async def load(self, request: Request) -> Reply:
        read = _of_version(pb.LoadVersionRequest)
        return Reply(document(await self._one(request, "LoadVersion", read, pb.LoadVersionResponse)))

    async def unload(self, request: Request) -> Reply:
        read = _of_version(pb.UnloadVersionRequest)
        return Reply(document(await self._one(request, "UnloadVersion", read, pb.UnloadVersionResponse)))

    async def pin(self, request: Request) -> Reply:
        read = _of_version(pb.PinVersionRequest, pinned=True)
        return Reply(document(await self._one(request, "PinVersion", read, pb.PinVersionResponse)))

    async def unpin(self, request: Request) -> Reply:
        read = _of_version(pb.PinVersionRequest, pinned=False)
        return Reply(document(await self._one(request, "PinVersion", read, pb.PinVersionResponse)))

    async def _one(self, request: Request, method: str, read: Any, answer: type[M]) -> M:
        return await self._calls.one(request, f"/adamix.v1.AdapterService/{method}", read, answer)


def _task(request: Request) -> str:
    """The name of a path's task, as a call has it."""
    task, tenant = request.params["task"], request.params.get("tenant")
    return task if tenant is None else f"tenants/{tenant}/tasks/{task}"


def _etag(request: Request) -> str:
    return asking.to_etag(request.header("if-match"))


def _only(message: M) -> Callable[[Request], Awaitable[M]]:
    """Reads a request that is said by its path."""

    async def read(request: Request) -> M:
        request.query()
        return message

    return read


def _of_version(kind: Callable[..., M], **fields: bool) -> Callable[[Request], Awaitable[M]]:
    async def read(request: Request) -> M:
        request.query()
        return kind(task=_task(request), digest=request.params["digest"], **fields)

    return read


def _of_task(message: Any) -> Reply:
    """An answer that is a task, with its etag."""
    return Reply(document(message), headers=(("etag", f'"{message.task.etag}"'),))

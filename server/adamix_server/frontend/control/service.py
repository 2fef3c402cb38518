"""`AdapterService`: tasks, their versions, and which one answers.

Thin: names are read, one thing is asked, the answer is converted. The way of a registration is `registration.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

from adamix_protos.v1 import adapters_pb2, adapters_pb2_grpc
from adamix_server.api.resource_names import parse_task, task_name
from adamix_server.catalog.pointer import check_split
from adamix_server.catalog.rows import TaskRow, check_same_form
from adamix_server.frontend import convert
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.control import upload
from adamix_server.frontend.control.pins import Residency
from adamix_server.frontend.control.reclaimer import Reclaimer
from adamix_server.frontend.control.registration import Registrations
from adamix_server.frontend.control.watch import Mark, Watch
from adamix_server.names import check_digest

_MARKS = {
    Mark.SYNCHRONISED: adapters_pb2.WatchTasksResponse(synchronised=True),
    Mark.HEARTBEAT: adapters_pb2.WatchTasksResponse(heartbeat=True),
}


class AdapterServicer(adapters_pb2_grpc.AdapterServiceServicer):
    """The control plane of one front end."""

    def __init__(
        self,
        view: CatalogView,
        registrations: Registrations,
        residency: Residency,
        reclaimer: Reclaimer,
        watch: Watch,
    ) -> None:
        self._view = view
        self._catalog = view.catalog
        self._registrations = registrations
        self._residency = residency
        self._reclaimer = reclaimer
        self._watch = watch

    async def RegisterAdapter(self, requests: upload.Requests, _context: Any) -> adapters_pb2.RegisterAdapterResponse:
        header = await upload.read_header(requests)
        tenant, task = _name(header.task, "header.task")
        return await self._registrations.register(tenant, task, header, requests)

    async def GetTask(self, request: adapters_pb2.GetTaskRequest, _context: Any) -> adapters_pb2.GetTaskResponse:
        tenant, task = _name(request.task)
        row = await self._view.run(partial(self._catalog.get_task, tenant, task))
        return adapters_pb2.GetTaskResponse(task=self._to_task(row))

    async def ListTasks(self, request: adapters_pb2.ListTasksRequest, _context: Any) -> adapters_pb2.ListTasksResponse:
        tenant = calls.current().tenant
        page = await self._view.run(partial(self._catalog.list_tasks, tenant, request.page_size, request.page_token))
        return adapters_pb2.ListTasksResponse(
            tasks=[self._to_task(row) for row in page.rows], next_page_token=page.next_page_token
        )

    async def ListVersions(
        self, request: adapters_pb2.ListVersionsRequest, _context: Any
    ) -> adapters_pb2.ListVersionsResponse:
        tenant, task = _name(request.task)
        page = await self._view.run(
            partial(self._catalog.list_versions, tenant, task, request.page_size, request.page_token)
        )
        residencies = await asyncio.gather(*(self._residency.where(row.digest) for row in page.rows))
        versions = [
            convert.to_version(row, row.manifest_json, where) for row, where in zip(page.rows, residencies, strict=True)
        ]
        return adapters_pb2.ListVersionsResponse(versions=versions, next_page_token=page.next_page_token)

    async def DeleteTask(
        self, request: adapters_pb2.DeleteTaskRequest, _context: Any
    ) -> adapters_pb2.DeleteTaskResponse:
        tenant, task = _name(request.task)
        await self._view.change(partial(self._catalog.delete_task, tenant, task, request.etag))
        self._reclaimer.request()
        return adapters_pb2.DeleteTaskResponse()

    async def DeleteVersion(
        self, request: adapters_pb2.DeleteVersionRequest, _context: Any
    ) -> adapters_pb2.DeleteVersionResponse:
        tenant, task = _name(request.task)
        await self._view.change(partial(self._catalog.delete_version, tenant, task, request.digest, request.etag))
        self._reclaimer.request()
        return adapters_pb2.DeleteVersionResponse()

    async def SetTraffic(
        self, request: adapters_pb2.SetTrafficRequest, _context: Any
    ) -> adapters_pb2.SetTrafficResponse:
        tenant, task = _name(request.task)
        split = check_split((share.digest, share.weight) for share in request.traffic)
        # What cannot be served is refused before anything is loaded; the catalog decides, in its transaction.
        check_same_form([self._view.resolve(tenant, task, digest) for digest, _ in split])
        with self._view.reading():
            await asyncio.gather(*(self._residency.bring(digest) for digest, _ in split))
        row = await self._view.change(partial(self._catalog.set_traffic, tenant, task, split, request.etag))
        return adapters_pb2.SetTrafficResponse(task=self._to_task(row))

    async def Rollback(self, request: adapters_pb2.RollbackRequest, _context: Any) -> adapters_pb2.RollbackResponse:
        tenant, task = _name(request.task)
        row = await self._view.change(partial(self._catalog.rollback, tenant, task, request.etag))
        return adapters_pb2.RollbackResponse(task=self._to_task(row))

    async def LoadVersion(
        self, request: adapters_pb2.LoadVersionRequest, _context: Any
    ) -> adapters_pb2.LoadVersionResponse:
        tenant, task = _name(request.task)
        version = await self._residency.load(tenant, task, check_digest(request.digest))
        return adapters_pb2.LoadVersionResponse(version=version)

    async def UnloadVersion(
        self, request: adapters_pb2.UnloadVersionRequest, _context: Any
    ) -> adapters_pb2.UnloadVersionResponse:
        tenant, task = _name(request.task)
        version = await self._residency.unload(tenant, task, check_digest(request.digest))
        return adapters_pb2.UnloadVersionResponse(version=version)

    async def PinVersion(
        self, request: adapters_pb2.PinVersionRequest, _context: Any
    ) -> adapters_pb2.PinVersionResponse:
        tenant, task = _name(request.task)
        act = self._residency.pin if request.pinned else self._residency.unpin
        return adapters_pb2.PinVersionResponse(version=await act(tenant, task, check_digest(request.digest)))

    async def WatchTasks(
        self, _request: adapters_pb2.WatchTasksRequest, _context: Any
    ) -> AsyncIterator[adapters_pb2.WatchTasksResponse]:
        tenant = calls.current().tenant
        with self._watch.start() as snapshot:
            async with aclosing(self._watch.follow(tenant, snapshot)) as changes:
                async for change in changes:
                    if isinstance(change, Mark):
                        yield _MARKS[change]
                        continue
                    reason = "" if change.row is None else self._view.availability.reason_of_task(change.row)
                    yield convert.to_change(tenant, change.task, change.row, reason)

    def _to_task(self, row: TaskRow) -> adapters_pb2.Task:
        return convert.to_task(row, self._view.availability.reason_of_task(row))


def _name(name: str, field: str = "task") -> tuple[str, str]:
    """(tenant, task) of a request; the call's resource from now on."""
    call = calls.current()
    call.resource = name
    task = parse_task(name, call.tenant, field)
    call.resource = task_name(call.tenant, task)
    return call.tenant, task

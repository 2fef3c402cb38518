"""`AdapterService`: tasks, their versions, and which one answers.

Thin: names are read, one thing is asked, the answer is converted. The way of a registration is `registration.py`; when
a call's turn is, `shares.py`.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

from adamix_protos.v1 import adapters_pb2, adapters_pb2_grpc
from adamix_server.catalog.pointer import check_split
from adamix_server.catalog.rows import Name, TaskRow, VersionRecord, check_same_form
from adamix_server.channel.engine_frames import Value
from adamix_server.frontend import convert
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.control import upload
from adamix_server.frontend.control.converting import converted
from adamix_server.frontend.control.pins import Residency
from adamix_server.frontend.control.reclaimer import Reclaimer
from adamix_server.frontend.control.registration import Registrations
from adamix_server.frontend.control.scope import its_task, new_task
from adamix_server.frontend.control.shares import Shares
from adamix_server.frontend.control.upload_places import UploadPlaces
from adamix_server.frontend.control.watch import Change, Mark, Watch
from adamix_server.names import check_digest

# CPU seconds that a watcher is told tasks in one turn; those of a message, besides its making, and of a look at a task.
WATCH_TURN_S = 0.01
MESSAGE_S = 0.000_15
LOOK_S = 0.000_000_5
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
        shares: Shares,
        places: UploadPlaces,
    ) -> None:
        self._view = view
        self._catalog = view.catalog
        self._registrations = registrations
        self._residency = residency
        self._reclaimer = reclaimer
        self._watch = watch
        self._shares = shares
        self._places = places

    async def RegisterAdapter(self, requests: upload.Requests, _context: Any) -> adapters_pb2.RegisterAdapterResponse:
        call = calls.current()
        with self._places.upload(call.origin.connection, call.known_tenant) as place:
            header = await upload.read_header(requests, place)
            tenant, task = new_task(header.task, "header.task")
            return await self._registrations.register(tenant, task, header, requests, place)

    async def GetTask(self, request: adapters_pb2.GetTaskRequest, _context: Any) -> adapters_pb2.GetTaskResponse:
        tenant, task = self._task(request.task)
        async with self._shares.calls.turn():
            row = await self._view.run(partial(self._catalog.get_task, tenant, task))
            (message,) = await converted([row], self._to_task)
        return adapters_pb2.GetTaskResponse(task=message)

    async def ListTasks(self, request: adapters_pb2.ListTasksRequest, _context: Any) -> adapters_pb2.ListTasksResponse:
        principal = calls.current().principal
        size, token = request.page_size, request.page_token
        read = partial(self._catalog.list_tasks, principal.tenant, size, token, principal.may_name)
        async with self._shares.calls.turn():
            page = await self._view.run(read)
            tasks = await converted(page.rows, self._to_task)
        return adapters_pb2.ListTasksResponse(tasks=tasks, next_page_token=page.next_page_token)

    async def ListVersions(
        self, request: adapters_pb2.ListVersionsRequest, _context: Any
    ) -> adapters_pb2.ListVersionsResponse:
        tenant, task = self._task(request.task)
        read = partial(self._catalog.list_versions, tenant, task, request.page_size, request.page_token)
        async with self._shares.calls.turn():
            page = await self._view.run(read)
            where = await self._residency.where(page.rows)
            pairs = list(zip(page.rows, where, strict=True))
            versions = await converted(pairs, self._to_version)
        return adapters_pb2.ListVersionsResponse(versions=versions, next_page_token=page.next_page_token)

    async def DeleteTask(
        self, request: adapters_pb2.DeleteTaskRequest, _context: Any
    ) -> adapters_pb2.DeleteTaskResponse:
        tenant, task = self._task(request.task)
        async with self._shares.calls.turn():
            await self._view.change(partial(self._catalog.delete_task, tenant, task, request.etag, by=calls.actor()))
        self._reclaimer.request()
        return adapters_pb2.DeleteTaskResponse()

    async def DeleteVersion(
        self, request: adapters_pb2.DeleteVersionRequest, _context: Any
    ) -> adapters_pb2.DeleteVersionResponse:
        tenant, task = self._task(request.task)
        async with self._shares.calls.turn():
            version = tenant, task, request.digest
            await self._view.change(partial(self._catalog.delete_version, *version, request.etag, by=calls.actor()))
        self._reclaimer.request()
        return adapters_pb2.DeleteVersionResponse()

    async def SetTraffic(
        self, request: adapters_pb2.SetTrafficRequest, _context: Any
    ) -> adapters_pb2.SetTrafficResponse:
        tenant, task = self._task(request.task)
        split = check_split((share.digest, share.weight) for share in request.traffic)
        async with self._shares.orders.turn():
            # What cannot be served is refused before anything is loaded; the catalog decides, in its transaction.
            versions = [self._view.resolve(tenant, task, digest) for digest, _ in split]
            check_same_form(versions)
            with self._view.reading():
                await asyncio.gather(*(self._residency.bring(tenant, row.digest, row.num_bytes) for row in versions))
        async with self._shares.calls.turn():
            change = partial(self._catalog.set_traffic, tenant, task, split, request.etag, by=calls.actor())
            row = await self._view.change(change)
            (message,) = await converted([row], self._to_task)
        return adapters_pb2.SetTrafficResponse(task=message)

    async def Rollback(self, request: adapters_pb2.RollbackRequest, _context: Any) -> adapters_pb2.RollbackResponse:
        tenant, task = self._task(request.task)
        async with self._shares.calls.turn():
            row = await self._view.change(partial(self._catalog.rollback, tenant, task, request.etag, by=calls.actor()))
            (message,) = await converted([row], self._to_task)
        return adapters_pb2.RollbackResponse(task=message)

    async def LoadVersion(
        self, request: adapters_pb2.LoadVersionRequest, _context: Any
    ) -> adapters_pb2.LoadVersionResponse:
        tenant, task = self._task(request.task)
        digest = _digest(request.digest)
        async with self._shares.orders.turn():
            version = await self._residency.load(tenant, task, digest)
        return adapters_pb2.LoadVersionResponse(version=version)

    async def UnloadVersion(
        self, request: adapters_pb2.UnloadVersionRequest, _context: Any
    ) -> adapters_pb2.UnloadVersionResponse:
        tenant, task = self._task(request.task)
        digest = _digest(request.digest)
        async with self._shares.orders.turn():
            version = await self._residency.unload(tenant, task, digest)
        return adapters_pb2.UnloadVersionResponse(version=version)

    async def PinVersion(
        self, request: adapters_pb2.PinVersionRequest, _context: Any
    ) -> adapters_pb2.PinVersionResponse:
        tenant, task = self._task(request.task)
        act, digest = self._residency.pin if request.pinned else self._residency.unpin, _digest(request.digest)
        async with self._shares.orders.turn():
            version = await act(tenant, task, digest)
        return adapters_pb2.PinVersionResponse(version=version)

    async def WatchTasks(
        self, _request: adapters_pb2.WatchTasksRequest, _context: Any
    ) -> AsyncIterator[adapters_pb2.WatchTasksResponse]:
        principal = calls.current().principal
        tenant = principal.tenant
        # It begins with a look through all tasks, and with messages that are on their way before it can be gone.
        await self._pay(len(self._view.snapshot.tasks) * LOOK_S + WATCH_TURN_S)
        with self._watch.start(calls.current().known_tenant) as snapshot:
            async with aclosing(self._watch.follow(tenant, snapshot, principal.may_name)) as changes:
                spent_s = 0.0
                async for change in changes:
                    began = time.perf_counter()
                    message = self._to_change(tenant, change)
                    spent_s += time.perf_counter() - began + MESSAGE_S
                    yield message
                    if spent_s > WATCH_TURN_S:
                        await self._pay(spent_s, is_bounded=True)
                        spent_s = 0.0

    def _task(self, name: str) -> Name:
        """(tenant, task) of a request for a task that is there; the call's resource from now on.

        The catalog is not asked for what there is not, and so not for what the caller may not see: both end here.

        Raises:
            InvalidRequest, NotFound.
        """
        found = its_task(name)
        self._view.snapshot.task(*found)
        return found

    async def _pay(self, work_s: float, *, is_bounded: bool = False) -> None:
        """Wait for a watcher's turn, and charge it. Raises Overloaded as `Turns.turn`."""
        async with self._shares.calls.turn(is_bounded=is_bounded):
            calls.current().work_s += work_s

    def _to_change(self, tenant: str, change: Change | Mark) -> adapters_pb2.WatchTasksResponse:
        if isinstance(change, Mark):
            return _MARKS[change]
        reason = "" if change.row is None else self._view.availability.reason_of_task(change.row)
        return convert.to_change(tenant, change.task, change.row, reason)

    def _to_version(self, pair: tuple[VersionRecord, Value]) -> adapters_pb2.Version:
        row, where = pair
        reason = self._view.availability.quarantine_reason(row)
        return convert.to_version(row, row.manifest_json, where, reason)

    def _to_task(self, row: TaskRow) -> adapters_pb2.Task:
        return convert.to_task(row, self._view.availability.reason_of_task(row))


def _digest(value: str) -> str:
    """The digest of a request, also for who looks at the call when it has ended. Raises InvalidRequest."""
    digest = calls.current().digest = check_digest(value)
    return digest

"""`AdapterService`: tasks, their versions, and which one answers.

The order of a registration is what keeps it crash-safe: bytes to a temporary file, judged in a child process, stored
under their digest, brought to the engine's host memory, and only then one transaction that makes the version visible.
Until that transaction nothing has changed for anybody. Everything that blocks runs in the catalog's thread pool.
A file of the operator's adapter root goes the same way, from its copy on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from adamix.errors import AdamixError, Code, FailedPrecondition, InvalidAdapter, Overloaded
from adamix.files.manifest import BackboneSpec
from adamix_protos.v1 import adapters_pb2, adapters_pb2_grpc
from adamix_server.api.resource_names import parse_task, task_name, version_name
from adamix_server.blobs.local import Temporary
from adamix_server.catalog.pointer import check_split
from adamix_server.catalog.rows import VersionRow, check_same_form
from adamix_server.frontend import convert
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.catalog_view import CatalogView, to_the_end
from adamix_server.frontend.control import upload
from adamix_server.frontend.control.adapter_root import AdapterRoot
from adamix_server.frontend.control.pins import Residency
from adamix_server.frontend.control.reclaimer import Reclaimer
from adamix_server.frontend.control.validation import Verdict
from adamix_server.frontend.control.watch import Watch
from adamix_server.frontend.engine_link import EngineLink
from adamix_server.names import check_digest, check_request_id
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

# Each upload may hold 256 MiB of disk and one validation child.
MAX_UPLOADS = 16
# Each keeps a thread of the catalog's pool until it ends.
MAX_COPIES = 2
UPLOAD_RETRY_S = 1.0
LOAD_TIMEOUT_S = 10.0

# (path, spec, expected digest) -> verdict; `adapters.validation` in a server, something quicker in a test.
Validate = Callable[[Path, BackboneSpec, str], Awaitable[Verdict]]


class AdapterServicer(adapters_pb2_grpc.AdapterServiceServicer):
    """The control plane of one front end."""

    def __init__(
        self,
        view: CatalogView,
        link: EngineLink,
        validate: Validate,
        reclaimer: Reclaimer,
        recorder: Recorder,
        watch: Watch,
        root: AdapterRoot | None,
        residency: Residency,
    ) -> None:
        self._view = view
        self._catalog = view.catalog
        self._link = link
        self._validate = validate
        self._reclaimer = reclaimer
        self._recorder = recorder
        self._watch = watch
        self._root = root
        self._residency = residency
        self._uploads = 0
        self._copies = asyncio.Semaphore(MAX_COPIES)

    async def RegisterAdapter(self, requests: upload.Requests, _context: Any) -> adapters_pb2.RegisterAdapterResponse:
        header = await upload.read_header(requests)
        tenant, task = _name(header.task, "header.task")
        if header.expected_digest:
            check_digest(header.expected_digest, "header.expected_digest")
        if header.request_id:
            check_request_id(header.request_id, "header.request_id")
        with self._counted():
            async with upload.temporary_file(self._view, self._catalog.blobs) as temporary:
                if header.file:
                    await self._copy(header.file, requests, temporary)
                else:
                    await upload.receive(requests, temporary, self._view)
                try:
                    verdict = await self._judge(temporary.path, temporary.digest, header.expected_digest)
                except InvalidAdapter as error:
                    await self._remember_failure(tenant, task, error)
                    raise
                if header.validate_only:
                    return adapters_pb2.RegisterAdapterResponse(version=self._validated(tenant, task, verdict))
                version, already_exists = await to_the_end(self._commit(tenant, task, verdict, temporary.path, header))
        return adapters_pb2.RegisterAdapterResponse(
            version=convert.to_version(version, verdict.manifest_json), already_exists=already_exists
        )

    async def GetTask(self, request: adapters_pb2.GetTaskRequest, _context: Any) -> adapters_pb2.GetTaskResponse:
        tenant, task = _name(request.task)
        row = await self._view.run(partial(self._catalog.get_task, tenant, task))
        return adapters_pb2.GetTaskResponse(task=convert.to_task(row))

    async def ListTasks(self, request: adapters_pb2.ListTasksRequest, _context: Any) -> adapters_pb2.ListTasksResponse:
        tenant = calls.current().tenant
        page = await self._view.run(partial(self._catalog.list_tasks, tenant, request.page_size, request.page_token))
        return adapters_pb2.ListTasksResponse(
            tasks=[convert.to_task(row) for row in page.rows], next_page_token=page.next_page_token
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
            await asyncio.gather(*(self._load(digest) for digest, _ in split))
        row = await self._view.change(partial(self._catalog.set_traffic, tenant, task, split, request.etag))
        return adapters_pb2.SetTrafficResponse(task=convert.to_task(row))

    async def Rollback(self, request: adapters_pb2.RollbackRequest, _context: Any) -> adapters_pb2.RollbackResponse:
        tenant, task = _name(request.task)
        row = await self._view.change(partial(self._catalog.rollback, tenant, task, request.etag))
        return adapters_pb2.RollbackResponse(task=convert.to_task(row))

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
        self, _request: adapters_pb2.WatchTasksRequest, context: Any
    ) -> AsyncIterator[adapters_pb2.WatchTasksResponse]:
        tenant = calls.current().tenant
        with self._watch.start() as snapshot:
            # A tenant without tasks has no message to come; this tells the client that it is heard from here on.
            await context.send_initial_metadata(())
            async with aclosing(self._watch.follow(tenant, snapshot)) as changes:
                async for change in changes:
                    yield convert.to_change(tenant, change.task, change.row)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._uploads >= MAX_UPLOADS:
            self._recorder.inc("adamix_rejected_total", "TOO_MANY_UPLOADS")
            raise Overloaded(
                f"{MAX_UPLOADS} uploads are running; try again later",
                reason="TOO_MANY_UPLOADS",
                retry_after_s=UPLOAD_RETRY_S,
            )
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def _copy(self, name: str, requests: upload.Requests, temporary: Temporary) -> None:
        if self._root is None:
            raise FailedPrecondition(
                "this server registers no files of its own; upload the file, or start the server with --adapter-root",
                reason="NO_ADAPTER_ROOT",
            )
        await upload.expect_end(requests)
        async with self._copies:
            await self._view.run(partial(self._root.copy, name, temporary))

    async def _judge(self, path: Path, digest: str, expected_digest: str) -> Verdict:
        if expected_digest and digest != expected_digest:
            raise InvalidAdapter(
                f"the bytes that arrived have the digest {digest}, not the expected one", reason="DIGEST_MISMATCH"
            )
        return await self._validate(path, self._view.spec, digest)

    async def _commit(
        self, tenant: str, task: str, verdict: Verdict, path: Path, header: adapters_pb2.RegisterAdapterHeader
    ) -> tuple[VersionRow, bool]:
        make_live = header.make_live if header.HasField("make_live") else True
        digest, request_id = verdict.digest, header.request_id
        asked = partial(self._catalog.is_answered, tenant, task, digest, make_live, request_id)
        register = partial(
            self._catalog.register,
            tenant,
            task,
            digest,
            verdict.manifest_json,
            verdict.num_bytes,
            self._view.spec.fingerprint,
            make_live,
            request_id,
        )
        if bool(request_id) and await self._view.run(asked):
            return await self._view.change(register)
        await self._view.run(partial(self._catalog.blobs.put, path, digest))
        try:
            if make_live:
                await self._load(digest)
            return await self._view.change(register)
        except Exception:
            # Of any kind: bytes that nothing refers to would take up the disk until the server starts again.
            await self._discard(digest)
            raise

    async def _discard(self, digest: str) -> None:
        try:
            await self._view.run(partial(self._catalog.discard, digest))
        except AdamixError as error:
            log.warning("the bytes of a failed registration stay: %s", error.message, extra={"digest": digest})

    async def _load(self, digest: str) -> None:
        """Bring a version to host memory before requests resolve to it, so that the first one does not wait.

        Without an engine, or with a slow one, that first request loads it. Any other failure of the load is the
        caller's answer, and the version that is live stays live.
        """
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                await self._link.control("load", digest)
        except TimeoutError:
            log.warning("a version becomes live before it is loaded", extra={"digest": digest})
        except AdamixError as error:
            if error.code is not Code.UNAVAILABLE:
                raise
            log.warning("a version becomes live while there is no engine", extra={"digest": digest})

    async def _remember_failure(self, tenant: str, task: str, refused: InvalidAdapter) -> None:
        log.info("an adapter was refused: %s", refused.message, extra={"task": task, "reason": refused.reason})
        try:
            await self._view.run(partial(self._catalog.record_failure, tenant, task, refused.reason))
        except AdamixError as error:
            log.warning("the refusal was not recorded: %s", error.message)

    def _validated(self, tenant: str, task: str, verdict: Verdict) -> adapters_pb2.Version:
        return adapters_pb2.Version(
            name=version_name(tenant, task, verdict.digest),
            digest=verdict.digest,
            state=adapters_pb2.VERSION_STATE_VALIDATING,
            manifest_json=verdict.manifest_json,
            num_bytes=verdict.num_bytes,
            backbone_fingerprint=self._view.spec.fingerprint,
        )


def _name(name: str, field: str = "task") -> tuple[str, str]:
    """(tenant, task) of a request; the call's resource from now on."""
    call = calls.current()
    call.resource = name
    task = parse_task(name, call.tenant, field)
    call.resource = task_name(call.tenant, task)
    return call.tenant, task

"""One registration, from the bytes that arrive to the version that answers.

The order is what keeps it crash-safe: bytes to a temporary file, judged in a child process, stored under their digest,
brought to the engine's host memory, and only then one transaction that makes the version visible. Until that
transaction nothing has changed for anybody. Everything that blocks runs in the catalog's thread pool. A file of the
operator's adapter root goes the same way, from its copy on.

Beside data calls it waits for its share before its bytes are read, and the work of the child is its own. Bytes that are
a version of this very task already were judged when they became one. They are not judged again but stored again, which
repairs them where they were damaged; of what other tasks or tenants have, nothing is learnt by sending it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from adamix.errors import AdamixError, FailedPrecondition, InvalidAdapter, NotFound
from adamix.files.manifest import BackboneSpec, check_size
from adamix_protos.v1 import adapters_pb2
from adamix_server.api.resource_names import version_name
from adamix_server.blobs.local import Temporary
from adamix_server.catalog.rows import Registration, VersionRow
from adamix_server.frontend import convert
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.catalog_view import CatalogView, to_the_end
from adamix_server.frontend.control import upload
from adamix_server.frontend.control.adapter_root import AdapterRoot
from adamix_server.frontend.control.pins import Residency
from adamix_server.frontend.control.shares import Shares
from adamix_server.frontend.control.upload_places import Upload
from adamix_server.frontend.control.validation import Verdict
from adamix_server.names import check_digest, check_request_id

log = logging.getLogger(__name__)

# Each keeps a thread of the catalog's pool until it ends.
MAX_COPIES = 2
# CPU seconds of judging the smallest file: a process that loads its libraries.
JUDGEMENT_S = 0.15

# (path, spec, expected digest) -> verdict; `control.validation` in a server, something quicker in a test.
Validate = Callable[[Path, BackboneSpec, str], Awaitable[Verdict]]


class Registrations:
    """The registrations of one front end. Belongs to one event loop.

    Args:
        root: where the operator lets callers name files; None refuses them.
    """

    def __init__(
        self,
        view: CatalogView,
        residency: Residency,
        shares: Shares,
        validate: Validate,
        root: AdapterRoot | None,
    ) -> None:
        self._view = view
        self._catalog = view.catalog
        self._residency = residency
        self._shares = shares
        self._validate = validate
        self._root = root
        self._copies = asyncio.Semaphore(MAX_COPIES)

    async def register(
        self,
        tenant: str,
        task: str,
        header: adapters_pb2.RegisterAdapterHeader,
        requests: upload.Requests,
        place: Upload,
    ) -> adapters_pb2.RegisterAdapterResponse:
        """Receive what follows `header`, judge it, and make it a version of the task.

        Raises:
            InvalidRequest: an id or a digest in the header is malformed, or a message is no chunk.
            InvalidAdapter: the bytes are no adapter for this backbone, or not those that were expected, or more than
                this server could ever load (`ADAPTER_TOO_LARGE_FOR_SERVER`).
            FailedPrecondition: they have a head that this server does not answer with (`HEAD_UNSUPPORTED`).
            DeadlineExceeded: they come too slowly (`UPLOAD_TOO_SLOW`), or not at all (`UPLOAD_IDLE`).
            Overloaded: too many uploads run already (`TOO_MANY_UPLOADS`).
            AdamixError: they cannot be stored, or the engine cannot load what should answer at once.
        """
        if header.expected_digest:
            check_digest(header.expected_digest, "header.expected_digest")
        if header.request_id:
            check_request_id(header.request_id, "header.request_id")
        async with AsyncExitStack() as closing:
            receive = self._copied if header.file else self._uploaded
            async with self._shares.registrations.prepaid(JUDGEMENT_S):
                place.restart()
                temporary = await receive(header, requests, place, closing)
                try:
                    verdict = await self._judged(tenant, task, temporary, header.expected_digest)
                except (InvalidAdapter, FailedPrecondition) as error:
                    log.info("an adapter was refused: %s", error.message, extra={"task": task, "reason": error.reason})
                    raise
            if header.validate_only:
                return adapters_pb2.RegisterAdapterResponse(version=self._validated(tenant, task, verdict))
            async with self._shares.orders.turn(is_bounded=True):
                version, already_exists = await to_the_end(self._commit(tenant, task, verdict, temporary.path, header))
        return adapters_pb2.RegisterAdapterResponse(
            version=convert.to_version(version, verdict.manifest_json), already_exists=already_exists
        )

    async def _uploaded(
        self,
        _header: adapters_pb2.RegisterAdapterHeader,
        requests: upload.Requests,
        place: Upload,
        closing: AsyncExitStack,
    ) -> Temporary:
        """The bytes that follow the header; gone when `closing` ends."""
        place.must_send = True
        async with place.receiving():
            beginning = await upload.read_beginning(requests, place)
            place.take_place()
            temporary = await closing.enter_async_context(upload.temporary_file(self._view, self._catalog.blobs))
            await upload.receive(beginning, requests, place, temporary, self._view)
        return temporary

    async def _copied(
        self,
        header: adapters_pb2.RegisterAdapterHeader,
        requests: upload.Requests,
        place: Upload,
        closing: AsyncExitStack,
    ) -> Temporary:
        """A copy of the server's own file that the header names; gone when `closing` ends."""
        if self._root is None:
            raise FailedPrecondition(
                "this server registers no files of its own; upload the file, or start the server with --adapter-root",
                reason="NO_ADAPTER_ROOT",
            )
        async with place.receiving():
            await upload.expect_end(requests, place)
        place.take_place()
        temporary = await closing.enter_async_context(upload.temporary_file(self._view, self._catalog.blobs))
        async with self._copies:
            await self._view.run(partial(self._root.copy, header.file, temporary))
        return temporary

    async def _judged(self, tenant: str, task: str, temporary: Temporary, expected_digest: str) -> Verdict:
        digest = temporary.digest
        if expected_digest and digest != expected_digest:
            raise InvalidAdapter(
                f"the bytes that arrived have the digest {digest}, not the expected one", reason="DIGEST_MISMATCH"
            )
        if (known := await self._known(tenant, task, digest)) is not None:
            return known
        verdict = await self._validate(temporary.path, self._view.spec, digest)
        self._view.availability.check_sizes(verdict.tensor_sizes)
        self._check_manifest(tenant, task, verdict)
        return verdict

    async def _known(self, tenant: str, task: str, digest: str) -> Verdict | None:
        """What was said of the same bytes when they became a version of the task; None where they are to be judged.

        They are where something speaks against the version, which a judgement may find the words for, such as a head
        that is no longer supported.
        """
        try:
            version = self._view.snapshot.task(tenant, task).version(digest)
            if version.backbone_fingerprint != self._view.spec.fingerprint or self._view.availability.reason(version):
                return None
            record = await self._view.run(partial(self._catalog.get_version, tenant, task, digest))
        except NotFound:
            return None
        return Verdict(digest=digest, manifest_json=record.manifest_json, num_bytes=record.num_bytes, tensor_sizes=())

    def _check_manifest(self, tenant: str, task: str, verdict: Verdict) -> None:
        """Raise InvalidAdapter (`MANIFEST_TOO_LARGE`), unless the task has the version: larger ones were taken once."""
        try:
            self._view.snapshot.task(tenant, task).version(verdict.digest)
        except NotFound:
            check_size(verdict.manifest_json)

    async def _commit(
        self, tenant: str, task: str, verdict: Verdict, path: Path, header: adapters_pb2.RegisterAdapterHeader
    ) -> tuple[VersionRow, bool]:
        digest = verdict.digest
        registration = Registration(
            tenant=tenant,
            task=task,
            digest=digest,
            manifest_json=verdict.manifest_json,
            num_bytes=verdict.num_bytes,
            backbone_fingerprint=self._view.spec.fingerprint,
            make_live=header.make_live if header.HasField("make_live") else True,
            request_id=header.request_id,
        )
        register = partial(self._catalog.register, registration, calls.actor())
        if bool(registration.request_id) and await self._view.run(partial(self._catalog.is_answered, registration)):
            return await self._view.change(register)
        # Asked again when it is registered. Who may have no more is not to put others out of host memory.
        await self._view.run(partial(self._catalog.check_room, registration))
        await self._view.run(partial(self._catalog.blobs.put, path, digest))
        self._view.availability.loaded(digest)
        try:
            if registration.make_live:
                await self._residency.bring(tenant, digest, verdict.num_bytes)
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

    def _validated(self, tenant: str, task: str, verdict: Verdict) -> adapters_pb2.Version:
        return adapters_pb2.Version(
            name=version_name(tenant, task, verdict.digest),
            digest=verdict.digest,
            state=adapters_pb2.VERSION_STATE_VALIDATING,
            manifest_json=verdict.manifest_json,
            num_bytes=verdict.num_bytes,
            backbone_fingerprint=self._view.spec.fingerprint,
        )

"""The parts of a front end, put together, up to its bound ports. Knows every part; what a part does is its own.

When that is done, and what becomes of it, is `front_end.py`'s matter.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adamix.files.manifest import BackboneSpec
from adamix_client.addresses import is_loopback, split_address
from adamix_server.access.quotas import Quotas
from adamix_server.access.refusal import RefusalKind
from adamix_server.agreement import Party
from adamix_server.catalog.store import Catalog
from adamix_server.channel.supervisor_frames import StartFrontEnd
from adamix_server.frontend.availability import Availability
from adamix_server.frontend.borrowing import Borrowing
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.boundary.admission import Admission
from adamix_server.frontend.boundary.quota import Quota
from adamix_server.frontend.boundary.witness import Witness
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.control.adapter_root import AdapterRoot
from adamix_server.frontend.control.admin import AdminServicer
from adamix_server.frontend.control.pins import Residency
from adamix_server.frontend.control.reclaimer import Reclaimer
from adamix_server.frontend.control.registration import Registrations, Validate
from adamix_server.frontend.control.service import AdapterServicer
from adamix_server.frontend.control.shares import Shares
from adamix_server.frontend.control.upload_places import UploadPlaces
from adamix_server.frontend.control.validation import Verdict, validate_async
from adamix_server.frontend.control.watch import Watch
from adamix_server.frontend.endpoint import Endpoint, HttpPort
from adamix_server.frontend.engine_link import EngineLink
from adamix_server.frontend.entrance import OpenEntrance
from adamix_server.frontend.inference.feeding import Feeding
from adamix_server.frontend.inference.generation import open_generation
from adamix_server.frontend.inference.open_inference import OpenInferenceServicer
from adamix_server.frontend.inference.service import InferenceServicer
from adamix_server.frontend.inference.stages import Stages
from adamix_server.frontend.inference.tokenization import Tokenizer
from adamix_server.frontend.readiness import Readiness
from adamix_server.frontend.server_info import ServerInfoServicer
from adamix_server.frontend.tenancy import Tenancy
from adamix_server.frontend.usage import Meter
from adamix_server.telemetry.metrics import Recorder


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a front end has from its first moment on, and its parts are made with.

    Attributes:
        borrowing: of quotas from the other front ends; None where there are none.
        validate: judges uploads.
        enter: opens what stands at the port.
        drain: asks for the end of the server.
    """

    start: StartFrontEnd
    link: EngineLink
    readiness: Readiness
    agreement: Party
    borrowing: Borrowing | None
    recorder: Recorder
    witness: Witness
    meter: Meter
    validate: Validate
    enter: OpenEntrance
    drain: Callable[[], None]


@dataclass(frozen=True)
class Parts:
    """What exists while calls are answered."""

    reclaimer: Reclaimer
    residency: Residency
    endpoint: Endpoint


async def open_view(given: Given, closing: contextlib.AsyncExitStack) -> CatalogView:
    """The catalog, as the engine's backbone sees it. Raises AdamixError."""
    link, start = given.link, given.start
    if (hello := link.hello) is None:
        raise RuntimeError("opened before there was an engine")
    fingerprint = hello.spec.fingerprint
    quotas = Quotas(**start.settings.default_quotas)
    catalog = await asyncio.to_thread(
        Catalog, start.store, backbone_fingerprint=fingerprint, make=False, default_quotas=quotas
    )
    availability = Availability(
        catalog.blobs,
        hello.limits.arena_bytes,
        hello.dtype,
        lambda: link.quarantined,
        generates=hello.limits.pages > 0,
    )
    view = CatalogView(catalog, hello.spec, given.agreement, availability)
    closing.callback(view.close)
    await view.refresh()
    return view


async def bind(given: Given, view: CatalogView, closing: contextlib.AsyncExitStack) -> Parts:
    """Everything else, up to the bound ports. Raises AdamixError."""
    start, link, recorder, meter = given.start, given.link, given.recorder, given.meter
    settings = start.settings
    tokenizer = await asyncio.to_thread(Tokenizer, start.tokenizer, settings.tokenizer_threads)
    closing.callback(tokenizer.close)
    tenancy = Tenancy(view, Quotas(**settings.default_quotas), is_open=settings.access.asks_nobody)
    if (borrowing := given.borrowing) is None:
        quota = Quota(tenancy.quotas)
    else:
        quota = Quota(tenancy.quotas, borrowing.holder, borrowing.poke)
        closing.callback(borrowing.close)
    stages = Stages(view, tokenizer, link, Feeding(link, tenancy), quota, recorder, meter)
    files = start.tokenizer.parent
    generation = await asyncio.to_thread(open_generation, files, stages, tokenizer, link, quota, recorder)
    if generation is not None:
        closing.callback(generation.close)
    reclaimer, admission = Reclaimer(view, given.agreement, link), Admission()
    watch, residency = Watch(view, admission, recorder), Residency(view, link, recorder)
    root = None if settings.adapter_root is None else AdapterRoot(settings.adapter_root.resolve())

    def is_shared() -> bool:
        return link.is_asked

    shares, places = Shares(is_shared, recorder), UploadPlaces(settings.max_upload_s, recorder)
    registrations = Registrations(view, residency, shares, given.validate, root)
    entrance = await asyncio.to_thread(given.enter, settings, lambda: view.snapshot.access, partial(refused, recorder))
    endpoint = Endpoint(
        start.listen,
        (
            InferenceServicer(stages, admission, generation),
            AdapterServicer(view, registrations, residency, reclaimer, watch, shares, places),
            AdminServicer(view, reclaimer, shares),
            ServerInfoServicer(link, given.drain),
            OpenInferenceServicer(stages, given.readiness),
        ),
        admission,
        given.readiness,
        recorder,
        with_reflection=start.reflection,
        shares_port=start.shares_port,
        entrance=entrance,
        quota=quota,
        witness=given.witness,
        meter=meter,
        is_shared=is_shared,
        open_http=partial(_open_http, given, view, tokenizer) if start.http else None,
    )
    return Parts(reclaimer, residency, endpoint)


def refused(recorder: Recorder, kind: RefusalKind, name: str) -> None:
    """A credential does not count: why is told to operators alone."""
    recorder.inc("adamix_auth_failures_total", kind)
    if (call := calls.find()) is not None:
        call.detail = f"{kind} {name}".strip()


def _open_http(given: Given, view: CatalogView, tokenizer: Tokenizer, service: Callable[[Any], Any]) -> HttpPort:
    """The port of HTTP. Raises InvalidConfig."""
    # uvicorn and what it needs cost a process some megabytes, which one without the port does not pay.
    from adamix_server.frontend.http.serving import HttpSettings, open_http

    start = given.start
    settings = HttpSettings(
        listen=start.http,
        shares_port=start.shares_port,
        tls=start.settings.tls,
        is_private=start.settings.access.asks_nobody and is_loopback(split_address(start.http)[0]),
        metrics_address=start.metrics_address or None,
    )
    return open_http(settings, service, given.readiness, given.recorder, view, tokenizer.backend)


async def validate_in_child(path: Path, spec: BackboneSpec, expected_digest: str) -> Verdict:
    """Judge an uploaded file in a process of its own, whose CPU time is the call's. Raises InvalidAdapter."""
    call = calls.current()

    def spent(seconds: float) -> None:
        call.work_s += seconds

    return await validate_async(path, spec, expected_digest=expected_digest, spent=spent)

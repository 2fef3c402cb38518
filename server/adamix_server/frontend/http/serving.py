"""HTTP of one front end, with all its faces: what `--http` opens.

The only module of this room that others import, and only where `--http` is given: nobody else pays for uvicorn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from adamix_server.config import TlsSettings
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.http import predict, probes
from adamix_server.frontend.http.app import App
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.certificate import HttpCertificate
from adamix_server.frontend.http.control import routes as control
from adamix_server.frontend.http.documents import routes as documents
from adamix_server.frontend.http.face import Face
from adamix_server.frontend.http.open_ai import routes as open_ai
from adamix_server.frontend.http.open_inference import routes as open_inference
from adamix_server.frontend.http.route import Route
from adamix_server.frontend.readiness import Readiness
from adamix_server.telemetry.metrics import Recorder


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """What stands at the port.

    Attributes:
        listen: `host:port`; port 0 asks for a free one.
        shares_port: with the other front ends of this server.
        tls: the server's certificate; None answers unencrypted.
        is_private: it is for this machine alone, and nobody is asked who they are.
        metrics_address: where the supervisor gives the page of metrics; None where it gives none.
    """

    listen: str
    shares_port: bool
    tls: TlsSettings | None = None
    is_private: bool = False
    metrics_address: str | None = None


def open_http(
    settings: HttpSettings,
    service: Callable[[Any], Any],
    readiness: Readiness,
    recorder: Recorder,
    view: CatalogView,
    tokenizer: Tokenizer,
) -> Face:
    """A bound port that answers all routes by calls of `service` (`Boundary.service`).

    Args:
        view: where names of models are found.
        tokenizer: the backbone's, which single tokens are spelled by.

    Raises:
        InvalidConfig: the address cannot be bound (`ADDRESS_IN_USE`), or the certificate not be used.
    """
    calls = Calls(service)
    routes = [*all_routes(calls, readiness, settings.metrics_address), *open_ai.routes(calls, view, tokenizer)]
    app = App([*routes, *documents.routes(routes)], recorder, is_private=settings.is_private)
    certificate = None if settings.tls is None else HttpCertificate(settings.tls)
    return Face(settings.listen, app, shares_port=settings.shares_port, certificate=certificate)


def all_routes(calls: Calls, readiness: Readiness, metrics_address: str | None = None) -> list[Route]:
    """The routes of every face, each in a line of its own."""
    return [
        *predict.routes(calls),
        *open_inference.routes(calls),
        *control.routes(calls),
        *probes.routes(readiness, metrics_address),
    ]

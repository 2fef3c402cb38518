"""What operators' programs ask over this port: whether this front end lives and serves, and where the metrics are.

The page of metrics is the supervisor's, which alone has the sums of all processes; this port leads there.
"""

import re

from adamix.errors import NotFound
from adamix_client.addresses import split_address
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request
from adamix_server.frontend.http.route import Route
from adamix_server.frontend.readiness import Readiness

_TEXT = "text/plain; charset=utf-8"
# What is no address that one can go to.
_ANY = ("0.0.0.0", "::")  # noqa: S104 - nothing is bound here
_HOST = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d*)?", re.ASCII)


def routes(readiness: Readiness, metrics_address: str | None) -> list[Route]:
    """`/livez`, `/readyz` and `/metrics`; nobody is asked who they are, as by health over gRPC."""

    async def livez(_: Request) -> Reply:
        return Reply(b"ok\n", content_type=_TEXT)

    async def readyz(_: Request) -> Reply:
        if readiness.is_ready:
            return Reply(b"ok\n", content_type=_TEXT)
        lines = "".join(f"{reason}\n" for reason in readiness.reasons)
        return Reply(lines.encode(), 503, _TEXT)

    async def metrics(request: Request) -> Reply:
        if metrics_address is None:
            raise NotFound("metrics are served on --metrics-listen, which is not given", reason="METRICS_ELSEWHERE")
        location = f"http://{_as_called(metrics_address, request)}/metrics"
        return Reply(status=307, content_type=_TEXT, headers=(("location", location),))

    return [
        Route("GET", "/livez", livez, summary="This front end lives.", tag="operation", gives=_TEXT),
        Route("GET", "/readyz", readyz, summary="This front end serves; else why not.", tag="operation", gives=_TEXT),
        Route("GET", "/metrics", metrics, summary="Where the page of metrics is.", tag="operation", gives=_TEXT),
    ]


def _as_called(address: str, request: Request) -> str:
    """Where a caller finds an address of this machine: for all of its addresses, by the one that was called."""
    host, port = split_address(address)
    called = _HOST.fullmatch(request.header("host") or "")
    return f"{called[1]}:{port}" if host in _ANY and called is not None else address

"""What operators' programs ask over this port: whether this front end lives and serves, and where the metrics are.

The page of metrics is the supervisor's, which alone has the sums of all processes; this port leads there.
"""

from adamix.errors import NotFound
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request
from adamix_server.frontend.http.route import Route
from adamix_server.frontend.readiness import Readiness

_TEXT = "text/plain; charset=utf-8"


def routes(readiness: Readiness, metrics_address: str | None) -> list[Route]:
    """`/livez`, `/readyz` and `/metrics`; nobody is asked who they are, as by health over gRPC."""

    async def livez(_: Request) -> Reply:
        return Reply(b"ok\n", content_type=_TEXT)

    async def readyz(_: Request) -> Reply:
        if readiness.is_ready:
            return Reply(b"ok\n", content_type=_TEXT)
        lines = "".join(f"{reason}\n" for reason in readiness.reasons)
        return Reply(lines.encode(), 503, _TEXT)

    async def metrics(_: Request) -> Reply:
        if metrics_address is None:
            raise NotFound("metrics are served on --metrics-listen, which is not given", reason="METRICS_ELSEWHERE")
        return Reply(status=307, content_type=_TEXT, headers=(("location", f"http://{metrics_address}/metrics"),))

    return [
        Route("GET", "/livez", livez, summary="This front end lives.", tag="operation", gives=_TEXT),
        Route("GET", "/readyz", readyz, summary="This front end serves; else why not.", tag="operation", gives=_TEXT),
        Route("GET", "/metrics", metrics, summary="Where the page of metrics is.", tag="operation", gives=_TEXT),
    ]

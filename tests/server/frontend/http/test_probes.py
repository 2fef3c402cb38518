"""Where the page of metrics is, for who asks the port of HTTP."""

import pytest

from adamix_server.frontend.http.probes import routes
from adamix_server.frontend.http.request import Request
from adamix_server.frontend.readiness import Readiness


@pytest.mark.parametrize(
    ("listen", "host", "location"),
    [
        ("127.0.0.1:9090", "serve.example:8080", "http://127.0.0.1:9090/metrics"),
        # Of all addresses, that which the caller has reached the server by.
        ("0.0.0.0:9090", "serve.example:8080", "http://serve.example:9090/metrics"),
        ("[::]:9090", "[2001:db8::7]:8080", "http://[2001:db8::7]:9090/metrics"),
        ("0.0.0.0:9090", "10.0.0.7", "http://10.0.0.7:9090/metrics"),
        ("0.0.0.0:9090", "other.example/path?", "http://0.0.0.0:9090/metrics"),
    ],
)
async def test_the_way_to_the_metrics(listen: str, host: str, location: str) -> None:
    scope = {"headers": [(b"host", host.encode())], "method": "GET", "raw_path": b"/metrics"}
    (route,) = [route for route in routes(Readiness(), listen) if route.path == "/metrics"]
    reply = await route.answer(Request(scope, lambda: None, lambda _: None))
    assert reply is not None
    assert (reply.status, dict(reply.headers)["location"]) == (307, location)

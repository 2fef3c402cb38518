"""All routes as one ASGI application: which of them answers a request, and what becomes of what goes wrong in it.

Paths are compared as they were sent, and their parameters decoded afterwards, so that no encoding of a slash or a dot
leads elsewhere. A page of another site cannot make a browser call (`browsers.py`). Knows no face.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from adamix.errors import AdamixError, InvalidRequest
from adamix_server.api import status
from adamix_server.frontend.boundary.enclosure import request_id_of
from adamix_server.frontend.http import browsers
from adamix_server.frontend.http.errors import MethodNotAllowed, route_unknown, status_of, to_reply
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import CONNECTION, Receive, Request, Scope, Send, decoded
from adamix_server.frontend.http.route import Route
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

# Of requests that no route answers, in metrics.
_NO_ROUTE = "unknown"


class App:
    """Answers requests by routes. Belongs to one event loop.

    Args:
        routes: of all faces; of two with one path and method the first answers.
        is_private: they are for this machine alone, and nobody is asked who they are.
    """

    def __init__(self, routes: Iterable[Route], recorder: Recorder, *, is_private: bool = False) -> None:
        self._is_private = is_private
        self._recorder = recorder
        self._fixed: dict[str, dict[str, Route]] = {}
        patterns: dict[str, dict[str, Route]] = {}
        first: dict[str, Route] = {}
        for route in routes:
            if route.parameters:
                first.setdefault(route.path, route)
                found = patterns.setdefault(route.path, {})
            else:
                found = self._fixed.setdefault(route.path, {})
            found.setdefault(route.method, route)
            if route.method == "GET":
                found.setdefault("HEAD", route)
        # Of two that fit a path the one that says more of it comes first: `{task}:rollback` before `{task}`.
        self._patterns = [(route.pattern, patterns[route.path]) for route in sorted(first.values(), key=_openness)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI. Never raises."""
        if scope["type"] != "http":
            return
        connection = scope[CONNECTION]
        if connection.is_refused:
            # Its bytes were no HTTP after all, and it has been told so.
            return
        request = Request(scope, receive, send)
        connection.task = asyncio.current_task()
        try:
            await self._answer(request)
        except asyncio.CancelledError:
            # Its client has left, or has not read for too long.
            connection.drop()
        finally:
            if connection.task is asyncio.current_task():
                # Else the next request is at work already, while the last answer was being read.
                connection.task = None
            request.over()

    async def _answer(self, request: Request) -> None:
        write_error: Callable[[AdamixError], Reply] = to_reply
        path = _NO_ROUTE
        http_status = 200
        reply: Reply | None
        try:
            found, params = self._found(request)
            # All methods of a path are one face's.
            write_error = next(iter(found.values())).errors
            route = _of_method(found, request)
            if isinstance(route, Route):
                path = route.path
                browsers.check(request, is_private=self._is_private)
                request.params = _decoded(params)
                reply = await route.answer(request)
            else:
                reply = Reply(status=204, headers=(("allow", ", ".join(route)),))
        except AdamixError as error:
            http_status = status_of(error)
            reply = write_error(error)
        except Exception as error:
            request.id = request.id or _own_id(request)
            log.exception("unexpected error in a request", extra={"request_id": request.id})
            failed = status.internal(request.id, error if isinstance(error, AdamixError) else None)
            http_status = status_of(failed)
            reply = write_error(failed)
        if reply is None:
            await request.finish()
        elif request.has_begun:
            # What has begun well cannot be taken back: its reader sees that it is not complete.
            http_status = reply.status
            request.drop()
        else:
            http_status = reply.status
            request.id = request.id or _own_id(request)
            await request.send(reply)
        self._recorder.inc("adamix_http_requests_total", path, str(http_status))

    def _found(self, request: Request) -> tuple[dict[str, Route], dict[str, str]]:
        """The routes at the path of a request, by method, and its parameters as they were sent. Raises NotFound."""
        found = self._fixed.get(request.path)
        if found is not None:
            return found, {}
        for pattern, found in self._patterns:
            if (match := pattern.fullmatch(request.path)) is not None:
                return found, match.groupdict()
        raise route_unknown()


def _of_method(found: dict[str, Route], request: Request) -> Route | tuple[str, ...]:
    """What answers a request; for OPTIONS the methods that there are. Raises MethodNotAllowed."""
    route = found.get(request.method)
    if route is None:
        allowed = (*found, "OPTIONS")
        if request.method == "OPTIONS":
            return allowed
        raise MethodNotAllowed(request.method, allowed)
    return route


def _decoded(params: dict[str, str]) -> dict[str, str]:
    """Raises InvalidRequest (`PATH_INVALID`)."""
    found: dict[str, str] = {}
    for name, text in params.items():
        if (plain := decoded(text)) is None:
            raise InvalidRequest(f"the path's {name} is no text", reason="PATH_INVALID", field=name)
        found[name] = plain
    return found


def _openness(route: Route) -> tuple[int, int]:
    """The less a path says, the more: by its parameters, then by what it says beside them."""
    parameters = route.parameters
    return len(parameters), sum(map(len, parameters)) + 2 * len(parameters) - len(route.path)


def _own_id(request: Request) -> str:
    """The id of a request that has made no call."""
    sent = request.header("x-request-id")
    return request_id_of(() if sent is None else (("x-request-id", sent),))

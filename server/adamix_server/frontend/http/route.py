"""How a face says what it answers: one `Route` for each method and path. `app.py` collects them.

A face exports a function that gives them, e.g.::

    def routes(calls: Calls) -> list[Route]:
        async def show(request: Request) -> Reply:
            async def read(_: Request) -> adapters_pb2.GetTaskRequest:
                return adapters_pb2.GetTaskRequest(task=request.params["task"])

            task = await calls.one(request, "/adamix.v1.AdapterService/GetTask", read, adapters_pb2.Task)
            return Reply(to_json(task))

        return [Route("GET", "/v1/tasks/{task}", show, summary="One task.", gives=TaskBody)]

An AdamixError that `answer` raises is written by the route's own `errors`. Knows no path and no face.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from adamix.errors import AdamixError
from adamix_server.frontend.http.errors import to_reply
from adamix_server.frontend.http.reply import JSON, Reply
from adamix_server.frontend.http.request import Request

_PARAMETER = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class Route:
    """What is answered at one path.

    Attributes:
        method: e.g. `GET`, which answers HEAD as well.
        path: with parameters such as `{task}`: what stands between two slashes, decoded, in `request.params`. Text may
            follow one (`/v1/tasks/{task}:rollback`).
        answer: gives the whole answer; or None after it has written one itself (`request.begin`, `request.write`).
        errors: the answer to an error, in the face's own shape.
        summary: one sentence, for the document.
        tag: the face, for the document.
        takes: what the body is: a msgspec struct of its JSON, a media type, or None for no body.
        gives: what the answer is, alike.
        query: parameters of the query -> what each is, for the document.
    """

    method: str
    path: str
    answer: Callable[[Request], Awaitable[Reply | None]]
    errors: Callable[[AdamixError], Reply] = to_reply
    summary: str = ""
    tag: str = "adamix"
    takes: Any = None
    gives: Any = JSON
    query: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> list[str]:
        """Names of the path's parameters."""
        return _PARAMETER.findall(self.path)

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches paths as they are sent, percent-encoded."""
        parts = re.split(r"(\{[a-z_]+\})", self.path)
        made = (f"(?P<{part[1:-1]}>[^/]+?)" if part.startswith("{") else re.escape(part) for part in parts)
        return re.compile("".join(made))

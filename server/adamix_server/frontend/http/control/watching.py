"""`GET /v1/tasks:watch`: the messages of `WatchTasks` as server-sent events.

An event is named by what it says: `task`, `deleted`, `synchronised`, `heartbeat`; its data is the message as JSON, its
id counts the events of this stream. A stream cannot be taken up where it ended: whoever watches again hears of every
task first. What ends it is said in a last event, `error`.
"""

from contextlib import aclosing

from adamix.errors import AdamixError
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.control.documents import document
from adamix_server.frontend.http.errors import to_reply
from adamix_server.frontend.http.request import Request
from adamix_server.frontend.http.server_events import CONTENT_TYPE, HEADERS, event

_METHOD = "/adamix.v1.AdapterService/WatchTasks"


class Watching:
    """Answers one route."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def follow(self, request: Request) -> None:
        """Write events until the call ends, or nobody reads them. Raises as the call does, before its first message."""

        async def read(request: Request) -> pb.WatchTasksRequest:
            request.query()
            return pb.WatchTasksRequest()

        number = 0
        try:
            async with aclosing(self._calls.many(request, _METHOD, read, pb.WatchTasksResponse)) as messages:
                async for message in messages:
                    if not request.has_begun:
                        await request.begin(CONTENT_TYPE, headers=HEADERS)
                    if request.method == "HEAD":
                        return
                    number += 1
                    await request.write(event(document(message), _name(message), number))
        except AdamixError as error:
            if not request.has_begun:
                raise
            await request.write(event(to_reply(error).body, "error", number + 1))


def _name(message: pb.WatchTasksResponse) -> str:
    if message.synchronised:
        return "synchronised"
    if message.heartbeat:
        return "heartbeat"
    return "deleted" if message.deleted else "task"

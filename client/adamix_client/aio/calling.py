"""How calls of one server are made on an event loop: as `adamix_client.calling` makes them, with tasks for several."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from adamix_client.aio.connection import AsyncConnection, is_cancelled
from adamix_client.calling import POLL_S, Method, no_tenant, tenant_timeout_s
from adamix_client.chunks import Answer, Asked, Chunk, Chunker, Text
from adamix_client.connection import HEALTH_OF_ALL, SERVING, Link
from adamix_client.errors import AdamixError, Code, Unavailable
from adamix_client.retries import Attempts, RetryBudget, RetryPolicy
from adamix_client.routing import DEFAULT_TENANT, Routing
from adamix_client.uploads import Upload
from adamix_client.values import Input
from adamix_protos.v1 import adapters_pb2, admin_pb2

Item = TypeVar("Item")


class AsyncCalls:
    """Calls over one connection, for the tasks of one event loop. Every method is as that of `Calls`."""

    def __init__(self, connection: AsyncConnection, timeout_s: float, policy: RetryPolicy) -> None:
        self.connection = connection
        self.timeout_s = timeout_s
        self._policy = policy
        self._budget = RetryBudget(policy)
        self.routing = Routing(None if connection.shows_who_calls else DEFAULT_TENANT)

    async def ask(
        self, method: Method, request: Any, *, is_safe: bool = True, timeout_s: float | None = None, task: str = ""
    ) -> Any:
        attempts = self.attempts(timeout_s, is_safe=is_safe)
        while True:
            try:
                return await self._answer(method, request, attempts, task)
            except AdamixError as error:
                await self._pause(attempts, error)

    async def pages(self, method: Method, request: Any) -> AsyncGenerator[Any, None]:
        while True:
            response = await self.ask(method, request)
            yield response
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def messages(
        self, method: Method, request: Any, *, is_safe: bool = True, timeout_s: float | None = None, task: str = ""
    ) -> AsyncGenerator[Any, None]:
        attempts = self.attempts(timeout_s, is_safe=is_safe)
        has_begun = False
        while True:
            try:
                metadata = await self._metadata(task, attempts)

                def begin(link: Link, shown: tuple[tuple[str, str], ...] = metadata) -> Any:
                    left_s = None if timeout_s is None else attempts.left_s
                    return method(link)(request, timeout=left_s, metadata=(*link.metadata, *shown))

                async with aclosing(self.connection.messages_of(begin)) as messages:
                    async for message in messages:
                        has_begun = True
                        yield message
            except AdamixError as error:
                if has_begun:
                    raise
                await self._pause(attempts, error)
            else:
                return

    async def exchange(
        self, method: Method, items: Iterable[Item] | AsyncIterable[Item], to_request: Callable[[Item], Any]
    ) -> AsyncGenerator[Any, None]:
        """`items` is read by a task of its own; one that is no AsyncIterable must not block the loop."""
        failed: list[Exception] = []

        async def requests() -> AsyncIterator[Any]:
            try:
                async for item in each(items):
                    yield to_request(item)
            except Exception as error:  # noqa: BLE001 - of the caller's own code; raised below
                failed.append(error)

        async with aclosing(self.messages(method, requests(), is_safe=False)) as messages:
            async for message in messages:
                yield message
        if failed:
            raise failed[0]

    async def upload(self, method: Method, upload: Upload, timeout_s: float) -> Any:
        attempts = self.attempts(timeout_s, is_safe=upload.can_repeat)

        async def requests() -> AsyncIterator[adapters_pb2.RegisterAdapterRequest]:
            sent = upload.requests()
            while (message := await asyncio.to_thread(next, sent, None)) is not None:
                yield message

        while True:
            try:
                return await self._answer(method, requests(), attempts, "")
            except AdamixError as error:
                upload.raise_own()
                await self._pause(attempts, error)
            except asyncio.CancelledError:
                # So ends a call whose messages fail, too.
                if not is_cancelled():
                    upload.raise_own()
                raise

    async def answers(
        self,
        method: Method,
        asked: Asked,
        items: Iterable[Text | Input] | AsyncIterable[Text | Input],
        in_flight: int,
    ) -> AsyncGenerator[tuple[Chunk, Any], None]:
        running: deque[tuple[Chunk, asyncio.Task[Any]]] = deque()
        try:
            async with aclosing(chunked(items, asked)) as chunks:
                async for chunk in chunks:
                    running.append((chunk, asyncio.create_task(self._response(method, chunk))))
                    if len(running) >= in_flight:
                        yield running[0][0], await running[0][1]
                        running.popleft()
            while running:
                yield running[0][0], await running[0][1]
                running.popleft()
        finally:
            for _, left in running:
                left.cancel()
            await asyncio.gather(*(left for _, left in running), return_exceptions=True)

    async def wait_until_serving(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            left_s = end - loop.time()
            try:
                with self.connection.calling() as link:
                    answer = await link.health(
                        HEALTH_OF_ALL, timeout=max(left_s, POLL_S), wait_for_ready=True, metadata=link.metadata
                    )
                if answer == SERVING:
                    return
            except AdamixError as error:
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    raise
            if left_s <= 0:
                raise Unavailable(f"{self.connection.address} did not become ready within {timeout_s:g} s")
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        await self.connection.end()

    def attempts(self, timeout_s: float | None = None, *, is_safe: bool = True) -> Attempts:
        self.connection.check_usable()
        return Attempts(self._policy, self._budget, self.timeout_s if timeout_s is None else timeout_s, is_safe=is_safe)

    async def _response(self, method: Method, chunk: Chunk) -> Any:
        """To a chunk; the AdamixError in its place, but where there will be no further call."""
        if not chunk.places:
            return None
        answer, attempts = Answer(chunk), self.attempts()
        while True:
            failure: AdamixError | None
            try:
                failure = answer.add(await self._answer(method, answer.request, attempts, chunk.task))
            except AdamixError as error:
                failure = error
            if failure is None:
                return answer.response
            self.connection.check_usable()
            if not await self._goes_on(attempts, failure):
                return answer.or_failure(failure)

    async def _answer(self, method: Method, request: Any, attempts: Attempts, task: str) -> Any:
        shown = await self._metadata(task, attempts)
        with self.connection.calling() as link:
            call = method(link)(request, timeout=attempts.left_s, metadata=(*link.metadata, *shown))
            response = await call
            self.routing.heard(await call.trailing_metadata())
            return response

    async def _pause(self, attempts: Attempts, error: AdamixError) -> None:
        if not await self._goes_on(attempts, error):
            raise error

    async def _goes_on(self, attempts: Attempts, error: AdamixError) -> bool:
        if (pause_s := attempts.pause_s(error)) is None:
            return False
        if await self.connection.pause(pause_s):
            self.connection.check_usable()
        return True

    async def _metadata(self, task: str, attempts: Attempts) -> tuple[tuple[str, str], ...]:
        if self.routing.asks_tenant(task):
            tenant: str | None = None
            timeout_s = tenant_timeout_s(attempts)
            try:
                with self.connection.calling() as link:
                    try:
                        request = admin_pb2.WhoAmIRequest()
                        tenant = (await link.admin.WhoAmI(request, timeout=timeout_s, metadata=link.metadata)).tenant
                    except grpc.RpcError as error:
                        tenant = no_tenant(error, timeout_s)
            finally:
                self.routing.asked_tenant(tenant)
        return self.routing.metadata(task)


async def each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncGenerator[Item, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def chunked(
    items: Iterable[Text | Input] | AsyncIterable[Text | Input], asked: Asked
) -> AsyncGenerator[Chunk, None]:
    """All of them. Reads no further than one chunk."""
    chunker = Chunker(asked)
    async with aclosing(each(items)) as read:
        async for item in read:
            if (full := chunker.add(item)) is not None:
                yield full
    if (rest := chunker.rest()) is not None:
        yield rest

"""How calls of one server are made: with what they show, again where that is safe, within their time.

Several calls of one caller run side by side in no thread of ours: gRPC keeps them. Knows connections and how calls
fail; knows no method. `adamix_client.aio.calling` does the same on an event loop.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import ExitStack, closing, suppress
from typing import Any, TypeVar

import grpc

from adamix_client.bounds import MAX_INPUTS_PER_CALL
from adamix_client.chunks import Answer, Asked, Chunk, Text, chunked
from adamix_client.connection import HEALTH_OF_ALL, SERVING, Connection, Link
from adamix_client.errors import AdamixError, Code, Unavailable
from adamix_client.retries import Attempts, RetryBudget, RetryPolicy
from adamix_client.routing import DEFAULT_TENANT, Routing
from adamix_client.uploads import Upload
from adamix_client.values import Input
from adamix_protos.v1 import admin_pb2

Item = TypeVar("Item")
Method = Callable[[Link], Any]

POLL_S = 0.1
# For the tenant's name, which is asked once: a call does not wait longer for what it can do without.
TENANT_TIMEOUT_S = 5.0


class Calls:
    """Calls over one connection. Safe to share between threads.

    Args:
        timeout_s: of each call that says no other.
    """

    def __init__(self, connection: Connection, timeout_s: float, policy: RetryPolicy) -> None:
        self.connection = connection
        self.timeout_s = timeout_s
        self._policy = policy
        self._budget = RetryBudget(policy)
        self.routing = Routing(None if connection.shows_who_calls else DEFAULT_TENANT)

    def ask(
        self, method: Method, request: Any, *, is_safe: bool = True, timeout_s: float | None = None, task: str = ""
    ) -> Any:
        """The response to one message. `is_safe`: the call may be carried out twice."""
        attempts = self.attempts(timeout_s, is_safe=is_safe)
        while True:
            try:
                return self._once(method, request, attempts, task)
            except AdamixError as error:
                self.pause(attempts, error)

    def pages(self, method: Method, request: Any) -> Generator[Any, None, None]:
        """All pages of a list."""
        while True:
            response = self.ask(method, request)
            yield response
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def messages(
        self, method: Method, request: Any, *, is_safe: bool = True, timeout_s: float | None = None, task: str = ""
    ) -> Generator[Any, None, None]:
        """What comes over a stream; asked for again only as long as nothing has come. Closing it ends the stream.

        `timeout_s` is for all of it; None for no limit.
        """
        attempts = self.attempts(timeout_s, is_safe=is_safe)
        has_begun = False

        def begin(link: Link) -> Any:
            metadata = self.metadata(link, task, attempts)
            left_s = None if timeout_s is None else attempts.left_s
            return method(link)(request, timeout=left_s, metadata=metadata)

        while True:
            try:
                with closing(self.connection.messages(begin)) as messages:
                    for message in messages:
                        has_begun = True
                        yield message
            except AdamixError as error:
                if has_begun:
                    raise
                self.pause(attempts, error)
            else:
                return

    def exchange(
        self, method: Method, items: Iterable[Item], to_request: Callable[[Item], Any]
    ) -> Generator[Any, None, None]:
        """What comes over a stream in both directions. `items` is read in a thread of its own.

        Raises what `items` raises, after the answers to what it gave before.
        """
        failed: list[Exception] = []

        def requests() -> Iterator[Any]:
            try:
                for item in items:
                    yield to_request(item)
            except Exception as error:  # noqa: BLE001 - of the caller's own code; raised below
                failed.append(error)

        yield from self.messages(method, requests(), is_safe=False)
        if failed:
            raise failed[0]

    def upload(self, method: Method, upload: Upload, timeout_s: float) -> Any:
        """The response to a file. It is sent again only if it can be read again."""
        attempts = self.attempts(timeout_s, is_safe=upload.can_repeat)
        while True:
            try:
                return self._once(method, upload.requests(), attempts, "")
            except AdamixError as error:
                upload.raise_own()
                self.pause(attempts, error)

    def answers(
        self, method: Method, asked: Asked, items: Iterable[Text | Input], in_flight: int
    ) -> Generator[tuple[Chunk, Any], None, None]:
        """(chunk, response, or the AdamixError in its place), in order, while up to `in_flight` calls run.

        `items` is read as answers are taken. Closing it ends what runs.
        """
        if isinstance(items, Sized) and len(items) <= MAX_INPUTS_PER_CALL:
            for chunk in chunked(items, asked):
                yield chunk, self._response(method, chunk)
            return
        running: deque[_Running] = deque()
        try:
            for chunk in chunked(items, asked):
                running.append(_Running(self, method, chunk))
                if len(running) >= in_flight:
                    yield running[0].chunk, running[0].response()
                    running.popleft()
            while running:
                yield running[0].chunk, running[0].response()
                running.popleft()
        finally:
            for left in running:
                left.cancel()

    def _response(self, method: Method, chunk: Chunk) -> Any:
        """To a chunk; the AdamixError in its place, but where there will be no further call."""
        if not chunk.places:
            return None
        answer, attempts = Answer(chunk), self.attempts()
        while True:
            failure: AdamixError | None
            try:
                failure = answer.add(self._once(method, answer.request, attempts, chunk.task))
            except AdamixError as error:
                failure = error
            if failure is None:
                return answer.response
            self.connection.check_usable()
            if not self.goes_on(attempts, failure):
                return answer.or_failure(failure)

    def _once(self, method: Method, request: Any, attempts: Attempts, task: str) -> Any:
        with self.connection.calling() as link:
            metadata = self.metadata(link, task, attempts)
            response, call = method(link).with_call(request, timeout=attempts.left_s, metadata=metadata)
            self.heard(call)
            return response

    def wait_until_serving(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while True:
            left_s = end - time.monotonic()
            try:
                with self.connection.calling() as link:
                    answer = link.health(
                        HEALTH_OF_ALL, timeout=max(left_s, POLL_S), wait_for_ready=True, metadata=link.metadata
                    )
                if answer == SERVING:
                    return
            except AdamixError as error:
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    raise
            if left_s <= 0:
                raise Unavailable(f"{self.connection.address} did not become ready within {timeout_s:g} s")
            time.sleep(POLL_S)

    def close(self) -> None:
        self.connection.close()

    def attempts(self, timeout_s: float | None = None, *, is_safe: bool = True) -> Attempts:
        # First: in a forked process a lock of the budget's may be held for ever.
        self.connection.check_usable()
        return Attempts(self._policy, self._budget, self.timeout_s if timeout_s is None else timeout_s, is_safe=is_safe)

    def pause(self, attempts: Attempts, error: AdamixError) -> None:
        """Wait for the next attempt. Raises the error if there is none, or that the client was closed meanwhile."""
        if not self.goes_on(attempts, error):
            raise error

    def goes_on(self, attempts: Attempts, error: AdamixError) -> bool:
        """Whether there is a next attempt; waits for it. Raises FailedPrecondition if the client is closed then."""
        if (pause_s := attempts.pause_s(error)) is None:
            return False
        if self.connection.wait_closed(pause_s):
            self.connection.check_usable()
        return True

    def metadata(self, link: Link, task: str, attempts: Attempts) -> tuple[tuple[str, str], ...]:
        """What a call shows. The second one about a task asks who its caller is, where the server knows."""
        if self.routing.asks_tenant(task):
            tenant: str | None = None
            timeout_s = tenant_timeout_s(attempts)
            try:
                request = admin_pb2.WhoAmIRequest()
                tenant = link.admin.WhoAmI(request, timeout=timeout_s, metadata=link.metadata).tenant
            except grpc.RpcError as error:
                tenant = no_tenant(error, timeout_s)
            finally:
                self.routing.asked_tenant(tenant)
        return (*link.metadata, *self.routing.metadata(task))

    def heard(self, call: Any) -> None:
        """A call was answered."""
        self.routing.heard(call.trailing_metadata())


def tenant_timeout_s(attempts: Attempts) -> float:
    """For which a call waits for the tenant: it keeps most of its time for itself."""
    return min(TENANT_TIMEOUT_S, attempts.left_s / 4)


def no_tenant(error: Any, timeout_s: float) -> str | None:
    """What is known of the tenant where asking ended so: empty, or None where it is worth asking again.

    A router then asks any replica; what is wrong the call itself will say.
    """
    was_hasty = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s < TENANT_TIMEOUT_S
    return None if was_hasty or error.code() is grpc.StatusCode.UNAVAILABLE else ""


class _Left(Exception):
    """Nobody waits for this call any more."""


class _Running:
    """A call that runs while others do. Raises as `Calls.ask` where it cannot even begin."""

    def __init__(self, calls: Calls, method: Method, chunk: Chunk) -> None:
        self.chunk = chunk
        self._calls = calls
        self._method = method
        self._answer = Answer(chunk)
        self._attempts = calls.attempts()
        self._leave = ExitStack()
        self._call: Any = None
        # Of the call that runs: when it was over.
        self._over_at: float | None = None
        if chunk.places:
            self._begin()

    def response(self) -> Any:
        """Waits for it. An AdamixError in its place is what the call ended with; None where nothing was asked."""
        if not self.chunk.places:
            return None
        while True:
            failure: AdamixError | None
            try:
                failure = self._answer.add(self._result())
            except AdamixError as error:
                failure = error
            if failure is None:
                return self._answer.response
            self._calls.connection.check_usable()
            if self._over_at is not None:
                self._attempts.lay(time.monotonic() - self._over_at)
            if not self._calls.goes_on(self._attempts, failure):
                return self._answer.or_failure(failure)
            self._begin()

    def cancel(self) -> None:
        if self._call is not None:
            self._calls.connection.cancel(self._call)
        with suppress(_Left), self._leave:
            raise _Left

    def _begin(self) -> None:
        with ExitStack() as stack:
            link = stack.enter_context(self._calls.connection.calling())
            metadata = self._calls.metadata(link, self.chunk.task, self._attempts)
            self._call = self._method(link).future(
                self._answer.request, timeout=self._attempts.left_s, metadata=metadata
            )
            self._over_at = None
            self._call.add_done_callback(self._over)
            self._leave = stack.pop_all()

    def _over(self, call: Any) -> None:
        if call is self._call:
            self._over_at = time.monotonic()

    def _result(self) -> Any:
        with self._leave:
            try:
                response = self._call.result()
            except grpc.FutureCancelledError:
                # By the channel, which was closed; the call itself is an error with a code.
                raise self._call from None
            self._calls.heard(self._call)
            return response

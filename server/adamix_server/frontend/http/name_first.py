"""A body that is judged after the name it is sent to: what there is not is said before what is wrong with a body.

The name is in the path, and only the call knows what there is. So of a body that cannot be read the call is told the
name alone, which it refuses for one reason or the other. Knows no route and no message.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from adamix.errors import AdamixError, Code, InvalidRequest, Overloaded
from adamix_server.frontend.http.request import Request

M = TypeVar("M")


class NameFirst(Generic[M]):
    """Reads the message of a call.

    Args:
        read: the message that a request's body says. Raises InvalidRequest, and Overloaded for one
            that is too large.
        bare: the message with nothing but the name, which its method must refuse as INVALID_ARGUMENT.
    """

    def __init__(self, read: Callable[[Request], Awaitable[M]], bare: M) -> None:
        self._read = read
        self._bare = bare
        self._wrong: AdamixError | None = None

    async def __call__(self, request: Request) -> M:
        try:
            return await self._read(request)
        except (InvalidRequest, Overloaded) as error:
            self._wrong = error
            return self._bare

    def told(self, error: AdamixError) -> AdamixError:
        """What a caller is told whose call ended with `error`."""
        return self._wrong if self._wrong is not None and error.code is Code.INVALID_ARGUMENT else error

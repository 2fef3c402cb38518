"""Messages of many rows, without keeping others from the event loop. Knows neither rows nor messages."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from adamix_server.frontend.boundary import call as calls

# Between so many rows other calls get on.
ROWS_AT_ONCE = 16

Row = TypeVar("Row")
Message = TypeVar("Message")


async def converted(rows: Sequence[Row], convert_one: Callable[[Row], Message]) -> list[Message]:
    """Messages of rows, a few at a time; the time it takes is the call's work."""
    call, messages = calls.current(), list[Message]()
    for start in range(0, len(rows), ROWS_AT_ONCE):
        began = time.perf_counter()
        messages += map(convert_one, rows[start : start + ROWS_AT_ONCE])
        call.work_s += time.perf_counter() - began
        await asyncio.sleep(0)
    return messages

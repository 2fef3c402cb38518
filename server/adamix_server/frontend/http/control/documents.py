"""Messages of the control plane as JSON: proto3's, with the names of the fields and with default values.

The same that the command line prints. Pages are written a few rows at a time: the loop answers texts as well.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from google.protobuf.message import Message

from adamix_client.values import to_json

# Between so many rows other calls get on.
ROWS_AT_ONCE = 16


def document(message: Message) -> bytes:
    """A message as JSON."""
    return msgspec.json.encode(to_json(message))


async def page(name: str, rows: Iterable[Message], next_page_token: str) -> bytes:
    """A page of a list, whose rows stand under `name`."""
    documents: list[dict[str, Any]] = []
    for row in rows:
        documents.append(to_json(row))
        if len(documents) % ROWS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return msgspec.json.encode({name: documents, "next_page_token": next_page_token})

"""Clients of other people, as they are, of a front end that is here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from openai import AsyncOpenAI

from adamix_testing.harness import Harness

# With bodies that are no dicts of the types which the package declares.
Stock = Any


@asynccontextmanager
async def open_ai(harness: Harness, key: str = "unused", retries: int = 0) -> AsyncIterator[Stock]:
    """OpenAI's, which tries nothing twice unless it is told to."""
    # Without TLS: to read the system's certificates takes longer than a test.
    plain = httpx2.AsyncClient(verify=False)
    url = f"http://{harness.http}/v1"
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=retries, http_client=plain) as client:
        yield client

"""A loop that each test leaves clean."""

from collections.abc import AsyncIterator

import pytest

from adamix_testing.event_loop import clean_loop


@pytest.fixture(autouse=True)
async def each_test_leaves_a_clean_loop() -> AsyncIterator[None]:
    async with clean_loop():
        yield

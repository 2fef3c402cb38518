"""One child that renders, for all tests that do not end it."""

from collections.abc import Iterator

import pytest

from adamix.prompts.chat import ChatRenderer


@pytest.fixture(scope="session")
def renderer() -> Iterator[ChatRenderer]:
    renderer = ChatRenderer()
    yield renderer
    renderer.close()

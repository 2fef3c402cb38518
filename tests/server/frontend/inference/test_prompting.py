"""Prompts on their way to the threads that make ids of them."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

from adamix.prompts.prompts import Message, Prompts
from adamix.prompts.vocabulary import Vocabulary
from adamix_server.catalog.rows import Writing
from adamix_server.frontend.inference.prompting import Content, Prompting
from adamix_server.frontend.inference.tokenization import Tokenizer


class _Slow(Prompts):
    """Renders a chat once it is told to; who is asked for meanwhile is in `begun`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer.backend, Vocabulary())
        self.begun: list[str] = []
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()

    def chat(self, messages: Sequence[Message], template: str | None = None, *, asker: str = "") -> tuple[int, ...]:
        self.begun.append(asker)
        self.has_begun.set()
        if asker == "acme":
            assert self.may_go_on.wait(30)
        return (1, 2)


async def test_the_chats_of_one_tenant_are_rendered_one_after_the_other(decoder_files: Path) -> None:
    """A template may take as long as it likes, up to its limit: the threads are not all one tenant's."""
    tokenizer = Tokenizer(decoder_files, threads=2)
    prompts = _Slow(tokenizer)
    prompting = Prompting(tokenizer, prompts, Vocabulary(), vocab_size=300, window=64)
    chat, writing = Content("chat", messages=(Message("user", "a"),)), Writing("chat", "{{ messages }}")
    try:
        flood = [asyncio.create_task(prompting.tokens(chat, writing, "acme")) for _ in range(8)]
        assert await asyncio.to_thread(prompts.has_begun.wait, 30)
        flood.pop().cancel()
        async with asyncio.timeout(20):
            assert len(await prompting.tokens(chat, writing, "other")) == 2
        assert prompts.begun == ["acme", "other"]
        prompts.may_go_on.set()
        await asyncio.gather(*flood)
        assert prompts.begun.count("acme") == 8 - 1
        assert not prompting._turns, "nothing is kept of who has none under way"
    finally:
        prompts.may_go_on.set()
        tokenizer.close()

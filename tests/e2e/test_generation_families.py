"""Tiny decoders of every family over the wire: whatever shares the steps, an adapter writes what it writes alone."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adamix.backbones import backbone as backbones
from adamix.files import adapter_file
from adamix_client import Client, GeneratedText
from adamix_testing.decoder_files import save_decoder
from adamix_testing.decoders import DECODERS, POSITIONS, VOCABULARY, text_adapters, written_alone
from adamix_testing.servers import Eventually, Server

pytestmark = pytest.mark.long

TEXTS, AT_ONCE = 48, 16
# Those with as many heads of keys as of queries, or wider ones: twice the bytes of a token.
WIDE = ("gpt2", "qwen3")


@pytest.fixture
def directory(family: str, tmp_path: Path) -> Path:
    return save_decoder(family, tmp_path / family)


@pytest.fixture
def server(family: str, directory: Path, tmp_path: Path) -> Iterator[Server]:
    """Prompts come in several chunks, and there are pages for four texts or five."""
    kv_bytes = (96 if family in WIDE else 48) << 10
    flags = ("--metrics-port", "0", "--max-chunk-tokens", "7", "--kv-bytes", str(kv_bytes))
    running = Server(directory, tmp_path / "store", *flags)
    try:
        yield running.wait()
    finally:
        running.kill()


@pytest.mark.parametrize("family", DECODERS)
def test_tokens_are_those_of_each_text_alone(directory: Path, server: Server, eventually: Eventually) -> None:
    backbone = backbones.load(str(directory), language_model=True)
    adapters = text_adapters(backbone)
    draw = random.Random(0)
    shared = [draw.randrange(VOCABULARY) for _ in range(40)]
    asked: list[tuple[int, list[int], int]] = []
    for number in range(TEXTS):
        own = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 40))]
        prompt = shared + own if number % 3 == 0 else own
        asked.append((number % len(adapters), prompt, draw.randrange(4, min(40, POSITIONS - len(prompt)))))
    with server.client() as client:
        for number, adapter in enumerate(adapters):
            client.register(f"task-{number}", adapter_file.encode(adapter.manifest, adapter.tensors))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(lambda text: write(client, *text), asked))
        # A beginning that was computed before, with nobody else who wants its pages.
        asked += [(0, shared, 8), (0, shared, 8)]
        found += [write(client, 0, shared, 8), write(client, 0, shared, 8)]
    for (number, prompt, count), text in zip(asked, found, strict=True):
        assert list(text.token_ids) == written_alone(backbone, adapters[number], prompt, count)
    assert found[-1].usage.cached_tokens > 0
    eventually(lambda: server.metric("adamix_preemptions_total") > 0, "some gave up their pages")


def write(client: Client, number: int, prompt: list[int], count: int) -> GeneratedText:
    how: dict[str, Any] = {"max_new_tokens": count, "ignore_eos": True, "return_token_ids": True}
    return GeneratedText.of(client.generate(f"task-{number}", token_ids=prompt, **how))

"""A thousand texts that are left at random moments: not a page, not a slot and no credit stays with them."""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adamix.backbones import backbone as backbones
from adamix.errors import DeadlineExceeded, Overloaded
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix_client import Client, GeneratedText
from adamix_testing.decoder_files import save_decoder
from adamix_testing.decoders import POSITIONS, VOCABULARY, text_adapters
from adamix_testing.servers import Eventually, Server

pytestmark = pytest.mark.long

TEXTS = 1_000
THREADS = 12
# Half of the tasks have no slot at any moment, and most texts have to give up their pages now and then.
TASKS, SLOTS = 4, 2
KV_BYTES = 64 << 10


def storm(server: Server, calls: int, seed: int, ends: Counter[str]) -> None:
    """Texts that are left before their first token, in the middle, by a deadline, or not at all."""
    generator = random.Random(seed)
    with server.client() as client:
        for _ in range(calls):
            prompt = [generator.randrange(4, VOCABULARY) for _ in range(generator.randrange(1, POSITIONS // 2))]
            most = generator.randrange(1, POSITIONS // 2)
            way = generator.choice(["leave", "leave", "deadline", "stay"])
            timeout_s = generator.uniform(0.001, 0.3) if way == "deadline" else 60
            deltas = client.generate(
                f"task-{generator.randrange(TASKS)}",
                token_ids=prompt,
                max_new_tokens=most,
                temperature=generator.choice([0.0, 1.0]),
                ignore_eos=True,
                timeout_s=timeout_s,
            )
            try:
                if way == "leave":
                    for _ in range(generator.randrange(1, most + 1)):
                        next(deltas, None)
                    deltas.close()
                else:
                    GeneratedText.of(deltas)
                ends[way] += 1
            except (DeadlineExceeded, Overloaded) as error:
                ends[error.reason] += 1


def data_of(adapter: AdapterFile) -> bytes:
    return adapter_file.encode(adapter.manifest, adapter.tensors)


def written(client: Client) -> list[tuple[int, ...]]:
    """What every task writes now, alone."""
    how: dict[str, Any] = {"token_ids": [5, 6, 7], "ignore_eos": True, "return_token_ids": True}
    return [GeneratedText.of(client.generate(f"task-{i}", **how)).token_ids for i in range(TASKS)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A tiny decoder with less memory than the texts want at once."""
    directory = save_decoder("mistral", tmp_path / "mistral")
    flags = ("--metrics-port", "0", "--slots", str(SLOTS), "--kv-bytes", str(KV_BYTES), "--max-chunk-tokens", "16")
    running = Server(directory, tmp_path / "store", *flags)
    try:
        adapters = text_adapters(backbones.load(str(directory), language_model=True))
        running.wait()
        with running.client() as client:
            for number, adapter in enumerate(adapters):
                client.register(f"task-{number}", data_of(adapter))
        yield running
    finally:
        running.kill()


def test_a_thousand_texts_left_at_random(server: Server, eventually: Eventually) -> None:
    engine = server.child("adamix_server.engine")
    with server.client() as client:
        before = written(client)
        ends: Counter[str] = Counter()
        threads = [threading.Thread(target=storm, args=(server, TEXTS // THREADS, i, ends)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ends.total() == TEXTS // THREADS * THREADS, "a thread ended with an error"
        assert min(ends["leave"], ends["stay"], ends["DEADLINE_EXCEEDED"]) > 0, ends
        eventually(lambda: server.metric("adamix_running_requests") == 0, "nothing runs")
        eventually(lambda: server.metric("adamix_kv_pages", state="used") == 0, "all pages are back")
        eventually(lambda: server.metric("adamix_slots", state="pinned") == 0, "no slot is held")
        load = client.load_report()
        assert (load.queued_inputs, load.queued_tokens) == (0, 0)
        assert written(client) == before
    eventually(lambda: server.metric("adamix_preemptions_total") > 0, "some gave up their pages")
    assert server.child("adamix_server.engine") == engine
    assert server.terminate() == 0

"""Texts of a real decoder over the wire: PEFT's own tokens in company, a swap, seeds, chats, stops, and a kill.

One server for all of it. The last test leaves it without its engine.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import Unavailable
from adamix_client import Client, GenerateDelta, GeneratedText
from adamix_testing.servers import Eventually, Server

pytestmark = [pytest.mark.weights, pytest.mark.slow]

SMOLLM2 = Path("smollm2")
PROMPTS = {
    "one": "The three things that nobody tells you about the sea are",
    "two": "Once upon a time there was a small engine that",
    "three": "import os\n\ndef main():\n",
}
# Of each adapter: what PEFT calls its modules, rank and alpha. No two have the same.
SHAPES: dict[str, tuple[Sequence[str], int, int]] = {
    "one": (("q_proj", "v_proj"), 4, 8),
    "two": (("k_proj", "o_proj", "down_proj"), 8, 8),
    "three": (("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 3, 6),
}
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
NEW_TOKENS = 16
# More than one chunk of a prompt.
LONG = "Words " * 70


@dataclass
class Writers:
    """Three adapters that were made with peft, and what it writes with each of them alone."""

    files: dict[str, bytes] = field(default_factory=dict)
    alone: dict[str, list[int]] = field(default_factory=dict)
    chat: list[int] = field(default_factory=list)
    tokenizer: Any = None

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(SMOLLM2, tmp_path_factory.mktemp("store"), "--metrics-port", "0", "--threads", "2")
    try:
        yield running
    finally:
        running.kill()


@pytest.fixture(scope="module")
def writers(starting: Server, tmp_path_factory: pytest.TempPathFactory) -> Writers:
    """Made while the server starts."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from adamix.backbones import backbone as backbones
    from adamix.interop.assembly import ImportOptions
    from adamix.interop.peft.weights import import_peft

    made = Writers()
    backbone = backbones.load(str(SMOLLM2), language_model=True)
    source = backbones.resolve(str(SMOLLM2))
    made.tokenizer = AutoTokenizer.from_pretrained(source)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    @torch.inference_mode()
    def written(peft: PeftModel, ids: list[int]) -> list[int]:
        asked = torch.tensor([ids])
        how: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        found = peft.generate(input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=NEW_TOKENS, **how)
        return [int(token) for token in found[0, len(ids) :]]

    torch.manual_seed(0)
    for name, (modules, rank, alpha) in SHAPES.items():
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(modules), task_type="CAUSAL_LM")
        peft = get_peft_model(model, config).eval()
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.08)
        directory = tmp_path_factory.mktemp("peft") / name
        peft.save_pretrained(str(directory))
        made.alone[name] = written(peft, made.tokenizer(PROMPTS[name])["input_ids"])
        if name == "one":
            chat = made.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
            made.chat = written(peft, made.tokenizer(chat, add_special_tokens=False)["input_ids"])
        model = peft.unload()
        made.files[name] = import_peft(directory, backbone, ImportOptions()).data
    return made


@pytest.fixture(scope="module")
def server(starting: Server, writers: Writers) -> Server:
    """One that serves the three adapters, each as a task of its name."""
    starting.wait()
    with starting.client() as client:
        for name, data in writers.files.items():
            client.register(name, data)
    return starting


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


def write(client: Client, task: str, prompt: str | None = None, **settings: Any) -> GeneratedText:
    """A text of at most as many tokens as PEFT wrote, with their ids, whatever they are."""
    given: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "return_token_ids": True, "ignore_eos": True, **settings}
    return GeneratedText.of(client.generate(task, prompt, **given))


def test_in_company_an_adapter_writes_the_tokens_that_it_writes_in_peft_alone(writers: Writers, client: Client) -> None:
    """Each beside the others, beside texts that are drawn, and beside prompts of several chunks."""
    assert len({tuple(tokens) for tokens in writers.alone.values()}) == 3
    company = [("two", {"temperature": 1.0, "seed": seed}) for seed in range(3)]
    with ThreadPoolExecutor(12) as pool:
        asked = [(name, pool.submit(write, client, name, PROMPTS[name])) for _ in range(2) for name in SHAPES]
        noise = [pool.submit(write, client, name, LONG, **how) for name, how in company]
        for name, future in asked:
            found = future.result()
            assert list(found.token_ids) == writers.alone[name], name
            assert found.text == writers.text(writers.alone[name])
            assert (found.finish_reason, found.usage.generated_tokens) == ("length", NEW_TOKENS)
        assert all(future.result().finish_reason == "length" for future in noise)
    # What was computed of a prompt is found again, and changes nothing.
    again = [write(client, "one", LONG, max_new_tokens=4) for _ in range(2)]
    assert again[0].token_ids == again[1].token_ids
    assert again[1].usage.cached_tokens > 0


def test_the_same_seed_gives_the_same_text_whatever_is_beside_it(client: Client) -> None:
    def drawn(seed: int | None = None) -> GeneratedText:
        return write(client, "one", PROMPTS["one"], temperature=1.0, top_p=0.95, seed=seed, max_new_tokens=12)

    with ThreadPoolExecutor(5) as pool:
        first, other, third, unseeded = pool.map(drawn, [7, 8, 7, None])
    assert first.token_ids == third.token_ids == drawn(7).token_ids
    assert first.token_ids != other.token_ids
    assert (first.seed, other.seed) == (7, 8)
    # The server says which seed it took.
    assert drawn(unseeded.seed).token_ids == unseeded.token_ids


def test_a_chat_is_rendered_by_the_backbones_template(writers: Writers, client: Client) -> None:
    found = write(client, "one", chat=CHAT)
    assert list(found.token_ids) == writers.chat
    ended = write(client, "one", chat=[*CHAT, {"role": "assistant", "content": "Paris."}], ignore_eos=False)
    assert ended.usage.prompt_tokens > found.usage.prompt_tokens


def test_a_text_ends_before_its_stop(writers: Writers, client: Client) -> None:
    whole = writers.text(writers.alone["two"])
    # From the middle of one token to the middle of another, as a rule.
    stop = whole[len(whole) // 2 : len(whole) // 2 + 5]
    deltas = list(client.generate("two", PROMPTS["two"], stop=[stop], max_new_tokens=NEW_TOKENS, ignore_eos=True))
    found = GeneratedText.of(deltas)
    assert (found.text, found.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert 0 < found.usage.generated_tokens < NEW_TOKENS
    token = writers.alone["two"][6]
    first = writers.alone["two"].index(token)
    cut = write(client, "two", PROMPTS["two"], stop_token_ids=[token])
    assert (cut.finish_reason, list(cut.token_ids)[:first]) == ("stop", writers.alone["two"][:first])
    assert cut.text == writers.text(writers.alone["two"][:first])


def test_a_text_goes_on_with_the_version_it_began_with(writers: Writers, client: Client, server: Server) -> None:
    """One that has no end of its own is left when enough of it came after the new version had answered."""
    old = client.register("swapped", writers.files["one"]).version.digest
    tokens: list[int] = []
    came = threading.Semaphore(0)
    enough = threading.Event()

    def read() -> None:
        how: dict[str, Any] = {"max_new_tokens": 4000, "ignore_eos": True, "return_token_ids": True}
        with server.client() as reader:
            for delta in reader.generate("swapped", PROMPTS["one"], **how):
                tokens.extend(delta.token_ids)
                came.release()
                if enough.is_set():
                    break

    thread = threading.Thread(target=read)
    thread.start()
    assert came.acquire(timeout=60)
    new = client.register("swapped", writers.files["two"]).version.digest
    found = write(client, "swapped", PROMPTS["two"], max_new_tokens=4)
    assert (found.version, list(found.token_ids)) == (new, writers.alone["two"][:4])
    before = len(tokens)
    while len(tokens) < max(before + 4, NEW_TOKENS):
        assert came.acquire(timeout=60), "the old text stands still"
    enough.set()
    thread.join(60)
    assert tokens[:NEW_TOKENS] == writers.alone["one"]
    # What it wrote then is what the old version writes there.
    ids = writers.tokenizer(PROMPTS["one"])["input_ids"] + tokens[:before]
    again = write(client, "swapped", token_ids=ids, version=old, max_new_tokens=4)
    assert (again.version, list(again.token_ids)) == (old, tokens[before : before + 4])


def test_who_leaves_a_text_ends_it(client: Client, server: Server, eventually: Eventually) -> None:
    for _ in range(3):
        deltas = client.generate("one", PROMPTS["one"], max_new_tokens=1000, ignore_eos=True)
        next(deltas)
        deltas.close()
    eventually(lambda: server.metric("adamix_running_requests") == 0, "nothing runs")
    eventually(lambda: server.metric("adamix_slots", state="pinned") == 0, "no slot is held")
    eventually(lambda: server.metric("adamix_kv_pages", state="used") == 0, "no page is held")


def test_an_engine_that_is_killed_ends_texts_and_leaves_what_came(writers: Writers, server: Server) -> None:
    """The last one: the engine needs a while to come back."""
    texts: dict[str, list[GenerateDelta]] = {name: [] for name in SHAPES}
    ends: dict[str, Unavailable] = {}
    begun = threading.Semaphore(0)

    def read(name: str) -> None:
        how: dict[str, Any] = {"max_new_tokens": 1000, "ignore_eos": True, "return_token_ids": True}
        try:
            with server.client() as client:
                for delta in client.generate(name, PROMPTS[name], **how):
                    texts[name].append(delta)
                    begun.release()
        except Unavailable as error:
            ends[name] = error

    threads = [threading.Thread(target=read, args=(name,)) for name in SHAPES]
    for thread in threads:
        thread.start()
    for _ in range(4 * len(SHAPES)):
        assert begun.acquire(timeout=60)
    os.kill(server.child("adamix_server.engine"), signal.SIGKILL)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a text hangs"
    for name in SHAPES:
        assert ends[name].reason == "ENGINE_RESTARTING"
        assert ends[name].retry_after_s is not None
        assert texts[name], name
        ids = [token for delta in texts[name] for token in delta.token_ids]
        assert ids[:NEW_TOKENS] == writers.alone[name][: len(ids)]

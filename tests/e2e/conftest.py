"""A tiny BERT with a tokenizer on disk, and real servers over it: supervisor, engine and front end."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from adamix.manifest import BackboneSpec
from adamix_server.client import Client

WORDS: tuple[str, ...] = (
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "fish",
    "runs",
    "sleeps",
    "eats",
    "big",
    "small",
    "red",
    "blue",
    "quick",
    "lazy",
)
WORDS += ("over", "under", "and", "not")


@pytest.fixture(scope="session")
def backbone_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two small layers that knows twenty words."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("backbone")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def spec(backbone_directory: Path) -> BackboneSpec:
    from adamix import backbone

    return backbone.load(str(backbone_directory)).spec


class Server:
    """`adamix serve` in a process of its own."""

    def __init__(self, backbone: Path, store: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "adamix_server", "serve", "--backbone", str(backbone), "--store", str(store)]
        command += ["--listen", "127.0.0.1:0", "--drain-delay", "0", "--threads", "1", *flags]
        self.records: list[dict[str, Any]] = []
        self._serving = threading.Event()
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                record = json.loads(line)
            except ValueError:
                record = {"message": line.strip()}
            self.records.append(record)
            if record.get("process") == "supervisor" and record["message"] == "serving":
                self._serving.set()
        self._serving.set()

    def wait(self) -> "Server":
        assert self._serving.wait(120)
        assert self.address, [r["message"] for r in self.records]
        return self

    def find(self, **fields: Any) -> dict[str, Any] | None:
        return next((r for r in self.records if all(r.get(k) == v for k, v in fields.items())), None)

    @property
    def address(self) -> str:
        record = self.find(process="supervisor", message="serving")
        return "" if record is None else record["address"]

    def client(self) -> Client:
        return Client(self.address, timeout_s=30)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """Everything at once, as a power cut would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            for child in self.children():
                os.kill(child, signal.SIGKILL)
        self.process.wait()

    def children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def child(self, module: str) -> int:
        """The process id of the engine or the front end."""
        (pid,) = [
            pid for pid in self.children() if module in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        ]
        return pid


StartServer = Callable[..., Server]


@pytest.fixture
def start_server(backbone_directory: Path, tmp_path: Path) -> Iterator[StartServer]:
    with ExitStack() as stack:

        def start(*flags: str, store: Path = tmp_path / "store") -> Server:
            server = Server(backbone_directory, store, *flags)
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="module")
def server(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a module that leave it as it was."""
    running = Server(backbone_directory, tmp_path_factory.mktemp("store"), "--metrics-port", "0")
    try:
        yield running.wait()
    finally:
        running.kill()

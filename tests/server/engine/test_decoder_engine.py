"""A decoder's engine as it is put together for a server: tiny models, real adapters, and what a start refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamix.errors import InvalidConfig
from adamix.evaluation.labelled import predict
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.modules.attach import attach
from adamix.rows.labelled import TokenRow
from adamix_kernels.paged import PAGE_TOKENS
from adamix_server.blobs.local import BlobStore
from adamix_server.channel.supervisor_frames import StartEngine
from adamix_server.config import EngineSettings
from adamix_server.engine import assembly
from adamix_server.engine.assembly import assemble
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.adapters import random_adapter
from adamix_testing.decoders import POSITIONS, text_adapters, tiny_decoder, written_alone
from adamix_testing.text_engine import Answer, FrontEnds

# Keys and values of two layers, two heads of eight features, in fp32.
PAGE_BYTES = PAGE_TOKENS * 2 * 2 * 2 * 8 * 4
LEAST_PAGES = POSITIONS // PAGE_TOKENS


def start_of(store: Path, **settings: Any) -> StartEngine:
    return StartEngine(
        settings=EngineSettings(
            backbone="in-memory",
            **{"device": "cpu", "dtype": "float32", "slots": 8, "arena_bytes": 1 << 20, "max_running": 3, **settings},
        ),
        engine_id="0",
        generation=1,
        address="",
        front_ends=1,
        store=store,
        tokenizer=store / "tokenizer.json",
        log_level="info",
    )


class Served(FrontEnds):
    def __init__(self, store: Path, **settings: Any) -> None:
        super().__init__()
        self.blobs = BlobStore(store / "blobs")
        self.engine = assemble(start_of(store, **settings), self, tiny_decoder("llama"), Recorder(), lambda: None)

    def add(self, adapter: AdapterFile) -> str:
        self.blobs.put(adapter_file.encode(adapter.manifest, adapter.tensors), adapter.digest)
        return adapter.digest


def test_texts_are_those_written_alone_and_rows_are_answered_by_their_heads(tmp_path: Path) -> None:
    served = Served(tmp_path, kv_bytes=(LEAST_PAGES + 1) * PAGE_BYTES, max_chunk_tokens=16)
    backbone = tiny_decoder("llama")
    adapters = text_adapters(backbone)
    digests = ["", *map(served.add, adapters)]
    reader = random_adapter(backbone.spec, 7, num_labels=3, pooling="mean")
    read_digest, random = served.add(reader), np.random.default_rng(0)
    asked: list[tuple[Answer, list[int]]] = []
    read: list[tuple[Answer, list[int]]] = []
    for number in range(10):
        prompt = random.integers(0, backbone.spec.vocab_size, int(random.integers(1, 50))).tolist()
        which = number % len(digests)
        expected = written_alone(backbone, adapters[which - 1] if which else None, prompt, 12)
        asked.append((served.ask(prompt, 12, digest=digests[which], eos_ids=[]), expected))
        read.append((served.ask(prompt, None, digest=read_digest), prompt))
    served.until_answered()
    assert [answer.tokens for answer, _ in asked] == [expected for _, expected in asked]
    offline = attach(reader, tiny_decoder("llama"))
    for answer, prompt in read:
        logits = np.frombuffer(answer.events[0].payload, "<f4")
        alone = predict(offline, [TokenRow(tuple(prompt), None, is_truncated=False)], pad_id=0)[0].numpy()
        np.testing.assert_allclose(logits, alone, atol=2e-4, rtol=1e-3)


def test_an_engine_says_what_it_can_take(tmp_path: Path) -> None:
    limits = Served(tmp_path, kv_bytes=40 * PAGE_BYTES, max_running=0).engine.hello.limits
    assert (limits.pages, limits.page_tokens, limits.max_running) == (39, 16, 64)


def test_texts_that_run_leave_half_of_a_step_to_prompts(tmp_path: Path) -> None:
    served = Served(tmp_path, kv_bytes=100 * PAGE_BYTES, max_running=16, max_batch_tokens=16)
    assert served.engine.hello.limits.max_running == 8
    running = [served.ask([1], 60, digest="", eos_ids=[]) for _ in range(16)]
    served.step(2)
    answer = served.ask([2, 3], 1, digest="", tenant="another", eos_ids=[])
    served.step(3)
    assert answer.is_over
    assert not any(each.is_over for each in running)


@pytest.mark.parametrize(
    ("settings", "field", "said"),
    [
        (
            {"kv_bytes": LEAST_PAGES * PAGE_BYTES},
            "kv_bytes",
            f"takes {(LEAST_PAGES + 1) * PAGE_BYTES} bytes for keys and values",
        ),
        ({"max_queue_tokens": POSITIONS - 1}, "max_queue_tokens", f"below the backbone's {POSITIONS} positions"),
        ({"deterministic": True, "quantize": "bf16"}, "quantize", "leave one of them out"),
        ({"deterministic": True, "dtype": "bfloat16"}, "deterministic", "--dtype float32"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_way_out(
    tmp_path: Path, settings: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(InvalidConfig, match=said) as refused:
        Served(tmp_path, **settings)
    assert refused.value.field == field


def test_an_encoder_keeps_its_weights_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly.backbone, "read_family", lambda _: assembly.backbone.sites.family("bert"))
    with pytest.raises(InvalidConfig, match="--quantize is for decoders, and bert is an encoder"):
        assembly.load_backbone(start_of(tmp_path, quantize="bf16"))


def test_a_decoder_brings_what_front_ends_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_decoder("llama")
    seen: dict[str, Any] = {}

    def load(name: str, **how: Any) -> Any:
        seen.update(how)
        return loaded

    monkeypatch.setattr(assembly.backbone, "read_family", lambda _: loaded.family)
    monkeypatch.setattr(assembly.backbone, "load", load)
    monkeypatch.setattr(assembly.backbone, "export_tokenizer", lambda _: "{}")
    monkeypatch.setattr(assembly.backbone, "export_generation", lambda _: '{"eos": [2]}')
    assert assembly.load_backbone(start_of(tmp_path)) is loaded
    assert seen["language_model"] is True
    assert (tmp_path / "generation.json").read_text(encoding="utf-8") == '{"eos": [2]}'

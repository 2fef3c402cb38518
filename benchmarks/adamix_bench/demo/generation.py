"""Demo, step h: a decoder learns to describe restaurants, and its adapter's text is streamed from a second server.

The texts it learns from are written by a program (`synthetic-e2e`), so nothing is said here of how good it is: only
what it writes before and after, and that the server writes what offline generation does.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.config import AdapterConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.data import load_generation
from adamix.errors import Cancelled, FailedPrecondition
from adamix.files import adapter_file, disk
from adamix.files.adapter_file import AdapterFile
from adamix.generation.beam_search import generate
from adamix.generation.decoding import Decoding
from adamix.merging import merge
from adamix.training import train as trainer
from adamix_client import Client, GenerateDelta, GeneratedText

BACKBONE = "smollm2"
TASK = "restaurants"
DATA = "synthetic-e2e"
SEED = 0
ROWS, STEPS, BATCH_SIZE = 100, 24, 2
LEARNING_RATE = 3e-3
MAX_LENGTH = 96
NEW_TOKENS = 48


@dataclass(frozen=True)
class Writer:
    """A merged adapter that writes, the source it is shown with, and what is written after that offline.

    `before` is what the backbone alone writes, `after` what it does with the adapter.
    """

    path: Path
    adapter: AdapterFile
    seconds: float
    source: str
    before: str
    after: str


def train(out: Path, on_progress: Callable[[str, int, int], None]) -> Writer:
    """Four experts, two routed passes a step, merged into one file: as the demo's classifiers, in few steps."""
    backbone = backbones.load(BACKBONE, language_model=True)
    tokenizer = backbones.load_tokenizer(BACKBONE)
    source = load_generation(DATA, split="test").examples[0].source
    data = load_generation(DATA, split="train")
    config = TrainConfig(
        max_steps=STEPS,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        max_length=MAX_LENGTH,
        seed=SEED,
        save_every=STEPS,
    )
    try:
        result = trainer.train(
            TrainingPlan(adapter=AdapterConfig(), mixture=MixtureConfig(), train=config),
            backbone,
            tokenizer,
            replace(data, examples=data.examples[:ROWS]),
            None,
            out / "runs" / TASK,
            callbacks=[lambda progress: on_progress(TASK, progress.step, progress.steps)],
        )
    except Cancelled:
        raise Cancelled("interrupted; the demo starts afresh next time") from None
    path = out / "adapters" / f"{TASK}.safetensors"
    disk.write(path, merge.merge(result.path.parent))
    adapter = adapter_file.read(path)
    greedy = Decoding(num_beams=1, length_penalty=1.0, no_repeat_ngram_size=0, max_new_tokens=NEW_TOKENS)
    (after,) = generate(adapter, backbone, tokenizer, [source], greedy).texts
    return Writer(path, adapter, result.seconds, source, _alone(backbone, tokenizer, source), after)


def serve(writer: Writer, client: Client, show: Callable[[str], None]) -> dict[str, Any]:
    """Register the adapter and let the server write; each piece is shown as it comes. The step's numbers.

    Raises:
        FailedPrecondition: another version answered than was registered.
    """
    digest = client.register(TASK, writer.path).version.digest
    began = time.perf_counter()

    def shown() -> Iterator[GenerateDelta]:
        for delta in client.generate(TASK, writer.source, max_new_tokens=NEW_TOKENS):
            show(delta.text)
            yield delta

    text = GeneratedText.of(shown())
    seconds = time.perf_counter() - began
    if text.version != digest:
        raise FailedPrecondition(f"version {text.version[:12]} of {TASK} answers, not {digest[:12]}")
    return {
        "task": TASK,
        "rows": ROWS,
        "steps": STEPS,
        "seconds": round(writer.seconds, 2),
        "bytes": writer.adapter.num_bytes,
        "source": writer.source,
        "before": writer.before,
        "text": text.text,
        "finish_reason": text.finish_reason,
        "usage": asdict(text.usage),
        "version": text.version,
        "tokens_per_s": text.usage.generated_tokens / seconds,
        "equals_offline": text.text.strip() == writer.after,
    }


@torch.inference_mode()
def _alone(backbone: Backbone, tokenizer: PreTrainedTokenizerFast, source: str) -> str:
    model: Any = backbone.language_model
    ids = torch.tensor([tokenizer(source)["input_ids"]])
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW_TOKENS // 2, "pad_token_id": 0}
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))

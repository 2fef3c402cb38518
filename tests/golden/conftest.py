"""What the `adamix` command says, against what it said when the golden documents were written.

All commands run in one directory with names that are always the same, so that documents name the same paths. What two
machines measure differently is masked: seconds, metrics, digests, sizes in bytes.
"""

import contextlib
import itertools
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

DOCUMENTS = Path(__file__).parent / "documents"
COLOURS = ("red", "green", "blue")
NOUNS = tuple(f"noun{i}" for i in range(12))
NUMBERS = ("one", "two", "three", "four")
NAMES = ("anna", "bert", "carl", "dora")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, *COLOURS, *NOUNS, *NUMBERS, *NAMES, "it", "was", ".", "name", "colour", "likes", "is", "fond", "of")

# Keys under which every number is measured, and not a setting.
_MEASURED = {"validation", "metrics", "mean", "std", "value", "bound"}
_MASKS = (
    (re.compile(r"\b[0-9a-f]{64}\b"), "<sha256>"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "<digest>"),
    (re.compile(r"\b\d+\.\d{3,}(e-?\d+)?"), "<float>"),
    (re.compile(r"\b\d+\.\d s\b"), "<seconds> s"),
    (re.compile(r"│ \d+\.\d │"), "│ <seconds> │"),
    (re.compile(r"\b[\d,]+ bytes\b"), "<bytes> bytes"),
    (re.compile(r"\bgreedy [\d,]+"), "greedy <experts>"),
)
# Lines that tell settings, not measurements.
_SETTINGS = ("recipe ", "given instead: ")
# Rules and columns of tables are as wide as what stands in them.
_RULES = re.compile(r"[─━┏┓┡╇┩└┴┘├┼┤┳]+")


@pytest.fixture(scope="session")
def is_writing() -> bool:
    """Whether the tests write the documents, and then compare them with themselves."""
    return bool(os.environ.get("ADAMIX_WRITE_GOLDEN"))


@pytest.fixture(scope="session")
def golden(is_writing: bool) -> Callable[..., None]:
    """`golden(name, document)` fails unless the document is that of the file; of a `.json` any value, else text.

    What is measured in it is masked; nothing is, with `is_measured=False`.
    """

    def compare(name: str, document: Any, *, is_measured: bool = True) -> None:
        path = DOCUMENTS / name
        if path.suffix == ".json":
            found = json.dumps(_masked(document) if is_measured else document, indent=1)
        else:
            found = _without_widths(document)
            found = "\n".join(map(_masked_line, found.splitlines())) if is_measured else found
        found = found.rstrip("\n") + "\n"
        if is_writing:
            path.write_text(found, encoding="utf-8")
        assert found == path.read_text(encoding="utf-8")

    return compare


def _masked(value: Any, key: str = "", *, is_measured: bool = False) -> Any:
    is_measured = is_measured or key in _MEASURED
    if key in ("seconds", "bytes"):
        return f"<{key}>"
    if isinstance(value, dict):
        return {name: _masked(item, name, is_measured=is_measured) for name, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, is_measured=is_measured) for item in value]
    if isinstance(value, float) and is_measured:
        return "<float>"
    return _masked_line(value) if isinstance(value, str) else value


def _masked_line(text: str) -> str:
    if text.startswith(_SETTINGS):
        return text
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    return text


def _without_widths(text: str) -> str:
    return "\n".join(re.sub(" +", " ", _RULES.sub("─", line)).rstrip() for line in text.splitlines())


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that commands run in: three tiny backbones, and data for each kind of task."""
    directory = tmp_path_factory.mktemp("golden")
    _write_backbones(directory)
    draw = random.Random(0)
    rows = [(_sentence(draw, colour), colour) for colour in COLOURS * 16]
    draw.shuffle(rows)
    lines = [f"{text},{colour}" for text, colour in rows]
    (directory / "colours").mkdir()
    for split, part in (("train", lines[:32]), ("validation", lines[32:40]), ("test", lines[40:])):
        (directory / "colours" / f"{split}.csv").write_text("\n".join(["text,label", *part]) + "\n")
    (directory / "colours.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    numbers = [(draw.randrange(4), draw.choice(NOUNS)) for _ in range(24)]
    numbered = [f"{NUMBERS[number]} {noun},{number}.5" for number, noun in numbers]
    (directory / "numbers.csv").write_text("\n".join(["text,label", *numbered]) + "\n")
    palettes = [sorted(draw.sample(COLOURS, draw.randrange(4))) for _ in range(24)]
    coloured = [json.dumps({"text": _sentence(draw, *colours), "label": colours}) for colours in palettes]
    (directory / "palettes.jsonl").write_text("\n".join(coloured) + "\n")
    likes = [
        json.dumps({"source": f"name {n} colour {c}", "references": [f"{n} likes {c}", f"{n} is fond of {c}"]})
        for n, c in itertools.product(NAMES, COLOURS)
    ]
    (directory / "likes").mkdir()
    for split, part in (("train", likes), ("validation", likes[:3])):
        (directory / "likes" / f"{split}.jsonl").write_text("\n".join(part) + "\n")
    return directory


@pytest.fixture(scope="session")
def adamix(place: Path) -> Callable[..., Any]:
    """`adamix(*arguments)` runs the command in `place`; gives click's result: exit_code, stdout, stderr."""
    # The whole command, as it is installed: with what the server's package adds to it.
    from adamix_server.cli.main import app

    def run(*arguments: object) -> Any:
        with contextlib.chdir(place):
            environment = {"COLUMNS": "160", "PATH": ""}
            return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)

    return run


def _write_backbones(directory: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
    )

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.add_special_tokens(list(SPECIAL))
    spoken = Tokenizer.from_str(words.to_str())
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    encoder = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    ends = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    decoder = PreTrainedTokenizerFast(tokenizer_object=spoken, **ends)
    # Larger weights than BERT's 0.02: a random body must pass on which words it saw.
    bert = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.2,
    )
    gpt2 = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=48, initializer_range=0.3)
    for name, make, tokenizer in (
        ("bert", lambda: BertModel(bert), encoder),
        ("masked", lambda: BertForMaskedLM(bert), encoder),
        ("gpt2", lambda: GPT2LMHeadModel(gpt2), decoder),
    ):
        torch.manual_seed(0)
        make().save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)


def _sentence(draw: random.Random, *needed: str) -> str:
    words = [*needed, *draw.sample(NOUNS, 2)]
    draw.shuffle(words)
    return " ".join(words)

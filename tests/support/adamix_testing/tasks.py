"""Data that a tiny backbone learns in a second: texts whose label depends on a word, texts made from attributes."""

import itertools
import random

from adamix.data import Example, GenerationData, GenerationExample, TaskData

_NOUNS = [f"noun{i}" for i in range(30)]
_COLOURS = ["red", "green", "blue"]
_NUMBERS = ["one", "two", "three", "four", "five"]
_NAMES = ["anna", "bert", "carl", "dora"]
# Every word of the labelled data, and every word of `likes`.
LABELLED_WORDS = (*_COLOURS, *_NUMBERS, *_NOUNS)
SPOKEN_WORDS = ("name", "colour", "likes", "is", "fond", "of", *_NAMES, *_COLOURS)


def colours() -> TaskData:
    """Classification: the one colour in the text."""
    rng = random.Random(0)
    examples = []
    for _ in range(48):
        label = rng.randrange(3)
        examples.append(Example(_sentence(rng, [_COLOURS[label]]), label))
    return TaskData("colours", "classification", tuple(_COLOURS), tuple(examples))


def palettes() -> TaskData:
    """Multi-label: the colours in the text, none to three."""
    rng = random.Random(1)
    examples = []
    for _ in range(48):
        chosen = sorted(rng.sample(range(3), rng.randrange(4)))
        examples.append(Example(_sentence(rng, [_COLOURS[i] for i in chosen]), tuple(chosen)))
    return TaskData("palettes", "multilabel", tuple(_COLOURS), tuple(examples))


def numbers() -> TaskData:
    """Regression, far from zero mean and unit deviation: 100 plus ten times the number in the text."""
    rng = random.Random(2)
    examples = []
    for _ in range(48):
        value = rng.randrange(5)
        examples.append(Example(_sentence(rng, [_NUMBERS[value]]), 100.0 + 10.0 * (value + 1)))
    return TaskData("numbers", "regression", (), tuple(examples))


def likes() -> GenerationData:
    """Sources of two attributes, each with two references of different lengths."""
    examples = [
        GenerationExample(f"name {name} colour {colour}", (f"{name} likes {colour}", f"{name} is fond of {colour}"))
        for name, colour in itertools.product(_NAMES, _COLOURS)
    ]
    return GenerationData("likes", tuple(examples), is_synthetic=True)


def csv_lines(data: TaskData) -> list[str]:
    """`text,label` and a line for each example: the label's name, or the number of a regression."""
    lines = ["text,label"]
    for example in data.examples:
        assert not isinstance(example.label, tuple), "a column holds one label"
        label = data.labels[int(example.label)] if data.labels else example.label
        lines.append(f"{example.text},{label}")
    return lines


def _sentence(rng: random.Random, needed: list[str]) -> str:
    words = needed + rng.sample(_NOUNS, rng.randrange(1, 4))
    rng.shuffle(words)
    return " ".join(words)

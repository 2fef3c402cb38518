"""The synthetic data in the format of E2E: the same on every machine, distinct, and every attribute is said."""

import hashlib
import time

import pytest

from adamix.data import SPLITS, GenerationData, load_generation
from adamix.data.generation.synthetic import MAX_REFERENCES, SIZES, synthetic_e2e
from adamix.errors import InvalidData

SAID = {
    "price": {
        "cheap": ("cheap", "low prices"),
        "moderate": ("moderate prices", "moderately priced"),
        "high": ("expensive", "high prices"),
    },
    "family friendly": {
        "yes": (" family friendly", "child friendly", "welcomes families", "is suitable for children"),
        "no": ("not family friendly", "not suitable for children"),
    },
}


@pytest.fixture(scope="module")
def parts() -> dict[str, GenerationData]:
    return {split: load_generation("synthetic-e2e", split=split) for split in SPLITS}


def test_sizes_and_the_name_by_which_reports_know_it(parts: dict[str, GenerationData]) -> None:
    assert {split: len(part.examples) for split, part in parts.items()} == SIZES
    assert all(part.is_synthetic and part.name == "synthetic-e2e" for part in parts.values())


def test_no_meaning_is_in_two_splits_or_twice_in_one(parts: dict[str, GenerationData]) -> None:
    sources = [example.source for part in parts.values() for example in part.examples]
    assert len(sources) == len(set(sources))


def test_the_texts_are_the_same_on_every_machine(parts: dict[str, GenerationData]) -> None:
    text = "\n".join(f"{e.source}\t{r}" for split in SPLITS for e in parts[split].examples for r in e.references)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "c06d429895c3cafc95fbe100425d058924a59c8022f7cac9b8d7fdf1c2d83923"
    )


def test_every_reference_says_every_attribute_and_nothing_of_the_other_sort(parts: dict[str, GenerationData]) -> None:
    for example in parts["test"].examples:
        values = dict(part.split(" : ") for part in example.source.split(" | "))
        for text in example.references:
            for name, value in values.items():
                ways = SAID.get(name, {}).get(value, (value,))
                assert any(way in text for way in ways), (name, value, text)
            if "family friendly" not in values:
                assert "famil" not in text
                assert "child" not in text
            if "price" not in values:
                assert "price" not in text
                assert "£" not in text


def test_references_of_a_meaning_differ(parts: dict[str, GenerationData]) -> None:
    for part in parts.values():
        for example in part.examples:
            assert len(set(example.references)) == len(example.references) <= MAX_REFERENCES
            assert all(text == " ".join(text.split()) and text.endswith(".") for text in example.references)
    counts = [len(example.references) for example in parts["test"].examples]
    assert sum(counts) / len(counts) > 3.5


def test_seeds_and_sizes() -> None:
    sizes = dict.fromkeys(SPLITS, 20)
    one, other = (synthetic_e2e("test", seed=seed, sizes=sizes) for seed in (1, 2))
    assert one == synthetic_e2e("test", seed=1, sizes=sizes)
    assert one != other
    assert len(one.examples) == 20


def test_it_takes_no_time_and_has_no_subset() -> None:
    start = time.process_time()
    load_generation("synthetic-e2e", split="test")
    assert time.process_time() - start < 3  # a third of a second of work, on a slow and busy machine
    with pytest.raises(InvalidData, match="no categories"):
        load_generation("synthetic-e2e", split="test", subset="seen")

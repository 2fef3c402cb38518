"""Synthetic restaurant descriptions in the format of E2E NLG, for machines that cannot fetch the real ones.

A program writes these texts: they serve to test and to demonstrate, and a score on them says nothing about a score on
E2E. Vocabulary and sentences are this project's own. Every reference states every attribute, so what a model leaves
out or invents costs it score. Only `random.random` is drawn from, the one method whose sequence Python promises to
keep, so all machines and versions make the same texts.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

from adamix.data.generation.data import GenerationData, GenerationExample
from adamix.data.generation.e2e import linearise_mr
from adamix.data.task import SPLITS, Split

SYNTHETIC_E2E = "synthetic-e2e"
# Meaning representations in train, validation and test; no two are equal.
SIZES: dict[Split, int] = {"train": 4_000, "validation": 500, "test": 500}
MAX_REFERENCES = 6

Item = TypeVar("Item")

_NAMES = tuple(
    f"The {first} {second}"
    for first in [
        "Copper",
        "Crooked",
        "Gilded",
        "Hidden",
        "Laughing",
        "Marble",
        "Quiet",
        "Salted",
        "Silver",
        "Velvet",
        "Wandering",
        "Winter",
    ]
    for second in [
        "Anchor",
        "Badger",
        "Compass",
        "Fiddle",
        "Heron",
        "Kettle",
        "Lantern",
        "Orchard",
        "Pepper",
        "Spoon",
        "Thistle",
        "Walnut",
    ]
)
_LANDMARKS = ("Market Hall", "Rose Bridge", "Harbour Mill", "Linden Square", "Old Observatory", "Tram Museum")
_TYPES = ("restaurant", "pub", "coffee shop", "bistro", "tea room", "diner")
_FOODS = ("Italian", "French", "Japanese", "Indian", "Greek", "Mexican", "Thai", "Turkish", "vegetarian", "Spanish")
_PRICES = {
    "cheap": ("cheap", "has low prices"),
    "moderate": ("moderately priced", "has moderate prices"),
    "high": ("expensive", "has high prices"),
    "less than £15": (None, "charges less than £15"),
    "£15-20": (None, "has prices of £15-20"),
    "more than £25": (None, "charges more than £25"),
}
_RATINGS = ("low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5")
_AREAS = {
    "riverside": "by the riverside",
    "city centre": "in the city centre",
    "old town": "in the old town",
    "harbour": "at the harbour",
}
# How often an attribute is given, in the order of the format; a name always is.
_SHARES = {
    "eatType": 0.85,
    "food": 0.75,
    "priceRange": 0.55,
    "customer rating": 0.55,
    "area": 0.6,
    "familyFriendly": 0.5,
    "near": 0.45,
}
_VALUES: dict[str, Sequence[str]] = {
    "eatType": _TYPES,
    "food": _FOODS,
    "priceRange": tuple(_PRICES),
    "customer rating": _RATINGS,
    "area": tuple(_AREAS),
    "familyFriendly": ("yes", "no"),
    "near": _LANDMARKS,
}


def synthetic_e2e(split: Split, *, seed: int = 0, sizes: dict[Split, int] | None = None) -> GenerationData:
    """One split of the generated data; `is_synthetic` is set.

    Args:
        split: `train`, `validation` or `test`.
        seed: another number gives other texts; `--data synthetic-e2e` is 0.
        sizes: meaning representations in each split, in place of `SIZES`.
    """
    counts = sizes or SIZES
    start = sum(counts[before] for before in SPLITS[: SPLITS.index(split)])
    return GenerationData(
        SYNTHETIC_E2E, tuple(islice(_examples(seed), start, start + counts[split])), is_synthetic=True
    )


class _Dice:
    """Draws from a seeded sequence of uniform numbers."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random  # noqa: S311 - reproducible texts, not a secret

    def chance(self, share: float) -> bool:
        return self._random() < share

    def below(self, limit: int) -> int:
        return int(self._random() * limit)

    def choice(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        remaining = list(items)
        return [remaining.pop(self.below(len(remaining))) for _ in items]


def _examples(seed: int) -> Iterator[GenerationExample]:
    """Distinct meaning representations without end, each with 3 to 6 references (fewer where fewer can be said)."""
    dice = _Dice(seed)
    seen: set[str] = set()
    while True:
        values = _meaning(dice)
        source = linearise_mr(SYNTHETIC_E2E, ", ".join(f"{name}[{value}]" for name, value in values.items()))
        if source in seen:
            continue
        seen.add(source)
        wanted = 3 + dice.below(MAX_REFERENCES - 2)
        # A dictionary keeps the order, a set would not.
        texts = dict.fromkeys(_describe(dice, values) for _ in range(2 * wanted))
        yield GenerationExample(source, tuple(texts)[:wanted])


def _meaning(dice: _Dice) -> dict[str, str]:
    """The name and at least two more attributes."""
    while True:
        values = {"name": dice.choice(_NAMES)}
        for name, share in _SHARES.items():
            if dice.chance(share):
                values[name] = dice.choice(_VALUES[name])
        if len(values) >= 3:
            return values


def _describe(dice: _Dice, values: dict[str, str]) -> str:
    """One text: an opening sentence around the name, then what it has not said, one to three facts a sentence."""
    facts = dict(values)
    name = facts.pop("name")
    noun = facts.pop("eatType", "place")
    thing = _thing(dice, facts, noun)
    offer = _offer(dice, facts)
    place = _place(dice, facts)
    claims = dice.shuffled([_claim(dice, fact, value) for fact, value in facts.items()])
    openings = [f"{name} is {thing}{offer}{place}.", f"There is {thing} called {name}{offer}{place}."]
    if place:
        openings.append(f"{place[1].upper()}{place[2:]}, you can find {thing} called {name}{offer}.")
    if claims:
        openings.append(f"{name}, {thing}{offer}{place}, {claims[0]}.")
    opening = dice.choice(openings)
    if claims and opening == openings[-1]:
        del claims[0]
    sentences = [opening]
    while claims:
        count = 1 + dice.below(3)
        said, claims = claims[:count], claims[count:]
        subject = dice.choice(("It", "This place", "The place" if noun == "place" else f"The {noun}", name))
        sentences.append(f"{subject} {_enumerate(said)}.")
    return " ".join(sentences)


def _thing(dice: _Dice, facts: dict[str, str], noun: str) -> str:
    """`a cheap Thai pub`; takes what it says out of `facts`."""
    words = [noun]
    if "food" in facts and dice.chance(0.4):
        words.insert(0, facts.pop("food"))
        if noun == "place":
            words.insert(1, "food")
    if facts.get("familyFriendly") == "yes" and dice.chance(0.4):
        del facts["familyFriendly"]
        words.insert(0, dice.choice(("family friendly", "child friendly")))
    price = _PRICES[facts["priceRange"]][0] if "priceRange" in facts else None
    if price is not None and dice.chance(0.5):
        del facts["priceRange"]
        words.insert(0, price)
    phrase = " ".join(words)
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def _offer(dice: _Dice, facts: dict[str, str]) -> str:
    """` serving Greek food`; takes what it says out of `facts`."""
    if "food" not in facts or dice.chance(0.4):
        return ""
    food = facts.pop("food")
    return dice.choice((f" serving {food} food", f" with {food} food", f" that offers {food} dishes"))


def _place(dice: _Dice, facts: dict[str, str]) -> str:
    """` at the harbour near Rose Bridge`; takes what it says out of `facts`."""
    place = ""
    if "area" in facts and dice.chance(0.6):
        place += f" {_AREAS[facts.pop('area')]}"
    if "near" in facts and dice.chance(0.6):
        place += f" {dice.choice(('near', 'close to', 'not far from'))} {facts.pop('near')}"
    return place


def _claim(dice: _Dice, name: str, value: str) -> str:
    """A verb phrase that states one attribute."""
    if name == "food":
        return dice.choice((f"serves {value} food", f"offers {value} dishes"))
    if name == "priceRange":
        return _PRICES[value][1]
    if name == "customer rating":
        return dice.choice((f"has a customer rating of {value}", f"is rated {value} by its customers"))
    if name == "area":
        return dice.choice((f"is {_AREAS[value]}", f"lies {_AREAS[value]}"))
    if name == "near":
        return dice.choice((f"is near {value}", f"stands close to {value}"))
    if value == "yes":
        return dice.choice(("welcomes families", "is suitable for children"))
    return dice.choice(("is not family friendly", "is not suitable for children"))


def _enumerate(claims: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(claims[:-1]), claims[-1]) if part)

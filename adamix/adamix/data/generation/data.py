"""What a text-generation data set is once it is read and checked, and the checks themselves.

Every reader (files, the `datasets` library, the generator) hands its rows over unchecked; they are checked, grouped by
source and split here, once. Knows no file format, no tokenizer and no metric.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from adamix.data.rows import MAX_ROWS, check_text
from adamix.data.task import Split, split_of
from adamix.errors import InvalidData

Subset = Literal["all", "seen", "unseen"]
SUBSETS: tuple[Subset, ...] = get_args(Subset)

# The ten categories of WebNLG 2017 that its training set has; the test set has five more, the "unseen" ones.
SEEN_CATEGORIES = frozenset(
    [
        "Airport",
        "Astronaut",
        "Building",
        "City",
        "ComicsCharacter",
        "Food",
        "Monument",
        "SportsTeam",
        "University",
        "WrittenWork",
    ]
)
# Tab and line ends are white space; the others end strings, ring bells or steer terminals.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class GenerationExample:
    """A source text and the texts that a model may answer with, at least one, in the order of the data.

    `category` is the topic that WebNLG gives an entry; None elsewhere.

    Raises:
        InvalidData: there is no reference.
    """

    source: str
    references: tuple[str, ...]
    category: str | None = None

    def __post_init__(self) -> None:
        if not self.references:
            raise InvalidData(f"the source {self.source[:60]!r} has no reference")


@dataclass(frozen=True)
class GenerationData:
    """One split of a text-generation data set: distinct sources, each with all its references.

    `is_synthetic` says that a program wrote the texts; whatever reports a score on them must say so.
    """

    name: str
    examples: tuple[GenerationExample, ...]
    is_synthetic: bool = False


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as its source has it, nothing checked. `where` is for error messages."""

    where: str
    source: object
    references: Iterable[object]
    category: str | None = None


def assemble_generation(
    name: str,
    parts: Mapping[Split, Iterable[SourceRow]],
    split: Split,
    *,
    subset: Subset = "all",
    is_split: bool | None = None,
) -> GenerationData:
    """Check the rows of a source and return one split of it.

    Rows of equal source text are one example with all their references, wherever they stand. A source that has a
    train part only is split by a hash of the source text (`split_of`); one with several is taken as it is. White
    space around a text is removed.

    Args:
        name: what messages and reports call the data set.
        parts: the rows of each split the source has; those that the answer does not depend on may be left out.
        split: the split to return.
        subset: only entries of the categories that WebNLG 2017 trains on (`seen`), or only the others (`unseen`).
        is_split: the source has other parts than train; None where `parts` is all it has.

    Raises:
        InvalidData: a row is malformed, a limit is passed, the rows have no category to choose a subset by, or the
            split is missing (`SPLIT_MISSING`) or empty (`SPLIT_EMPTY`).
    """
    if is_split is None:
        is_split = set(parts) != {"train"}
    if is_split and split not in parts:
        raise InvalidData(f"{name} has no {split} split, only {', '.join(parts)}", reason="SPLIT_MISSING")
    examples = _grouped(name, parts[split if is_split else "train"])
    found = [e for e in examples if _is_wanted(name, e, subset) and (is_split or split_of(e.source) == split)]
    if not found:
        what = "" if subset == "all" else f" of the {subset} categories"
        raise InvalidData(
            f"{name} has {len(examples)} sources, but none{what} in its {split} split", reason="SPLIT_EMPTY"
        )
    return GenerationData(name, tuple(found))


def _grouped(name: str, rows: Iterable[SourceRow]) -> list[GenerationExample]:
    texts: dict[str, GenerationExample] = {}
    references: dict[str, list[str]] = {}
    count = 0
    for row in rows:
        source = _text(row.where, "source", row.source)
        found = [_text(row.where, "reference", reference) for reference in row.references]
        if not found:
            raise InvalidData(f"{row.where}: no reference text here")
        count += len(found)
        if count > MAX_ROWS:
            raise InvalidData(f"{name} has more than {MAX_ROWS} references")
        if source not in texts:
            texts[source] = GenerationExample(source, (found[0],), row.category)
        references.setdefault(source, []).extend(found)
    return [replace(example, references=tuple(references[source])) for source, example in texts.items()]


def _text(where: str, column: str, value: object) -> str:
    text = check_text(where, column, value).strip()
    if control := _CONTROL.search(text):
        raise InvalidData(f"{where}: {column} has the control character U+{ord(control.group()):04X}")
    return text


def _is_wanted(name: str, example: GenerationExample, subset: Subset) -> bool:
    if subset == "all":
        return True
    if example.category is None:
        raise InvalidData(f"{name} has no categories; only WebNLG has a seen and an unseen subset")
    return (example.category in SEEN_CATEGORIES) == (subset == "seen")

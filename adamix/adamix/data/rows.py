"""From raw rows to checked `TaskData`: texts, label names, task type, split.

Every reader (files, corpora, the `datasets` library) hands its rows over unchecked; all checks are here, once. An
error names the row by its `where`, which for a file is `FILE:LINE`.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adamix.data.task import SPLITS, TASK_TYPES, Example, Split, TaskData, TaskType, split_of
from adamix.errors import InvalidConfig, InvalidData
from adamix.files.manifest import MAX_LABELS, MAX_NAME

MAX_ROWS = 5_000_000
MAX_TEXT_CHARS = 131_072
# Far inside fp32, so that squares of differences stay finite in the loss.
MAX_TARGET = 1e15
MULTILABEL_SEPARATOR = "|"
# Published test sets that keep their labels secret have this one in every row.
_HIDDEN = -1
_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as its source has it, nothing checked. `where` is for error messages."""

    where: str
    text: object
    pair: object
    label: object


def assemble(
    name: str,
    parts: Mapping[Split, Iterable[Row]],
    split: Split,
    task_type: TaskType | None,
    label_names: tuple[str, ...] | None = None,
    *,
    is_split: bool | None = None,
) -> TaskData:
    """Check the rows of a source and return one split of it.

    A source that has a train part only is split by hash (`split_of`); one with several is taken as it is. Label
    ids follow the names of all parts together, in numeric order where all are integers, else in alphabetic order, so
    every split of one source has the same ids.

    Args:
        name: what messages and reports call the data set.
        parts: the rows of each split the source has; those that the answer does not depend on may be left out.
        split: the split to return.
        task_type: None to infer it: lists are multilabel; numbers that are not all integers are regression; anything
            else is classification.
        label_names: names in the order of their ids, where the source fixes them; labels of the rows are then ids.
        is_split: the source has other parts than train; None where `parts` is all it has.

    Raises:
        InvalidData: a row is malformed, a limit is passed, or the split is missing (`SPLIT_MISSING`) or empty
            (`SPLIT_EMPTY`).
    """
    if is_split is None:
        is_split = set(parts) != {"train"}
    if is_split and split not in parts:
        raise InvalidData(f"{name} has no {split} split, only {', '.join(parts)}", reason="SPLIT_MISSING")
    rows = {part: _checked_texts(name, part_rows) for part, part_rows in parts.items()}
    if not is_split:
        rows = _by_hash(rows["train"])
    everything = [row for part in rows.values() for row in part]
    if not rows[split]:
        raise InvalidData(f"{name} has {len(everything)} rows, but none in its {split} split", reason="SPLIT_EMPTY")
    if len({row.pair is None for row in everything}) > 1:
        row = next(row for row in everything if row.pair is None)
        raise InvalidData(f"{row.where}: no text_pair here, though other rows have one")
    kind = task_type or _infer(everything)
    if kind == "regression":
        return TaskData(name, kind, (), _with_targets(name, split, rows[split]))
    named = label_names is not None
    names = label_names or _collect_names(name, everything, kind)
    if split == "train" and kind == "classification" and len(names) < 2:
        raise InvalidData(f"{name} has one label only, {_clip(names[0])}; there is nothing to learn")
    ids = {str(i) if named else label: i for i, label in enumerate(names)}
    return TaskData(name, kind, names, tuple(_labelled(row, kind, ids) for row in rows[split]))


def check_arguments(split: str, task_type: str | None) -> tuple[Split, TaskType | None]:
    """The two choices of a caller, or InvalidConfig naming what there is."""
    known_split = next((known for known in SPLITS if known == split), None)
    if known_split is None:
        raise InvalidConfig(f"split {split!r} is not one of {', '.join(SPLITS)}")
    known_type = next((known for known in TASK_TYPES if known == task_type), None)
    if known_type is None and task_type is not None:
        raise InvalidConfig(f"task type {task_type!r} is not one of {', '.join(TASK_TYPES)}")
    return known_split, known_type


@dataclass(frozen=True, slots=True)
class _Checked:
    where: str
    text: str
    pair: str | None
    label: Any


def _checked_texts(name: str, rows: Iterable[Row]) -> list[_Checked]:
    checked: list[_Checked] = []
    for row in rows:
        if len(checked) == MAX_ROWS:
            raise InvalidData(f"{name} has more than {MAX_ROWS} rows")
        text = check_text(row.where, "text", row.text)
        pair = None if row.pair is None or row.pair == "" else check_text(row.where, "text_pair", row.pair)
        checked.append(_Checked(row.where, text, pair, row.label))
    return checked


def check_text(where: str, column: str, value: object) -> str:
    """The value as a text: a string that is not blank, not too long and valid Unicode; or InvalidData."""
    if not isinstance(value, str):
        raise InvalidData(f"{where}: {column} is missing" if value is None else f"{where}: {column} is not a string")
    if not value or value.isspace():
        raise InvalidData(f"{where}: {column} is empty")
    if len(value) > MAX_TEXT_CHARS:
        raise InvalidData(f"{where}: {column} is over {MAX_TEXT_CHARS} characters")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidData(f"{where}: {column} is not valid Unicode (half of a surrogate pair)")
    return value


def _by_hash(rows: list[_Checked]) -> dict[Split, list[_Checked]]:
    parts: dict[Split, list[_Checked]] = {part: [] for part in SPLITS}
    for row in rows:
        parts[split_of(row.text, row.pair)].append(row)
    return parts


def _infer(rows: list[_Checked]) -> TaskType:
    if any(isinstance(row.label, list | tuple) for row in rows):
        return "multilabel"
    if all(_is_integer(row.label) for row in rows):
        return "classification"
    words = [row for row in rows if _as_float(row.label) is None]
    if words and any(_as_float(row.label) is not None and not _is_integer(row.label) for row in rows):
        # Measurements with a gap ("n/a") would silently become classes, one for each number.
        raise InvalidData(
            f"{words[0].where}: label {_clip(words[0].label)} is not a number, but others are; say --task-type"
        )
    return "classification" if words else "regression"


def _with_targets(name: str, split: Split, rows: list[_Checked]) -> tuple[Example, ...]:
    targets = [_target(row) for row in rows]
    if split != "train" and len(targets) > 1 and set(targets) == {_HIDDEN}:
        raise InvalidData(f"{name}: every label of the {split} split is -1: hidden; choose another split")
    return tuple(Example(row.text, target, row.pair) for row, target in zip(rows, targets, strict=True))


def _target(row: _Checked) -> float:
    value = _as_float(row.label)
    if value is None:
        raise InvalidData(f"{row.where}: label {_clip(row.label)} is not a number, as regression needs")
    if not math.isfinite(value) or abs(value) > MAX_TARGET:
        raise InvalidData(f"{row.where}: label {_clip(row.label)} is not a finite number")
    return value


def _as_float(label: object) -> float | None:
    if isinstance(label, bool) or not isinstance(label, int | float | str):
        return None
    if isinstance(label, str) and "_" in label:
        return None  # Python's own way to write a number, nobody else's
    try:
        return float(label)
    except (ValueError, OverflowError):
        return None


def _is_integer(label: object) -> bool:
    return isinstance(label, int) or (isinstance(label, str) and _INTEGER.fullmatch(label.strip()) is not None)


def _names(row: _Checked, kind: TaskType) -> list[str]:
    """The label names of one row as its source writes them."""
    if kind == "classification":
        return [_name(row, row.label)]
    if isinstance(row.label, str):
        parts = row.label.split(MULTILABEL_SEPARATOR) if row.label.strip() else []
        return [_name(row, part) for part in parts]
    if not isinstance(row.label, list | tuple):
        raise InvalidData(f"{row.where}: label {_clip(row.label)} is not a list of label names")
    return [_name(row, part) for part in row.label]


def _name(row: _Checked, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise InvalidData(
            f"{row.where}: label is missing" if value is None else f"{row.where}: label {_clip(value)} is not a name"
        )
    if _is_vast(value):
        raise InvalidData(f"{row.where}: label {_clip(value)} is too long or has control characters")
    name = str(value).strip()
    if not name:
        raise InvalidData(f"{row.where}: label is empty")
    # Printable is sufficient but not necessary: emoji are joined by characters that are not.
    if len(name) > MAX_NAME or (not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in name)):
        raise InvalidData(f"{row.where}: label {_clip(name)} is too long or has control characters")
    return name


def _collect_names(name: str, rows: list[_Checked], kind: TaskType) -> tuple[str, ...]:
    found = {label for row in rows for label in _names(row, kind)}
    if len(found) > MAX_LABELS:
        raise InvalidData(
            f"{name} has {len(found)} different labels, more than {MAX_LABELS}; say --task-type regression for numbers"
        )
    if not found:
        raise InvalidData(f"{name} has no labels; there is nothing to learn")
    if all(_is_integer(label) for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def _labelled(row: _Checked, kind: TaskType, ids: Mapping[str, int]) -> Example:
    names = _names(row, kind)
    unknown = [label for label in names if label not in ids]
    if unknown:
        hidden = ": hidden; choose another split" if unknown == [str(_HIDDEN)] else ""
        raise InvalidData(f"{row.where}: label {_clip(unknown[0])} is not one of the {len(ids)} labels{hidden}")
    found = tuple(sorted({ids[label] for label in names}))
    return Example(row.text, found if kind == "multilabel" else found[0], row.pair)


def _clip(value: object) -> str:
    # Never the repr of a list or object: a deeply nested one exhausts the stack.
    if _is_vast(value):
        return "of very many digits"
    return repr(value)[:60] if isinstance(value, str | int | float | None) else f"of type {type(value).__name__}"


def _is_vast(value: object) -> bool:
    """Whether it is a whole number longer than any name; Python refuses to write one of some thousand digits."""
    return isinstance(value, int) and value.bit_length() > 4 * MAX_NAME

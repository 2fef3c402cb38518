"""Rows of CSV and JSONL files, with the file and line of each. Checks the file, not what the rows say.

CSV: RFC 4180 with a header that names `text`, `label` and optionally `text_pair`; JSONL: one object a line with the
same keys. UTF-8, with or without a byte order mark. Other columns and keys are ignored.
"""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adamix.data.rows import MAX_TEXT_CHARS, Row
from adamix.data.task import SPLITS, Split
from adamix.errors import InvalidData

SUFFIXES = (".csv", ".jsonl")
MAX_FILE_BYTES = 4 << 30
# Room for a pair of the longest texts with every character escaped.
MAX_LINE_BYTES = 16 * MAX_TEXT_CHARS
_OF_GENERATION = " (sources and targets are for --task-type generation)"


def read_parts(path: Path) -> dict[Split, Iterator[Row]]:
    """The rows of a file (as its train part), or of `train`, `validation` and `test` in a directory.

    Raises:
        InvalidData: nothing to read there; while iterating also `FILE:LINE: …` for the first malformed line.
    """
    if not path.is_dir():
        return {"train": read_file(path)}
    parts: dict[Split, Iterator[Row]] = {}
    for split in SPLITS:
        found = split_files(path, split)
        if len(found) > 1:
            raise InvalidData(f"{path.name} has both {found[0].name} and {found[1].name}; keep one")
        if found:
            parts[split] = read_file(found[0])
    if not parts:
        raise InvalidData(f"{path.name} is a directory without train, validation or test (.csv or .jsonl)")
    return parts


def split_files(directory: Path, split: Split) -> list[Path]:
    """The files of a directory that are called as a split is; more than one is one too many."""
    return [path for suffix in SUFFIXES if (path := directory / (split + suffix)).exists()]


def read_file(path: Path) -> Iterator[Row]:
    """The rows of one file, by its suffix. Raises InvalidData."""
    if path.suffix not in SUFFIXES:
        raise InvalidData(f"{path.name} is neither .csv nor .jsonl")
    check_file(path, MAX_FILE_BYTES)
    return _read_csv(path) if path.suffix == ".csv" else _read_jsonl(path)


def check_file(path: Path, max_bytes: int) -> None:
    """Raises InvalidData unless the path is a regular file of at most so many bytes."""
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise InvalidData(f"{path.name} {problem}")
    if path.stat().st_size > max_bytes:
        limit = f"{max_bytes >> 30} GiB" if max_bytes >> 30 else f"{max_bytes >> 20} MiB"
        raise InvalidData(f"{path.name} is over {limit}")


def read_lines(path: Path) -> Iterator[str]:
    """Lines with their ends as they are; one is what a line feed ends, so numbers agree with editors and with wc."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InvalidData(f"{path.name}:{number}: line is over {MAX_LINE_BYTES >> 10} KiB")
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise InvalidData(f"{path.name}:{number}: not UTF-8; convert the file first") from None
    except OSError as error:
        raise InvalidData(f"cannot read {path.name}: {error.strerror}") from None


def _read_csv(path: Path) -> Iterator[Row]:
    for where, fields in read_csv(path, _columns):
        yield Row(where, fields["text"], fields.get("text_pair"), fields["label"])


def read_csv(
    path: Path, columns_of: Callable[[str, list[str]], dict[str, int]]
) -> Iterator[tuple[str, dict[str, str]]]:
    """`FILE:LINE` and the fields of each record.

    `columns_of` is given the place and the fields of the header; it says which columns to read, by name, or raises.
    """
    reader = csv.reader(read_lines(path), strict=True)
    start = 1
    columns: dict[str, int] | None = None
    width = 0
    try:
        for fields in reader:
            where = f"{path.name}:{start}"
            start = reader.line_num + 1
            if not fields:
                continue
            if columns is None:
                columns, width = columns_of(where, fields), len(fields)
                continue
            if len(fields) != width:
                raise InvalidData(
                    f"{where}: {len(fields)} columns, but the header has {width}; quote texts with commas"
                )
            yield where, {name: fields[index] for name, index in columns.items()}
    except csv.Error as error:
        raise InvalidData(f"{path.name}:{start}: malformed CSV ({error})") from None


def _columns(where: str, header: list[str]) -> dict[str, int]:
    names = [field.strip() for field in header]
    for wanted in ("text", "label"):
        if wanted not in names:
            hint = _OF_GENERATION if {"source", "target"} <= set(names) or {"mr", "ref"} <= set(names) else ""
            raise InvalidData(
                f"{where}: no column named {wanted}; the header needs text, label and perhaps text_pair{hint}"
            )
    for wanted in ("text", "text_pair", "label"):
        if names.count(wanted) > 1:
            raise InvalidData(f"{where}: two columns named {wanted}")
    return {name: index for index, name in enumerate(names)}


def _read_jsonl(path: Path) -> Iterator[Row]:
    for where, value in read_objects(path):
        for key in ("text", "label"):
            if key not in value:
                raise InvalidData(f"{where}: no key {key!r}{_OF_GENERATION if 'source' in value else ''}")
        yield Row(where, value["text"], value.get("text_pair"), value["label"])


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`FILE:LINE` and the object of each line of a JSONL file that is not blank."""
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise InvalidData(f"{where}: not valid JSON; each line is one object") from None
        if not isinstance(value, dict):
            raise InvalidData(f"{where}: not a JSON object")
        yield where, value

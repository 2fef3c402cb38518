"""Which reader a `--data` value means for text generation, and which file of a directory is which split."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adamix.data.files import MAX_FILE_BYTES, check_file, read_objects
from adamix.data.generation.dart import read_dart
from adamix.data.generation.data import SUBSETS, GenerationData, SourceRow, Subset, assemble_generation
from adamix.data.generation.e2e import read_generation_csv, read_joined
from adamix.data.generation.hub import read_generation_hub
from adamix.data.generation.synthetic import SYNTHETIC_E2E, synthetic_e2e
from adamix.data.generation.webnlg import read_webnlg_json, read_webnlg_xml
from adamix.data.hub import NAME
from adamix.data.rows import check_arguments
from adamix.data.task import Split
from adamix.errors import InvalidConfig, InvalidData

# Parsed as a whole, at about ten times the size in memory; DART's train file has 34 MB.
MAX_JSON_BYTES = 256 << 20
MAX_FILES = 1_000

# What a directory may call the file of a split: common names, those of the E2E release, those of the DART release.
_STEMS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "trainset", "dart-*-train"),
    "validation": ("validation", "valid", "dev", "devset", "dart-*-dev"),
    "test": ("test", "testset_w_refs", "dart-*-test"),
}


def load_generation(source: str, *, split: str, subset: str = "all") -> GenerationData:
    """One split of a text-generation data set.

    Args:
        source: `synthetic-e2e`; a file (`.jsonl`, `.csv`, `.json`, `.xml` or `.txt`); a directory with such a file,
            or a folder of WebNLG's XML, for each split; or `NAME[:CONFIG]` of the `datasets` library.
        split: `train`, `validation` or `test`.
        subset: `all`, or the `seen` or `unseen` categories of WebNLG.

    Raises:
        InvalidConfig: `split` or `subset` is unknown.
        InvalidData: no such source, the split is missing (`SPLIT_MISSING`) or empty (`SPLIT_EMPTY`), or a row is
            malformed; the message begins with `FILE:LINE` where there is one, else with the number of the entry.
    """
    wanted, _ = check_arguments(split, None)
    chosen = next((known for known in SUBSETS if known == subset), None)
    if chosen is None:
        raise InvalidConfig(f"subset {subset!r} is not one of {', '.join(SUBSETS)}")
    if source == SYNTHETIC_E2E:
        return _synthetic(wanted, chosen)
    path = Path(source).absolute()
    # os.path.exists, because Path.exists raises for names that no file can have.
    if source and (os.path.exists(path) or path.suffix in _READERS):  # noqa: PTH110
        return assemble_generation(path.stem, _read_parts(path), wanted, subset=chosen)
    if NAME.fullmatch(source) is None:
        raise InvalidData(f"{source[:80]!r} is no file, no data set name and not {SYNTHETIC_E2E}")
    parts, is_split = read_generation_hub(source, wanted)
    return assemble_generation(source, parts, wanted, subset=chosen, is_split=is_split)


def generation_files(directory: Path) -> list[Path]:
    """The files of a directory that `load_generation` reads for any split."""
    entries = [entry for stems in _STEMS.values() for entry in _entries_of(directory, stems)]
    return [file for entry in entries for file in (_xml_files(entry) if entry.is_dir() else [entry])]


def _synthetic(split: Split, subset: Subset) -> GenerationData:
    if subset != "all":
        raise InvalidData(f"{SYNTHETIC_E2E} has no categories; only WebNLG has a seen and an unseen subset")
    return synthetic_e2e(split)


def _read_parts(path: Path) -> dict[Split, Iterator[SourceRow]]:
    """The rows of a file (as its train part), or of each split that a directory has."""
    if not path.is_dir():
        return {"train": _read_file(path)}
    parts: dict[Split, Iterator[SourceRow]] = {}
    for split, stems in _STEMS.items():
        found = _entries_of(path, stems)
        if len(found) > 1:
            raise InvalidData(f"{path.name} has both {found[0].name} and {found[1].name}; keep one")
        if found:
            parts[split] = _read_folder(found[0]) if found[0].is_dir() else _read_file(found[0])
    if not parts:
        raise InvalidData(f"{path.name} is a directory without train, validation or test ({', '.join(_READERS)})")
    return parts


def _entries_of(directory: Path, stems: tuple[str, ...]) -> list[Path]:
    """The folders and files of a directory that are called as a split is; more than one is one too many."""
    folders = [entry for stem in stems for entry in sorted(directory.glob(stem)) if entry.is_dir()]
    return folders + [file for stem in stems for suffix in _READERS for file in sorted(directory.glob(stem + suffix))]


def _xml_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.xml"))


def _read_folder(path: Path) -> Iterator[SourceRow]:
    """All XML files below a folder, as WebNLG publishes a split."""
    files = _xml_files(path)
    if not files or len(files) > MAX_FILES:
        raise InvalidData(f"{path.name} is a folder with {len(files) or 'no'} XML files; 1 to {MAX_FILES} are read")
    for file in files:
        yield from read_webnlg_xml(file)


def _read_file(path: Path) -> Iterator[SourceRow]:
    if path.suffix not in _READERS:
        raise InvalidData(f"{path.name} is none of {', '.join(_READERS)}")
    check_file(path, MAX_FILE_BYTES)
    return _READERS[path.suffix](path)


def _read_jsonl(path: Path) -> Iterator[SourceRow]:
    """`source` and `target` or `references`; `context` and `completion` are what LoRA's files call the first two."""
    for where, value in read_objects(path):
        source = value["source"] if "source" in value else value.get("context")
        target = value["target"] if "target" in value else value.get("completion")
        if (target is None) == (value.get("references") is None):
            raise InvalidData(f"{where}: there must be a target (one text) or references (a list of texts)")
        references = (target,) if target is not None else value["references"]
        if not isinstance(references, list | tuple):
            raise InvalidData(f"{where}: references is not a list")
        yield SourceRow(where, source, references)


def _read_json(path: Path) -> Iterator[SourceRow]:
    check_file(path, MAX_JSON_BYTES)
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InvalidData(f"{path.name}: not UTF-8; convert the file first") from None
    except (ValueError, RecursionError):
        raise InvalidData(f"{path.name}: not valid JSON") from None
    except OSError as error:
        raise InvalidData(f"cannot read {path.name}: {error.strerror}") from None
    entries: Any = document.get("entries") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        raise InvalidData(f"{path.name}: neither DART (a list of entries) nor WebNLG (an object with entries)")
    read = read_webnlg_json if isinstance(document, dict) else read_dart
    yield from read(path.name, entries)


_READERS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {
    ".jsonl": _read_jsonl,
    ".csv": read_generation_csv,
    ".json": _read_json,
    ".xml": read_webnlg_xml,
    ".txt": read_joined,
}

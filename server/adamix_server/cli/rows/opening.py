"""Which format a file has, and its rows."""

from pathlib import Path

from adamix.errors import InvalidConfig, InvalidData
from adamix_server.cli.rows.delimited import Delimited
from adamix_server.cli.rows.json_lines import JsonLines
from adamix_server.cli.rows.lines import PACKED, is_packed
from adamix_server.cli.rows.parquet import Parquet
from adamix_server.cli.rows.row import Choice
from adamix_server.cli.rows.row_file import RowFile

FORMATS = ("csv", "tsv", "jsonl", "parquet")
_BY_SUFFIX = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def format_of(file: Path, out: Path, said: str | None) -> str:
    """The format of a file, and of what is written.

    Args:
        said: what it is whatever the file is called.

    Raises:
        InvalidConfig: its name says no format and nothing else does, or the names of the two say different ones.
    """
    if said is not None and said not in FORMATS:
        raise InvalidConfig(f"--format is one of {', '.join(FORMATS)}, not {said!r}", field="format")
    found = said or _named(file)
    if found is None:
        raise InvalidConfig(f"{file.name}: say by --format which of {', '.join(FORMATS)} it is", field="format")
    written = _named(out)
    if (said is None and written not in (None, found)) or is_packed(out) != is_packed(file):
        raise InvalidConfig(
            f"--out {out.name}: rows are written as they came, and {file.name} is "
            f"{'packed ' if is_packed(file) else ''}{found}",
            field="out",
        )
    if found == "parquet" and is_packed(file):
        raise InvalidConfig(f"{file.name}: Parquet packs itself; unpack the file first", field="file")
    return found


def open_rows(path: Path, kind: str, choice: Choice) -> RowFile:
    """The rows of a file of this format.

    Raises:
        InvalidConfig: it has no such columns.
        InvalidData: there is no such file, or it is malformed.
    """
    if not path.is_file():
        raise InvalidData(f"{path.name} {'is not a regular file' if path.exists() else 'does not exist'}")
    if kind == "parquet":
        return Parquet(path, choice)
    if kind == "jsonl":
        return JsonLines(path, choice)
    return Delimited(path, "\t" if kind == "tsv" else ",", choice)


def _named(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == PACKED:
        suffixes.pop()
    return _BY_SUFFIX.get(suffixes[-1]) if suffixes else None

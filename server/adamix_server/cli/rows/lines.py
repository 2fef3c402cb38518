"""Lines of a file, packed or not, as bytes with their numbers; and a new file. Knows nothing of what is in them."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from adamix.errors import InvalidData
from adamix_server.limits.files import MAX_ROW_BYTES

PACKED = ".gz"
_OTHERS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def read(path: Path) -> Iterator[tuple[int, bytes]]:
    """The number of each line and its bytes, its end included.

    Raises:
        InvalidData: `FILE:LINE: …`: a line is too long, or the file is not UTF-8, or not packed as its name says.
    """
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_ROW_BYTES + 1):
                number += 1
                if number == 1 and (encoding := _OTHERS.get(line[:2])):
                    raise InvalidData(f"{path.name}:1: {encoding}, not UTF-8; convert the file first")
                check_size(path, number, len(line))
                yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InvalidData(f"{path.name}:{number + 1}: the packed file is damaged or cut off") from None
    except OSError as error:
        raise InvalidData(f"cannot read {path.name}: {error.strerror}") from None


def check_size(path: Path, number: int, size: int) -> None:
    """Raises InvalidData for a row of more bytes than one may have."""
    if size > MAX_ROW_BYTES:
        raise InvalidData(f"{path.name}:{number}: the row is over {MAX_ROW_BYTES >> 20} MiB")


def text(path: Path, number: int, line: bytes) -> str:
    """Of a line; a byte order mark at the beginning of the file is none of it. Raises InvalidData."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidData(
            f"{path.name}:{number}: byte {error.start + 1} is not UTF-8; convert the file first"
        ) from None


def ending(line: bytes) -> bytes:
    """The end of a line: LF, CRLF or, of a last one, nothing."""
    return b"\r\n" if line.endswith(b"\r\n") else b"\n" if line.endswith(b"\n") else b""


@contextmanager
def create(path: Path, *, packed: bool) -> Iterator[IO[bytes]]:
    """A new file, packed on the way if asked for."""
    with path.open("wb") as file:
        if not packed:
            yield file
            return
        # Without its name, which is not the one it will have.
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packing:
            yield cast("IO[bytes]", packing)


def is_packed(path: Path) -> bool:
    return path.suffix.lower() == PACKED


def _open(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if is_packed(path) else path.open("rb")

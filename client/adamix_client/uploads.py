"""An adapter file on its way to a server: from a path, from bytes, or from an open file. Knows no connection."""

import io
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from adamix_client.errors import InvalidData
from adamix_client.values import ServerFile
from adamix_protos.v1 import adapters_pb2

_CHUNK_BYTES = 512 << 10

Adapter = Path | str | bytes | BinaryIO | ServerFile
# Called with the bytes that were handed on, and all that there are; None where nobody knows.
Progress = Callable[[int, int | None], object]


class Upload:
    """One registration. Closes what it opened itself.

    Args:
        header: what is registered; gets an id of its own if it has none, so that a retry is the same registration.
        progress: called in another thread than the caller's.

    Raises:
        InvalidData: there is no such file here.
    """

    def __init__(
        self, header: adapters_pb2.RegisterAdapterHeader, adapter: Adapter, progress: Progress | None = None
    ) -> None:
        self._header = header
        self._progress = progress
        self._own_error: Exception | None = None
        self._source: BinaryIO | None = None
        self._is_ours = False
        if isinstance(adapter, ServerFile):
            header.file = adapter.name
        elif isinstance(adapter, bytes):
            self._source = io.BytesIO(adapter)
        elif isinstance(adapter, (str, Path)):
            try:
                self._source = Path(adapter).open("rb")  # noqa: SIM115 - closed by `close`
            except OSError as error:
                raise InvalidData(f"{adapter!s}: {error.strerror}") from None
            self._is_ours = True
        else:
            self._source = adapter
        if not header.request_id and not header.validate_only:
            header.request_id = uuid.uuid4().hex
        self._start = 0
        self._num_bytes: int | None = None
        # Of the attempts: an earlier one's thread may still ask for more.
        self._attempt = 0
        self._lock = threading.Lock()
        self.can_repeat = True
        if self._source is not None:
            self.can_repeat = self._source.seekable()
            if self.can_repeat:
                self._start = self._source.tell()
                self._num_bytes = self._source.seek(0, os.SEEK_END) - self._start

    def requests(self) -> Iterator[adapters_pb2.RegisterAdapterRequest]:
        """The messages, from the first. What goes wrong here ends the upload: see `raise_own`."""
        self._attempt += 1
        attempt, sent = self._attempt, 0
        try:
            yield adapters_pb2.RegisterAdapterRequest(header=self._header)
            while chunk := self._read(attempt, sent):
                yield adapters_pb2.RegisterAdapterRequest(chunk=chunk)
                sent += len(chunk)
                if self._progress is not None:
                    self._progress(sent, self._num_bytes)
        except Exception as error:
            self._own_error = error
            raise

    def raise_own(self) -> None:
        """Raise what reading the file, or `progress`, has raised; a server only sees an upload that broke off."""
        if self._own_error is not None:
            raise self._own_error

    def close(self) -> None:
        # A thread that still asks for more gets nothing, and does not touch what may be the caller's.
        self._attempt += 1
        if self._is_ours and self._source is not None:
            self._source.close()

    def _read(self, attempt: int, offset: int) -> bytes:
        """What comes next, in this attempt; nothing at the end, and once there is another attempt."""
        with self._lock:
            if self._source is None or attempt != self._attempt:
                return b""
            try:
                if self.can_repeat:
                    self._source.seek(self._start + offset)
                chunk = self._source.read(_CHUNK_BYTES)
            except OSError as error:
                raise InvalidData(f"the adapter file cannot be read: {error.strerror}") from None
        if not isinstance(chunk, bytes):
            raise InvalidData("the adapter file is not open for bytes")
        return chunk

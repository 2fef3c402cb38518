"""Text -> token ids, in a small thread pool unless it is short, exactly as in training.

Uses the `tokenizer.json` that the supervisor exported (truncation and padding stripped) by way of `tokenizers`;
`transformers` would bring torch into this process. Token ids that a client sends are checked here too: an id outside
the vocabulary would be an out-of-bounds read on the device. Knows neither tasks nor the wire.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import tokenizers
from tokenizers.processors import TemplateProcessing

from adamix.errors import AdamixError, InternalError, InvalidRequest, Overloaded
from adamix.texts import cut, kept
from adamix_server import retry
from adamix_server.limits.messages import MAX_PENDING_TEXT_BYTES, MAX_TEXT_BYTES

log = logging.getLogger(__name__)

T = TypeVar("T")

# What a token has in most texts.
_BYTES_PER_TOKEN = 4
# What an input weighs beside its text among those that wait for a thread, so that a flood of tiny ones is bounded too.
_BYTES_PER_INPUT = 1024
# What a thread takes for a byte, until it has been measured; and how much of that is of the newest call.
_BYTE_S = 1e-6
_NEWEST = 0.1
# Characters encoded on the event loop, all texts of a call together: as long as the way to a thread and back takes.
_INLINE_LENGTH = 512
# Characters encoded at once. A token costs about a hundred bytes until all of them are done.
_CHUNK_LENGTH = 32 << 10


class Text(msgspec.Struct, frozen=True):
    """One input to tokenize.

    `max_tokens` is its task's limit, special tokens included. `truncate` drops the right end instead of refusing a
    longer text: characters beyond 64 KiB, then tokens (of a pair: from the longer of the two). `field` is where it
    stood in the request.
    """

    first: str
    second: str | None
    max_tokens: int
    truncate: bool
    field: str


class Tokens(msgspec.Struct, frozen=True):
    """Little-endian int32 bytes, as frames carry them. `type_ids` is None where all of them are zero."""

    ids: bytes
    type_ids: bytes | None = None

    def __len__(self) -> int:
        return len(self.ids) // 4


class Tokenizer:
    """A tokenizer and its threads. `close` when done.

    Args:
        path: of the exported tokenizer.json.
        threads: how many texts are tokenized at once.

    Attributes:
        backend: the tokenizer itself, which threads may share.
    """

    def __init__(self, path: Path | str, threads: int) -> None:
        self.backend = tokenizers.Tokenizer.from_file(str(path))
        self.backend.no_truncation()
        self.backend.no_padding()
        if self.backend.post_processor is None:
            # What `encode` does then for a pair, but the batches do not.
            self.backend.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenizer")
        self._threads = threads
        self._pending_bytes = 0
        self._byte_s = _BYTE_S
        self._turns = retry.RoomTurns()

    async def tokenize(self, texts: Sequence[Text]) -> list[Tokens | AdamixError]:
        """Tokens per text, or what is wrong with it; one bad text does not touch the others.

        Raises:
            Overloaded: too much text waits already; nothing was queued.
        """
        length = sum(map(_length, texts))
        if length <= _INLINE_LENGTH:
            return self.encode(texts)
        num_bytes = length + _BYTES_PER_INPUT * len(texts)
        return await self.run(lambda: self._encode(texts, num_bytes), num_bytes)

    async def run(self, work: Callable[[], T], num_bytes: int) -> T:
        """`work` on so much text in one of the threads, once one is free.

        Raises:
            Overloaded: too much text waits already; nothing was queued.
        """
        if self._pending_bytes + num_bytes > MAX_PENDING_TEXT_BYTES:
            raise Overloaded("the server's tokenizers are busy; try again later", retry_after_s=self._room_s(num_bytes))
        self._pending_bytes += num_bytes
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._pending_bytes -= num_bytes

    def close(self) -> None:
        """End the threads; texts that still wait are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _room_s(self, num_bytes: int) -> float:
        """When so much text will find room."""
        pending = self._pending_bytes
        per_s = self._threads / self._byte_s
        return self._turns.next(time.monotonic(), num_bytes, own=pending, queued=pending, per_s=per_s)

    def _encode(self, texts: Sequence[Text], num_bytes: int) -> list[Tokens | AdamixError]:
        """In a thread; measures it."""
        began = time.perf_counter()
        try:
            return self.encode(texts)
        finally:
            # Of two threads that write at once one is lost: the other is as good.
            self._byte_s += _NEWEST * ((time.perf_counter() - began) / num_bytes - self._byte_s)

    def encode(self, texts: Sequence[Text]) -> list[Tokens | AdamixError]:
        """`tokenize` in the calling thread.

        An InvalidRequest says that a text is empty, or over 64 KiB or its task's limit without leave to truncate; an
        InternalError that the tokenizer failed on it (the log says how).
        """
        results: dict[int, Tokens | AdamixError] = {}
        good: list[tuple[int, Text]] = []
        for index, text in enumerate(texts):
            try:
                good.append((index, _admitted(text)))
            except InvalidRequest as error:
                results[index] = error
        for indexed in _chunks(good):
            outcomes = self._encode_chunk([text for _, text in indexed])
            results.update((index, outcome) for (index, _), outcome in zip(indexed, outcomes, strict=True))
        return [results[index] for index in range(len(texts))]

    def _encode_chunk(self, texts: list[Text]) -> list[Tokens | AdamixError]:
        inputs = [text.first if text.second is None else (text.first, text.second) for text in texts]
        try:
            # Of the ways to encode only the batches release the GIL, without which the event loop would stand still.
            encodings = self.backend.encode_batch_fast(inputs)
            return [self._tokens(text, whole) for text, whole in zip(texts, encodings, strict=True)]
        except Exception:
            # `tokenizers` has no exception class of its own.
            if len(texts) > 1:
                return [outcome for text in texts for outcome in self._encode_chunk([text])]
            log.exception("a text could not be tokenized")
            return [InternalError("a text could not be tokenized")]

    def _tokens(self, text: Text, whole: tokenizers.Encoding) -> Tokens | InvalidRequest:
        """As many tokens as the task takes, special ones included, which all remain.

        Not by the truncation of `tokenizers`: it is a setting, which all tasks and threads share, and it keeps what it
        cuts off, in pieces, each joined with each of the other text of a pair: seconds for two long ones, in which the
        event loop stands still.
        """
        ids, type_ids = whole.ids, whole.type_ids
        if len(ids) > text.max_tokens:
            # A limit below the number of special tokens is one that no text can be cut to.
            num_special = self.backend.num_special_tokens_to_add(text.second is not None)
            if not text.truncate or num_special > text.max_tokens:
                return InvalidRequest(
                    f"text has {len(ids)} tokens, the task's limit is {text.max_tokens}; "
                    "shorten it or ask for truncation RIGHT",
                    reason="TEXT_TOO_LONG",
                    field=text.field,
                )
            places = kept(whole.sequence_ids, text.max_tokens)
            ids, type_ids = [ids[place] for place in places], [type_ids[place] for place in places]
        if not ids:  # from a tokenizer without special tokens
            return InvalidRequest("the tokenizer makes no token of the text", reason="TEXT_EMPTY", field=text.field)
        return Tokens(_int32(ids), _int32(type_ids) if any(type_ids) else None)


def admit(text: str, field: str, *, truncate: bool) -> str:
    """`text`, or where it may be cut its first 64 KiB. Raises InvalidRequest if it is empty, or too long otherwise."""
    if not text or text.isspace():
        raise InvalidRequest("text is empty", reason="TEXT_EMPTY", field=field)
    beginning = cut(text)
    if beginning is not text and not truncate:
        raise InvalidRequest(f"text is over {MAX_TEXT_BYTES >> 10} KiB", reason="TEXT_TOO_LARGE", field=field)
    return beginning


def check_ids(ids: Sequence[int], vocab_size: int, max_tokens: int, field: str) -> Tokens:
    """Token ids from a client as Tokens. They are never truncated.

    Raises:
        InvalidRequest: none, more than `max_tokens`, or one outside 0..vocab_size-1.
    """
    if not ids:
        raise InvalidRequest("token_ids is empty", reason="TEXT_EMPTY", field=field)
    if len(ids) > max_tokens:
        raise InvalidRequest(
            f"{len(ids)} token ids, the task's limit is {max_tokens}", reason="TEXT_TOO_LONG", field=field
        )
    values = list(ids)  # a message's own sequence is slow to go through
    if min(values) < 0 or max(values) >= vocab_size:
        raise InvalidRequest(
            f"a token id is outside the vocabulary, 0 to {vocab_size - 1}",
            reason="TOKEN_ID_OUT_OF_RANGE",
            field=field,
        )
    return Tokens(_int32(values))


def _admitted(text: Text) -> Text:
    """As it is tokenised. Raises as `admit`."""
    if text.second is None:
        first, second = admit(text.first, text.field, truncate=text.truncate), None
    else:
        first = admit(text.first, f"{text.field}.first", truncate=text.truncate)
        second = admit(text.second, f"{text.field}.second", truncate=text.truncate)
    is_whole = first is text.first and second is text.second
    return text if is_whole else msgspec.structs.replace(text, first=first, second=second)


def likely_tokens(text: Text) -> int:
    """As many as a text of so many bytes seems to have; not more than it may have."""
    first, second = text.first, text.second
    num_bytes = len(first) if first.isascii() else _num_bytes(first)
    if second is not None:
        num_bytes += _num_bytes(second)
    return min(num_bytes // _BYTES_PER_TOKEN + 1, text.max_tokens)


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _length(text: Text) -> int:
    """Characters to tokenise; what is longer than one text may be is cut or refused before."""
    return min(len(text.first), MAX_TEXT_BYTES) + min(len(text.second or ""), MAX_TEXT_BYTES)


def _chunks(texts: Iterable[tuple[int, Text]]) -> Iterator[list[tuple[int, Text]]]:
    """Runs of texts, each of about `_CHUNK_LENGTH` characters or of one text."""
    chunk: list[tuple[int, Text]] = []
    length = 0
    for index, text in texts:
        chunk.append((index, text))
        length += _length(text)
        if length >= _CHUNK_LENGTH:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk


def _int32(values: Sequence[int]) -> bytes:
    return np.asarray(values, dtype="<i4").tobytes()

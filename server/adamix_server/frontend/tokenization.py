"""Text -> token ids, in a small thread pool, exactly as in training.

Uses the `tokenizer.json` that the supervisor exported (truncation and padding stripped) by way of `tokenizers`;
`transformers` would bring torch into this process. Token ids that a client sends are checked here too: an id outside
the vocabulary would be an out-of-bounds read on the device. Knows neither tasks nor the wire.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from adamix.errors import AdamixError, InternalError, InvalidRequest, Overloaded
from adamix_server.config import MAX_TEXT_BYTES

log = logging.getLogger(__name__)

# Text waiting for a tokenizer thread, over all calls. More would be answered too late to be of use.
MAX_PENDING_BYTES = 32 << 20
# What an input weighs in that sum beside its text, so that a flood of tiny ones is bounded too.
_BYTES_PER_INPUT = 1024
_RETRY_S = 0.25


@dataclass(frozen=True)
class Text:
    """One input to tokenize.

    `max_tokens` is its task's limit, special tokens included. `truncate` drops tokens at the right end instead of
    refusing a longer text (of a pair: from the longer of the two). `field` is where it stood in the request.
    """

    first: str
    second: str | None
    max_tokens: int
    truncate: bool
    field: str


@dataclass(frozen=True)
class Tokens:
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
    """

    def __init__(self, path: Path | str, threads: int) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenizer")
        self._pending_bytes = 0

    async def tokenize(self, texts: Sequence[Text]) -> list[Tokens | AdamixError]:
        """Tokens per text, or what is wrong with it; one bad text does not touch the others.

        Raises:
            Overloaded: too much text waits already; nothing was queued.
        """
        num_bytes = sum(_BYTES_PER_INPUT + len(text.first) + len(text.second or "") for text in texts)
        if self._pending_bytes + num_bytes > MAX_PENDING_BYTES:
            raise Overloaded("the server's tokenizers are busy; try again later", retry_after_s=_RETRY_S)
        self._pending_bytes += num_bytes
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._tokenize_all, texts)
        finally:
            self._pending_bytes -= num_bytes

    def close(self) -> None:
        """End the threads; texts that still wait are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def encode(self, text: Text) -> Tokens:
        """Tokenize one text in the calling thread.

        Raises:
            InvalidRequest: empty, over 64 KiB, or over the task's limit without leave to truncate.
        """
        check_text(text.first, text.field if text.second is None else f"{text.field}.first")
        if text.second is not None:
            check_text(text.second, f"{text.field}.second")
        encoding = self._tokenizer.encode(text.first, text.second)
        if len(encoding.ids) > text.max_tokens:
            if not text.truncate:
                raise InvalidRequest(
                    f"text has {len(encoding.ids)} tokens, the task's limit is {text.max_tokens}; "
                    "shorten it or ask for truncation RIGHT",
                    reason="TEXT_TOO_LONG",
                    field=text.field,
                )
            encoding = self._encode_truncated(text)
        return Tokens(_int32(encoding.ids), _int32(encoding.type_ids) if any(encoding.type_ids) else None)

    def _tokenize_all(self, texts: Sequence[Text]) -> list[Tokens | AdamixError]:
        return [_outcome(self.encode, text) for text in texts]

    def _encode_truncated(self, text: Text) -> tokenizers.Encoding:
        # The special tokens have to survive, so the parts are cut first and joined afterwards. Setting the truncation
        # of the shared tokenizer instead would change it under the other threads.
        is_pair = text.second is not None
        room = max(0, text.max_tokens - self._tokenizer.num_special_tokens_to_add(is_pair))
        first = self._tokenizer.encode(text.first, add_special_tokens=False)
        if text.second is None:
            first.truncate(room)
            return self._tokenizer.post_process(first)
        second = self._tokenizer.encode(text.second, add_special_tokens=False)
        first_room, second_room = longest_first(len(first.ids), len(second.ids), room)
        first.truncate(first_room)
        second.truncate(second_room)
        return self._tokenizer.post_process(first, second)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each part of a pair remain within `room`: the longer part is cut first.

    The same rule as `LongestFirst` in Hugging Face tokenizers, which is not what cutting token by token from the
    longer part gives when the room is odd.
    """
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if first <= second else (long, short)


def check_text(text: str, field: str) -> None:
    """Raise InvalidRequest unless `text` has content and is at most 64 KiB of UTF-8."""
    if not text or text.isspace():
        raise InvalidRequest("text is empty", reason="TEXT_EMPTY", field=field)
    if len(text) > MAX_TEXT_BYTES or len(text.encode()) > MAX_TEXT_BYTES:
        raise InvalidRequest(f"text is over {MAX_TEXT_BYTES >> 10} KiB", reason="TEXT_TOO_LARGE", field=field)


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
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise InvalidRequest(
            f"a token id is outside the vocabulary, 0 to {vocab_size - 1}",
            reason="TOKEN_ID_OUT_OF_RANGE",
            field=field,
        )
    return Tokens(_int32(ids))


def _outcome(encode: Callable[[Text], Tokens], text: Text) -> Tokens | AdamixError:
    try:
        return encode(text)
    except AdamixError as error:
        return error
    except Exception:
        log.exception("a text could not be tokenized")
        return InternalError("a text could not be tokenized")


def _int32(values: Sequence[int]) -> bytes:
    return np.asarray(values, dtype="<i4").tobytes()

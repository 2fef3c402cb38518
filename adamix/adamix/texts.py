"""How long a text may be, and what is left of a longer one, the same for training, evaluation and the server.

A text that may be cut at all is cut here before it is tokenised, so that no text costs more than this. Its tokens are
those of the whole text where the limit holds more of them than a model takes, which is all but always; where it does
not (64 KiB of spaces are no token), training and serving still read the same. Knows characters and places of tokens;
no tokenizer.
"""

from collections.abc import Sequence

MAX_TEXT_BYTES = 64 << 10


def cut(text: str) -> str:
    """The beginning of a text: as many whole characters as `MAX_TEXT_BYTES` of UTF-8 hold. `text` itself if it fits."""
    if 4 * len(text) <= MAX_TEXT_BYTES:
        return text
    data = text[: MAX_TEXT_BYTES + 1].encode()
    return text if len(data) <= MAX_TEXT_BYTES else data[:MAX_TEXT_BYTES].decode(errors="ignore")


def kept(parts: Sequence[int | None], max_tokens: int) -> list[int]:
    """The places of the tokens that remain of a sequence with its special tokens, which all do.

    Args:
        parts: of each token: which text it is of, 0 or 1 for the second of a pair; None for a special token.
        max_tokens: at least as many as there are special ones.
    """
    room = max_tokens - sum(part is None for part in parts)
    first, second = longest_first(parts.count(0), parts.count(1), max(0, room))
    left = {0: first, 1: second}
    places: list[int] = []
    for place, part in enumerate(parts):
        if part is None:
            places.append(place)
        elif left[part]:
            left[part] -= 1
            places.append(place)
    return places


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

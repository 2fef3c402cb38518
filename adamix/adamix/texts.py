"""How long a text may be, the same for training, evaluation and the server. Knows characters; no tokenizer.

A text that may be cut at all is cut here before it is tokenised, so that no text costs more than this. Its tokens are
those of the whole text where the limit holds more of them than a model takes, which is all but always; where it does
not (64 KiB of spaces are no token), training and serving still read the same.
"""

MAX_TEXT_BYTES = 64 << 10


def cut(text: str) -> str:
    """The beginning of a text: as many whole characters as `MAX_TEXT_BYTES` of UTF-8 hold. `text` itself if it fits."""
    if 4 * len(text) <= MAX_TEXT_BYTES:
        return text
    data = text[: MAX_TEXT_BYTES + 1].encode()
    return text if len(data) <= MAX_TEXT_BYTES else data[:MAX_TEXT_BYTES].decode(errors="ignore")

"""What single tokens are as text and as bytes, as OpenAI's answers tell them beside their probabilities.

A token may be a part of a character: then it has bytes and no text. Knows a tokenizer; neither answers nor the wire.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

_SPACE = "▁"
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token. `text` has the bytes that are no text as `\\xe6`."""

    text: str
    raw: bytes

    @property
    def is_whole(self) -> bool:
        """Whether its bytes are characters."""
        return self.raw.decode("utf-8", "replace").find(_UNKNOWN) < 0


class TokenTexts:
    """The tokens of a tokenizer; thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._letters = _byte_letters(tokenizer)
        # What stands for a space in a vocabulary of SentencePiece; the decoder drops one that begins a text.
        self._has_marks = _SPACE in repr(tokenizer.decoder)

    def of(self, token_id: int) -> TokenText:
        """A token that the model has; one that only it knows has no text."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return TokenText("", b"")
        if (content := self._added.get(token_id)) is not None:
            return TokenText(content, content.encode())
        raw = self._bytes(token_id, token)
        return TokenText(raw.decode("utf-8", "backslashreplace"), raw)

    def _bytes(self, token_id: int, token: str) -> bytes:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        if self._letters and all(letter in self._letters for letter in token):
            return bytes(self._letters[letter] for letter in token)
        if self._has_marks:
            return token.replace(_SPACE, " ").encode()
        return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()


def _byte_letters(tokenizer: Tokenizer) -> Mapping[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for; empty for other vocabularies."""
    if "ByteLevel" not in repr(tokenizer.decoder):
        return {}
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    letters = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in printable]
    letters |= {chr(256 + number): byte for number, byte in enumerate(rest)}
    return letters if letters.keys() == set(ByteLevel.alphabet()) else {}

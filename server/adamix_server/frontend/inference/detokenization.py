"""Token ids -> text while they come: whole characters only, and nothing that was said is taken back.

What has been said in the end is what decoding all ids at once gives, without special tokens and with every space where
it is. A token's text can depend on those before it (bytes of one character, a space at the beginning), so the last ones
that were said are decoded again with each new one; `tokenizers.decoders.DecodeStream` works alike, but fails on some
byte tokens, and decodes everything anew as long as no character comes of it.

Knows no model, no request and no stop.
"""

from tokenizers import Tokenizer

# What bytes that are no character are shown as; and an unfinished one, which therefore waits.
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# Tokens without a character of their own that are looked at one by one. No character has more bytes.
_FEW_TOKENS = 8
_BYTES = 256


class Detokenizer:
    """What has to be known of a tokenizer. Makes an `AnswerText` for each answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._byte_tokens = self._find_byte_tokens()

    def begin(self) -> "AnswerText":
        return AnswerText(self)

    def is_silent(self, token_id: int) -> bool:
        """Whether a token has no text at all: a special one, or one that only the model knows."""
        return token_id in self._special or self._tokenizer.id_to_token(token_id) is None

    def is_byte(self, token_id: int) -> bool:
        """Whether a token is a byte of a character, read only with all bytes beside it: one wrong byte makes all of
        them unreadable."""
        return token_id in self._byte_tokens

    def decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def _find_byte_tokens(self) -> frozenset[int]:
        """Of a tokenizer that spells what it does not know in bytes (`<0x0A>`)."""
        named = {value: self._tokenizer.token_to_id(f"<0x{value:02X}>") for value in range(_BYTES)}
        letter = named[ord("A")]
        if letter is None or self.decode([letter]) != "A":
            return frozenset()
        return frozenset(token_id for token_id in named.values() if token_id is not None)


class AnswerText:
    """The text of one answer."""

    __slots__ = ("_context", "_ids", "_new", "_said", "_tokens")

    def __init__(self, tokens: Detokenizer) -> None:
        self._tokens = tokens
        # All that have a text; those that were said last, and those that are not said yet.
        self._ids: list[int] = []
        self._context: list[int] = []
        self._new: list[int] = []
        self._said: list[str] = []

    def add(self, token_id: int) -> str:
        """What the next token adds; empty as long as more is needed."""
        tokens, new = self._tokens, self._new
        if tokens.is_silent(token_id):
            return ""
        self._ids.append(token_id)
        new.append(token_id)
        if tokens.is_byte(token_id):
            return ""
        # The more tokens have made no character, the fewer of the next ones are tried: all tries together cost as much
        # as a few decodings of all of them.
        if len(new) > _FEW_TOKENS and len(new) & (len(new) - 1):
            return ""
        added = self._added()
        if not added or added.endswith(_UNKNOWN):
            return ""
        self._context, self._new = new, []
        self._said.append(added)
        return added

    def finish(self) -> str:
        """What is left to be said, now that no more tokens come."""
        if not self._ids:
            return ""
        whole, said = self._tokens.decode(self._ids), "".join(self._said)
        # A tokenizer whose words change by what follows may contradict what was said: that stays.
        return whole[len(said) :] if whole.startswith(said) else self._added()

    def _added(self) -> str:
        """The text of the tokens that are not said yet, behind the last ones that are."""
        before, text = "", self._tokens.decode(self._context + self._new)
        if self._context:
            before = self._tokens.decode(self._context)
        return text[len(before) :] if text.startswith(before) else ""

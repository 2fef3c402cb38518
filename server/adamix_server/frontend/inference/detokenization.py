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
# No character has more bytes, so whether there is a new one, so many of the last tokens say.
_MOST_TOKENS = 4
# Of tokens that seem to have a text, and all together have none.
_FEW_TRIES = 8
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

    __slots__ = ("_context", "_ids", "_new", "_num_said", "_said", "_tokens", "_tries")

    def __init__(self, tokens: Detokenizer) -> None:
        self._tokens = tokens
        # All that have a text; those that were said last, and those that are not all said yet.
        self._ids: list[int] = []
        self._context: list[int] = []
        self._new: list[int] = []
        self._said: list[str] = []
        # Characters of the latter that were said, and tries to say all of them.
        self._num_said = 0
        self._tries = 0

    def add(self, token_id: int) -> str:
        """What the next token adds; empty as long as more is needed."""
        tokens, new = self._tokens, self._new
        if tokens.is_silent(token_id):
            return ""
        self._ids.append(token_id)
        new.append(token_id)
        if tokens.is_byte(token_id):
            return ""
        if len(new) > _MOST_TOKENS:
            if not tokens.decode(new[-_MOST_TOKENS:]).rstrip(_UNKNOWN):
                return ""
            # The more tries came to nothing, the fewer there are: all together cost as much as a few decodings of all
            # tokens.
            self._tries += 1
            if self._tries > _FEW_TRIES and self._tries & (self._tries - 1):
                return ""
        added = self._added()
        if added.endswith(_UNKNOWN):
            # Of a token that has the end of one character and the beginning of the next, the first is said.
            more = added[self._num_said : -1]
            self._num_said += len(more)
        else:
            more = added[self._num_said :]
            if added:
                self._context, self._new, self._num_said, self._tries = new, [], 0, 0
        if more:
            self._said.append(more)
        return more

    def finish(self) -> str:
        """What is left to be said, now that no more tokens come."""
        if not self._ids:
            return ""
        whole, said = self._tokens.decode(self._ids), "".join(self._said)
        # A tokenizer whose words change by what follows may contradict what was said: that stays.
        return whole[len(said) :] if whole.startswith(said) else self._added()[self._num_said :]

    def _added(self) -> str:
        """The text of the tokens that are not said yet, behind the last ones that are."""
        before, text = "", self._tokens.decode(self._context + self._new)
        if self._context:
            before = self._tokens.decode(self._context)
        return text[len(before) :] if text.startswith(before) else ""

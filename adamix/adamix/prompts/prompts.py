"""From sources, texts and chats to the token ids that a decoder goes on after.

The three forms of a manifest's `prompt`:

- *source*, what is trained here: what the tokenizer puts in front of any text, the source, the separator. That is the
  tokenizer's beginning-of-text token, or its end-of-text token where it has no other (in GPT-2 they are one). The rows
  of training and of offline evaluation are made here too (`adamix.rows.targets`), so served prompts cannot differ.
- *text*, what was trained elsewhere: the ids that transformers' `AutoTokenizer` gives, special tokens included.
- *chat*: messages rendered by a template, encoded without further special tokens, as `apply_chat_template` does.

Knows neither requests nor models; how many tokens are too many is the caller's to say.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer

from adamix.errors import InvalidConfig, InvalidData
from adamix.prompts.chat import ChatRenderer
from adamix.prompts.vocabulary import Vocabulary


@dataclass(frozen=True)
class Message:
    """One message of a chat, `role` being what the template knows: `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """What an answer is generated after.

    Attributes:
        is_truncated: tokens of the source were left out, from its beginning.
    """

    ids: tuple[int, ...]
    is_truncated: bool


class Prompts:
    """Builds prompts for one tokenizer. Threads may share it.

    Args:
        tokenizer: of the exported `tokenizer.json`. Its truncation and padding are turned off.
        vocabulary: of the `generation.json` beside it.
        renderer: of chats; without one it is one of its own, which starts nothing before the first chat.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, renderer: ChatRenderer | None = None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._renderer = renderer or ChatRenderer()

    def source(self, text: str, max_tokens: int) -> Prompt:
        """The prompt of a source, of at most `max_tokens` tokens (at least 2): a longer one loses its beginning.

        Raises:
            InvalidConfig: the tokenizer has no end-of-text token.
            InvalidData: as `text`.
        """
        return self.sources([text], max_tokens)[0]

    def sources(self, texts: Sequence[str], max_tokens: int) -> list[Prompt]:
        """`source` of each."""
        separator, _ = self.special()
        prompts = []
        for ids in self.source_ids(texts):
            kept = self.cut(ids, max_tokens - 1)
            prompts.append(Prompt(self._known([*kept, separator]), len(kept) < len(ids)))
        return prompts

    def source_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of sources with what the tokenizer puts before texts, and without what it puts behind them."""
        found = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        # Some tokenizers end every text; here the text goes on.
        return [ids[:-1] if ids and ids[-1] == self._vocabulary.eos_id else ids for ids in found]

    def target_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that stand behind the separator, without their end of text."""
        encoded = self._tokenizer.encode_batch_fast([f" {text}" for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def special(self) -> tuple[int, int]:
        """The separator and the end of text. Raises InvalidConfig where there is none."""
        separator, end = self._vocabulary.separator_id, self._vocabulary.eos_id
        if separator is None or end is None:
            raise InvalidConfig("the backbone's tokenizer has no end-of-text token, which generation needs to stop")
        return separator, end

    def cut(self, source: list[int], room: int) -> list[int]:
        """The last `room` ids of a source; the beginning of text, where the tokenizer sets one, stays in front."""
        if len(source) <= room:
            return source
        lead = source[:1] if room > 1 and source[0] == self._vocabulary.bos_id else []
        return lead + source[len(source) - room + len(lead) :]

    def text(self, text: str) -> tuple[int, ...]:
        """The ids of a text as `AutoTokenizer` gives them, its special tokens included. May be empty.

        Raises:
            InvalidData: one of its tokens is none of the model's.
        """
        return self._encoded(text, add_special_tokens=True)

    def chat(self, messages: Sequence[Message], template: str | None = None, *, asker: str = "") -> tuple[int, ...]:
        """The ids of a chat as `apply_chat_template(…, add_generation_prompt=True)` gives them.

        Blocks for a few milliseconds, and up to a tenth of a second where a template is slow or new: call it in a
        thread.

        Args:
            template: an adapter's own; None takes the backbone's.
            asker: whose messages they are: a template that took too much for them is not tried again for a moment.

        Raises:
            InvalidConfig: there is no template, or it cannot be used whatever the messages are (its syntax; it loads
                other templates; it is too large).
            InvalidData: the template refuses these messages, or takes too much time, memory or text for them; or as
                `text`.
            Unavailable: nothing can be rendered at the moment.
        """
        chosen = self._vocabulary.chat_template if template is None else template
        if chosen is None:
            raise InvalidConfig("neither the adapter nor its backbone has a chat template: send a prompt instead")
        tokens = self._vocabulary.special_tokens
        text = self._renderer.render(chosen, messages, tokens, is_own=template is None, asker=asker)
        return self._encoded(text, add_special_tokens=False)

    def _encoded(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        # Of the ways to encode only the batches release the GIL.
        (encoding,) = self._foreign.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return self._known(encoding.ids)

    def _known(self, ids: list[int]) -> tuple[int, ...]:
        size = self._vocabulary.vocab_size
        if size is not None and any(token >= size for token in ids):
            raise InvalidData("the text has a token of the tokenizer that the model does not know")
        return tuple(ids)

    @cached_property
    def _foreign(self) -> Tokenizer:
        """The tokenizer by the rules of `AutoTokenizer`."""
        rules = self._vocabulary.rules
        if not rules:
            return self._tokenizer
        sections = json.loads(self._tokenizer.to_str())
        sections |= rules | {"model": sections["model"] | rules.get("model", {})}
        return Tokenizer.from_str(json.dumps(sections))

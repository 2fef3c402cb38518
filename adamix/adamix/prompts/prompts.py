"""From sources, texts and chats to the token ids that a decoder goes on after.

The three forms of a manifest's `prompt`:

- *source*, what is trained here: what the tokenizer puts in front of any text, the source, the separator. Whatever
  training and offline evaluation feed a model comes from here too (`adamix.rows.targets`), so served prompts cannot
  differ from them.
- *text*, what was trained elsewhere: the ids that transformers' `AutoTokenizer` gives, special tokens included.
- *chat*: messages rendered by a template, encoded without further special tokens, as `apply_chat_template` does.

Knows neither requests nor models; how many tokens are too many is the caller's to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer

from adamix.prompts.vocabulary import Vocabulary


@dataclass(frozen=True)
class Message:
    """One message of a chat, `role` being what the template knows: `system`, `user` or `assistant`."""

    role: str
    content: str


class Renderer(Protocol):
    """What makes a text of a chat: `chat.ChatRenderer`."""

    def render(self, template: str, messages: Sequence[Message], special_tokens: Mapping[str, str]) -> str:
        """The text up to where the answer begins. Raises InvalidData."""
        ...


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
        renderer: of chats; without one there are none.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, renderer: Renderer | None = None) -> None:
        raise NotImplementedError

    def source(self, text: str, max_tokens: int) -> Prompt:
        """The prompt of a source, of at most `max_tokens` tokens (at least 2): a longer one loses its beginning.

        Raises:
            InvalidConfig: the tokenizer has no end-of-text token.
        """
        return self.sources([text], max_tokens)[0]

    def sources(self, texts: Sequence[str], max_tokens: int) -> list[Prompt]:
        """`source` of each."""
        raise NotImplementedError

    def text(self, text: str) -> tuple[int, ...]:
        """The ids of a text as `AutoTokenizer` gives them, its special tokens included. May be empty."""
        raise NotImplementedError

    def chat(self, messages: Sequence[Message], template: str | None = None) -> tuple[int, ...]:
        """The ids of a chat as `apply_chat_template(…, add_generation_prompt=True)` gives them.

        Blocks for a few milliseconds, and up to a tenth of a second where a template is slow or new: call it in a
        thread.

        Args:
            template: an adapter's own; None takes the backbone's.

        Raises:
            InvalidConfig: there is no template, or it cannot be used whatever the messages are (its syntax; it loads
                other templates; it is too large).
            InvalidData: the template refuses these messages, or takes too much time, memory or text for them.
        """
        raise NotImplementedError

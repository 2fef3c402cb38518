"""What an answer is written after: the content of a request, and the token ids that it becomes.

Which ids a text or a chat has is `adamix.prompts`' to say, the same as in training; here is where they are made, beside
the event loop, and how a caller is told of what cannot become ids. Knows neither the engine nor what is generated.
"""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np

from adamix.errors import FailedPrecondition, InvalidConfig, InvalidData, InvalidRequest
from adamix.files.manifest import PromptForm
from adamix.prompts.prompts import Message, Prompts
from adamix.prompts.vocabulary import Vocabulary
from adamix.texts import MAX_TEXT_BYTES
from adamix_protos.v1 import inference_pb2
from adamix_server.catalog.rows import Writing
from adamix_server.frontend.inference.generate_fields import check_token_id
from adamix_server.frontend.inference.tokenization import Text, Tokenizer, Tokens, admit
from adamix_server.limits.generation import MAX_CHAT_BYTES, MAX_MESSAGES

# Characters encoded on the event loop: as long as the way to a thread and back takes.
_INLINE_LENGTH = 512
# What a prompt weighs beside its text among those that wait for a thread.
_BYTES_PER_PROMPT = 1024
# Of a source that is not cut: more tokens than a text of the largest size has.
_WHOLE = 2 * MAX_TEXT_BYTES


@dataclass(frozen=True, slots=True)
class Content:
    """What a request brings: a text, messages, or ids. `field` is its name in the request."""

    field: str
    text: str = ""
    messages: tuple[Message, ...] = ()
    tokens: Tokens | None = None

    def likely(self, max_tokens: int) -> Text | None:
        """A text of about as many tokens; None for ids."""
        if self.tokens is not None:
            return None
        text = self.text or "\n".join(message.content for message in self.messages)
        return Text(text, None, max_tokens, truncate=False, field=self.field)


def read_content(request: inference_pb2.GenerateRequest, vocab_size: int, window: int) -> Content:
    """What a request brings. Raises InvalidRequest: nothing, too much, or a token id that is none."""
    match request.WhichOneof("content"):
        case "prompt":
            return Content("prompt", text=admit(request.prompt, "prompt", truncate=False))
        case "token_ids":
            return Content("token_ids", tokens=_ids(request.token_ids.ids, vocab_size, window))
        case "chat":
            return Content("chat", messages=_messages(request.chat.messages))
        case _:
            raise InvalidRequest("there is no prompt, chat or token_ids", reason="TEXT_EMPTY", field="prompt")


def _ids(ids: Sequence[int], vocab_size: int, window: int) -> Tokens:
    if not ids:
        raise InvalidRequest("token_ids is empty", reason="TEXT_EMPTY", field="token_ids")
    _check_length(len(ids), window, "token_ids")
    values = tuple(ids)
    if min(values) < 0 or max(values) >= vocab_size:
        for value in values:
            check_token_id(value, vocab_size, "token_ids")
    return _tokens(values)


def _check_length(num_tokens: int, window: int, field: str) -> None:
    """Before anything is done with so many, on the event loop: a request may have millions."""
    if num_tokens > window:
        raise InvalidRequest(
            f"the prompt has {num_tokens} tokens, which are over the backbone's {window}",
            reason="PROMPT_TOO_LONG",
            field=field,
        )


def _messages(messages: Sequence[inference_pb2.ChatMessage]) -> tuple[Message, ...]:
    field = "chat.messages"
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise InvalidRequest(
            f"a chat has 1 to {MAX_MESSAGES} messages, not {len(messages)}", reason="CHAT_INVALID", field=field
        )
    num_bytes = 0
    for index, message in enumerate(messages):
        if not message.role:
            raise InvalidRequest("a message needs a role", reason="CHAT_INVALID", field=f"{field}[{index}].role")
        num_bytes += len(message.role.encode()) + len(message.content.encode())
        if num_bytes > MAX_CHAT_BYTES:
            raise InvalidRequest(
                f"a chat has up to {MAX_CHAT_BYTES >> 10} KiB of text", reason="TEXT_TOO_LARGE", field=field
            )
    return tuple(Message(message.role, message.content) for message in messages)


class Prompting:
    """Makes the ids of prompts.

    Args:
        tokenizer: whose threads are used.
        prompts: what ids are.
        vocabulary: of the same backbone.
        vocab_size: tokens that the backbone has a row for; a tokenizer may know others.
        window: as many tokens as it can see.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompts: Prompts, vocabulary: Vocabulary, vocab_size: int, window: int
    ) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._window = window
        # By tenant, as long as it has chats under way.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def ends(self, content: Content, writing: Writing) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self._vocabulary.ends("chat" if content.messages else writing.prompt_form)

    async def tokens(self, content: Content, writing: Writing, tenant: str) -> Tokens:
        """The ids of a tenant's prompt.

        Raises:
            InvalidRequest: no token comes of it, more than the backbone can see, or one that it does not have; or the
                chat template refuses it.
            FailedPrecondition: there is no chat template (`NO_CHAT_TEMPLATE`), or none that can be used
                (`CHAT_TEMPLATE_INVALID`).
            Overloaded: too much text waits already.
        """
        if content.tokens is not None:
            return content.tokens
        form: PromptForm = "chat" if content.messages else writing.prompt_form
        if form == "chat" and writing.chat_template is None and self._vocabulary.chat_template is None:
            raise FailedPrecondition(
                "neither this task nor the backbone has a chat template; send a prompt or token_ids",
                reason="NO_CHAT_TEMPLATE",
            )
        num_bytes = len(content.text) + sum(len(message.content) for message in content.messages)
        if form != "chat" and num_bytes <= _INLINE_LENGTH:
            ids = self._ids(content, form, writing, tenant)
        else:
            # Few tokens say nothing of how long a template takes: many chats of one tenant wait for one another, or the
            # chats of others would wait for all of them.
            turn = self._turns.setdefault(tenant, asyncio.Lock()) if form == "chat" else nullcontext()
            async with turn:
                weight = _BYTES_PER_PROMPT + 4 * num_bytes
                ids = await self._tokenizer.run(lambda: self._ids(content, form, writing, tenant), weight)
        if not ids:
            raise InvalidRequest("the tokenizer makes no token of it", reason="TEXT_EMPTY", field=content.field)
        _check_length(len(ids), self._window, content.field)
        check_token_id(max(ids), self._vocab_size, content.field)
        return _tokens(ids)

    def _ids(self, content: Content, form: PromptForm, writing: Writing, tenant: str) -> tuple[int, ...]:
        try:
            if form == "source":
                return self._prompts.source(content.text, _WHOLE).ids
            if form == "text":
                return self._prompts.text(content.text)
            messages = content.messages or (Message("user", content.text),)
            return self._prompts.chat(messages, writing.chat_template, asker=tenant)
        except InvalidConfig as error:
            reason = "CHAT_TEMPLATE_INVALID" if form == "chat" else error.reason
            raise FailedPrecondition(error.message, reason=reason) from None
        except InvalidData as error:
            reason = "CHAT_INVALID" if form == "chat" else "TOKEN_ID_OUT_OF_RANGE"
            raise InvalidRequest(error.message, reason=reason, field=content.field) from None


def _tokens(ids: Sequence[int]) -> Tokens:
    return Tokens(np.asarray(ids, dtype="<i4").tobytes())

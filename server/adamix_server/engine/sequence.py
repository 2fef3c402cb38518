"""One request inside a decoder's engine: its tokens, and the pages in which their keys and values lie. Pure: no torch.

A request that is to be generated gets one token more in each step; one that is not is computed up to its last token,
and answered by its head. Which sequences run, and with how many tokens, is the scheduler's to say.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adamix_server.channel.engine_frames import GenerateParams
from adamix_server.engine.request import Request


@dataclass(eq=False, slots=True)
class Sequence:
    """The tokens of one request and how far they are computed. Two sequences are never equal.

    Attributes:
        request: whose it is; its slot is valid while the sequence runs.
        buffer: int32, room for the prompt and all new tokens.
        num_tokens: how many of it there are: the prompt, and all that was drawn. A token that ended the text is among
            them, and is no part of the text (`num_text`).
        num_computed: how many of those have keys and values in `pages`.
        pages: page numbers, in the order of the tokens; the last may be partly filled.
        keys: what its first full pages are found by, computed or not, as far as anybody has asked.
        num_published: how many of `pages` were made known to be found.
        seed: by which its tokens are drawn.
        num_cached: tokens of the prompt that were found computed.
        num_sent: generated tokens that its front end knows.
        preemptions: how often its pages were taken away.
    """

    request: Request
    buffer: NDArray[np.int32] = field(repr=False)
    num_tokens: int
    seed: int = 0
    num_computed: int = 0
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list, repr=False)
    num_published: int = 0
    num_cached: int = 0
    num_sent: int = 0
    preemptions: int = 0

    @classmethod
    def of(cls, request: Request, seed: int = 0) -> "Sequence":
        """A sequence nothing of which is computed. `seed`: of a row that brings none."""
        params = request.row.generate
        buffer = np.zeros(request.num_tokens + (0 if params is None else params.max_new_tokens), np.int32)
        buffer[: request.num_tokens] = request.token_ids
        given = None if params is None else params.sampling.seed
        return cls(request, buffer, request.num_tokens, seed if given is None else given)

    @property
    def params(self) -> GenerateParams | None:
        """How it is gone on with; None if it is answered by its head."""
        return self.request.row.generate

    @property
    def num_prompt(self) -> int:
        return self.request.num_tokens

    @property
    def num_pending(self) -> int:
        """Tokens that are there and not computed. At least 1 while it runs."""
        return self.num_tokens - self.num_computed

    @property
    def tokens(self) -> NDArray[np.int32]:
        """A view of the tokens there are."""
        return self.buffer[: self.num_tokens]

    @property
    def num_generated(self) -> int:
        """Tokens that were drawn. With the one that ended the text."""
        return self.num_tokens - self.num_prompt

    @property
    def generated(self) -> NDArray[np.int32]:
        """A view of the tokens behind the prompt. With the one that ended the text."""
        return self.buffer[self.num_prompt : self.num_tokens]

    @property
    def num_text(self) -> int:
        """Tokens of the text: those that were drawn, but for the one that ended it."""
        return self.num_generated - (ending(self) in ("eos", "stop"))

    @property
    def text(self) -> NDArray[np.int32]:
        """A view of the tokens of the text."""
        return self.buffer[self.num_prompt : self.num_prompt + self.num_text]


@dataclass(frozen=True, slots=True)
class Work:
    """What one step computes of one sequence: its next `num_new` tokens, for which it has pages.

    With the last of its tokens among them it is complete: then it gets a token more, or the answer of its head.
    """

    sequence: Sequence
    num_new: int

    @property
    def is_complete(self) -> bool:
        return self.num_new == self.sequence.num_pending


def ending(sequence: Sequence) -> Literal["eos", "stop", "length"] | None:
    """By what a text has ended; None if it goes on. An end of text counts before a stop token, both before its length.

    The token of an end of text or a stop token is drawn and counted like any other, and is no part of the text.
    """
    if (params := sequence.params) is None or not sequence.num_generated:
        return None
    last = int(sequence.buffer[sequence.num_tokens - 1])
    if last in params.eos_ids and not params.ignore_eos:
        return "eos"
    if last in params.stop_ids:
        return "stop"
    return "length" if sequence.num_generated >= params.max_new_tokens else None

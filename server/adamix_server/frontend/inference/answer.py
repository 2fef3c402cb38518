"""One answer on its way to its reader: from tokens to messages.

What has come since the last message is one message, however much that is: a reader that is slow gets few large ones.
Knows what tokens mean as text; neither the engine nor the call.
"""

import struct
from collections.abc import Iterator
from typing import Literal

import numpy as np

from adamix_protos.v1 import inference_pb2
from adamix_server.channel.engine_frames import Event, Finish
from adamix_server.frontend.inference.detokenization import AnswerText
from adamix_server.frontend.inference.generate_fields import Asked
from adamix_server.frontend.inference.stops import Stops

# Of `Event.logprobs`.
_PAIR = struct.Struct("<if")
_REASONS: dict[Literal["eos", "stop", "length", "cancelled"], inference_pb2.FinishReason] = {
    "eos": inference_pb2.FINISH_REASON_EOS,
    "stop": inference_pb2.FINISH_REASON_STOP,
    "length": inference_pb2.FINISH_REASON_LENGTH,
    "cancelled": inference_pb2.FINISH_REASON_CANCELLED,
}


class Answer:
    """The tokens of one answer, and what is to be told of them next.

    Attributes:
        num_tokens: that count: those up to the end, if that was a stop.
    """

    def __init__(self, asked: Asked, text: AnswerText, version: str) -> None:
        self.num_tokens = 0
        self._asked = asked
        self._text = text
        self._stops = Stops(asked.stops)
        self._version = version
        self._next = inference_pb2.GenerateResponse(version=version)
        self._texts: list[str] = []

    @property
    def is_stopped(self) -> bool:
        """One of its stops has come: what follows is no part of it."""
        return self._stops.is_hit

    def add(self, event: Event) -> int:
        """Take the tokens of an event, as far as they are a part of the answer; how many those are."""
        token_ids = np.frombuffer(event.tokens, dtype="<i4").tolist()
        if event.finish is not None:
            # What ended it, if it came along, is no part of it.
            del token_ids[max(event.finish.num_tokens - self.num_tokens, 0) :]
        before = self.num_tokens
        probabilities = self._logprobs(event)
        for token_id in token_ids:
            if self.is_stopped:
                break
            self._texts.append(self._stops.feed(self._text.add(token_id)))
            self.num_tokens += 1
            if self._asked.return_token_ids:
                self._next.token_ids.append(token_id)
            if probabilities is not None:
                self._next.logprobs.append(next(probabilities))
        return self.num_tokens - before

    def message(self) -> inference_pb2.GenerateResponse | None:
        """What is to be told now; None if nothing is."""
        said = "".join(self._texts)
        if not (said or self._next.token_ids or self._next.logprobs):
            return None
        return self._take(said)

    def end(self, finish: Finish | None, num_prompt: int) -> inference_pb2.GenerateResponse:
        """The last message.

        Args:
            finish: what the engine says of the end; None if a stop has come and nothing of that is known.
            num_prompt: tokens of the prompt.
        """
        if not self.is_stopped:
            self._texts.append(self._stops.feed(self._text.finish()))
        self._texts.append(self._stops.rest())
        message = self._take("".join(self._texts))
        message.version = self._version
        message.seed = (self._asked.sampling.seed or 0) if finish is None else finish.seed
        usage = message.usage
        usage.prompt_tokens, usage.generated_tokens = num_prompt, self.num_tokens
        if finish is not None:
            usage.cached_tokens = finish.cached_tokens
        reason = "stop" if finish is None or self.is_stopped else finish.reason
        message.finish_reason = _REASONS[reason]
        return message

    def _take(self, said: str) -> inference_pb2.GenerateResponse:
        message, self._next = self._next, inference_pb2.GenerateResponse()
        message.text_delta = said
        self._texts.clear()
        return message

    def _logprobs(self, event: Event) -> Iterator[inference_pb2.TokenLogprob] | None:
        """Those of an event's tokens, one after the other; None if they were not asked for."""
        if self._asked.logprobs is None:
            return None
        pairs = list(_PAIR.iter_unpack(event.logprobs))
        width = 1 + self._asked.logprobs
        return (_logprob(pairs[at : at + width]) for at in range(0, len(pairs), width))


def _logprob(pairs: list[tuple[int, float]]) -> inference_pb2.TokenLogprob:
    (token_id, value), *others = pairs
    return inference_pb2.TokenLogprob(
        token_id=token_id,
        logprob=value,
        alternatives=[inference_pb2.TokenLogprob(token_id=other, logprob=likely) for other, likely in others],
    )

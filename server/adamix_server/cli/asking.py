"""What a text is asked for with on the command line: checked here, before there is any connection.

What depends on the backbone (its window, its vocabulary) only the server can check.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adamix.errors import InvalidConfig
from adamix.generation.sampling import Sampling
from adamix_server.limits.generation import MAX_BEAMS, MAX_LOGPROBS, MAX_STOP_BYTES, MAX_STOPS

if TYPE_CHECKING:
    from adamix_client import Client, GenerateDelta

_MAX_LENGTH_PENALTY = 5.0


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The flags of `generate`, as they were given; None where the server is to choose.

    Raises:
        InvalidConfig: one is out of its range, or they do not go together.
    """

    task: str
    version: str = ""
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    seed: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    stop: Sequence[str] = ()
    logprobs: int = 0
    token_ids: bool = False

    def __post_init__(self) -> None:
        Sampling(**self._given(Sampling.__dataclass_fields__))
        _check("max_new_tokens", self.max_new_tokens, 1, math.inf)
        _check("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _check("num_beams", self.num_beams, 1, MAX_BEAMS)
        _check("length_penalty", self.length_penalty, -_MAX_LENGTH_PENALTY, _MAX_LENGTH_PENALTY)
        if (self.num_beams or 1) > 1 and self.temperature:
            raise InvalidConfig("num_beams above 1 draws nothing: leave temperature out", field="temperature")
        if len(self.stop) > MAX_STOPS:
            raise InvalidConfig(f"stop may be given {MAX_STOPS} times, not {len(self.stop)}", field="stop")
        for text in self.stop:
            if not 1 <= len(encoded(text, "stop")) <= MAX_STOP_BYTES:
                raise InvalidConfig(f"stop must have 1 to {MAX_STOP_BYTES} bytes", field="stop")

    def begin(
        self, client: "Client", prompt: str | None, chat: Sequence[Mapping[str, str]] | None = None
    ) -> "Generator[GenerateDelta, None, None]":
        """The deltas of one text."""
        told = self._given(self.__dataclass_fields__)
        return client.generate(prompt=prompt, chat=chat, return_token_ids=told.pop("token_ids"), **told)

    def _given(self, names: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def encoded(text: str, what: str) -> bytes:
    """Raises InvalidConfig for what is not valid Unicode, as an argument of other bytes is not."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidConfig(f"{what} is not valid UTF-8", field=what) from None


def _check(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        allowed = f"in {low:g}..{high:g}" if math.isfinite(high) else f"at least {low:g}"
        raise InvalidConfig(f"{name} must be {allowed}, not {value:g}", field=name)

"""How the next token is drawn: the settings, and what they mean, said once for offline texts and for the server.

Plain data and numpy; knows no model, no device and no request.
"""

import math
from dataclasses import dataclass

from adamix.errors import InvalidConfig

MAX_SEED = (1 << 64) - 1
MAX_NGRAM = 64


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """In this order: penalties, temperature, top_k, top_p, min_p; then a draw among what is left. Raises InvalidConfig.

    Penalties and n-grams look at the generated tokens alone, as `Decoding`'s do.

    Attributes:
        temperature: 0 takes the likeliest token, of equal ones the one with the lowest id.
        top_k: of the likeliest tokens alone, so many; 0 is all.
        top_p: of the likeliest tokens alone that together have this probability; 1 is all.
        min_p: of the tokens alone that have at least this share of the likeliest one's probability; 0 is all.
        repetition_penalty: divides the positive score of a token that was generated, multiplies a negative one (Keskar
            et al. 2019, arXiv 1909.05858); 1 is none.
        presence_penalty: is taken off the score of a token that was generated.
        frequency_penalty: is taken off it for each time.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice; 0 allows it.
        seed: of the draws; None is one of the drawer's own choice.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 5.0),
            ("top_k", 0, 1 << 31),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.0, 10.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
            ("no_repeat_ngram_size", 0, MAX_NGRAM),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise InvalidConfig(f"{name} must be in {low}..{high}, not {value}", field=name)
        if self.top_p == 0 or self.repetition_penalty == 0:
            name = "top_p" if self.top_p == 0 else "repetition_penalty"
            raise InvalidConfig(f"{name} must be above 0", field=name)
        if self.min_p == 1:
            raise InvalidConfig("min_p must be below 1", field="min_p")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise InvalidConfig(f"seed must be in 0..{MAX_SEED}, not {self.seed}", field="seed")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling()

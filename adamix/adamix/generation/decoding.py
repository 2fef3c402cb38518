"""How texts are generated: beam search and its limits. Plain data; knows no model."""

import math
from dataclasses import asdict, dataclass

from adamix.errors import InvalidConfig


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Beam search as in the paper's generation experiments (the values are those of the released scripts).

    Nothing is sampled: equal settings give equal texts. Penalties look at the generated tokens alone, as the release's
    do, so that names may be copied from the source.

    Attributes:
        num_beams: hypotheses kept; 1 takes the likeliest token each time.
        length_penalty: a finished text of n tokens scores its log-probability divided by `n ** length_penalty`; without
            effect on one beam.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice in a text; 0 allows it.
        repetition_penalty: of tokens that the text has already (Keskar et al. 2019, arXiv 1909.05858); 1 is none.
        max_new_tokens: of a text, the end of text included.
    """

    num_beams: int = 10
    length_penalty: float = 0.8
    no_repeat_ngram_size: int = 4
    repetition_penalty: float = 1.0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_beams", 1, 64),
            ("length_penalty", -10.0, 10.0),
            ("no_repeat_ngram_size", 0, 1024),
            ("repetition_penalty", 0.01, 100.0),
            ("max_new_tokens", 1, 65_536),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise InvalidConfig(f"{name} must be in {low}..{high}, not {value}", field=name)

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in asdict(self).items())


def parse_decoding(text: str) -> Decoding:
    """The settings of `NAME=VALUE,…`; those not named keep their defaults.

    Raises:
        InvalidConfig: a name is unknown or given twice, or a value is no number or out of range.
    """
    kinds = {name: type(value) for name, value in asdict(Decoding()).items()}
    given: dict[str, float] = {}
    for part in text.split(",") if text.strip() else []:
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in kinds:
            raise InvalidConfig(f"unknown decoding setting {name[:40]!r}; settings are {', '.join(kinds)}", field=name)
        if name in given:
            raise InvalidConfig(f"the decoding setting {name} is given twice", field=name)
        try:
            given[name] = kinds[name](value)
        except ValueError:
            raise InvalidConfig(f"{name} needs a number, not {value[:40]!r}", field=name) from None
    return Decoding(**given)  # type: ignore[arg-type]  # each value was made by its field's type

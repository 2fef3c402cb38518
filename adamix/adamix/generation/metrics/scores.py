"""All metrics of a set of predictions, by style: what each metric reads, its unit, and what it is left out for."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from adamix.errors import FailedPrecondition, InvalidConfig, InvalidData
from adamix.generation.metrics.meteor import meteor
from adamix.generation.metrics.ngrams import cider, nist, rouge_l
from adamix.generation.metrics.preparation import penn_words, split_at_symbols, words_13a

if TYPE_CHECKING:
    from sacrebleu.metrics.ter import TER

Style = Literal["e2e", "webnlg"]
STYLES: tuple[Style, ...] = get_args(Style)

# What is computed where nobody chooses: what the papers print for these data.
STYLE_METRICS: dict[Style, tuple[str, ...]] = {
    "e2e": ("bleu", "nist", "meteor", "rouge_l", "cider"),
    "webnlg": ("bleu", "ter", "meteor"),
}
# GenerationEval is given six files of references; those beyond are not seen.
MAX_WEBNLG_REFERENCES = 6


@dataclass(frozen=True, slots=True)
class _Texts:
    """Predictions and references, row by row, as one style prepares them."""

    predictions: list[str]
    references: list[list[str]]
    style: Style


def score_generation(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] | None = None,
    *,
    style: str = "e2e",
    on_warning: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Corpus scores of predictions.

    ======== =========== ===========================================================================================
    name     range       definition
    ======== =========== ===========================================================================================
    bleu     0..100      BLEU-4 of sacrebleu: `13a` words in lower case, reference nearest in length
    nist     0 and up    NIST-5 of mteval-v13a over the same words: clipped by all references, mean reference length
    meteor   0..100      METEOR 1.5 for English, `-norm`; needs Java and the package pycocoevalcap
    rouge_l  0..100      mean over rows of F (beta 1.2) of the longest common subsequence
    cider    0..10       CIDEr-D (sigma 6, 1 to 4 words); 0 for a single row, whose words tell nothing apart
    ter      0 and up    mean over rows of the lowest translation edit rate of a reference; 1 is as many edits as words
    chrf     0..100      chrF2 of sacrebleu (6 characters, no words), case kept in the style `e2e`
    ======== =========== ===========================================================================================

    Args:
        predictions: one text a row; an empty one is a text without words.
        references: for each row the texts it is compared with, at least one; their order is irrelevant.
        metrics: names from `METRICS`; None takes the style's own: bleu, nist, meteor, rouge_l and cider for `e2e`;
            bleu, ter and meteor for `webnlg`.
        style: `e2e` takes texts as they are; ROUGE-L, CIDEr and METEOR read Penn-like words without punctuation.
            `webnlg` puts all texts in lower case, splits them at every symbol, and reads up to 6 references a row.
        on_warning: receives one sentence for a metric that is left out; without it they are Python warnings.

    Returns:
        A score for each metric that could be computed, in the order asked for. METEOR is left out, never guessed,
        where Java or its package is missing.

    Raises:
        InvalidConfig: `style` or a metric is unknown.
        InvalidData: no rows, not as many predictions as references, a row without reference, or something that is
            no text.
    """
    known_style = next((known for known in STYLES if known == style), None)
    if known_style is None:
        raise InvalidConfig(f"scoring style {style!r} is not one of {', '.join(STYLES)}")
    wanted = STYLE_METRICS[known_style] if metrics is None else tuple(dict.fromkeys(metrics))
    for name in wanted:
        if name not in _METRICS:
            raise InvalidConfig(f"metric {name!r} is not one of {', '.join(METRICS)}")
    _check(predictions, references)
    texts = _prepared(predictions, references, known_style)
    scores: dict[str, float] = {}
    for name in wanted:
        try:
            scores[name] = _METRICS[name](texts)
        except FailedPrecondition as missing:
            (on_warning or _warn)(missing.message)
    return scores


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=3)


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(references):
        raise InvalidData(f"there are {len(predictions)} predictions, but references for {len(references)}")
    if not predictions:
        raise InvalidData("there is nothing to score: no predictions")
    for row, (prediction, texts) in enumerate(zip(predictions, references, strict=True), start=1):
        if isinstance(texts, str) or not texts:
            raise InvalidData(f"row {row} has no list of references")
        if not all(isinstance(text, str) for text in (prediction, *texts)):
            raise InvalidData(f"row {row} has a prediction or reference that is not a text")


def _prepared(predictions: Sequence[str], references: Sequence[Sequence[str]], style: Style) -> _Texts:
    if style == "e2e":
        return _Texts(list(predictions), [list(texts) for texts in references], style)
    return _Texts(
        [split_at_symbols(text.lower()) for text in predictions],
        [[split_at_symbols(text.lower()) for text in texts[:MAX_WEBNLG_REFERENCES]] for texts in references],
        style,
    )


def _columns(references: list[list[str]]) -> list[list[Any]]:
    """Row-wise references as sacrebleu takes them: one list for each place, None where a row has fewer (it accepts
    them, though its annotations do not say so).

    Sorted, because chrF takes the first of equally good references, and those may differ in length.
    """
    rows = [sorted(texts) for texts in references]
    return [[row[place] if place < len(row) else None for row in rows] for place in range(max(map(len, rows)))]


def _bleu(texts: _Texts) -> float:
    from sacrebleu.metrics.bleu import BLEU

    score = BLEU(lowercase=True, force=True).corpus_score(texts.predictions, _columns(texts.references))
    return float(score.score)


def _chrf(texts: _Texts) -> float:
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().corpus_score(texts.predictions, _columns(texts.references)).score)


def _ter(texts: _Texts) -> float:
    from sacrebleu.metrics.ter import TER

    def spaced(text: str) -> str:
        """Words apart, as the metric takes them; the style `webnlg` has them apart already."""
        return text if texts.style == "webnlg" else " ".join(words_13a(text))

    rate = TER()
    rates = [
        _lowest_rate(rate, spaced(prediction), {spaced(text) for text in references})
        for prediction, references in zip(texts.predictions, texts.references, strict=True)
    ]
    return sum(rates) / len(rates)


def _lowest_rate(rate: "TER", prediction: str, references: set[str]) -> float:
    """The translation edit rate to the nearest reference; those that cannot be it are not looked at.

    The search for shifts takes milliseconds a pair. A word that the other text lacks costs an edit wherever it
    stands, so `max(words of either) - words in common` is a lower bound of the edits.
    """
    words = Counter(prediction.split())
    bounds = []
    for text in references:
        others = Counter(text.split())
        edits = max(words.total(), others.total()) - (words & others).total()
        bounds.append((edits / others.total() if others else 0.0, text))
    lowest = math.inf
    for bound, text in sorted(bounds):
        if bound < lowest:
            lowest = min(lowest, float(rate.sentence_score(prediction, [text]).score) / 100)
    return lowest


def _nist(texts: _Texts) -> float:
    return nist(*_words(texts, words_13a))


def _rouge_l(texts: _Texts) -> float:
    return 100 * rouge_l(*_words(texts, penn_words))


def _cider(texts: _Texts) -> float:
    return cider(*_words(texts, penn_words))


def _meteor(texts: _Texts) -> float:
    if texts.style == "webnlg":
        return 100 * meteor(texts.predictions, texts.references)
    predictions, references = _words(texts, penn_words)
    return 100 * meteor(
        [" ".join(words) for words in predictions], [[" ".join(words) for words in row] for row in references]
    )


def _words(texts: _Texts, words: Callable[[str], list[str]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    return [words(text) for text in texts.predictions], [[words(text) for text in row] for row in texts.references]


_METRICS: dict[str, Callable[[_Texts], float]] = {
    "bleu": _bleu,
    "nist": _nist,
    "meteor": _meteor,
    "rouge_l": _rouge_l,
    "cider": _cider,
    "ter": _ter,
    "chrf": _chrf,
}
METRICS: tuple[str, ...] = tuple(_METRICS)

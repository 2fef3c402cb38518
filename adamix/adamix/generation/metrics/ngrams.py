"""NIST, ROUGE-L and CIDEr over words that somebody else has split: the formulas, and nothing else.

Written out here because the libraries that have them differ from what the papers report (NLTK's NIST clips by the
best single reference instead of all) or bring a hundred megabytes of other things (pycocoevalcap).

H hypotheses, one list of words each; for each the words of R >= 1 references.
"""

import math
from collections import Counter
from collections.abc import Sequence

Words = Sequence[str]

_NIST_ORDER = 5
_CIDER_ORDER = 4
_CIDER_SIGMA = 6.0
_ROUGE_BETA = 1.2


def ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    """How often each run of `order` words occurs."""
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def nist(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]], order: int = _NIST_ORDER) -> float:
    """NIST (Doddington 2002, equation 3, as mteval-v13a computes it).

    `sum over n of (information of the matched n-grams / number of n-grams) * penalty`: an n-gram `w1…wn` carries
    `log2(count(w1…wn-1) / count(w1…wn))` bits over all references; matches are clipped by the largest count in any
    one reference; the penalty is `exp(beta * log(min(1, L / L'))^2)` with the mean length L' of the references, and is
    0.5 at two thirds of it.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for texts in references:
        for words in texts:
            counts[()] += len(words)
            for n in range(1, order + 1):
                counts.update(ngrams(words, n))
    total = 0.0
    for n in range(1, order + 1):
        bits = 0.0
        possible = 0
        for hypothesis, texts in zip(hypotheses, references, strict=True):
            found = ngrams(hypothesis, n)
            possible += found.total()
            allowed: Counter[tuple[str, ...]] = Counter()
            for words in texts:
                allowed |= ngrams(words, n)
            matched = found & allowed
            bits += sum(math.log2(counts[gram[:-1]] / counts[gram]) * times for gram, times in matched.items())
        total += bits / possible if possible else 0.0
    length = sum(map(len, hypotheses))
    reference_length = sum(sum(map(len, texts)) / len(texts) for texts in references)
    if not length or not reference_length:
        return 0.0
    beta = math.log(0.5) / math.log(1.5) ** 2
    return total * math.exp(beta * math.log(min(1.0, length / reference_length)) ** 2)


def rouge_l(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Mean over rows of ROUGE-L in 0..1 (Lin 2004), as COCO and E2E compute it.

    With the longest common subsequence's share P of the hypothesis and R of the reference, each the best over the
    references: `(1 + beta^2) P R / (R + beta^2 P)`, beta = 1.2.
    """
    return sum(map(_rouge_l, hypotheses, references)) / len(hypotheses)


def _rouge_l(hypothesis: Words, texts: Sequence[Words]) -> float:
    common = [(_common_length(hypothesis, words), len(words)) for words in texts]
    precision = max(length / len(hypothesis) for length, _ in common) if hypothesis else 0.0
    recall = max(length / count if count else 0.0 for length, count in common)
    if not precision or not recall:
        return 0.0
    squared = _ROUGE_BETA**2
    return (1 + squared) * precision * recall / (recall + squared * precision)


def _common_length(first: Words, second: Words) -> int:
    """Length of the longest common subsequence, row by row of its table."""
    above = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for column, other in enumerate(second):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[column]))
        above = row
    return above[-1]


def cider(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """CIDEr-D (Vedantam et al. 2015), times 10 as its authors' script has it.

    The mean over rows, references and n = 1..4 of the cosine between tf-idf vectors of n-grams, the hypothesis's
    clipped to the reference's, times `exp(-d^2 / (2 sigma^2))` for a difference of d bigrams. Document frequencies
    are those of the rows' references, so a single row scores 0.
    """
    rows = [[_term_counts(words) for words in texts] for texts in references]
    frequency = Counter(gram for row in rows for gram in {gram for counts in row for gram in counts})
    weights = {gram: math.log(len(rows)) - math.log(count) for gram, count in frequency.items()}
    unseen = math.log(len(rows))
    total = 0.0
    for hypothesis, row in zip(hypotheses, rows, strict=True):
        mine = _tf_idf(_term_counts(hypothesis), weights, unseen)
        bigrams = max(len(hypothesis) - 1, 0)
        for counts in row:
            difference = bigrams - sum(times for gram, times in counts.items() if len(gram) == 2)
            nearness = math.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))
            total += nearness * _mean_cosine(mine, _tf_idf(counts, weights, unseen)) / len(row)
    return 10 * total / len(rows)


_Vectors = list[dict[tuple[str, ...], float]]


def _term_counts(words: Words) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for n in range(1, _CIDER_ORDER + 1):
        counts.update(ngrams(words, n))
    return counts


def _tf_idf(counts: Counter[tuple[str, ...]], weights: dict[tuple[str, ...], float], unseen: float) -> _Vectors:
    vectors: _Vectors = [{} for _ in range(_CIDER_ORDER)]
    for gram, times in counts.items():
        vectors[len(gram) - 1][gram] = times * weights.get(gram, unseen)
    return vectors


def _mean_cosine(hypothesis: _Vectors, reference: _Vectors) -> float:
    cosines = 0.0
    for mine, theirs in zip(hypothesis, reference, strict=True):
        norm = math.hypot(*mine.values()) * math.hypot(*theirs.values())
        if norm:
            clipped = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
            cosines += clipped / norm
    return cosines / _CIDER_ORDER

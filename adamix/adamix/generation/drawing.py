"""What `Sampling` means: from the scores of one row to the token that comes next. This is the definition.

What computes the same faster for many rows at once, as the server's engine does, is equal to it token by token. Numpy;
knows no model, no device and no request.

In this order: a token's penalties and bans, in fp32, each operation rounded, and only for tokens of the generated text;
then, in fp64 and from the highest score down (of equal ones the lowest id first): temperature, top_k, top_p, min_p;
then a draw by the inverse of the cumulated weights. The one number that a draw takes is a function of the seed and of
how many tokens the text has, so that neither what else is computed nor where it is changes it.

V vocabulary, D distinct generated tokens.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adamix.generation.sampling import Sampling

Scores = NDArray[np.float32]
Ids = NDArray[np.int64]

LARGEST = float(np.finfo(np.float32).max)
# A penalty below it is none that fp32 can divide by.
_SMALLEST = float(np.finfo(np.float32).tiny)
# A uniform number has as many bits as an fp64 has.
_BITS = 53
# How far a mass that was summed in another order, or in fp32, may be from the definition's, as a share of it. (fp32 is
# within some 2e-6; a wider band only asks for the whole row more often.)
TOLERANCE = 1e-5

# One token, and the logarithm of its probability, as in an event's `logprobs`.
LOGPROB = np.dtype([("token", "<i4"), ("logprob", "<f4")])


@dataclass(frozen=True)
class Changes:
    """What the generated text changes in the scores.

    Attributes:
        ids: int64 `[D]`, tokens whose scores are changed.
        factor: divides their positive scores, multiplies the others.
        taken_off: fp32 `[D]`, what is taken off after that.
        banned: int64, tokens that must not come next.
    """

    ids: Ids
    factor: float
    taken_off: Scores
    banned: Ids


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) by which the token behind `position` generated ones is drawn."""
    raw = int(np.random.Philox(key=seed, counter=position).random_raw())
    return float(raw >> (64 - _BITS)) / float(1 << _BITS)


def changes_scores(sampling: Sampling) -> bool:
    """Whether the generated text matters at all."""
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
        or sampling.no_repeat_ngram_size > 0
    )


def changes_of(generated: NDArray[np.int32], sampling: Sampling) -> Changes:
    """What the tokens generated so far change. Costs by their number, not by the vocabulary's."""
    ids, counts = np.unique(generated, return_counts=True)
    presence, frequency = np.float32(sampling.presence_penalty), np.float32(sampling.frequency_penalty)
    factor = float(np.float32(max(sampling.repetition_penalty, _SMALLEST)))
    banned = _banned(generated, sampling.no_repeat_ngram_size)
    return Changes(ids.astype(np.int64), factor, presence + frequency * counts.astype(np.float32), banned)


def changed(logits: Scores, changes: Changes) -> Scores:
    """The scores `[V]` after penalties and bans. A ban that would leave nothing is lifted."""
    scores = logits.copy()
    found = scores[changes.ids]
    factor = np.float32(changes.factor)
    with np.errstate(over="ignore"):
        found = np.clip(np.where(found > 0, found / factor, found * factor), -LARGEST, LARGEST)
    scores[changes.ids] = found - changes.taken_off
    if len(changes.banned):
        allowed = scores.copy()
        allowed[changes.banned] = -np.inf
        scores = allowed if allowed.max() > -np.inf else scores
    return scores


def place(scores: Scores, sampling: Sampling, number: float, mass: float | None = None) -> int | None:
    """Which of the highest scores is drawn.

    Args:
        scores: in descending order, the first of them finite.
        number: uniform in [0, 1).
        mass: None: these are all scores there are. Else the sum of `exp((score - scores[0]) / temperature)` over all of
            them, within `TOLERANCE`, and those not given are lower than these.

    Returns:
        Its place; None if that cannot be said for certain without the others.
    """
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((scores.astype(np.float64) - float(scores[0])) / sampling.temperature)
    if 0 < sampling.top_k <= len(weights):
        weights, mass = weights[: sampling.top_k], None
    sums = np.cumsum(weights)
    known = len(sums)
    if mass is None:
        everything, bounds = known, (sums[-1], sums[-1])
    elif sampling.top_k:
        return None
    else:
        everything, bounds = known + 1, (mass * (1 - TOLERANCE), mass * (1 + TOLERANCE))
    # `everything` stands for more than is known wherever some scores are not.
    likely = int(np.searchsorted(-weights, -sampling.min_p, side="right")) if sampling.min_p else everything
    likely = everything if likely == known else likely
    kept = {min(likely, _nucleus(sums, sampling.top_p, total, everything)) for total in bounds}
    if len(kept) > 1:
        return None
    (num,) = kept
    if num <= known:
        bounds = (sums[num - 1], sums[num - 1])
    elif sampling.min_p or sampling.top_p < 1:
        return None
    places = {_first_above(sums, number, total) for total in bounds}
    if len(places) > 1 or max(places) >= known:
        return None
    return places.pop()


def next_token(logits: Scores, generated: NDArray[np.int32], sampling: Sampling, seed: int) -> int | None:
    """The token that comes behind those generated so far.

    Args:
        logits: fp32 `[V]`, as the model gives them.

    Returns:
        None if the likeliest score is not finite, as it is where any is NaN or positive infinity.
    """
    if not np.isfinite(logits.max()):
        return None
    scores = changed(logits, changes_of(generated, sampling)) if changes_scores(sampling) else logits
    if sampling.is_greedy:
        return int(scores.argmax())
    # Sorting numbers takes a tenth of the time of sorting ids by them.
    descending = -np.sort(-scores)
    found = place(descending, sampling, uniform(seed, len(generated)))
    if found is None:  # never, of all scores
        return None
    value = descending[found]
    return int(np.flatnonzero(scores == value)[found - np.searchsorted(-descending, -value)])


def log_mass(logits: Scores) -> float:
    """The logarithm of the sum of the exponentials of a row's finite maximum and what is below it, summed in fp64."""
    largest = float(logits.max())
    with np.errstate(under="ignore"):
        return largest + float(np.log(np.exp(logits.astype(np.float64) - largest).sum()))


def logprobs(logits: Scores, token: int, alternatives: int) -> bytes:
    """Of a token, then of the likeliest ones (of equal ones the lowest id first): `LOGPROB`s, one after another.

    They are of the model's own scores: neither penalties nor temperature change them.
    """
    order = np.zeros(0, np.int64)
    if alternatives:
        likely = np.flatnonzero(logits >= -np.partition(-logits, alternatives - 1)[alternatives - 1])
        order = likely[np.argsort(-logits[likely], kind="stable")][:alternatives]
    return pack_logprobs(np.array([token, *order]), logits[[token, *order]], log_mass(logits))


def pack_logprobs(ids: Ids, logits: Scores, log_of_mass: float) -> bytes:
    """`LOGPROB`s of tokens with these logits, in their order."""
    packed = np.empty(len(ids), LOGPROB)
    packed["token"] = ids
    packed["logprob"] = (logits.astype(np.float64) - log_of_mass).astype(np.float32)
    return packed.tobytes()


def _nucleus(sums: NDArray[np.float64], top_p: float, total: float, everything: int) -> int:
    """The fewest of the first weights that together have a share of the total."""
    return min(everything, int(np.searchsorted(sums, top_p * total)) + 1) if top_p < 1 else everything


def _first_above(sums: NDArray[np.float64], share: float, total: float) -> int:
    """The first place whose sum is above a share of the total, which rounding must not bring to the total itself."""
    return int(np.searchsorted(sums, min(share * total, np.nextafter(total, 0.0)), side="right"))


def _banned(generated: NDArray[np.int32], size: int) -> Ids:
    """Tokens that would end a sequence of `size` tokens that the text has already."""
    if not 0 < size <= len(generated):
        return np.zeros(0, np.int64)
    starts = np.arange(len(generated) - size + 1)
    for offset, token in enumerate(generated[len(generated) - size + 1 :]):
        starts = starts[generated[starts + offset] == token]
    return np.unique(generated[starts + size - 1]).astype(np.int64)

"""Draws the next token of all texts of a step at once: logits in, tokens out.

What a draw means is said in `adamix.generation.drawing`; here it is done without sorting the vocabulary. The device
finds each row's likeliest token, and of rows that are not simply greedy the `_BEST` highest scores and the mass of all
of them; one copy brings that to the host, where the definition's own function draws among them. A row whose draw cannot
be told from so few for certain, in exact arithmetic or not, is drawn again by the definition from all its scores. So
tokens are the definition's whatever the device, the order of its sums, and the rows beside.

Knows no pages, no scheduler and no request but by its `Sequence`.

G rows, V vocabulary, N rows that are not simply greedy, K highest scores.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamix.errors import InvalidConfig
from adamix.generation import drawing
from adamix.generation.sampling import Sampling
from adamix_server.engine.sequence import Sequence

# Of so many scores nearly every draw is found: more would cost each step what few draws need.
_BEST = 256
# fp32 says little of what is divided by less.
_LOWEST_TEMPERATURE = 1e-6
# More than any number of alternatives that may be asked for, so that equal ones at the end of those can be told.
_BEST_LOGPROBS = 32


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, and, if asked for, `logprobs` as in an `Event`."""

    token: int
    logprobs: bytes = b""


@dataclass(frozen=True, slots=True)
class _Ask:
    """How one row is drawn from."""

    sampling: Sampling
    seed: int
    generated: NDArray[np.int32]
    alternatives: int | None

    @classmethod
    def of(cls, sequence: Sequence) -> "_Ask":
        if sequence.params is None:
            raise InvalidConfig("nothing is drawn for a request that is not generated", field="generate")
        return cls(sequence.params.sampling, sequence.seed, sequence.generated, sequence.params.logprobs)

    @property
    def is_plain(self) -> bool:
        return self.sampling.is_greedy and not drawing.changes_scores(self.sampling)

    @property
    def needs_mass(self) -> bool:
        return not self.sampling.is_greedy and not 0 < self.sampling.top_k <= _BEST


class Sampler:
    """Draws tokens from rows of `vocab_size` logits."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    @torch.inference_mode()
    def draw(self, logits: Tensor, sequences: Ordered[Sequence]) -> list[Drawn | None]:
        """The next token of each sequence, in their order.

        Args:
            logits: fp32 `[G, V]`. Is not changed.

        Returns:
            None for a sequence whose likeliest logit is not finite: those of the others are as without it.
        """
        if logits.shape != (len(sequences), self._vocab_size):
            raise InvalidConfig(f"logits are {tuple(logits.shape)}, not [{len(sequences)}, {self._vocab_size}]")
        if not sequences:
            return []
        asks = [_Ask.of(sequence) for sequence in sequences]
        tokens = self._tokens(logits, asks)
        probabilities = _logprobs(logits, asks, tokens)
        return [
            None if token is None else Drawn(token, probabilities.get(row, b"")) for row, token in enumerate(tokens)
        ]

    def _tokens(self, logits: Tensor, asks: Ordered[_Ask]) -> list[int | None]:
        rows = [row for row, ask in enumerate(asks) if not ask.is_plain]
        likeliest = _likeliest(logits)
        parts = [logits.gather(1, likeliest[:, None]), likeliest]
        scores = logits
        if rows:
            chosen = [asks[row] for row in rows]
            scores = _scores(logits, rows, chosen)
            best = scores.topk(min(_BEST, self._vocab_size))
            parts += [best.values, best.indices, _masses(scores, best.values[:, :1], chosen)]
        # All in one copy. Every id and every fp32 is an fp64.
        together = torch.cat([part.reshape(-1).double() for part in parts]).cpu().numpy()
        maxima, ids, *others = np.split(together, np.cumsum([part.numel() for part in parts])[:-1])
        tokens = [int(token) if np.isfinite(score) else None for score, token in zip(maxima, ids, strict=True)]
        if rows:
            values = others[0].reshape(len(rows), -1).astype(np.float32)
            tops = zip(rows, values, others[1].reshape(len(rows), -1), others[2], strict=True)
            for row, best_scores, best_ids, mass in tops:
                if tokens[row] is not None:
                    tokens[row] = self._among_best(asks[row], best_scores, best_ids, mass)
                    if tokens[row] is None:
                        tokens[row] = _from_all(logits[row], asks[row])
        return tokens

    def _among_best(self, ask: _Ask, scores: drawing.Scores, ids: NDArray[np.float64], mass: float) -> int | None:
        """The token drawn among a row's highest scores `[K]`; None if that cannot be told from them."""
        if not np.isfinite(scores[0]):
            return None
        is_all = len(scores) == self._vocab_size
        # Of the scores that equal the lowest of these some may be missing.
        known = len(scores) if is_all else int(np.searchsorted(-scores, -scores[-1]))
        order = np.lexsort((ids[:known], -scores[:known]))
        if known == 0 or ask.sampling.is_greedy:
            return int(ids[order[0]]) if known else None
        number = drawing.uniform(ask.seed, len(ask.generated))
        found = drawing.place(scores[order], ask.sampling, number, None if is_all else mass)
        return None if found is None else int(ids[order[found]])


def _likeliest(logits: Tensor) -> Tensor:
    """The id `[G]` of each row's maximum, of equal ones the lowest; of a NaN, where there is one."""
    # On CPUs numpy's takes a tenth of torch's time.
    return torch.from_numpy(logits.numpy().argmax(-1)) if _is_host(logits) else logits.argmax(-1)


def _scores(logits: Tensor, rows: Ordered[int], asks: Ordered[_Ask]) -> Tensor:
    """Rows `[N, V]` after penalties and bans: `drawing.changed`, the same operations in the same precision."""
    scores = logits[_upload(rows, logits.device)]
    changes = [
        (row, drawing.changes_of(ask.generated, ask.sampling))
        for row, ask in enumerate(asks)
        if drawing.changes_scores(ask.sampling)
    ]
    if not changes:
        return scores
    counts = [len(change.ids) for _, change in changes]
    where = (
        _upload(np.repeat([row for row, _ in changes], counts), logits.device),
        _upload(np.concatenate([change.ids for _, change in changes]), logits.device),
    )
    factors = np.repeat(np.array([change.factor for _, change in changes], np.float32), counts)
    factor = _upload(factors, logits.device)
    found = scores[where]
    found = torch.where(found > 0, found / factor, found * factor).clamp(-drawing.LARGEST, drawing.LARGEST)
    # Two operations, each rounded: the product above must not be fused with what is taken off.
    scores[where] = found - _upload(np.concatenate([change.taken_off for _, change in changes]), logits.device)
    banned = [(row, change.banned) for row, change in changes if len(change.banned)]
    if banned:
        of = np.repeat([row for row, _ in banned], [len(ids) for _, ids in banned])
        ids = np.concatenate([ids for _, ids in banned])
        scores[_upload(of, logits.device), _upload(ids, logits.device)] = -torch.inf
    return scores


def _masses(scores: Tensor, highest: Tensor, asks: Ordered[_Ask]) -> Tensor:
    """The mass `[N]` of all scores of each row, relative to the highest `[N, 1]`, within `drawing.TOLERANCE`.

    NaN where fp32 cannot say it: then nothing is certain.
    """
    if not _is_host(scores):
        temperatures = np.array([ask.sampling.temperature for ask in asks], np.float32)
        temperatures[temperatures < _LOWEST_TEMPERATURE] = np.nan
        return ((scores - highest) / _upload(temperatures, scores.device)[:, None]).exp().sum(-1, dtype=torch.float64)
    # Only of rows that need it, one by one: numpy's exponential takes a fifth of torch's time.
    masses = np.zeros(len(asks))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for row, ask in enumerate(asks):
            if ask.needs_mass:
                below = scores[row].numpy().astype(np.float64) - float(highest[row])
                masses[row] = np.exp(below / ask.sampling.temperature).sum()
    return torch.from_numpy(masses)


def _from_all(row: Tensor, ask: _Ask) -> int | None:
    return drawing.next_token(row.cpu().numpy(), ask.generated, ask.sampling, ask.seed)


def _logprobs(logits: Tensor, asks: Ordered[_Ask], tokens: Ordered[int | None]) -> dict[int, bytes]:
    """Of each row that asks and has a token: the bytes of an event. Costs nothing if none does."""
    asking = {row: ask.alternatives for row, ask in enumerate(asks) if ask.alternatives is not None}
    drawn = {row: token for row in asking if (token := tokens[row]) is not None}
    if not drawn:
        return {}
    rows = list(drawn)
    scores = logits[_upload(rows, logits.device)]
    best = scores.topk(min(_BEST_LOGPROBS, scores.shape[1]))
    own = scores.gather(1, _upload(list(drawn.values()), logits.device)[:, None])
    parts = [own, best.values, best.indices, _log_masses(scores)]
    found = torch.cat([part.reshape(len(rows), -1).double() for part in parts], dim=1).cpu().numpy()
    width = best.values.shape[1]
    result = {}
    for (row, token), numbers in zip(drawn.items(), found, strict=True):
        alternatives = asking[row] or 0
        values, ids = numbers[1 : 1 + width].astype(np.float32), numbers[1 + width : -1].astype(np.int64)
        order = np.lexsort((ids, -values))[:alternatives]
        is_certain = width == scores.shape[1] or not alternatives or values[order[-1]] > values.min()
        if is_certain and alternatives <= width:
            logits_of = np.array([numbers[0], *values[order]], np.float32)
            result[row] = drawing.pack_logprobs(np.array([token, *ids[order]]), logits_of, numbers[-1])
        else:
            result[row] = drawing.logprobs(logits[row].cpu().numpy(), token, alternatives)
    return result


def _log_masses(scores: Tensor) -> Tensor:
    """The logarithm of the mass `[N]` of each row: of fp64 sums, so that their order does not show in fp32."""
    if _is_host(scores):
        return torch.tensor([drawing.log_mass(row) for row in scores.numpy()], dtype=torch.float64)
    return scores.double().logsumexp(-1)


def _is_host(rows: Tensor) -> bool:
    """Whether numpy reads these where they are."""
    return rows.device.type == "cpu"


def _upload(values: "Iterable[int] | NDArray[np.float32] | NDArray[np.int64]", device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(values)).to(device, non_blocking=True)

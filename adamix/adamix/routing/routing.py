"""The routes that a trained mixture can be measured by: merged, random, one fixed expert, or all of them together.

How routes are drawn, by generators of their own, and how paths are averaged; `choice` says which there are.
Who follows them is not known here: `probe` for labels, `text_probe` for texts.

Shapes: S paths, N rows, L tokens, P points (layer x site), C outputs of the head.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from adamix.data import TaskType
from adamix.routing.choice import Average, Granularity
from adamix.rows.labelled import TokenRow


def draw_route(seed: int, num_points: int, num_experts: int) -> NDArray[np.int64]:
    """The experts of a route that all rows share: uniform and independent, int64 `[P, 2]`."""
    return _draw(seed, b"", (num_points, 2), num_experts)


def draw_token_routes(
    seed: int, rows: Sequence[TokenRow], num_points: int, num_experts: int, granularity: Granularity
) -> NDArray[np.int64]:
    """The experts of each token of some rows, `[N, L, P, 2]`; at `sentence` those of a row are all alike.

    A row is known by its token ids, so equal texts have equal routes wherever they stand.
    """
    routes = np.zeros((len(rows), max(map(len, rows)), num_points, 2), dtype=np.int64)
    for index, row in enumerate(rows):
        text = granularity.encode() + np.asarray(row.input_ids, dtype="<i8").tobytes()
        length = len(row) if granularity == "token" else 1
        routes[index, : len(row)] = _draw(seed, text, (length, num_points, 2), num_experts)
    return routes


def average(paths: Tensor, task_type: TaskType, of: Average) -> Tensor:
    """The mean over paths `[S, N, C]` as logits fp32 `[N, C]`.

    Mean probabilities p are given as logits that have them: log p of a classification, log p/(1-p) of each label of a
    multi-label task. A regression's outputs are values either way.
    """
    values = paths.double()
    if of == "logits" or task_type == "regression":
        return values.mean(0).float()
    if task_type == "classification":
        return _log_mean_exp(values.log_softmax(-1)).float()
    return (_log_mean_exp(F.logsigmoid(values)) - _log_mean_exp(F.logsigmoid(-values))).float()


def _log_mean_exp(logs: Tensor) -> Tensor:
    return logs.logsumexp(0) - math.log(len(logs))


def _draw(seed: int, text: bytes, shape: tuple[int, ...], num_experts: int) -> NDArray[np.int64]:
    """Uniform over experts, by a counter-based generator whose raw bits are the same in every version of numpy."""
    key = hashlib.blake2b(f"{seed}:".encode() + text, digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(int(np.prod(shape)))
    # 2^64 is so much larger than any M that the remainder is uniform to 1 part in 2^58.
    return np.asarray(bits % np.uint64(num_experts)).astype(np.int64).reshape(shape)

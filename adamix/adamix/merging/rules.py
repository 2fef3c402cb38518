"""The arithmetic of merging: the experts of one projection in, one projection out.

Everything is computed in fp64 from the fp32 values and rounded to fp32 at the end. A rule is asked only about
projections that are a mixture of several: a shared one is its own mean. Knows neither backbones nor text; what a rule
needs to know about these was measured elsewhere.

Shapes: M experts; a tensor `[…]` stands for the weight `[out, in]` and for the bias `[out]`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from adamix.errors import InvalidConfig
from adamix.files import adapter_file
from adamix.files.manifest import Manifest, check_size
from adamix.files.mixture_file import ExpertStack, MixtureFile, Projection, merged_key
from adamix.files.tensors import TensorData, canonical_json

# Of the mean Fisher information: below it two experts count as equally sure of a weight.
_FISHER_FLOOR = 1e-6
# Of the mean square of the inputs: where there were none to tell, the solution stays at the uniform mean.
_REGMEAN_RIDGE = 1e-6

Array = NDArray[Any]


@dataclass(frozen=True)
class MergedProjection:
    """One projection: weight `[out, in]` and bias `[out]`, fp64."""

    weight: Array
    bias: Array | None


Rule = Callable[[Projection], MergedProjection]


@dataclass(frozen=True)
class Information:
    """The diagonal Fisher information of every expert: weight `[M, out, in]`, bias `[M, out]`, fp64."""

    weight: Array
    bias: Array | None


@dataclass(frozen=True)
class Moments:
    """What RegMean asks about the inputs X_i of each expert, fp64; a 1 stands behind each input if there is a bias.

    Attributes:
        gram: `sum_i X_i' X_i`, `[in, in]` or `[in + 1, in + 1]`.
        cross: `sum_i X_i' X_i D_i'`, `[in, out]` or `[in + 1, out]`, with D_i as of `deviations`.
    """

    gram: Array
    cross: Array


def combine(mixture: MixtureFile, rule: Rule, record: str) -> bytes:
    """The canonical bytes of the adapter that a rule makes of a mixture; the head is copied.

    Args:
        record: the manifest's account of the method (`training.merge`).

    Raises:
        InvalidAdapter: the mixture is malformed, or its manifest too large.
    """
    manifest = _recorded(mixture.manifest.adapter, record)
    check_size(canonical_json(manifest.to_json()))
    tensors = mixture.head()  # decode() refuses whatever else this may hold
    for key, projection in mixture.projections().items():
        merged = rule(projection) if projection.num_experts > 1 else uniform(projection)
        tensors[merged_key(key, "weight")] = TensorData.from_float32(merged.weight)
        if merged.bias is not None:
            tensors[merged_key(key, "bias")] = TensorData.from_float32(merged.bias)
    data = adapter_file.encode(manifest, tensors)
    adapter_file.decode(data)
    return data


def uniform(projection: Projection) -> MergedProjection:
    """The mean over the experts: the merging of the paper."""
    return _by_tensor(projection, lambda stack: np.asarray(np.mean(stack.copies, axis=0, dtype=np.float64)))


def weighted(projection: Projection, weights: Sequence[float]) -> MergedProjection:
    """`sum_i w_i W_i / sum_i w_i`. Raises InvalidConfig unless there is one weight for each expert."""
    checked = check_weights(weights, projection.num_experts)
    return _by_tensor(projection, lambda stack: _weighted_mean(stack.copies, _spread(checked, stack)))


def fisher(projection: Projection, information: Information) -> MergedProjection:
    """Each number is the mean of the experts' values, weighted by their Fisher information (arXiv 2111.09832)."""
    weight = _weighted_mean(projection.weight.copies, _floored(information.weight))
    if projection.bias is None or information.bias is None:
        return MergedProjection(weight, None)
    return MergedProjection(weight, _weighted_mean(projection.bias.copies, _floored(information.bias)))


def regmean(projection: Projection, moments: Moments) -> MergedProjection:
    """The linear whose outputs are nearest to those of each expert on that expert's own inputs (arXiv 2212.09849).

    That is `(sum_i G_i)^-1 sum_i G_i W_i'` with `G_i = X_i' X_i`. It is solved for the difference from the uniform
    mean: directions in which there were no inputs keep the mean, and equal experts merge into themselves exactly.
    """
    mean = uniform(projection)
    size = len(moments.gram)
    ridge = _REGMEAN_RIDGE * np.trace(moments.gram) / size
    if ridge == 0:  # no inputs but zeros
        return mean
    shift = np.linalg.solve(moments.gram + ridge * np.eye(size), moments.cross).T
    if mean.bias is None:
        return MergedProjection(mean.weight + shift, None)
    return MergedProjection(mean.weight + shift[:, :-1], mean.bias + shift[:, -1])


def deviations(projection: Projection) -> Array:
    """Each expert's difference from the uniform mean, its bias as the last column: fp64 `[M, out, in (+ 1)]`."""
    parts = [projection.weight.copies]
    if projection.bias is not None:
        parts.append(projection.bias.copies[..., None])
    whole = np.concatenate(parts, axis=-1).astype(np.float64)
    return np.asarray(whole - whole.mean(axis=0))


def ties(projection: Projection, density: float) -> MergedProjection:
    """Trim, elect, merge (arXiv 2306.01708, section 4), on each tensor by itself.

    Of each expert's changes since the common start the `density` largest are kept; the sign of their sum is elected for
    each number; the changes of that sign are averaged over those experts that have one, and added to the start.

    Raises:
        InvalidConfig: the experts have no common start.
    """

    def merge(stack: ExpertStack) -> Array:
        start, changes = _changes(stack)
        kept = np.stack([_largest(change, density) for change in changes])
        elected = np.sign(kept.sum(axis=0))
        agreeing = np.where(np.sign(kept) == elected, kept, 0.0)
        voters = np.count_nonzero(agreeing, axis=0)
        return np.asarray(start + agreeing.sum(axis=0) / np.maximum(voters, 1))

    return _by_tensor(projection, merge)


def dare(projection: Projection, density: float, random: np.random.Generator) -> MergedProjection:
    """The mean of the experts' changes since the common start, of which each is dropped at random (arXiv 2311.03099).

    A change stays with the probability `density` and is then divided by it, so that its expectation is what it was.

    Raises:
        InvalidConfig: the experts have no common start.
    """

    def merge(stack: ExpertStack) -> Array:
        start, changes = _changes(stack)
        is_kept = random.random(changes.shape) < density
        return np.asarray(start + np.where(is_kept, changes / density, 0.0).mean(axis=0))

    return _by_tensor(projection, merge)


def check_weights(weights: Sequence[float], num_experts: int) -> Array:
    """Weights as fp64 `[M]`; raises InvalidConfig unless they are M finite numbers, none negative, not all zero."""
    checked = np.asarray(weights, dtype=np.float64)
    if checked.shape != (num_experts,):
        raise InvalidConfig(
            f"there are {num_experts} experts, but {checked.size} weights: give one weight for each", field="weights"
        )
    if not (np.isfinite(checked).all() and (checked >= 0).all() and checked.any()):
        raise InvalidConfig("weights must be finite and not negative, and one at least over 0", field="weights")
    return checked


def by_projection(weights: Mapping[str, Sequence[float]], mixture: MixtureFile) -> Mapping[str, Sequence[float]]:
    """Check that weights by projection name each mixture of several once. Raises InvalidConfig."""
    projections = mixture.projections()
    mixed = {key for key, projection in projections.items() if projection.num_experts > 1}
    for key in sorted(mixed ^ set(weights)):
        if key not in projections:
            raise InvalidConfig(f"weights are given for {key[:80]}, which the mixture does not have", field="weights")
        if key in mixed:
            raise InvalidConfig(f"there are no weights for {key}", field="weights")
    for key, values in weights.items():
        check_weights(values, projections[key].num_experts)
    return weights


def _by_tensor(projection: Projection, merge: Callable[[ExpertStack], Array]) -> MergedProjection:
    return MergedProjection(merge(projection.weight), None if projection.bias is None else merge(projection.bias))


def _weighted_mean(copies: Array, weights: Array) -> Array:
    """`sum_i w_i x_i / sum_i w_i` over axis 0; weights of zero throughout count as equal."""
    # Relative to the largest: equal weights become ones, and the result is the uniform mean bit for bit.
    largest = weights.max(axis=0)
    shares = np.where(largest > 0, weights / np.where(largest > 0, largest, 1.0), 1.0)
    return np.asarray((shares * copies.astype(np.float64)).sum(axis=0) / shares.sum(axis=0))


def _spread(weights: Array, stack: ExpertStack) -> Array:
    return weights.reshape(-1, *(1,) * (stack.copies.ndim - 1))


def _floored(information: Array) -> Array:
    return np.asarray(information + _FISHER_FLOOR * information.mean())


def _changes(stack: ExpertStack) -> tuple[Array, Array]:
    if stack.initial is None:
        raise InvalidConfig(
            "merging by ties or dare measures what experts learned since a common start, which these did not have: "
            "train with --expert-init same, or merge by another method",
            field="how",
        )
    start = stack.initial.astype(np.float64)
    return start, stack.copies.astype(np.float64) - start


def _largest(change: Array, density: float) -> Array:
    """The share `density` of the numbers with the largest magnitude, zeros elsewhere; equals stay together."""
    magnitudes = np.abs(change)
    count = max(1, round(density * change.size))
    least = np.partition(magnitudes, change.size - count, axis=None)[change.size - count]
    return np.where(magnitudes >= least, change, 0.0)


def _recorded(manifest: Manifest, record: str) -> Manifest:
    # The metrics in a mixture are those of its uniform mean.
    metrics = manifest.training.metrics if record == "uniform" else {}
    return msgspec.structs.replace(
        manifest, training=msgspec.structs.replace(manifest.training, merge=record, metrics=metrics)
    )

"""Swap after swap under load: nobody is refused, no answer mixes versions, and an acknowledged swap is final."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from adamix.errors import AdamixError
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix_client import Input, Predictions
from adamix_testing.servers import Callers, Server

MakeAdapter = Callable[..., AdapterFile]

# One swap in so many brings a version that the server has not seen before; the others move the pointer.
SWAPS_PER_REGISTRATION = 15
TEXTS = ["the cat sleeps", "a big red dog runs over the lazy bird", "fish"]


def data_of(adapter: AdapterFile) -> bytes:
    return adapter_file.encode(adapter.manifest, adapter.tensors)


@dataclass(frozen=True)
class Swap:
    """A change of the live version: when it was asked for and when it was acknowledged (monotonic seconds)."""

    digest: str
    asked: float
    acknowledged: float


def permitted(swaps: list[Swap], began: float, ended: float) -> set[str]:
    """What may answer a call: the version acknowledged last before it began, and those being made live meanwhile."""
    before = [swap for swap in swaps if swap.acknowledged < began]
    meanwhile = [swap for swap in swaps if swap.acknowledged >= began and swap.asked < ended]
    return {before[-1].digest, *(swap.digest for swap in meanwhile)}


@pytest.mark.slow
@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.long)])
def test_swaps_under_load(
    count: int, server: Server, make_adapter: MakeAdapter, spec: BackboneSpec, callers: type[Callers]
) -> None:
    task = f"swapped-{count}-times"
    inputs = [Input(task=task, text=text) for text in TEXTS]
    adapters = [make_adapter(seed, spec=spec) for seed in range(5 + count // SWAPS_PER_REGISTRATION)]
    with server.client() as client:
        for adapter in adapters[:5]:
            client.register(task, data_of(adapter))
        swaps = [Swap(adapters[4].digest, 0.0, 0.0)]
        with callers(server, [inputs]) as load:
            fresh = iter(adapters[5:])
            for number in range(count):
                asked = time.monotonic()
                if number % SWAPS_PER_REGISTRATION == 0:
                    digest = client.register(task, data_of(next(fresh))).version.digest
                else:
                    digest = adapters[number % 5].digest
                    client.set_traffic(task, digest)
                swaps.append(Swap(digest, asked, time.monotonic()))
        # Each version's own answers, asked for by name when all is quiet.
        alone = {
            adapter.digest: client.predict(
                [Input(task=task, text=text, version=adapter.digest) for text in TEXTS], return_logits=True
            ).predictions
            for adapter in adapters
        }
    assert len(load.outcomes) > count / 2
    refused = [o.answer for o in load.outcomes if isinstance(o.answer, AdamixError)]
    assert not refused
    seen: set[str] = set()
    for outcome in load.outcomes:
        assert isinstance(outcome.answer, Predictions)
        (version,) = {prediction.version for prediction in outcome.answer.predictions}
        seen.add(version)
        assert version in permitted(swaps, outcome.began, outcome.ended)
        for found, expected in zip(outcome.answer.predictions, alone[version], strict=True):
            # Different versions differ by far more than rows of different batches do.
            np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
    assert len(seen) > 5
    apart = np.array([[p.logits for p in answers] for answers in alone.values()])
    for number in range(len(apart)):
        others = np.delete(apart, number, axis=0)
        assert np.abs(others - apart[number]).max(axis=(1, 2)).min() > 1e-2, "two versions that answer alike"

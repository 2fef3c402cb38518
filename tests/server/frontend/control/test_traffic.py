"""Several versions share a task's traffic: how much each gets, and what cannot share."""

import hashlib
import math
from collections import Counter
from dataclasses import replace

import pytest

from adamix.errors import AdamixError, DataLoss, FailedPrecondition, InvalidRequest, NotFound
from adamix.files.manifest import HeadSpec
from adamix_client import Client, Input
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_a_canary_gets_its_share_and_goes_back(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    old, new = seed("sst2", make_adapter(seed=1)), make_adapter(seed=2)
    calls, inputs_per_call, share = 63, 64, 0.1
    harness = await start_serving()

    def work(client: Client) -> None:
        canary = client.register("sst2", new, make_live=False).version.digest
        harness.engine.controls.clear()
        task = client.set_traffic("sst2", {old: 90, canary: 10})
        assert dict(task.traffic) == {old: 90, canary: 10}
        assert {version.digest for version in client.versions("sst2") if version.live} == {old, canary}
        # Both were in memory before the first request could meet them.
        assert {control.digest for control in harness.engine.controls if control.op == "load"} == {old, canary}
        harness.engine.submits.clear()
        answered: list[str] = []
        for _ in range(calls):
            predictions = client.predict([Input("sst2", text="w1")] * inputs_per_call).predictions
            assert all(prediction.error is None for prediction in predictions)
            answered += [prediction.version for prediction in predictions]
        # Each answer names the version whose weights computed it.
        assert answered == [row.digest for submit in harness.engine.submits for row in submit.rows]
        total = calls * inputs_per_call
        assert abs(answered.count(canary) - share * total) < 5 * math.sqrt(total * share * (1 - share))
        assert set(answered) == {old, canary}
        # A version that is asked for by name answers whatever its share.
        (asked,) = client.predict([Input("sst2", text="w1", version=canary)]).predictions
        assert asked.version == canary
        assert client.rollback("sst2").traffic == ((old, 1),)
        assert {p.version for p in client.predict(task="sst2", texts=["w1"] * 64).predictions} == {old}

    await harness.call(work)


async def test_up_to_sixteen_versions_share(harness: Harness, make_adapter: MakeAdapter) -> None:
    def work(client: Client) -> None:
        digests = [client.register("sst2", make_adapter(seed=i), make_live=i == 0).version.digest for i in range(17)]
        client.set_traffic("sst2", dict.fromkeys(digests[:16], 1))
        seen: Counter[str] = Counter()
        for _ in range(10):
            seen.update(p.version for p in client.predict(task="sst2", texts=["w1"] * 64).predictions)
        assert set(seen) == set(digests[:16])
        with pytest.raises(InvalidRequest, match="1 to 16"):
            client.set_traffic("sst2", dict.fromkeys(digests, 1))

    await harness.call(work)


async def test_a_task_that_is_split_describes_its_heaviest_version(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    head = HeadSpec(type="classification", pooling="mean", num_labels=2, id2label={"0": "no", "1": "yes"})
    short, long = seed("sst2", make_adapter(head, max_length=8)), make_adapter(head, max_length=16)
    harness = await start_serving()

    def work(client: Client) -> None:
        second = client.register("sst2", long, make_live=False).version.digest
        task = client.set_traffic("sst2", {short: 1, second: 3})
        assert (task.head_type, task.labels) == ("classification", ("no", "yes"))
        assert task.max_length == 8, "what every version of the split takes"

    await harness.call(work)


@pytest.mark.parametrize(
    "other",
    [
        HeadSpec(type="regression", pooling="mean"),
        HeadSpec(type="classification", pooling="mean", num_labels=2),
        HeadSpec(type="classification", pooling="mean", num_labels=3, id2label={"0": "a", "1": "b", "2": "c"}),
    ],
    ids=["type", "count", "names"],
)
async def test_answers_a_client_cannot_read_alike_do_not_share(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, other: HeadSpec
) -> None:
    first = seed("sst2", make_adapter(seed=1))
    harness = await start_serving()

    def work(client: Client) -> None:
        second = client.register("sst2", make_adapter(other, seed=2), make_live=False).version.digest
        harness.engine.controls.clear()
        with pytest.raises(FailedPrecondition) as caught:
            client.set_traffic("sst2", {first: 1, second: 1})
        assert caught.value.reason == "HEADS_DIFFER"
        assert harness.engine.controls == [], "nothing is loaded for it"
        # One after the other they may.
        assert client.set_traffic("sst2", second).traffic == ((second, 1),)

    await harness.call(work)


async def test_a_split_that_cannot_be_served_changes_nothing(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    first = seed("sst2", make_adapter(seed=1))
    harness = await start_serving()

    def work(client: Client) -> None:
        second = client.register("sst2", make_adapter(seed=2), make_live=False).version.digest
        before = client.get_task("sst2")

        def refused(versions: dict[str, int], expected: type[AdamixError], field: str | None = None) -> None:
            with pytest.raises(expected) as caught:
                client.set_traffic("sst2", versions)
            assert caught.value.field == field
            assert client.get_task("sst2") == before

        refused({}, InvalidRequest, "traffic")
        refused({first: 1, second: 0}, InvalidRequest, "traffic[1].weight")
        refused({first: 1, "x": 1}, InvalidRequest, "traffic[1].digest")
        refused({first: 1, "0" * 64: 1}, NotFound)
        harness.engine.control_error = DataLoss("gone")
        with pytest.raises(DataLoss):
            client.set_traffic("sst2", {first: 1, second: 1})
        # Nothing but what is now known of the version that is live.
        assert client.get_task("sst2") == replace(before, unavailable_reason="BLOB_CORRUPT")

    await harness.call(work)

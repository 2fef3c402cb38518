"""The typed client against a front end on a real port."""

import hashlib
from pathlib import Path

import pytest

from adamix.errors import (
    Aborted,
    FailedPrecondition,
    InvalidConfig,
    InvalidData,
    InvalidInput,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from adamix.files.manifest import HeadSpec
from adamix_client import Classification, Client, Input, Regression
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing


async def test_the_life_of_a_task(harness: Harness, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    path = tmp_path / "first.safetensors"
    path.write_bytes(make_adapter(seed=1))
    first, second = hashlib.sha256(path.read_bytes()).hexdigest(), make_adapter(seed=2)

    def work(client: Client) -> None:
        client.wait_until_serving(10)
        registered = client.register("sst2", path)
        assert (registered.version.digest, registered.already_exists) == (first, False)
        assert registered.version.live
        assert registered.version.manifest["head"]["num_labels"] == 3
        assert client.register("sst2", path.read_bytes()).already_exists
        (answer,) = client.predict(task="sst2", texts=["w1 w2"]).predictions
        assert isinstance(answer.result, Classification)
        assert (answer.version, answer.result.label, answer.error) == (first, "yes", None)

        newer = client.register("sst2", second).version.digest
        task = client.get_task("sst2")
        assert (task.task, task.traffic, task.labels) == ("sst2", ((newer, 1),), ("no", "maybe", "yes"))
        assert [version.digest for version in client.versions("sst2")] == [newer, first]
        assert client.versions("sst2")[0].residency == "HOST"
        assert client.rollback("sst2").traffic == ((first, 1),)
        with pytest.raises(Aborted):
            client.set_traffic("sst2", newer, etag=task.etag)
        assert client.set_traffic("sst2", newer).traffic == ((newer, 1),)
        assert [task.task for task in client.tasks()] == ["sst2"]

        client.delete_task("sst2")
        assert client.tasks() == []
        with pytest.raises(NotFound):
            client.predict(task="sst2", texts=["w1"])

    await harness.call(work)


async def test_errors_come_back_as_the_classes_they_are(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()

    def work(client: Client) -> None:
        with pytest.raises(InvalidRequest) as empty:
            client.predict(task="sst2", texts=[""])
        assert (empty.value.reason, empty.value.field) == ("TEXT_EMPTY", "inputs[0].text")
        with pytest.raises(InvalidInput) as refused:
            client.register("sst2", b"PK\x03\x04 not an adapter")
        assert refused.value.reason == "FORMAT_UNKNOWN"
        with pytest.raises(InvalidData, match="No such file"):
            client.register("sst2", tmp_path / "missing")
        with pytest.raises(FailedPrecondition):
            client.rollback("sst2")
        with pytest.raises(InvalidConfig):
            client.predict([Input("sst2")])
        with pytest.raises(InvalidData):
            client.predict(task="sst2", texts=["half \ud800"])
        with pytest.raises(InvalidData, match="32-bit"):
            client.predict([Input("sst2", token_ids=[1, 2**31])])
        good, bad = client.predict([Input("sst2", text="w1"), Input("nobody", text="w1")], on_error="return")
        assert good.error is None
        assert isinstance(bad.error, NotFound)
        harness.engine.control_error = None

    await harness.call(work)


def test_without_a_server_the_address_is_named() -> None:
    with Client("127.0.0.1:1", timeout_s=2) as client, pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        client.tasks()
    with Client("127.0.0.1:1") as client, pytest.raises(Unavailable, match="did not become ready"):
        client.wait_until_serving(0.2)


async def test_predict_json_prints_proto_names_and_defaults(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("score", make_adapter(HeadSpec(type="regression", pooling="mean")))
    harness = await start_serving()

    def work(client: Client) -> None:
        harness.engine.widths[digest] = 1
        answer = client.predict_json(task="score", texts=["w1"])
        assert answer["predictions"] == [
            {"task": "score", "version": digest, "regression": {"score": 0.0}, "logits": []}
        ]
        assert answer["timing"]["load_s"] == 0.0
        assert answer["timing"]["batch_requests"] == 1
        (prediction,) = client.predict(task="score", texts=["w1"], return_logits=True).predictions
        assert (prediction.result, prediction.logits) == (Regression(0.0), (0.0,))
        mixed = client.predict_json([Input("score", text="w1"), Input("nobody", text="w1")])
        assert mixed["predictions"][1]["error"]["details"][0]["reason"] == "NOT_FOUND"

    await harness.call(work)


async def test_server_info_says_what_the_engine_said(harness: Harness) -> None:
    def work(client: Client) -> None:
        info = client.server_info()
        assert info.backbone["fingerprint"] == harness.engine.spec.fingerprint
        assert info.limits["max_inputs_per_call"] == 64
        assert (info.compute_dtype, info.device) == ("float32", "cpu")

    await harness.call(work)

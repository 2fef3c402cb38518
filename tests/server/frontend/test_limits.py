"""Limits of one call and one file, met exactly: what is at the limit is taken, one more is refused by its reason.

Other lines of the table (`adamix_server/limits/`) are met where their subject is tested.
"""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from adamix.errors import AdamixError
from adamix_protos.open_inference import open_inference_pb2 as oip
from adamix_protos.open_inference import open_inference_pb2_grpc
from adamix_protos.v1 import adapters_pb2, inference_pb2
from adamix_server.api.status import MAX_ERROR_BYTES
from adamix_server.catalog.paging import check_page_size
from adamix_server.catalog.pointer import check_split
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.control.adapter_root import AdapterRoot
from adamix_server.limits.control import MAX_CHUNK_BYTES, MAX_PAGE_SIZE, MAX_TRAFFIC_SHARES, MAX_TRAFFIC_WEIGHT
from adamix_server.limits.messages import (
    MAX_FILE_NAME_BYTES,
    MAX_INPUTS_PER_CALL,
    MAX_MESSAGE_BYTES,
    MAX_METADATA_BYTES,
    MAX_TEXT_BYTES,
)
from adamix_server.names import check_name, check_request_id
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import refusal

INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED


def reason_of(check: Callable[[], object]) -> str:
    """Why a check refuses; empty if it does not."""
    try:
        check()
    except AdamixError as error:
        return error.reason
    return ""


def predict(*texts: str) -> inference_pb2.PredictRequest:
    return inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text=text) for text in texts])


def infer(count: int) -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[count])
    tensor.contents.bytes_contents.extend([b"w1"] * count)
    return oip.ModelInferRequest(model_name="sst2", inputs=[tensor])


async def sent(*chunks: bytes) -> AsyncIterator[adapters_pb2.RegisterAdapterRequest]:
    yield adapters_pb2.RegisterAdapterRequest(header=adapters_pb2.RegisterAdapterHeader(task="sst2"))
    for chunk in chunks:
        yield adapters_pb2.RegisterAdapterRequest(chunk=chunk)


async def test_a_message(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()

    def of(num_bytes: int) -> inference_pb2.PredictRequest:
        message = predict("x" * (num_bytes - 100))
        message.inputs[0].text += "x" * (num_bytes - message.ByteSize())
        assert message.ByteSize() == num_bytes
        return message

    assert await refusal(harness.inference.Predict(of(MAX_MESSAGE_BYTES))) == (INVALID, "TEXT_TOO_LARGE")
    assert await refusal(harness.inference.Predict(of(MAX_MESSAGE_BYTES + 1))) == (EXHAUSTED, "")


async def test_inputs_of_a_call(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    most = MAX_INPUTS_PER_CALL
    assert len((await harness.inference.Predict(predict(*["w1"] * most))).predictions) == most
    assert await refusal(harness.inference.Predict(predict(*["w1"] * (most + 1)))) == (INVALID, "INPUT_COUNT")
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(harness.channel)
    assert (await stub.ModelInfer(infer(most))).outputs[0].shape == [most]
    assert await refusal(stub.ModelInfer(infer(most + 1))) == (INVALID, "INPUT_COUNT")


async def test_a_text(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    at_the_limit = "ä" * (MAX_TEXT_BYTES // 2)
    # One word, and no more tokens than the task takes.
    assert (await harness.inference.Predict(predict(at_the_limit))).predictions[0].HasField("classification")
    assert await refusal(harness.inference.Predict(predict(at_the_limit + "x"))) == (INVALID, "TEXT_TOO_LARGE")


async def test_tokens_of_a_text(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("sst2", make_adapter(max_length=6))
    harness = await start_serving()
    # With the two special ones.
    assert (await harness.inference.Predict(predict("w1 w1 w1 w1"))).predictions[0].HasField("classification")
    assert await refusal(harness.inference.Predict(predict("w1 w1 w1 w1 w1"))) == (INVALID, "TEXT_TOO_LONG")


def test_ids() -> None:
    assert reason_of(lambda: check_name("a" * 63, "task")) == ""
    assert reason_of(lambda: check_name("a" * 64, "task")) == "ID_INVALID"


async def test_of_a_name_as_large_as_a_message_little_is_kept(
    start_serving: StartServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[calls.Call] = []
    monkeypatch.setattr(calls, "enter", lambda call, enter=calls.enter: (kept.append(call), enter(call)))
    harness = await start_serving()
    assert await refusal(harness.adapters.GetTask(adapters_pb2.GetTaskRequest(task="x" * (1 << 20)))) == (
        INVALID,
        "ID_INVALID",
    )
    assert kept[-1].resource.startswith("xxx")
    assert len(kept[-1].resource.encode()) <= MAX_ERROR_BYTES


def test_request_ids() -> None:
    assert reason_of(lambda: check_request_id("a" * 64)) == ""
    assert reason_of(lambda: check_request_id("a" * 65)) == "REQUEST_ID_INVALID"


def test_name_of_a_file(tmp_path: Path) -> None:
    def of(num_bytes: int) -> str:
        name = ("d" * 99 + "/") * (num_bytes // 100) + "f" * (num_bytes % 100)
        assert len(name) == num_bytes
        # Refused before a byte would go anywhere.
        return reason_of(lambda: AdapterRoot(tmp_path).copy(name, temporary=None))  # type: ignore[arg-type]

    assert of(MAX_FILE_NAME_BYTES) == "FILE_NOT_FOUND"
    assert of(MAX_FILE_NAME_BYTES + 1) == "FILE_INVALID"


async def test_bytes_of_a_file(start_serving: StartServing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamix_server.frontend.control.upload.MAX_ADAPTER_BYTES", 2_000)
    harness = await start_serving()
    at_the_limit = harness.adapters.RegisterAdapter(sent(bytes(1_000), bytes(1_000)))
    assert (await refusal(at_the_limit))[1] not in ("TOO_LARGE", "")
    beyond = harness.adapters.RegisterAdapter(sent(bytes(1_000), bytes(1_000), b"x"))
    assert await refusal(beyond) == (INVALID, "TOO_LARGE")


async def test_a_chunk(harness: Harness) -> None:
    # Zeros are no adapter, which is found out only after the last chunk was taken.
    at_the_limit = harness.adapters.RegisterAdapter(sent(bytes(MAX_CHUNK_BYTES)))
    assert (await refusal(at_the_limit))[1] not in ("CHUNK_TOO_LARGE", "")
    beyond = harness.adapters.RegisterAdapter(sent(bytes(MAX_CHUNK_BYTES + 1)))
    assert await refusal(beyond) == (INVALID, "CHUNK_TOO_LARGE")


def test_shares_of_a_tasks_traffic() -> None:
    def split(count: int) -> str:
        return reason_of(lambda: check_split((f"{i:064x}", 1) for i in range(count)))

    assert [split(MAX_TRAFFIC_SHARES), split(MAX_TRAFFIC_SHARES + 1)] == ["", "TRAFFIC_INVALID"]


def test_weight_of_a_share() -> None:
    def split(weight: int) -> str:
        return reason_of(lambda: check_split([("a" * 64, weight)]))

    assert [split(MAX_TRAFFIC_WEIGHT), split(MAX_TRAFFIC_WEIGHT + 1)] == ["", "TRAFFIC_INVALID"]
    assert [split(1), split(0)] == ["", "TRAFFIC_INVALID"]


def test_a_page() -> None:
    assert check_page_size(MAX_PAGE_SIZE - 1) == MAX_PAGE_SIZE - 1
    assert check_page_size(MAX_PAGE_SIZE + 1) == MAX_PAGE_SIZE


async def test_metadata(harness: Harness) -> None:
    """Below it no call is refused, beyond it each: never by chance."""

    async def outcomes(num_bytes: int, calls: int) -> set[tuple[grpc.StatusCode, str]]:
        metadata = (("x-of-ours", "x" * num_bytes),)
        return {await refusal(harness.inference.Predict(predict(), metadata=metadata)) for _ in range(calls)}

    # What the transport adds itself (path, authority, agent, encodings) is some hundred bytes.
    assert await outcomes(MAX_METADATA_BYTES - 1_024, 40) == {(INVALID, "INPUT_COUNT")}
    assert await outcomes(MAX_METADATA_BYTES, 8) == {(EXHAUSTED, "")}

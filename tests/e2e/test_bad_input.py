"""Bad input over a real server: the right status, no words of ours leaked, and nothing lost."""

import hashlib
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest

from adamix.errors import AdamixError, Code
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix.files.tensors import MIXTURE_FORMAT, TensorData, encode_tensors
from adamix_client import Input
from adamix_protos.v1 import adapters_pb2, adapters_pb2_grpc, inference_pb2, inference_pb2_grpc
from adamix_testing.servers import Server, StartServer

MakeAdapter = Callable[..., AdapterFile]


def data_of(adapter: AdapterFile) -> bytes:
    return adapter_file.encode(adapter.manifest, adapter.tensors)


@pytest.fixture(scope="module")
def probe(server: Server) -> Iterator[Callable[[], None]]:
    """Each call proves that the healthy task answers exactly as before, and that no task has come or gone."""
    state: dict[str, Any] = {}

    def check() -> None:
        with server.client() as client:
            answer = client.predict(task="healthy", texts=["the cat sleeps"], return_logits=True).predictions[0]
            assert state.setdefault("answer", answer.logits) == answer.logits
            tasks = [task.task for task in client.tasks()]
            assert "healthy" in tasks
            assert state.setdefault("tasks", tasks) == tasks

    yield check
    if state:
        check()


@pytest.fixture(autouse=True)
def nothing_is_lost(
    server: Server, probe: Callable[[], None], make_adapter: MakeAdapter, spec: BackboneSpec
) -> Iterator[None]:
    with server.client() as client:
        client.register("healthy", data_of(make_adapter(0, spec=spec)))
    probe()
    yield
    probe()


def refused(call: Callable[[], object]) -> AdamixError:
    with pytest.raises(AdamixError) as caught:
        call()
    error = caught.value
    for secret in ("Traceback", "/tmp", "site-packages", "Error(", "Exception"):
        assert secret not in error.message
    return error


def nan_weights(good: AdapterFile) -> bytes:
    name = next(iter(good.tensors))
    values = good.tensors[name].to_float32().copy()
    values.reshape(-1)[-1] = np.nan
    return adapter_file.encode(good.manifest, {**good.tensors, name: TensorData.from_float32(values)})


def bit_flipped_header(good: AdapterFile) -> bytes:
    data = bytearray(data_of(good))
    data[40] ^= 0x80
    return bytes(data)


def mixture(good: AdapterFile) -> bytes:
    return encode_tensors(MIXTURE_FORMAT, {"anything": 1}, good.tensors)


BAD_FILES: dict[str, tuple[Callable[[AdapterFile], bytes], str]] = {
    "truncated": (lambda good: data_of(good)[:-100], "TRUNCATED"),
    "cut in the header": (lambda good: data_of(good)[:200], "TRUNCATED"),
    "bit flipped": (bit_flipped_header, "HEADER_INVALID"),
    "nan": (nan_weights, "NON_FINITE"),
    "mixture": (mixture, "UNMERGED_MIXTURE"),
    "pickle": (lambda good: pickle.dumps({"weights": [1.0, 2.0]}, protocol=4), "FORMAT_UNKNOWN"),
    "not a file of ours": (lambda good: b"\x08\0\0\0\0\0\0\0" + b"{}      ", "FORMAT_UNKNOWN"),
    "empty": (lambda good: b"", "TRUNCATED"),
    "huge header": (lambda good: (2**62).to_bytes(8, "little") + bytes(64), "HEADER_TOO_LARGE"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_adapter_files(server: Server, name: str, make_adapter: MakeAdapter, spec: BackboneSpec) -> None:
    build, reason = BAD_FILES[name]
    data = build(make_adapter(1, spec=spec))
    with server.client() as client:
        error = refused(lambda: client.register("broken", data))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, reason)
        # A bad version of a task that serves leaves it serving.
        assert refused(lambda: client.register("healthy", data)).reason == reason


def test_an_adapter_of_another_backbone(server: Server, make_adapter: MakeAdapter, spec: BackboneSpec) -> None:
    other = msgspec.structs.replace(spec, fingerprint="0" * 64)
    with server.client() as client:
        error = refused(lambda: client.register("foreign", data_of(make_adapter(1, spec=other))))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "BACKBONE_MISMATCH")


def test_a_wrong_digest(server: Server, make_adapter: MakeAdapter, spec: BackboneSpec) -> None:
    with server.client() as client:
        error = refused(lambda: client.register("t", data_of(make_adapter(1, spec=spec)), expected_digest="0" * 64))
    assert error.code == Code.INVALID_ARGUMENT
    assert "DIGEST" in error.reason


@pytest.mark.parametrize(
    "task", ["", "UPPER", "../up", "a b", "a" * 64, "tenants/default", "tenants/default/tasks/", "x\n"]
)
def test_bad_task_ids(server: Server, task: str, make_adapter: MakeAdapter, spec: BackboneSpec) -> None:
    with server.client() as client:
        assert refused(lambda: client.predict(task=task, texts=["the cat"])).code == Code.INVALID_ARGUMENT
        data = data_of(make_adapter(1, spec=spec))
        assert refused(lambda: client.register(task, data)).code == Code.INVALID_ARGUMENT


def test_unknown_and_foreign_tasks_give_the_same_answer(server: Server) -> None:
    with server.client() as client:
        unknown = refused(lambda: client.predict(task="nobody", texts=["the cat"]))
        foreign = refused(lambda: client.predict(task="tenants/other/tasks/healthy", texts=["the cat"]))
        version = refused(lambda: client.predict([Input(task="healthy", text="the cat", version="0" * 64)]))
    assert unknown.code == foreign.code == version.code == Code.NOT_FOUND
    assert (unknown.message, unknown.reason) == (foreign.message, foreign.reason)


def test_bad_texts_fail_alone(server: Server) -> None:
    inputs = [
        Input(task="healthy", text="the cat sleeps"),
        Input(task="healthy", text=""),
        Input(task="healthy", text="cat " * 40),
        Input(task="healthy", text="x" * (1 << 20)),
        Input(task="nobody", text="the cat"),
        Input(task="healthy", token_ids=[1, 2, 999_999]),
        Input(task="healthy", token_ids=[-1]),
        Input(task="healthy", text="cat " * 40, truncate=True),
    ]
    with server.client() as client:
        answers = client.predict(inputs, on_error="return")
    codes = [None if a.error is None else a.error.code for a in answers]
    bad = Code.INVALID_ARGUMENT
    assert codes == [None, bad, bad, bad, Code.NOT_FOUND, bad, bad, None]
    assert answers[2].error is not None
    assert "32" in answers[2].error.message, "says the limit"
    assert answers[3].error is not None
    assert answers[3].error.field == "inputs[3].text"


def test_a_call_whose_inputs_all_fail_alike_fails_itself(server: Server) -> None:
    with server.client() as client:
        error = refused(lambda: client.predict(task="healthy", texts=["", ""]))
    assert error.code == Code.INVALID_ARGUMENT


def test_too_many_inputs(server: Server) -> None:
    with server.client() as client:
        error = refused(lambda: client.predict_json(task="healthy", texts=["the cat"] * 65))
        assert error.code == Code.INVALID_ARGUMENT
        assert "64" in error.message
        assert refused(lambda: client.predict_json([])).code == Code.INVALID_ARGUMENT


def test_a_message_over_the_cap(server: Server) -> None:
    request = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="healthy", text="x" * (10 << 20))])
    with (
        grpc.insecure_channel(server.address, options=[("grpc.max_send_message_length", -1)]) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        inference_pb2_grpc.InferenceServiceStub(channel).Predict(request, timeout=30)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_garbage_instead_of_a_message(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/adamix.v1.InferenceService/Predict")(b"\xff\xff\xff\xff", timeout=30)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_upload_cut_in_the_middle(server: Server, make_adapter: MakeAdapter, spec: BackboneSpec) -> None:
    data = data_of(make_adapter(1, spec=spec))

    def half() -> Iterator[adapters_pb2.RegisterAdapterRequest]:
        yield adapters_pb2.RegisterAdapterRequest(header=adapters_pb2.RegisterAdapterHeader(task="cut"))
        yield adapters_pb2.RegisterAdapterRequest(chunk=data[: len(data) // 2])
        threading.Event().wait(2)
        raise OSError("the client dies")

    with grpc.insecure_channel(server.address) as channel:
        call = adapters_pb2_grpc.AdapterServiceStub(channel).RegisterAdapter.future(half(), timeout=30)
        time.sleep(0.5)
        call.cancel()
    with server.client() as client:
        assert refused(lambda: client.get_task("cut")).code == Code.NOT_FOUND


def test_generate_on_an_encoder(server: Server) -> None:
    request = inference_pb2.GenerateRequest(task="healthy", prompt="hello", max_new_tokens=4)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(inference_pb2_grpc.InferenceServiceStub(channel).Generate(request, timeout=30))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_a_second_server_on_the_same_store_is_refused_in_words(server: Server, start_server: StartServer) -> None:
    second = start_server(store=server.store)
    assert second.process.wait(60) == 1
    assert any("store" in record["message"] for record in second.records)
    assert server.process.poll() is None


def test_a_public_address_needs_insecure(start_server: StartServer) -> None:
    server = start_server("--listen", "0.0.0.0:0")
    assert server.process.wait(60) == 2
    assert any("--insecure" in record["message"] for record in server.records)


def test_a_backbone_that_does_not_exist_is_refused_in_words(start_server: StartServer) -> None:
    server = start_server("--backbone", "./nowhere")
    assert server.process.wait(120) != 0
    assert any("./nowhere" in json.dumps(record) for record in server.records)


@pytest.mark.parametrize("moments", [(0.1,), pytest.param((0.02, 0.1, 0.18), marks=pytest.mark.long)], ids=len)
def test_kill_during_registration_leaves_the_old_or_the_new_version(
    moments: tuple[float, ...], start_server: StartServer, make_adapter: MakeAdapter, spec: BackboneSpec
) -> None:
    """So many seconds after it was asked for; tests of the catalog die at each step of one."""
    versions = [data_of(make_adapter(100 + i, spec=spec)) for i in range(len(moments))]
    digests = [hashlib.sha256(data).hexdigest() for data in versions]
    acknowledged = ""
    for cycle, (data, moment) in enumerate(zip(versions, moments, strict=True)):
        server = start_server().wait()
        with server.client() as client:
            if acknowledged:
                assert client.predict(task="t", texts=["the cat"]).predictions[0].version in digests[:cycle]
            killer = threading.Timer(moment, server.kill)
            killer.start()
            try:
                acknowledged = client.register("t", data).version.digest
            except AdamixError as error:
                assert error.code in (Code.UNAVAILABLE, Code.CANCELLED)  # noqa: PT017 - both ends are right
            killer.join()
    server = start_server().wait()
    with server.client() as client:
        found = [v.digest for v in client.versions("t")] if acknowledged else []
        assert not acknowledged or acknowledged in found
        assert set(found) <= set(digests)

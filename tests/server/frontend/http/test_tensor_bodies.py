"""Bodies of the Open Inference Protocol: what they say, and what is said of those that lie."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import InvalidRequest
from adamix_protos.open_inference import open_inference_pb2 as pb
from adamix_server.frontend.http.open_inference.tensors import Form, to_body, to_request
from adamix_server.limits.http import MAX_BODY_ITEMS


def raw(*texts: str) -> bytes:
    return b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts)


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "text", "datatype": "BYTES", "shape": [1], **fields}


def binary(document: dict[str, Any], *behind: bytes) -> tuple[bytes, str]:
    head = json.dumps(document).encode()
    return b"".join((head, *behind)), str(len(head))


def refused(body: bytes, json_bytes: str | None = None) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        to_request("m", "", body, json_bytes)
    return caught.value.reason, caught.value.field


@given(st.lists(st.text(max_size=8), min_size=1, max_size=6), st.data())
def test_json_binary_and_nested_say_the_same(texts: list[str], data: st.DataObject) -> None:
    shape = [len(texts)]
    flat, _ = to_request("m", "v", json.dumps({"inputs": [tensor(shape=shape, data=texts)]}).encode(), None)
    rows = [[text] for text in texts]
    nested, _ = to_request("m", "v", json.dumps({"inputs": [tensor(shape=[*shape, 1], data=rows)]}).encode(), None)
    sized = tensor(shape=shape, parameters={"binary_data_size": len(raw(*texts))})
    behind, _ = to_request("m", "v", *binary({"inputs": [sized]}, raw(*texts)))
    assert list(flat.raw_input_contents) == list(nested.raw_input_contents) == [raw(*texts)]
    assert flat == behind
    assert (flat.model_name, flat.model_version, list(flat.inputs[0].shape)) == ("m", "v", shape)


def test_parameters_keep_their_kinds_and_those_of_the_form_end_here() -> None:
    body = {
        "id": "7",
        "inputs": [tensor(data=["a"], parameters={"p": 1})],
        "parameters": {"truncation": "right", "f": 0.5, "n": -(2**63), "b": True, "binary_data_output": True},
        "outputs": [
            {"name": "scores", "parameters": {"classification": 2, "binary_data": False}},
            {"name": "label"},
            {"name": "more", "parameters": {"binary_data": True}},
        ],
    }
    request, form = to_request("m", "", json.dumps(body).encode(), None)
    kinds = {name: value.WhichOneof("parameter_choice") for name, value in request.parameters.items()}
    assert kinds == {"truncation": "string_param", "f": "double_param", "n": "int64_param", "b": "bool_param"}
    assert [sorted(output.parameters) for output in request.outputs] == [["classification"], [], []]
    assert [form.of(name) for name in ("scores", "label", "more", "any")] == [False, True, True, True]
    assert request.id == "7"


@pytest.mark.parametrize(
    ("document", "reason", "field"),
    [
        ({}, "FIELD_INVALID", None),
        ({"inputs": [], "input": 1}, "UNKNOWN_FIELD", "input"),
        ({"inputs": [tensor(data=["a"], size=1)]}, "UNKNOWN_FIELD", "inputs[0].size"),
        ({"inputs": [tensor(data=["a"], shape=[2**63])]}, "FIELD_INVALID", "inputs[0].shape[0]"),
        ({"inputs": [tensor(data=["a"], shape=[1.0])]}, "FIELD_INVALID", "inputs[0].shape[0]"),
        ({"inputs": [tensor(data=[1])]}, "CONTENTS_INVALID", "inputs[0].data"),
        ({"inputs": [tensor(data=[None])]}, "FIELD_INVALID", "inputs[0].data[0]"),
        ({"inputs": [tensor(data=[[["a"]]])]}, "FIELD_INVALID", "inputs[0].data[0][0]"),
        ({"inputs": [tensor(data=[["a"], [True]], shape=[2, 1])]}, "CONTENTS_INVALID", "inputs[0].data"),
        ({"inputs": [tensor(data={"a": 1})]}, "FIELD_INVALID", "inputs[0].data"),
        ({"inputs": [tensor(data=None)]}, "FIELD_INVALID", "inputs[0].data"),
        ({"inputs": [tensor()]}, "CONTENTS_INVALID", "inputs[0].data"),
        ({"inputs": [tensor(shape=[2, 1], data=[["a"], "b"])]}, "CONTENTS_INVALID", "inputs[0].data"),
        ({"inputs": [tensor(shape=[1, 2], data=[["a", "b"]])]}, "FIELD_INVALID", "inputs[0].data[0]"),
        ({"inputs": [tensor(shape=[1], data=[["a"]])]}, "CONTENTS_INVALID", "inputs[0].data"),
        ({"inputs": [], "parameters": {"p": 2**64}}, "PARAMETER_INVALID", "parameters"),
        ({"inputs": [], "parameters": {"p": None}}, "FIELD_INVALID", "parameters[...]"),
        (
            {"inputs": [], "parameters": {"binary_data_output": 1}},
            "PARAMETER_INVALID",
            "parameters[binary_data_output]",
        ),
        (
            {"inputs": [], "outputs": [{"name": "label", "parameters": {"binary_data": "yes"}}]},
            "PARAMETER_INVALID",
            "outputs[0].parameters[binary_data]",
        ),
        *(
            (
                {"inputs": [tensor(parameters={"binary_data_size": size})]},
                "BINARY_SIZE_INVALID",
                "inputs[0].parameters[binary_data_size]",
            )
            for size in (1, -1, 2**62, True, "0", 0.0)
        ),
    ],
)
def test_bodies_in_json_that_lie(document: dict[str, Any], reason: str, field: str | None) -> None:
    assert refused(json.dumps(document).encode()) == (reason, field)


def test_lists_are_only_so_long() -> None:
    def body(most: int, **more: Any) -> dict[str, Any]:
        many = {str(number): number for number in range(most)}
        return {"inputs": [tensor(data=["a"] * most, shape=[1] * most)] * 2, "parameters": many, **more}

    request, _ = to_request("m", "", json.dumps(body(MAX_BODY_ITEMS)).encode(), None)
    assert len(request.inputs[0].shape) == len(request.parameters) == MAX_BODY_ITEMS
    above = MAX_BODY_ITEMS + 1
    for document, field in (
        ({"inputs": [tensor(data=["a"] * above)]}, "inputs[0].data"),
        ({"inputs": [tensor(data=["a"], shape=[1] * above)]}, "inputs[0].shape"),
        ({"inputs": [tensor(data=["a"])] * above}, "inputs"),
        ({"inputs": [], "outputs": [{"name": "label"}] * above}, "outputs"),
        ({"inputs": [], "parameters": {str(number): 1 for number in range(above)}}, "parameters"),
    ):
        assert refused(json.dumps(document).encode()) == ("FIELD_INVALID", field)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"\xff",
        b'{"inputs": [{"name": "\xff"}]}',
        b"null",
        b"[" * 100_000,
        b'{"inputs": [], "id": ' + b"[" * 100_000,
        b'{"inputs": [], "parameters": {"p": NaN}}',
        b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["\\ud800"]}]}',
        b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ' + b"[" * 100_000 + b"}]}",
        b'{"inputs": [], "inputs": []}',
        b'{"inputs": [], "parameters": {"truncation": "right", "truncation": "error"}}',
    ],
)
def test_what_is_no_json(body: bytes) -> None:
    assert refused(body)[0] in ("MALFORMED_MESSAGE", "FIELD_INVALID")


@pytest.mark.parametrize("said", ["", "0", "-1", "+3", "3.0", "0x3", "99", "9" * 5000, "³", " 3"])
def test_a_length_of_the_json_that_cannot_be(said: str) -> None:
    assert refused(b'{"inputs": []}', said) == ("HEADER_LENGTH_INVALID", "inference-header-content-length")


def test_sizes_that_are_not_those_of_the_bytes_behind() -> None:
    one, two = (tensor(name=name, parameters={"binary_data_size": 5}) for name in ("text", "text_pair"))
    field = "inputs[1].parameters[binary_data_size]"
    assert refused(*binary({"inputs": [one, two]}, raw("a"), raw("b")[:4])) == ("BINARY_SIZE_INVALID", field)
    assert refused(*binary({"inputs": [one, two]}, raw("a"), raw("b"), b"x")) == ("BINARY_SIZE_INVALID", "inputs")
    assert refused(*binary({"inputs": [one | {"data": ["a"]}]}, raw("a"))) == ("CONTENTS_INVALID", "inputs[0].data")
    # Of the right length; what is in them the servicer reads.
    request, _ = to_request("m", "", *binary({"inputs": [one, two]}, raw("a"), b"\xff" * 5))
    assert list(request.raw_input_contents) == [raw("a"), b"\xff" * 5]


def test_a_response_leaves_as_it_was_asked_for() -> None:
    response = pb.ModelInferResponse(model_name="m", model_version="d", id="7")
    response.outputs.add(name="label", datatype="BYTES", shape=[2])
    response.outputs.add(name="scores", datatype="FP32", shape=[2, 2])
    scores = bytes.fromhex("0000803f0000003f0000003e00000000")
    response.raw_output_contents.extend([raw("ü", ""), scores])
    body, length = to_body(response, Form())
    assert length is None
    assert msgspec.json.decode(body) == {
        "model_name": "m",
        "model_version": "d",
        "id": "7",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["ü", ""]},
            {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 0.5, 0.125, 0.0]},
        ],
    }
    body, length = to_body(response, Form(is_binary=False, of_outputs={"scores": True}))
    assert length is not None
    label, said = json.loads(body[:length])["outputs"]
    assert (label["data"], said["parameters"], "data" in said) == (["ü", ""], {"binary_data_size": 16}, False)
    assert body[length:] == scores
    body, length = to_body(response, Form(is_binary=True))
    assert body[length:] == raw("ü", "") + scores

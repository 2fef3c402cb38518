"""Tensors of the Open Inference Protocol: its bodies over HTTP <-> its messages over gRPC. Pure functions.

A body is JSON; with the binary extension the contents of some tensors follow it, in their order, each as long as its
`binary_data_size` says. How tensors leave is asked for in the same parameters, which end here: every other one, and
what the tensors mean, is the servicer's to judge. Both ways the messages have raw contents.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from adamix.errors import InvalidRequest
from adamix_protos.open_inference import open_inference_pb2 as pb
from adamix_server.frontend.http.bodies import decode_json
from adamix_server.frontend.http.predict import numbers
from adamix_server.frontend.inference.open_inference import split_bytes
from adamix_server.limits.http import MAX_BODY_ITEMS

# Of the JSON in a body with tensors behind it.
LENGTH_HEADER = "inference-header-content-length"
_SIZE, _BINARY, _ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
_LENGTH = struct.Struct("<I")

_Element = str | int | float | bool
# A body of millions of anything is not looked at any further.
_FEW = msgspec.Meta(max_length=MAX_BODY_ITEMS)
_Parameters = Annotated[dict[str, _Element], _FEW]


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]], _FEW]
    parameters: _Parameters = {}
    # Of the shape [n] or [n, 1]: there is no other.
    data: Annotated[list[_Element | tuple[_Element]], _FEW] | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: _Parameters = {}


class InferBody(msgspec.Struct, forbid_unknown_fields=True):
    """Texts for a model."""

    inputs: Annotated[list[_Input], _FEW]
    id: str = ""
    parameters: _Parameters = {}
    outputs: Annotated[list[_Output], _FEW] = []


_BODIES = msgspec.json.Decoder(InferBody)


@dataclass(frozen=True)
class Form:
    """Which outputs are to leave in binary: those named here as it says, the others as `is_binary`."""

    is_binary: bool = False
    of_outputs: Mapping[str, bool] = field(default_factory=dict)

    def of(self, output: str) -> bool:
        return self.of_outputs.get(output, self.is_binary)


def to_request(model: str, version: str, body: bytes, json_bytes: str | None) -> tuple[pb.ModelInferRequest, Form]:
    """What a body asks of a model.

    Args:
        json_bytes: of the body, as the header says; None if all of it is JSON.

    Raises:
        InvalidRequest: it is not the JSON of a request, or the tensors behind it are not as long as it says.
    """
    length = _json_length(body, json_bytes)
    infer = decode_json(body[:length], _BODIES)
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=infer.id)
    is_binary = _taken(infer.parameters, _ALL_BINARY, f"parameters[{_ALL_BINARY}]")
    _fill(request.parameters, infer.parameters, "")
    at = length
    for index, tensor in enumerate(infer.inputs):
        field = f"inputs[{index}]"
        size = tensor.parameters.pop(_SIZE, None)
        if size is not None and (type(size) is not int or not 0 <= size <= len(body) - at):
            raise InvalidRequest(
                f"{field} has a {_SIZE} that is not the number of its bytes behind the JSON",
                reason="BINARY_SIZE_INVALID",
                field=f"{field}.parameters[{_SIZE}]",
            )
        message = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _fill(message.parameters, tensor.parameters, field)
        if isinstance(size, int):
            if tensor.data is not msgspec.UNSET:
                raise _contents(f"{field} has data beside its {_SIZE}", f"{field}.data")
            request.raw_input_contents.append(body[at : at + size])
            at += size
        else:
            request.raw_input_contents.append(_packed(tensor, field))
    if at != len(body):
        raise InvalidRequest(
            f"{len(body) - at} bytes follow that no input's {_SIZE} counts",
            reason="BINARY_SIZE_INVALID",
            field="inputs",
        )
    chosen: dict[str, bool] = {}
    for index, output in enumerate(infer.outputs):
        field = f"outputs[{index}]"
        chosen[output.name] = _taken(output.parameters, _BINARY, f"{field}.parameters[{_BINARY}]", default=is_binary)
        _fill(request.outputs.add(name=output.name).parameters, output.parameters, field)
    return request, Form(is_binary, chosen)


def to_body(response: pb.ModelInferResponse, form: Form) -> tuple[bytes, int | None]:
    """The body that says a response, and how much of it is JSON; None if all of it is."""
    outputs: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        said: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if form.of(output.name):
            said["parameters"] = {_SIZE: len(raw)}
            behind.append(raw)
        else:
            said["data"] = _values(output, raw)
        outputs.append(said)
    document: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        document["id"] = response.id
    document["outputs"] = outputs
    head = msgspec.json.encode(document)
    return b"".join((head, *behind)), len(head) if behind else None


def _json_length(body: bytes, said: str | None) -> int:
    if said is None:
        return len(body)
    # No more digits than a body can have bytes: Python reads a number of any length.
    if not (said.isascii() and said.isdecimal() and len(said) <= 10 and 0 < int(said) <= len(body)):
        raise InvalidRequest(
            f"{LENGTH_HEADER} is not the number of bytes of the JSON at the beginning of the body",
            reason="HEADER_LENGTH_INVALID",
            field=LENGTH_HEADER,
        )
    return int(said)


def _taken(parameters: _Parameters, name: str, field: str, *, default: bool = False) -> bool:
    """The value of a parameter that goes no further. Raises InvalidRequest if it is neither true nor false."""
    value = parameters.pop(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"the parameter {name} is true or false", reason="PARAMETER_INVALID", field=field)
    return value


def _fill(messages: Any, parameters: _Parameters, field: str) -> None:
    for name, value in parameters.items():
        match value:
            case bool():
                messages[name].bool_param = value
            case str():
                messages[name].string_param = value
            case float():
                messages[name].double_param = value
            case _ if -(2**63) <= value < 2**63:
                messages[name].int64_param = value
            case _:
                raise InvalidRequest(
                    f"a parameter{field and ' of '}{field} is a number of more than 64 bits",
                    reason="PARAMETER_INVALID",
                    field=f"{field}{field and '.'}parameters",
                )


def _packed(tensor: _Input, field: str) -> bytes:
    """The elements of a tensor in JSON as raw contents; none of a datatype that no input has."""
    if tensor.data is msgspec.UNSET:
        raise _contents(f"{field} has neither data nor a {_SIZE}", f"{field}.data")
    if tensor.datatype != "BYTES":
        return b""
    nested = sum(isinstance(row, tuple) for row in tensor.data)
    if nested and (nested != len(tensor.data) or len(tensor.shape) < 2):
        raise _contents(f"the data of {field} is not of its shape", f"{field}.data")
    return b"".join(_sized(row[0] if isinstance(row, tuple) else row, field) for row in tensor.data)


def _sized(text: _Element, field: str) -> bytes:
    if not isinstance(text, str):
        raise _contents(f"the data of {field} are texts, as BYTES in JSON are", f"{field}.data")
    value = text.encode()
    return _LENGTH.pack(len(value)) + value


def _values(output: pb.ModelInferResponse.InferOutputTensor, raw: bytes) -> Any:
    """The elements of an output, which is FP32 or BYTES, in one list."""
    if output.datatype == "FP32":
        return numbers(struct.unpack(f"<{len(raw) // 4}f", raw))
    num_elements = 1
    for size in output.shape:
        num_elements *= size
    return [value.decode() for value in split_bytes(raw, num_elements, output.name)]


def _contents(message: str, field: str) -> InvalidRequest:
    return InvalidRequest(message, reason="CONTENTS_INVALID", field=field)

"""`inference.GRPCInferenceService`: the Open Inference Protocol over the same stages as `Predict`.

A model is a task, its version a digest; texts come as BYTES tensors and answers leave as tensors by the kind of the
head. One call is for one task and one version, and is answered as a whole or not at all. What the protocol can say and
this server cannot do is refused by its name. Knows tensors; how inputs are answered is `stages.py`.
"""

import importlib.metadata
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from adamix.errors import AdamixError, Code, InvalidRequest, NotFound
from adamix.files.manifest import HeadSpec
from adamix_client.results import Classification, Embedding, MultiLabel, Regression, Result
from adamix_protos.open_inference import open_inference_pb2 as pb
from adamix_protos.open_inference import open_inference_pb2_grpc
from adamix_server.api.answers import read
from adamix_server.api.resource_names import task_name
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.inference.stages import Item, Stages
from adamix_server.frontend.inference.tokenization import Text
from adamix_server.frontend.readiness import Readiness
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL

TEXT, TEXT_PAIR = "text", "text_pair"
# Triton's extension: the best N scores of an output as `score:index:label`. What its clients call `class_count`.
CLASSIFICATION = "classification"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class _Output:
    """One output tensor.

    Attributes:
        width: values per input, -1 where that is not known before; None for one without a row.
        labels: of its values, in their order, where they belong to labels.
        classes: how many of them are asked for by name, the best first; 0 for all as they are.
    """

    name: str
    datatype: str
    width: int | None
    labels: tuple[str, ...] = ()
    classes: int = 0

    def shape(self, num_inputs: int, width: int | None = None) -> list[int]:
        return [num_inputs] if self.width is None else [num_inputs, self.width if width is None else width]


class OpenInferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The protocol's six methods.

    Args:
        readiness: what `ServerReady` answers, and without which no model is ready.
    """

    def __init__(self, stages: Stages, readiness: Readiness) -> None:
        self._stages = stages
        self._readiness = readiness
        self._server_version = importlib.metadata.version("adamix")

    async def ServerLive(self, _request: pb.ServerLiveRequest, _context: Any) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: pb.ServerReadyRequest, _context: Any) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._readiness.is_ready)

    async def ServerMetadata(self, _request: pb.ServerMetadataRequest, _context: Any) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="adamix", version=self._server_version)

    async def ModelReady(self, request: pb.ModelReadyRequest, _context: Any) -> pb.ModelReadyResponse:
        call = calls.current()
        item = Item.of(request.name, call.deadline)
        try:
            reason = self._stages.unavailable_reason(item, request.version, call.principal, "name", "version")
        except NotFound:
            return pb.ModelReadyResponse(ready=False)
        finally:
            call.resource = item.resource
        return pb.ModelReadyResponse(ready=self._readiness.is_ready and not reason)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, _context: Any) -> pb.ModelMetadataResponse:
        call, view = calls.current(), self._stages.view
        item, head = self._resolve(request.name, request.version, call, "name", "version")
        tenant, task = item.name
        row = view.snapshot.task(tenant, task)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            # As it may be asked for again.
            name=task if tenant == call.tenant else task_name(tenant, task),
            versions=[v.digest for v in row.ready if v.backbone_fingerprint == view.spec.fingerprint],
            platform="adamix",
            inputs=[tensor(name=TEXT, datatype="BYTES", shape=[-1])],
            outputs=[tensor(name=out.name, datatype=out.datatype, shape=out.shape(-1)) for out in _outputs(head)],
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, _context: Any) -> pb.ModelInferResponse:
        call, stages, start = calls.current(), self._stages, time.monotonic()
        with stages.view.reading():
            found, head = self._resolve(request.model_name, request.model_version, call, "model_name", "model_version")
            outputs = _requested(request.outputs, _outputs(head))
            items = _items(request, found)
            request = _without_texts(request)
            with stages.admit(items, call.tenant) as place:
                await stages.tokenize(items)
                # One that cannot be answered fails them all, so the engine need not hear of the others.
                if _first_error(items) is None:
                    await stages.charge(items, place)
                    await stages.infer(items, place)
        results = _read(items, head)
        stages.record(items, call.tenant, time.monotonic() - start)
        if (failed := _first_error(items)) is not None:
            index, error = failed
            raise _of_tensor(error, index)
        return _response(request, found, outputs, results)

    def _resolve(
        self, name: str, digest: str, call: Call, name_field: str, version_field: str
    ) -> tuple[Item, HeadSpec]:
        """An input without content for a model, and its head. Raises as `Stages.resolve` does."""
        item = Item.of(name, call.deadline)
        try:
            version = self._stages.resolve(item, digest, call.principal, name_field, version_field)
        finally:
            call.resource = item.resource
        return item, version.head


def _outputs(head: HeadSpec) -> tuple[_Output, ...]:
    match head.type:
        case "classification" | "multilabel":
            return (_Output("label", "BYTES", None), _Output("scores", "FP32", head.num_labels, tuple(head.labels)))
        case "regression":
            return (_Output("score", "FP32", None),)
        case _:
            return (_Output("embedding", "FP32", -1 if head.dim is None else head.dim),)


def _requested(
    asked: Sequence[pb.ModelInferRequest.InferRequestedOutputTensor], outputs: tuple[_Output, ...]
) -> tuple[_Output, ...]:
    """The outputs a request names, in its order; all of them if it names none. Raises InvalidRequest."""
    known = {output.name: output for output in outputs}
    chosen: dict[str, _Output] = {}
    for index, tensor in enumerate(asked):
        field = f"outputs[{index}]"
        _refuse_parameters((name for name in tensor.parameters if name != CLASSIFICATION), field)
        if tensor.name not in known or tensor.name in chosen:
            raise InvalidRequest(
                f"{field}: this task's outputs are {', '.join(known)}, each at most once",
                reason="OUTPUT_UNKNOWN",
                field=f"{field}.name",
            )
        chosen[tensor.name] = _of_classes(known[tensor.name], tensor.parameters, field)
    return tuple(chosen.values()) or outputs


def _of_classes(output: _Output, parameters: Mapping[str, pb.InferParameter], field: str) -> _Output:
    """The output as a request wants it: with its best classes by name if it says how many. Raises InvalidRequest."""
    if CLASSIFICATION not in parameters:
        return output
    parameter = parameters[CLASSIFICATION]
    count = parameter.int64_param
    if not output.labels or parameter.WhichOneof("parameter_choice") != "int64_param" or count < 0:
        raise InvalidRequest(
            f"the parameter {CLASSIFICATION} is a count of labels, of the output scores alone",
            reason="PARAMETER_INVALID",
            field=f"{field}.parameters[{CLASSIFICATION}]",
        )
    count = min(count, len(output.labels))
    return replace(output, datatype="BYTES", width=count, classes=count) if count else output


def _items(request: pb.ModelInferRequest, found: Item) -> list[Item]:
    """One input per text of a request. Raises InvalidRequest."""
    truncate = _truncates(request.parameters)
    tensors = _texts(request)
    first, second = tensors[TEXT], tensors.get(TEXT_PAIR)
    if second is not None and len(second) != len(first):
        raise InvalidRequest(f"{TEXT_PAIR} and {TEXT} differ in their size", reason="SHAPE_INVALID", field=TEXT_PAIR)
    max_tokens = 0 if found.version is None else found.version.max_length
    return [
        replace(
            found,
            text=Text(text, None if second is None else second[index], max_tokens, truncate, f"{TEXT}[{index}]"),
        )
        for index, text in enumerate(first)
    ]


def _truncates(parameters: Mapping[str, pb.InferParameter]) -> bool:
    """Whether a request wants too long texts cut."""
    _refuse_parameters((name for name in parameters if name != "truncation"), "")
    if "truncation" not in parameters:
        return False
    value = parameters["truncation"].string_param
    if value not in ("error", "right"):
        raise InvalidRequest(
            'the parameter truncation is "error" or "right"', reason="PARAMETER_INVALID", field="parameters[truncation]"
        )
    return value == "right"


def _refuse_parameters(names: Iterable[str], field: str) -> None:
    for name in names:
        shown = ascii(name[:64])[1:-1]
        raise InvalidRequest(
            f"this server has no parameter {shown}{f' of {field}' if field else ''}; leave it out",
            reason="PARAMETER_UNKNOWN",
            field=f"{field}{'.' if field else ''}parameters[{shown}]",
        )


def _texts(request: pb.ModelInferRequest) -> dict[str, list[str]]:
    """The texts of a request's tensors by their name; `text` is among them. Raises InvalidRequest."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            "raw_input_contents needs one entry per input", reason="CONTENTS_INVALID", field="raw_input_contents"
        )
    tensors: dict[str, list[str]] = {}
    for index, tensor in enumerate(request.inputs):
        field = f"inputs[{index}]"
        if tensor.name not in (TEXT, TEXT_PAIR) or tensor.name in tensors:
            raise InvalidRequest(
                f"{field}: a task's inputs are {TEXT} and, for pairs, {TEXT_PAIR}, each at most once",
                reason="INPUT_UNKNOWN",
                field=f"{field}.name",
            )
        _refuse_parameters(tensor.parameters, field)
        size = _size(tensor, field)
        if raw and tensor.HasField("contents"):
            raise InvalidRequest(
                f"{field} has contents beside raw_input_contents", reason="CONTENTS_INVALID", field=f"{field}.contents"
            )
        values = split_bytes(raw[index], size, tensor.name) if raw else tensor.contents.bytes_contents
        if len(values) != size:
            raise _not_so_many(tensor.name, size)
        tensors[tensor.name] = [_decode(value, f"{tensor.name}[{i}]") for i, value in enumerate(values)]
    if TEXT not in tensors:
        raise InvalidRequest(f"the input {TEXT} is missing", reason="INPUT_MISSING", field="inputs")
    return tensors


def _size(tensor: pb.ModelInferRequest.InferInputTensor, field: str) -> int:
    """How many texts a tensor says it has."""
    if tensor.datatype != "BYTES":
        raise InvalidRequest(
            f"{field} must have the datatype BYTES", reason="DATATYPE_INVALID", field=f"{field}.datatype"
        )
    shape = list(tensor.shape[:3])
    is_list = len(shape) in (1, 2) and shape[1:] in ([], [1])
    if not is_list or not 1 <= shape[0] <= MAX_INPUTS_PER_CALL:
        raise InvalidRequest(
            f"{field} must have the shape [n] or [n, 1] with n from 1 to {MAX_INPUTS_PER_CALL}",
            reason="INPUT_COUNT" if is_list else "SHAPE_INVALID",
            field=f"{field}.shape",
        )
    return shape[0]


def split_bytes(raw: bytes, size: int, name: str) -> list[bytes]:
    """The elements of a BYTES tensor: each is its length in 4 bytes, little-endian, and then itself."""
    values: list[bytes] = []
    start = 0
    while start < len(raw) and len(values) < size:
        end = start + _LENGTH.size
        if end > len(raw) or (length := _LENGTH.unpack_from(raw, start)[0]) > len(raw) - end:
            raise _not_so_many(name, size)
        values.append(raw[end : end + length])
        start = end + length
    if start != len(raw):
        raise _not_so_many(name, size)
    return values


def _decode(value: bytes, field: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{field} is not UTF-8", reason="TEXT_NOT_UTF8", field=field) from None


def _not_so_many(name: str, size: int) -> InvalidRequest:
    return InvalidRequest(
        f"the contents of {name} are not the {size} elements of its shape", reason="CONTENTS_INVALID", field=name
    )


def _read(items: Iterable[Item], head: HeadSpec) -> list[Result]:
    """What the engine's outputs say, one after the other; an error in the item where one says nothing."""
    results: list[Result] = []
    for item in items:
        if item.event is not None:
            try:
                results.append(read(head, item.event.payload))
            except AdamixError as error:
                item.error = error
    return results


def _first_error(items: Iterable[Item]) -> tuple[int, AdamixError] | None:
    return next(((index, item.error) for index, item in enumerate(items) if item.error is not None), None)


def _of_tensor(error: AdamixError, index: int) -> AdamixError:
    """An error of one text, in the words of the tensors it came in."""
    # Without a field it is not the text that is invalid.
    if error.code is not Code.INVALID_ARGUMENT or error.field is None:
        return error
    name = TEXT_PAIR if error.field.endswith(".second") else TEXT
    field = f"{name}[{index}]"
    return InvalidRequest(f"{field}: {error.message}", reason=error.reason, field=field)


def _values(result: Result) -> Mapping[str, Sequence[Any]]:
    """The values of every output for one input: str or float."""
    match result:
        case Classification():
            return {"label": (result.label,), "scores": result.scores}
        case MultiLabel():
            return {"label": (",".join(result.labels),), "scores": result.scores}
        case Regression():
            return {"score": (result.score,)}
        case Embedding():
            return {"embedding": result.values}


def _without_texts(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """What an answer needs of a request, without the memory of what it no longer needs."""
    rest = pb.ModelInferRequest(model_name=request.model_name, id=request.id)
    rest.inputs.add(shape=request.inputs[0].shape)
    if request.raw_input_contents:
        rest.raw_input_contents.append(b"")
    return rest


def _best(scores: Sequence[float], output: _Output) -> list[str]:
    """The best classes of an output for one input, as Triton writes them."""
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [f"{scores[index]:f}:{index}:{output.labels[index]}" for index in ranked[: output.classes]]


def _response(
    request: pb.ModelInferRequest, found: Item, outputs: tuple[_Output, ...], results: Iterable[Result]
) -> pb.ModelInferResponse:
    """The answer, with raw contents if the request had them."""
    response = pb.ModelInferResponse(
        model_name=request.model_name,
        model_version="" if found.version is None else found.version.digest,
        id=request.id,
    )
    num_inputs = request.inputs[0].shape[0]
    is_raw = bool(request.raw_input_contents)
    rows = [_values(result) for result in results]
    for output in outputs:
        of_inputs = (_best(row[output.name], output) if output.classes else row[output.name] for row in rows)
        values = list(chain.from_iterable(of_inputs))
        tensor = response.outputs.add(name=output.name, datatype=output.datatype)
        tensor.shape.extend(output.shape(num_inputs, len(values) // num_inputs))
        if output.datatype == "FP32":
            if is_raw:
                response.raw_output_contents.append(struct.pack(f"<{len(values)}f", *values))
            else:
                tensor.contents.fp32_contents.extend(values)
            continue
        encoded = [value.encode() for value in values]
        if is_raw:
            response.raw_output_contents.append(b"".join(_LENGTH.pack(len(value)) + value for value in encoded))
        else:
            tensor.contents.bytes_contents.extend(encoded)
    return response

"""What the Open Inference Protocol says of a server and of a model, as JSON. Pure functions."""

from typing import Any

from adamix_protos.open_inference import open_inference_pb2 as pb

# Of the protocol, over HTTP.
EXTENSIONS = ("binary_tensor_data", "classification", "generate")


def to_server(message: pb.ServerMetadataResponse) -> dict[str, Any]:
    return {"name": message.name, "version": message.version, "extensions": list(EXTENSIONS)}


def to_model(message: pb.ModelMetadataResponse) -> dict[str, Any]:
    return {
        "name": message.name,
        "versions": list(message.versions),
        "platform": message.platform,
        "inputs": [_tensor(tensor) for tensor in message.inputs],
        "outputs": [_tensor(tensor) for tensor in message.outputs],
    }


def _tensor(message: pb.ModelMetadataResponse.TensorMetadata) -> dict[str, Any]:
    return {"name": message.name, "datatype": message.datatype, "shape": list(message.shape)}

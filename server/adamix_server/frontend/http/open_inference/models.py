"""What the protocol says of the server and of a model, and whether they are ready.

What is not ready is answered with 400, as the protocol has it.
"""

from typing import Any, TypeVar

import msgspec
from google.protobuf.message import Message

from adamix.errors import AdamixError, FailedPrecondition, NotFound
from adamix_protos.open_inference import open_inference_pb2 as pb
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.open_inference.names import named
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request

# Of the protocol, over HTTP.
EXTENSIONS = ("binary_tensor_data", "classification", "generate")

M = TypeVar("M", bound=Message)


class Models:
    """Answers who asks before inferring."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def live(self, request: Request) -> Reply:
        """Raises as the call does."""
        await self._one(request, "ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)
        return Reply()

    async def ready(self, request: Request) -> Reply:
        """Raises FailedPrecondition (`NOT_READY`), and as the call does."""
        found = await self._one(request, "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)
        return _ready(found.ready, "the server")

    async def server(self, request: Request) -> Reply:
        """Raises as the call does."""
        found = await self._one(request, "ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
        said = {"name": found.name, "version": found.version, "extensions": EXTENSIONS}
        return Reply(msgspec.json.encode(said))

    async def show(self, request: Request) -> Reply:
        """Raises as the call does."""
        return Reply(msgspec.json.encode(_model(await self._metadata(request))))

    async def model_ready(self, request: Request) -> Reply:
        """Raises NotFound, FailedPrecondition (`NOT_READY`), and as the call does."""
        name, version = named(request)
        asked = pb.ModelReadyRequest(name=name, version=version)
        found = await self._one(request, "ModelReady", asked, pb.ModelReadyResponse)
        if not found.ready:
            # Says why, for what there is not and for what cannot be asked.
            await self._metadata(request)
        return _ready(found.ready, "the model")

    async def check_there(self, request: Request) -> None:
        """Raises NotFound if there is no such model, or none that the caller may see."""
        try:
            await self._metadata(request)
        except NotFound:
            raise
        except AdamixError:
            # Something else speaks against it, of which nobody has asked.
            return

    async def _metadata(self, request: Request) -> pb.ModelMetadataResponse:
        name, version = named(request)
        asked = pb.ModelMetadataRequest(name=name, version=version)
        return await self._one(request, "ModelMetadata", asked, pb.ModelMetadataResponse)

    async def _one(self, request: Request, method: str, asked: Message, answer: type[M]) -> M:
        async def read(request: Request) -> Message:
            request.query()
            return asked

        return await self._calls.one(request, f"/inference.GRPCInferenceService/{method}", read, answer)


def _ready(is_ready: bool, what: str) -> Reply:
    if not is_ready:
        raise FailedPrecondition(f"{what} is not ready; ask again", reason="NOT_READY")
    return Reply()


def _model(message: pb.ModelMetadataResponse) -> dict[str, Any]:
    return {
        "name": message.name,
        "versions": list(message.versions),
        "platform": message.platform,
        "inputs": [_tensor(tensor) for tensor in message.inputs],
        "outputs": [_tensor(tensor) for tensor in message.outputs],
    }


def _tensor(message: pb.ModelMetadataResponse.TensorMetadata) -> dict[str, Any]:
    return {"name": message.name, "datatype": message.datatype, "shape": list(message.shape)}

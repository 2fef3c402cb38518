"""`infer`: a body of tensors to `ModelInfer` and back."""

from adamix.errors import AdamixError
from adamix_protos.open_inference import open_inference_pb2 as pb
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.name_first import NameFirst
from adamix_server.frontend.http.open_inference.names import OCTETS, body_of, named
from adamix_server.frontend.http.open_inference.tensors import LENGTH_HEADER, Form, to_body, to_request
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request

_METHOD = "/inference.GRPCInferenceService/ModelInfer"


class Infers:
    """Answers texts by tensors."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def infer(self, request: Request) -> Reply:
        """Raises as the call does."""
        model, version = named(request)
        form = Form()

        async def read(request: Request) -> pb.ModelInferRequest:
            nonlocal form
            request.query()
            message, form = to_request(model, version, await body_of(request), request.header(LENGTH_HEADER))
            return message

        body = NameFirst(read, pb.ModelInferRequest(model_name=model, model_version=version))
        try:
            response = await self._calls.one(request, _METHOD, body, pb.ModelInferResponse)
        except AdamixError as error:
            raise body.told(error) from None
        said, json_bytes = to_body(response, form)
        if json_bytes is None:
            return Reply(said)
        return Reply(said, content_type=OCTETS, headers=((LENGTH_HEADER, str(json_bytes)),))

"""The routes of the Open Inference Protocol, version 2, with Triton's binary and generate extensions.

Each is one call of `GRPCInferenceService`, or of `Generate`. A model is a task, with its tenant where it is another's
(`/v2/models/tenants/{tenant}/tasks/{model}`), a version a digest. Knows no tensor and no right.
"""

from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.open_inference.errors import to_reply
from adamix_server.frontend.http.open_inference.generates import Generates
from adamix_server.frontend.http.open_inference.generating import GenerateBody
from adamix_server.frontend.http.open_inference.infers import Infers
from adamix_server.frontend.http.open_inference.models import Models
from adamix_server.frontend.http.open_inference.tensors import InferBody
from adamix_server.frontend.http.route import Route
from adamix_server.frontend.http.server_events import CONTENT_TYPE

TAG = "open inference protocol"


def routes(calls: Calls) -> list[Route]:
    """All of them."""
    models, infers = Models(calls), Infers(calls)
    generates = Generates(calls, models)
    found = [
        Route("GET", "/v2", models.server, to_reply, summary="What the server is.", tag=TAG),
        Route("GET", "/v2/health/live", models.live, to_reply, summary="Whether it runs.", tag=TAG),
        Route("GET", "/v2/health/ready", models.ready, to_reply, summary="Whether it can answer.", tag=TAG),
    ]
    for model in ("/v2/models/{model}", "/v2/models/tenants/{tenant}/tasks/{model}"):
        for path in (model, f"{model}/versions/{{version}}"):
            found += [
                Route(
                    "POST",
                    f"{path}/infer",
                    infers.infer,
                    to_reply,
                    summary="Texts in, tensors out.",
                    tag=TAG,
                    takes=InferBody,
                ),
                Route("GET", path, models.show, to_reply, summary="What a model takes and gives.", tag=TAG),
                Route("GET", f"{path}/ready", models.model_ready, to_reply, summary="Whether it can answer.", tag=TAG),
                Route(
                    "POST",
                    f"{path}/generate",
                    generates.whole,
                    to_reply,
                    summary="A text, written on.",
                    tag=TAG,
                    takes=GenerateBody,
                ),
                Route(
                    "POST",
                    f"{path}/generate_stream",
                    generates.stream,
                    to_reply,
                    summary="The same in pieces, as they are written.",
                    tag=TAG,
                    takes=GenerateBody,
                    gives=CONTENT_TYPE,
                ),
            ]
    return found

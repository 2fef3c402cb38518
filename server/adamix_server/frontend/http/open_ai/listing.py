"""`GET /v1/models` and `/v1/models/{model}`: the caller's tasks, as models of the backbone.

The list is `ListTasks`, page by page, and needs the right to read; one model is found by who may ask it, with the right
to infer. Knows calls and requests.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from adamix_protos.open_inference import open_inference_pb2
from adamix_protos.v1 import adapters_pb2
from adamix_server.frontend.boundary import call as boundary
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.open_ai.models import Model, Models
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request
from adamix_server.limits.open_ai import MAX_LISTED_MODELS

_LIST = "/adamix.v1.AdapterService/ListTasks"
_READY = "/inference.GRPCInferenceService/ModelReady"
_PAGE = 1_000


@dataclass(frozen=True)
class Listing:
    """Answers both routes."""

    calls: Calls
    models: Models

    async def all(self, request: Request) -> Reply:
        data: list[dict[str, Any]] = []
        token, is_more = "", True
        # One more than are told says whether there are more.
        while is_more and len(data) <= MAX_LISTED_MODELS:
            size = min(_PAGE, MAX_LISTED_MODELS + 1 - len(data))

            async def read(_: Request, size: int = size, token: str = token) -> adapters_pb2.ListTasksRequest:
                return adapters_pb2.ListTasksRequest(page_size=size, page_token=token)

            page = await self.calls.one(request, _LIST, read, adapters_pb2.ListTasksResponse)
            data += [self._of_task(task) for task in page.tasks]
            token = page.next_page_token
            is_more = bool(token)
        answer: dict[str, Any] = {"object": "list", "data": data[:MAX_LISTED_MODELS]}
        if len(data) > MAX_LISTED_MODELS:
            answer["has_more"] = True
        return Reply(msgspec.json.encode(answer))

    async def one(self, request: Request) -> Reply:
        found: list[Model] = []

        async def read(_: Request) -> open_inference_pb2.ModelReadyRequest:
            model = self.models.find(request.params["model"], boundary.current())
            found.append(model)
            return open_inference_pb2.ModelReadyRequest(name=model.task, version=model.digest)

        await self.calls.one(request, _READY, read, open_inference_pb2.ModelReadyResponse)
        (model,) = found
        row, version = model.row, model.version
        created = row.create_time if version is None else version.create_time
        max_length = min((each.max_length for each in row.live), default=0) if version is None else version.max_length
        return Reply(
            msgspec.json.encode(self._model(model.name, row.tenant, int(created.timestamp()), row.task, max_length))
        )

    def _of_task(self, task: adapters_pb2.Task) -> dict[str, Any]:
        _, tenant, _, name = task.name.split("/")
        return self._model(name, tenant, task.create_time.seconds, name, task.max_length)

    def _model(self, name: str, tenant: str, created: int, root: str, max_length: int) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": tenant,
            "root": root,
            "parent": self.models.view.spec.label,
            "max_model_len": max_length or None,
        }

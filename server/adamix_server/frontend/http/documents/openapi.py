"""The OpenAPI document of some routes. FastAPI writes its frame, msgspec the schemas of the bodies.

Knows routes. No request is answered by what is made here: who does not ask for the document never waits for FastAPI.
"""

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import msgspec

from adamix_server.frontend.http.reply import JSON
from adamix_server.frontend.http.route import Route

_SCHEMA = "#/components/schemas/{name}"


class ErrorBody(msgspec.Struct):
    """What went wrong."""

    code: int
    status: str
    reason: str
    message: str
    field: str | None
    retry_after_s: float | None


class Error(msgspec.Struct):
    """The body of every answer that is an error, but on routes of other protocols, which have shapes of their own."""

    error: ErrorBody


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document, of OpenAPI 3.1. Imports FastAPI, which takes part of a second."""
    from fastapi.openapi.utils import get_openapi
    from fastapi.routing import APIRoute

    structs = [kind for route in routes for kind in (route.takes, route.gives) if _is_struct(kind)]
    _, schemas = msgspec.json.schema_components([*structs, Error], ref_template=_SCHEMA)
    described = [
        APIRoute(
            route.path,
            _nothing,
            methods=[route.method],
            summary=route.summary,
            description=" ",
            tags=[route.tag],
            operation_id=_operation_id(route),
            openapi_extra=_extra(route),
        )
        for route in routes
    ]
    found: dict[str, Any] = get_openapi(title="adamix", version=metadata.version("adamix"), routes=described)
    found["components"] = {
        "schemas": schemas,
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key, or a token."}},
    }
    # Both, since a server may ask nobody.
    found["security"] = [{"key": []}, {}]
    for operations in found["paths"].values():
        for operation in operations.values():
            operation.pop("description", None)
    return found


async def _nothing() -> None:
    """In the place of what answers."""


def _operation_id(route: Route) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in route.path).split()
    return "_".join([route.method.lower(), *words])


def _extra(route: Route) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "responses": {
            "200": {"description": "The answer.", "content": _content(route.gives)},
            "default": {"description": "An error.", "content": {JSON: {"schema": _reference(Error)}}},
        }
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.parameters
    ]
    parameters += [
        {"name": name, "in": "query", "description": what, "schema": {"type": "string"}}
        for name, what in route.query.items()
    ]
    if parameters:
        extra["parameters"] = parameters
    if route.takes is not None:
        extra["requestBody"] = {"required": True, "content": _content(route.takes)}
    return extra


def _content(kind: Any) -> dict[str, Any]:
    if _is_struct(kind):
        return {JSON: {"schema": _reference(kind)}}
    return {} if kind is None else {str(kind).partition(";")[0]: {}}


def _reference(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_SCHEMA)
    return schema


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)

"""Which model a path names, and of which kind the body behind it is."""

from adamix_server.frontend.http.errors import content_type_unsupported
from adamix_server.frontend.http.reply import JSON
from adamix_server.frontend.http.request import Request

OCTETS = "application/octet-stream"


def named(request: Request) -> tuple[str, str]:
    """(task, digest) as a call has them; no digest is the live version."""
    model, tenant = request.params["model"], request.params.get("tenant")
    return model if tenant is None else f"tenants/{tenant}/tasks/{model}", request.params.get("version", "")


async def body_of(request: Request) -> bytes:
    """The whole body.

    Raises:
        InvalidRequest: it is of another kind (`CONTENT_TYPE_UNSUPPORTED`). The protocol's own clients name none.
    """
    kind = (request.header("content-type") or JSON).partition(";")[0].strip().lower()
    if kind not in (JSON, OCTETS):
        raise content_type_unsupported(JSON)
    return await request.body()

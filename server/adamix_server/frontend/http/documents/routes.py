"""`/openapi.json`, and `/docs`: a page that reads it, by a script of this package. Nobody is asked who they are.

The page loads nothing from elsewhere, and its policy forbids it to.
"""

import asyncio
from collections.abc import Sequence
from importlib import resources

import msgspec

from adamix_server.frontend.http.documents.openapi import document
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request
from adamix_server.frontend.http.route import Route

SCRIPT = "rapidoc-min.js"
_HTML, _SCRIPT_TYPE = "text/html; charset=utf-8", "text/javascript; charset=utf-8"
_TAG = "operation"
_PART_BYTES = 64 << 10
_PAGE = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>adamix</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">
<script type="module" src="/docs/{SCRIPT}"></script></head>
<body><rapi-doc spec-url="/openapi.json" load-fonts="false" show-header="false" render-style="view"
allow-server-selection="false" schema-style="table" sort-tags="true" theme="light"></rapi-doc></body>
</html>
"""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)


def routes(described: Sequence[Route]) -> list[Route]:
    """The routes of documents, which describe the others and themselves."""
    found: list[Route] = []
    made: list[bytes] = []
    read: list[bytes] = []
    lock = asyncio.Lock()

    async def openapi(_: Request) -> Reply:
        async with lock:
            if not made:
                made.append(await asyncio.to_thread(lambda: msgspec.json.encode(document([*described, *found]))))
        return Reply(made[0])

    async def docs(_: Request) -> Reply:
        return Reply(_PAGE.encode(), content_type=_HTML, headers=_HEADERS)

    async def script(request: Request) -> None:
        async with lock:
            if not read:
                read.append(await asyncio.to_thread(resources.files(__package__).joinpath("assets", SCRIPT).read_bytes))
        body = read[0]
        length = ("content-length", str(len(body)))
        await request.begin(_SCRIPT_TYPE, headers=(length, ("cache-control", "max-age=86400")))
        # Whoever does not read, and need not say who they are, costs a part and not the whole.
        for start in range(0, len(body), _PART_BYTES):
            await request.write(body[start : start + _PART_BYTES])

    found += [
        Route("GET", "/openapi.json", openapi, summary="This document.", tag=_TAG),
        Route("GET", "/docs", docs, summary="The page that shows it.", tag=_TAG, gives=_HTML),
        Route("GET", f"/docs/{SCRIPT}", script, summary="The script of that page.", tag=_TAG, gives=_SCRIPT_TYPE),
    ]
    return found

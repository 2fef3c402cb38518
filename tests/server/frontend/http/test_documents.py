"""What the port says of itself: a document that is one, of every route that there is, and a page on its own."""

import json
import re
from typing import Any

import httpx2

from adamix_server.frontend.http.documents.routes import routes
from adamix_testing.harness import StartServing


def references(value: Any) -> set[str]:
    match value:
        case dict():
            own = {value["$ref"]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        case list():
            return set().union(*map(references, value))
    return set()


async def test_the_document_and_the_page(start_serving: StartServing) -> None:
    from fastapi.openapi.models import OpenAPI

    harness = await start_serving(http="127.0.0.1:0")
    async with httpx2.AsyncClient(base_url=f"http://{harness.http}") as client:
        document = (await client.get("/openapi.json")).json()
        OpenAPI.model_validate(document)
        assert {"/v1/predict", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"} <= document["paths"].keys()
        for reference in references(document):
            found: Any = document
            for key in reference.removeprefix("#/").split("/"):
                found = found[key]
        body = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": "#/components/schemas/PredictRequest"}
        operation_ids = [found["operationId"] for path in document["paths"].values() for found in path.values()]
        assert len(operation_ids) == len(set(operation_ids))
        page = await client.get("/docs")
        assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        # What it loads is here, and nothing else is loaded.
        assert "//" not in page.text.replace("<!doctype html>", "")
        loaded = re.findall(r'(?:src|spec-url)="([^"]+)"', page.text)
        assert sorted(loaded) == ["/docs/rapidoc-min.js", "/openapi.json"]
        script = await client.get("/docs/rapidoc-min.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert b"RapiDoc" in script.content


async def test_who_does_not_read_the_script_holds_a_part_of_it() -> None:
    parts: list[bytes] = []

    class Asked:
        async def begin(self, content_type: str, headers: Any) -> None:
            self.length = int(dict(headers)["content-length"])

        async def write(self, part: bytes) -> None:
            parts.append(part)

    (script,) = (route for route in routes([]) if route.path.endswith(".js"))
    asked: Any = Asked()
    assert await script.answer(asked) is None
    assert len(b"".join(parts)) == asked.length > 10 * len(parts[0])


async def test_probes_and_the_way_to_metrics(start_serving: StartServing) -> None:
    harness = await start_serving(http="127.0.0.1:0")
    async with httpx2.AsyncClient(base_url=f"http://{harness.http}") as client:
        assert (await client.get("/livez")).text == "ok\n"
        assert (await client.get("/readyz")).text == "ok\n"
        harness.kill_engine(back_in_s=60)
        await harness.until(lambda: not harness.front_end._readiness.is_ready)
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.text) == (503, "ENGINE_RESTARTING\n")
        # It lives all the same, and says when to come back.
        assert (await client.get("/livez")).text == "ok\n"
        refused = await client.post("/v1/predict", json={"inputs": [{"task": "sst2", "text": "w1"}]})
        assert refused.status_code in (404, 503)
        # Nobody gives that page here.
        missing = await client.get("/metrics")
        assert (missing.status_code, missing.json()["error"]["reason"]) == (404, "METRICS_ELSEWHERE")
        assert json.loads(missing.content)["error"]["message"]

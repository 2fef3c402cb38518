"""`/v1/models`: the caller's tasks, and nothing else."""

import httpx2
import openai
import pytest

from adamix_server.frontend.http.open_ai import listing
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import StartServing
from adamix_testing.identities import Callers, of_role
from adamix_testing.stock_clients import open_ai


async def test_a_list_and_one_of_it(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving(http="127.0.0.1:0")
    async with open_ai(harness) as client:
        (listed,) = (await client.models.list()).data
        found = await client.models.retrieve("sst2")
        named = await client.models.retrieve("tenants/default/tasks/sst2")
        version = await client.models.retrieve(f"sst2@{digest[:8]}")
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("tiny")
    assert found.to_dict() == listed.to_dict()
    assert listed.to_dict() == {
        "id": "sst2",
        "object": "model",
        "created": listed.created,
        "owned_by": "default",
        "root": "sst2",
        "parent": "tiny",
        "max_model_len": 16,
    }
    assert (named.id, version.id, version.to_dict()["root"]) == (
        "tenants/default/tasks/sst2",
        f"sst2@{digest[:8]}",
        "sst2",
    )
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_so_many_models_are_listed_and_no_more(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_LISTED_MODELS", 4)
    monkeypatch.setattr(listing, "_PAGE", 3)
    for number in range(4):
        seed(f"t{number}", make_adapter())
    harness = await start_serving(http="127.0.0.1:0")
    async with httpx2.AsyncClient(base_url=f"http://{harness.http}", verify=False) as client:
        whole = (await client.get("/v1/models")).json()
        assert ([model["id"] for model in whole["data"]], whole.get("has_more")) == (["t0", "t1", "t2", "t3"], None)
        monkeypatch.setattr(listing, "MAX_LISTED_MODELS", 3)
        part = (await client.get("/v1/models")).json()
    assert ([model["id"] for model in part["data"]], part["has_more"]) == (["t0", "t1", "t2"], True)


async def test_who_may_only_ask_finds_a_model_and_lists_none(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    callers = Callers({"asks": of_role("caller"), "other": of_role("owner", tenant="acme")})
    harness = await start_serving(callers=callers, http="127.0.0.1:0")
    async with open_ai(harness, key="asks") as client:
        assert (await client.models.retrieve("sst2")).id == "sst2"
        with pytest.raises(openai.PermissionDeniedError):
            await client.models.list()
    async with open_ai(harness, key="other") as client:
        assert (await client.models.list()).data == []
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("tenants/default/tasks/sst2")
    async with open_ai(harness, key="nobody") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.embeddings.create(model="gpt-4o", input="x")
    assert caught.value.code == "invalid_api_key"

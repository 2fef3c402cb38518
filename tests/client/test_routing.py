"""What calls carry for a router: the task with its tenant, and the newest revision that this client was told."""

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import Unauthenticated, Unavailable
from adamix_client import AsyncClient, Client, Input
from adamix_client.routing import Routing
from adamix_protos.v1 import adapters_pb2, admin_pb2
from adamix_testing.played_server import PlayedServer, classified

KEY = "adx_0123456789abcdef_" + "s" * 43


def shown(server: PlayedServer, method: str) -> list[str | None]:
    return [call.metadata.get("adamix-task") for call in server.asked if call.method == method]


def who(_: Any) -> admin_pb2.WhoAmIResponse:
    return admin_pb2.WhoAmIResponse(tenant="acme")


def test_where_nobody_is_asked_who_they_are_the_tenant_is_known() -> None:
    with PlayedServer(Predict=classified, WhoAmI=who) as server, Client(server.address) as client:
        client.predict("sst2", "a")
        client.predict("tenants/other/tasks/theirs", "a")
        client.predict([Input("one", text="a"), Input("two", text="a")])
        assert shown(server, "Predict") == ["default/sst2", "other/theirs", None]
        assert server.count("WhoAmI") == 0


def test_a_key_is_asked_once_whose_it_is_after_an_answer() -> None:
    with PlayedServer(Predict=classified, WhoAmI=who) as server, Client(server.address, api_key=KEY) as client:
        for _ in range(3):
            client.predict("sst2", "a")
        client.predict("sst2", ["a"] * 200)
        assert shown(server, "Predict") == [None, *["acme/sst2"] * 6]
        assert server.count("WhoAmI") == 1
        assert {call.metadata["authorization"] for call in server.asked} == {f"Bearer {KEY}"}


async def test_so_does_the_one_for_event_loops() -> None:
    with PlayedServer(Predict=classified, WhoAmI=who) as server:
        async with AsyncClient(server.address, api_key=KEY) as client:
            for _ in range(3):
                await client.predict("sst2", "a")
    assert shown(server, "Predict") == [None, "acme/sst2", "acme/sst2"]
    assert server.count("WhoAmI") == 1


def test_a_key_that_is_refused_is_shown_once_a_call() -> None:
    def refused(_: Any) -> Any:
        raise Unauthenticated("no")

    with PlayedServer(Predict=refused, WhoAmI=refused) as server, Client(server.address, api_key=KEY) as client:
        for _ in range(2):
            with pytest.raises(Unauthenticated):
                client.predict("sst2", "a")
        assert server.count("WhoAmI") == 0


def test_a_server_that_does_not_say_who_calls_is_not_asked_again() -> None:
    with PlayedServer(Predict=classified) as server, Client(server.address, api_key=KEY) as client:
        for _ in range(3):
            client.predict("sst2", "a")
        assert shown(server, "Predict") == [None, None, None]


def test_who_it_is_takes_little_of_a_calls_time_and_is_asked_again_where_it_took_too_long() -> None:
    hold = threading.Event()

    def slow(request: Any) -> Any:
        hold.wait(10)
        return who(request)

    with (
        PlayedServer(Predict=classified, WhoAmI=slow) as server,
        Client(server.address, api_key=KEY, timeout_s=2) as client,
    ):
        client.predict("sst2", "a")
        client.predict("sst2", "a")
        assert (server.asked[-1].left_s or 0) > 1, "most is left for the call itself"
        hold.set()
        client.predict("sst2", "a")
        assert shown(server, "Predict") == [None, None, "acme/sst2"]


def test_a_server_that_was_away_when_it_was_asked_is_asked_again() -> None:
    answers = iter([Unavailable("restarting")])

    def away(request: Any) -> Any:
        if (error := next(answers, None)) is not None:
            raise error
        return who(request)

    with PlayedServer(Predict=classified, WhoAmI=away) as server, Client(server.address, api_key=KEY) as client:
        for _ in range(4):
            client.predict("sst2", "a")
        assert shown(server, "Predict") == [None, None, "acme/sst2", "acme/sst2"]
        assert server.count("WhoAmI") == 2


async def test_calls_that_begin_together_ask_once() -> None:
    with PlayedServer(Predict=classified, WhoAmI=who) as server:
        async with AsyncClient(server.address, api_key=KEY) as client:
            await client.predict("sst2", "a")
            await asyncio.gather(*(client.predict("sst2", "a") for _ in range(20)))
            await client.predict("sst2", "a")
        assert server.count("WhoAmI") == 1
        assert shown(server, "Predict")[-1] == "acme/sst2"
        with Client(server.address, api_key=KEY) as together, ThreadPoolExecutor(8) as pool:
            together.predict("sst2", "a")
            list(pool.map(lambda _: together.predict("sst2", "a"), range(20)))
        assert server.count("WhoAmI") == 2


def test_the_newest_revision_is_shown_once_there_is_one() -> None:
    def get(_: Any) -> Any:
        return adapters_pb2.GetTaskResponse()

    with PlayedServer(GetTask=get, Predict=classified) as server, Client(server.address) as client:
        client.get_task("t")
        for told in ("main.7", "main.5", "other.1"):
            server.trailers = (("adamix-revision", told),)
            client.get_task("t")
        server.trailers = ()
        client.predict("t", ["a"] * 100)
    found = [call.metadata.get("adamix-min-revision") for call in server.asked]
    assert found == [None, None, "main.7", "main.7", "other.1", "other.1"]


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 50))))
def test_of_one_head_the_number_never_falls(told: list[tuple[str, int]]) -> None:
    routing = Routing("default")
    last: tuple[str, int] | None = None
    for head, number in told:
        routing.heard([("adamix-revision", f"{head}.{number}")])
        ((_, value),) = routing.metadata()
        now, _, shown = value.rpartition(".")
        assert now == head
        if last is not None and last[0] == head:
            assert int(shown) >= last[1]
        last = (now, int(shown))


@given(st.text() | st.binary())
def test_what_is_no_revision_is_not_sent(told: str | bytes) -> None:
    routing = Routing("default")
    routing.heard([("adamix-revision", told)])
    found = dict(routing.metadata()).get("adamix-min-revision")
    assert found is None or re.fullmatch(r"[A-Za-z0-9_-]{1,64}\.\d+", found)


@given(st.text(), st.none() | st.just("acme"))
def test_a_task_goes_into_metadata_only_if_it_is_one(task: str, tenant: str | None) -> None:
    for _, value in Routing(tenant).metadata(task):
        assert re.fullmatch(r"[a-z0-9._-]+/[a-z0-9._-]+", value)

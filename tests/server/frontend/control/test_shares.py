"""Turns of control calls: how many are at work, who waits and how long, and what is left to data calls."""

import asyncio
import math
from contextlib import suppress

import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix.errors import Code, Overloaded, Unauthenticated
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_protos.v1 import adapters_pb2_grpc, inference_pb2
from adamix_server.access.principal import ANYONE, Principal
from adamix_server.access.refusal import unauthenticated
from adamix_server.access.rights import ALL_RIGHTS
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.boundary.rooms import Origin
from adamix_server.frontend.control import shares
from adamix_server.frontend.control.shares import MAX_AHEAD_S, MAX_ALL_AHEAD_S, SHARE, Accounts, Turns
from adamix_server.limits.control import MAX_CONTROL_CALLS, MAX_WAITING_CONTROL_CALLS
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import StartServing

# (connection, CPU seconds of one call)
Looping = tuple[str, float]


class Scene:
    """Turns whose clock the test moves, and the calls that are at work in them."""

    def __init__(self, *, is_shared: bool = False) -> None:
        self.now = 0.0
        self.is_shared = is_shared
        self.turns = Turns(Accounts(SHARE), lambda: self.is_shared, Recorder(), lambda: self.now)
        self.at_work: list[tuple[str, asyncio.Event]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Scene":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)

    def call(
        self, connection: str, work_s: float = 0.0, *, is_bounded: bool = False, tenant: str = ""
    ) -> asyncio.Task[None]:
        """A call that stays at work until the test ends it; of a tenant, where callers are asked who they are."""

        async def run() -> None:
            principal = Principal("", tenant, ALL_RIGHTS) if tenant else ANYONE
            call = Call("id", "method", math.inf, origin=Origin(connection), principal=principal)
            calls.enter(call)
            end = asyncio.Event()
            async with self.turns.turn(is_bounded=is_bounded):
                self.at_work.append((connection, end))
                await end.wait()
                call.work_s += work_s
                self.at_work.remove((connection, end))

        self.tasks.append(asyncio.create_task(run()))
        return self.tasks[-1]

    def prepaid(self, connection: str, expected_s: float, work_s: float) -> asyncio.Task[None]:
        """A call that has paid in advance, and stays at work until the test ends it."""

        async def run() -> None:
            call = Call("id", "method", math.inf, origin=Origin(connection))
            calls.enter(call)
            end = asyncio.Event()
            async with self.turns.prepaid(expected_s):
                self.at_work.append((connection, end))
                await end.wait()
                call.work_s += work_s
                self.at_work.remove((connection, end))

        self.tasks.append(asyncio.create_task(run()))
        return self.tasks[-1]

    def connections(self) -> list[str]:
        return [connection for connection, _ in self.at_work]

    def end_first(self) -> None:
        self.at_work[0][1].set()


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_so_many_are_at_work_and_half_of_them_are_of_one_connection() -> None:
    async with Scene() as scene:
        for _ in range(MAX_CONTROL_CALLS):
            scene.call("a")
        await settle()
        assert scene.connections() == ["a"] * (MAX_CONTROL_CALLS // 2)
        for connection in "bbbbbb":
            scene.call(connection)
        await settle()
        assert scene.connections() == ["a"] * 4 + ["b"] * 4
        scene.call("c")
        await settle()
        assert len(scene.at_work) == MAX_CONTROL_CALLS
        # The oldest that waits and may: one of the first connection's.
        scene.end_first()
        await settle()
        assert scene.connections() == ["a"] * 3 + ["b"] * 4 + ["a"]
        # Those before it in the queue had theirs first.
        for _ in range(6):
            scene.end_first()
            await settle()
        assert scene.connections().count("c") == 1
        assert len(scene.at_work) == MAX_CONTROL_CALLS


async def test_beyond_those_that_may_wait_calls_are_refused() -> None:
    async with Scene() as scene:
        half = MAX_WAITING_CONTROL_CALLS // 2
        waiting = [scene.call("a") for _ in range(MAX_CONTROL_CALLS // 2 + half)]
        await settle()
        assert not any(task.done() for task in waiting)
        refused = scene.call("a")
        with pytest.raises(Overloaded) as said:
            await refused
        assert (said.value.code, said.value.reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_CONTROL_CALLS")
        assert said.value.retry_after_s is not None
        assert said.value.retry_after_s > 0
        waiting += [scene.call("b") for _ in range(MAX_CONTROL_CALLS // 2 + half)]
        await settle()
        assert not any(task.done() for task in waiting)
        with pytest.raises(Overloaded):
            await scene.call("c")
        bounded = scene.call("c", is_bounded=True)
        await settle()
        assert not bounded.done()


async def test_a_tenant_with_many_connections_shuts_nobody_out() -> None:
    async with Scene(is_shared=True) as scene:
        half, room = MAX_CONTROL_CALLS // 2, MAX_WAITING_CONTROL_CALLS // 2
        flood = [scene.call(f"a{number}", work_s=0.05, tenant="a") for number in range(2 * MAX_WAITING_CONTROL_CALLS)]
        await settle()
        assert len(scene.at_work) == half
        assert sum(task.done() for task in flood) == len(flood) - half - room, "refused"
        # Others find places, and room: half of what is left.
        for _ in range(half):
            scene.call("b", tenant="b")
        await settle()
        assert scene.connections().count("b") == half
        waiting = [scene.call(f"b{number}", tenant="b") for number in range(room // 2)]
        operator = scene.call("c", tenant="default")
        await settle()
        assert not any(task.done() for task in (*waiting, operator))
        with pytest.raises(Overloaded, match="calls of this tenant"):
            await scene.call("b", tenant="b")
        # Who has had least comes next, whatever connections others have besides.
        scene.end_first()
        await settle()
        scene.end_first()
        await settle()
        assert "c" in scene.connections()


@pytest.mark.parametrize("kind", ["turn", "prepaid"])
async def test_whose_key_has_ended_while_it_waited_has_no_turn(kind: str) -> None:
    async with Scene() as scene:
        turns, is_known = scene.turns, True

        def check() -> None:
            if not is_known:
                raise unauthenticated()

        async def run() -> None:
            calls.enter(Call("id", "method", math.inf, origin=Origin("a"), check=check))
            async with turns.turn() if kind == "turn" else turns.prepaid(0.0):
                pytest.fail("it has had its turn")

        for _ in range(MAX_CONTROL_CALLS // 2):
            scene.call("a")
        await settle()
        late = asyncio.create_task(run())
        await settle()
        is_known = False
        scene.end_first()
        with pytest.raises(Unauthenticated):
            await late
        scene.call("a")
        await settle()
        assert len(scene.at_work) == MAX_CONTROL_CALLS // 2, "its place is free"


async def test_one_connection_leaves_its_tenants_others_some_room() -> None:
    async with Scene() as scene:
        quarter = MAX_WAITING_CONTROL_CALLS // 4
        looping = [scene.call("a", tenant="a") for _ in range(MAX_CONTROL_CALLS // 2 + quarter)]
        await settle()
        with pytest.raises(Overloaded):
            await scene.call("a", tenant="a")
        others = scene.call("other", tenant="a")
        await settle()
        assert not any(task.done() for task in (*looping, others))


async def test_who_stops_waiting_leaves_no_trace() -> None:
    async with Scene() as scene:
        first = [scene.call("a") for _ in range(4)]
        gone, next_ = scene.call("a"), scene.call("a")
        await settle()
        gone.cancel()
        scene.end_first()
        await settle()
        assert gone.cancelled()
        assert len(scene.at_work) == 4
        # Its turn comes, and it is cancelled, in the same turn of the loop.
        late = scene.call("a")
        await settle()
        scene.end_first()
        late.cancel()
        with suppress(asyncio.CancelledError):
            await late
        await settle()
        while scene.at_work:
            scene.end_first()
            await settle()
        assert all(task.done() for task in (*first, next_))
        for _ in range(4):
            scene.call("a")
        await settle()
        assert len(scene.at_work) == 4


async def test_who_has_had_too_much_waits_beside_data_calls_and_a_newcomer_does_not() -> None:
    async with Scene(is_shared=True) as scene:
        scene.call("a", work_s=MAX_AHEAD_S + 0.1)
        await settle()
        scene.end_first()
        await settle()
        scene.call("a")
        await settle()
        assert scene.at_work == []
        scene.call("b")
        await settle()
        assert scene.connections() == ["b"]
        scene.end_first()
        await settle()
        # A tenth of the time is theirs: a call costs a millisecond besides its work.
        scene.now += (0.1 + 2 * 0.001) / SHARE
        scene.call("b")
        await settle()
        assert sorted(scene.connections()) == ["a", "b"]


async def test_without_data_calls_nobody_waits_for_its_share() -> None:
    async with Scene() as scene:
        for _ in range(3):
            scene.call("a", work_s=10.0)
            await settle()
            scene.end_first()
            await settle()
        scene.call("a")
        await settle()
        assert scene.connections() == ["a"]


async def test_who_waits_for_its_share_goes_on_when_data_calls_end() -> None:
    async with Scene(is_shared=True) as scene:
        scene.call("a", work_s=100.0)
        await settle()
        scene.end_first()
        await settle()
        waiting = scene.call("a")
        await settle()
        assert scene.at_work == []
        scene.is_shared = False
        async with asyncio.timeout(5):
            while not scene.at_work:  # noqa: ASYNC110 - the look is on a timer
                await asyncio.sleep(0.01)
        scene.end_first()
        await waiting


async def test_who_pays_in_advance_keeps_no_place_and_begins_nothing_beyond_its_share() -> None:
    async with Scene(is_shared=True) as scene:
        for _ in range(MAX_CONTROL_CALLS):
            scene.prepaid("a", MAX_AHEAD_S / 2, 0.0)
        await settle()
        # Those that begin before any of them has cost something.
        assert scene.connections() == ["a"] * 3
        scene.call("b")
        await settle()
        assert scene.connections() == ["a"] * 3 + ["b"]


@pytest.mark.parametrize(("work_s", "is_next"), [(0.0, True), (MAX_AHEAD_S, False)])
async def test_what_was_paid_in_advance_is_corrected_by_what_it_did_cost(work_s: float, is_next: bool) -> None:
    async with Scene(is_shared=True) as scene:
        scene.prepaid("a", MAX_AHEAD_S + 0.1, work_s + 0.001)
        await settle()
        scene.prepaid("a", 0.0, 0.0)
        await settle()
        assert len(scene.at_work) == 1
        scene.end_first()
        await settle()
        assert scene.connections() == ["a"] * is_next


async def test_a_loop_of_control_calls_waits_beside_data_calls_and_nobody_else_does(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SHARE", 1e-6)
    monkeypatch.setattr(shares, "MAX_AHEAD_S", 0.0)
    seed("sst2", make_adapter())
    harness = await start_serving()
    harness.engine.hold = True
    predict = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="sst2", text="w1")])
    predicting = asyncio.ensure_future(harness.inference.Predict(predict))
    await harness.until(lambda: bool(harness.engine.held))
    await harness.adapters.GetTask(pb.GetTaskRequest(task="sst2"))
    again = asyncio.ensure_future(harness.adapters.ListTasks(pb.ListTasksRequest()))
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(harness.address, options=own) as channel:
        await adapters_pb2_grpc.AdapterServiceStub(channel).GetTask(pb.GetTaskRequest(task="sst2"))
    assert not again.done()
    harness.engine.hold = False
    harness.engine.answer_all()
    await predicting
    assert len((await again).tasks) == 1


def simulate(loops: list[Looping], seconds: float) -> dict[str, float]:
    """What each of these, which call without pause, one after the other, gets of so many seconds beside data calls."""
    accounts, had, now = Accounts(SHARE), dict.fromkeys((who for who, _ in loops), 0.0), 0.0
    while now < seconds:
        accounts.settle(now, is_shared=True)
        ready = sorted((accounts.ahead_s(who), index) for index, (who, _) in enumerate(loops))
        who, cost_s = loops[ready[0][1]]
        if (wait_s := accounts.wait_s(who)) > 0:
            now += wait_s + 1e-6
        else:
            accounts.spend(who, cost_s)
            had[who] += cost_s
            now += cost_s
    return had


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.001, 0.2), min_size=1, max_size=6))
def test_all_loops_together_get_their_share_and_no_more(costs_s: list[float]) -> None:
    loops = [(f"{index}", cost_s) for index, cost_s in enumerate(costs_s)]
    had = simulate(loops, 60.0)
    ahead_s = min(MAX_ALL_AHEAD_S, len(loops) * (MAX_AHEAD_S + max(costs_s))) + max(costs_s)
    assert sum(had.values()) <= 60.0 * SHARE + ahead_s
    assert sum(had.values()) >= 60.0 * SHARE * 0.9 - max(costs_s)
    # Nobody is shut out, though those whose calls are small find no time of their own in every gap.
    fair_s = 60.0 * SHARE / len(loops)
    assert all(had_s >= fair_s / 3 - max(costs_s) for had_s in had.values())

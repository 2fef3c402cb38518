"""The front end as it runs in a server: a process of its own, a real pipe, a real socket to the engine."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec
import numpy as np
import pytest

from adamix.files.manifest import BackboneSpec
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc
from adamix_server.channel.channel import SocketEngineChannel
from adamix_server.channel.engine_frames import Control, Credit, Emit, Event, Hello, Limits, Submit
from adamix_server.channel.supervisor_frames import Agreed, Drain, Drained, EngineUp, Ready, Seen, Stats
from adamix_server.supervisor.child import Child
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed, make_store
from adamix_testing.harness import start_front_end

ENGINE_ID = "engine-0"
LIMITS = Limits(max_batch_tokens=64, max_queue_inputs=100, max_queue_tokens=1000, slots=4)


@pytest.fixture
def engine(tmp_path: Path, spec: BackboneSpec) -> Iterator[EngineUp]:
    """An engine that answers every row with its number of tokens, on a socket, in a thread."""
    address = f"ipc://{tmp_path}/engine"
    hello = Hello(engine_id=ENGINE_ID, generation=1, spec=spec, limits=LIMITS, dtype="float32", device="cpu")
    channel = SocketEngineChannel(address)
    stop = threading.Event()

    def live() -> None:
        while not stop.is_set():
            for peer, frame in channel.poll(0.05):
                if isinstance(frame, Control) and frame.op == "hello":
                    channel.send(peer, hello)
                    channel.send(peer, Credit(engine_id=ENGINE_ID, generation=1, inputs=100, tokens=1000))
                elif isinstance(frame, Submit):
                    events = [Event(id=r.id, payload=np.float32([len(r.token_ids) // 4]).tobytes()) for r in frame.rows]
                    channel.send(
                        peer,
                        Emit(
                            engine_id=ENGINE_ID, generation=1, events=events, credit_inputs=len(events), credit_tokens=0
                        ),
                    )

    thread = threading.Thread(target=live)
    thread.start()
    yield EngineUp(address=address, hello=hello)
    stop.set()
    thread.join()
    channel.close()


async def start(store: Path, tokenizer: Path) -> Child:
    make_store(store)
    first = msgspec.structs.replace(start_front_end(store, tokenizer), log_level="warning")
    return await Child.start("adamix_server.frontend", first, {})


async def expect(child: Child, kind: type[Any]) -> Any:
    """The next frame of this kind; others are passed over, and what the process has seen is agreed to."""
    while not isinstance(frame := await child.receive(), kind):
        assert frame is not None, "the process ended"
        if isinstance(frame, Seen):
            child.send(Agreed(revision=frame.revision, oldest=frame.oldest))
    return frame


async def test_a_process_serves_drains_and_exits(
    engine: EngineUp, store: Path, tokenizer_file: Path, seed: Seed, make_adapter: MakeAdapter
) -> None:
    from adamix.files.manifest import HeadSpec

    seed("score", make_adapter(HeadSpec(type="regression", pooling="mean")))
    child = await start(store, tokenizer_file)
    child.send(engine)
    ready: Ready = await expect(child, Ready)
    request = inference_pb2.PredictRequest(inputs=[inference_pb2.PredictInput(task="score", text="w1 w2")])
    async with grpc.aio.insecure_channel(ready.address) as channel:
        response = await inference_pb2_grpc.InferenceServiceStub(channel).Predict(request)
    assert response.predictions[0].regression.score == 4.0
    await expect(child, Stats)
    child.send(Drain(delay_s=0, grace_s=5))
    await expect(child, Drained)
    assert await child.stop(10) == 0


@pytest.mark.parametrize("when", ["before the engine", "while serving"])
async def test_a_process_does_not_outlive_its_supervisor(
    engine: EngineUp, store: Path, tokenizer_file: Path, when: str
) -> None:
    child = await start(store, tokenizer_file)
    if when == "while serving":
        child.send(engine)
        await expect(child, Ready)
    # Closes the pipe, as the death of the supervisor does, and sends no signal.
    assert await child.stop(20) == 0


async def test_a_signal_meant_for_the_terminal_does_not_end_the_process(
    engine: EngineUp, store: Path, tokenizer_file: Path
) -> None:
    import signal

    child = await start(store, tokenizer_file)
    child.send(engine)
    await expect(child, Ready)
    for number in (signal.SIGINT, signal.SIGTERM):
        child.process.send_signal(number)
    await asyncio.sleep(0)
    await expect(child, Stats)
    assert await child.stop(20) == 0

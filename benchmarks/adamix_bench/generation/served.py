"""`adamix serve` in processes of its own, asked over gRPC for all texts at once.

A server finds prompts that it has computed before, which the other ways do not: each run asks with other first tokens.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from adamix.errors import Unavailable
from adamix.files import adapter_file
from adamix.files.manifest import BackboneSpec
from adamix_bench.generation.settings import MOST_AT_ONCE
from adamix_bench.generation.turns import Texts
from adamix_bench.generation.workload import Workload
from adamix_bench.serving.processes import Processes, running_processes
from adamix_bench.serving.synthesis import SynthTask, fill_store, task_name
from adamix_client.connection import channel_options
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc
from adamix_server.local_server import LocalServer

_MIB = 1 << 20
_TIMEOUT_S = 600.0
# Until the first text of an open loop is due.
_HEAD_START_S = 0.1


@dataclass(frozen=True)
class Arrivals:
    """How long callers waited, in seconds.

    Attributes:
        first_token_s: of each text, from the time at which it was due.
        inter_token_s: between one message with tokens and the next.
    """

    first_token_s: Sequence[float]
    inter_token_s: Sequence[float]


class Served:
    """A server with these adapters, as long as a with-block runs. Entering raises Unavailable if it does not start."""

    def __init__(
        self, backbone: str, spec: BackboneSpec, adapters: Sequence[bytes], threads: int, log_path: Path
    ) -> None:
        self._backbone = backbone
        self._spec = spec
        self._adapters = adapters
        self._threads = threads
        self._log_path = log_path
        self._stack = ExitStack()
        self._runs = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            store = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adamix-bench-"))) / "store"
            tasks = [
                SynthTask(task_name(index), data, adapter_file.decode(data).manifest)
                for index, data in enumerate(self._adapters)
            ]
            fill_store(store, self._spec, tasks, lambda: None)
            room = max(64, 2 * sum(map(len, self._adapters)) // _MIB)
            flags = {
                "--device": "cpu",
                "--dtype": "float32",
                "--slots": MOST_AT_ONCE,
                "--arena-mib": room,
                "--host-cache-mib": room,
                "--threads": self._threads,
            }
            words = [str(word) for pair in flags.items() for word in pair]
            server = stack.enter_context(LocalServer(self._backbone, store, self._log_path, *words))
            self._address = server.address
            self._processes = Processes.of("the benchmark", server.pid, running_processes(), 1)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def cpu_s(self) -> float:
        """Of the server's processes, so far."""
        return sum(self._processes.cpu_s().values())

    def generate(self, workload: Workload, num_adapters: int) -> Texts:
        """All texts, with so many different adapters in turns. Raises Unavailable if one is not written."""
        self._runs += 1
        return asyncio.run(self._generate(workload, num_adapters))

    def arrive(self, workload: Workload, due_s: Sequence[float]) -> Arrivals:
        """Ask for each text when it is due, in seconds from the start, whether or not others are written by then.

        Raises:
            Unavailable: one is not written.
        """
        self._runs += 1
        return asyncio.run(self._arrive(workload, due_s))

    async def _generate(self, workload: Workload, num_adapters: int) -> Texts:
        async with grpc.aio.insecure_channel(self._address, options=channel_options()) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            asked = enumerate(zip(workload.prompts, workload.new_tokens, strict=True))
            calls = [
                self._text(stub, task_name(place % num_adapters), prompt, new_tokens)
                for place, (prompt, new_tokens) in asked
            ]
            return await asyncio.gather(*calls)

    async def _text(
        self, stub: inference_pb2_grpc.InferenceServiceStub, task: str, prompt: Sequence[int], new_tokens: int
    ) -> list[int]:
        ids: list[int] = []
        async for answer in self._answers(stub, task, prompt, new_tokens):
            ids += answer.token_ids
        return ids

    async def _answers(
        self, stub: inference_pb2_grpc.InferenceServiceStub, task: str, prompt: Sequence[int], new_tokens: int
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        first = (prompt[0] + self._runs) % self._spec.vocab_size
        request = inference_pb2.GenerateRequest(
            task=task,
            token_ids=inference_pb2.TokenIds(ids=[first, *prompt[1:]]),
            max_new_tokens=new_tokens,
            ignore_eos=True,
            return_token_ids=True,
        )
        try:
            async for answer in stub.Generate(request, timeout=_TIMEOUT_S):
                yield answer
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"a text of the server's was not written: {error.code().name}") from None

    async def _arrive(self, workload: Workload, due_s: Sequence[float]) -> Arrivals:
        firsts: list[float] = []
        gaps: list[float] = []

        async def follow(place: int) -> None:
            loop = asyncio.get_running_loop()
            due = started + due_s[place]
            await asyncio.sleep(due - loop.time())
            last = due
            task = task_name(place % len(self._adapters))
            async for answer in self._answers(stub, task, workload.prompts[place], workload.new_tokens[place]):
                if answer.token_ids:
                    now = loop.time()
                    (firsts if last == due else gaps).append(now - last)
                    last = now

        async with grpc.aio.insecure_channel(self._address, options=channel_options()) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            started = asyncio.get_running_loop().time() + _HEAD_START_S
            await asyncio.gather(*map(follow, range(len(workload))))
        return Arrivals(firsts, gaps)

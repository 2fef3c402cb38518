"""Servers to measure: one of the benchmark's own over a fresh store, or a running one that is left as it was found."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adamix.errors import AdamixError, InvalidConfig
from adamix.files.manifest import BackboneSpec
from adamix_bench.serving.load import LoadProcess, Plan
from adamix_bench.serving.settings import Settings
from adamix_bench.serving.synthesis import SynthTask, fill_store, task_name
from adamix_bench.serving.wire import predict_payloads
from adamix_bench.serving.workbench import Workbench
from adamix_client import Client
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL
from adamix_server.local_server import LocalServer

_MIB = 1 << 20
Say = Callable[[str], None]


@contextmanager
def own_server(
    settings: Settings,
    spec: BackboneSpec,
    tasks: Iterable[SynthTask],
    num_tasks: int,
    adapter_bytes: int,
    log_path: Path,
    say: Say,
) -> Iterator[str]:
    """`adamix serve` in processes of its own with these tasks in its store; yields its address. Its log: `log_path`."""
    with tempfile.TemporaryDirectory(prefix="adamix-bench-") as name:
        directory, done = Path(name), 0

        def count() -> None:
            nonlocal done
            done += 1
            if done % 500 == 0:
                say(f"{done} of {num_tasks} adapters written")

        fill_store(directory / "store", spec, tasks, count)
        flags = serve_flags(settings, num_tasks, adapter_bytes)
        with LocalServer(settings.backbone, directory / "store", log_path, *flags) as server:
            yield server.address


def serve_flags(settings: Settings, num_tasks: int, adapter_bytes: int) -> list[str]:
    """Flags of `adamix serve` for so many adapters of so many bytes.

    Host memory is given room for every adapter, the arena for every slot. The server computes on the CPU in fp32, as
    the ways in this process do: else it would be compared with another machine.
    """
    flags = {
        "--device": "cpu",
        "--dtype": "float32",
        "--slots": settings.num_slots,
        "--arena-mib": max(64, 2 * min(settings.num_slots, num_tasks) * adapter_bytes // _MIB),
        "--host-cache-mib": max(64, 2 * num_tasks * adapter_bytes // _MIB),
        "--max-batch-tokens": settings.max_batch_tokens,
        "--threads": settings.num_threads,
        "--front-ends": settings.front_ends,
    }
    return [word for flag, value in flags.items() for word in (flag, str(value))]


@contextmanager
def running_server(address: str, spec: BackboneSpec, tasks: Iterable[SynthTask]) -> Iterator[str]:
    """Register the tasks with a running server, and delete them in the end.

    Raises:
        InvalidConfig: it serves another backbone.
        AdamixError: it is not there, or refuses a task.
    """
    with Client(address) as client:
        if client.server_info().backbone["fingerprint"] != spec.fingerprint:
            raise InvalidConfig(f"{address} serves another backbone than --backbone", field="backbone")
        taken = {task.task for task in client.tasks()}
        registered: list[str] = []
        try:
            for task in tasks:
                if task.name in taken:
                    raise InvalidConfig(f"{address} has a task {task.name} already, which this would replace")
                client.register(task.name, task.data)
                registered.append(task.name)
            yield address
        finally:
            for name in registered:
                client.delete_task(name)


def warm_up(load: LoadProcess, workbench: Workbench, address: str, num_tasks: int) -> None:
    """Ask every task once, so that all adapters are in host memory. Raises AdamixError when one does not answer."""
    requests = workbench.requests(num_tasks, "distinct", num_tasks)
    payloads = predict_payloads(requests, MAX_INPUTS_PER_CALL)
    outcome = load.run(Plan(address=address, payloads=payloads, in_flight=2))
    if outcome.errors:
        found = ", ".join(f"{count} {code}" for code, count in outcome.errors.items())
        raise AdamixError(f"not every one of {num_tasks} tasks ({task_name(0)}, …) answers: {found}")

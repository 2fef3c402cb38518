"""What a registered task costs in memory: a front end of a real server, before and after many more tasks.

All tasks have the same bytes, so that neither the engine nor the disk has more to do: only what a front end keeps of a
task by itself counts.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from adamix.errors import NotFound, Unavailable
from adamix_bench.serving.processes import Processes, running_processes
from adamix_bench.serving.servers import Say
from adamix_bench.serving.settings import Settings
from adamix_bench.serving.synthesis import fill_names, task_name
from adamix_bench.serving.workbench import Workbench
from adamix_client import Client, Input
from adamix_server.local_server import LocalServer

_SEEN_WITHIN_S = 120.0
# A front end reads the catalog once a second, and then has things to put away.
_SETTLES_S = 3.0


@dataclass(frozen=True)
class Footprint:
    """Resident bytes of one front end with `few` tasks and with `many`."""

    few: int
    many: int
    few_bytes: int
    many_bytes: int

    @property
    def bytes_per_task(self) -> float:
        return (self.many_bytes - self.few_bytes) / (self.many - self.few)


def footprint(settings: Settings, bench: Workbench, few: int, many: int, log_path: Path, say: Say) -> Footprint:
    """Measure it on a server of its own. The tasks are written to its store, not sent: 50,000 would take minutes.

    Raises:
        AdamixError: the server did not start, or did not come to serve the tasks.
    """
    (task,) = bench.tasks(1)
    with tempfile.TemporaryDirectory(prefix="adamix-bench-") as directory:
        store = Path(directory) / "store"
        fill_names(store, bench.backbone.spec, task, range(few))
        flags = ["--device", "cpu", "--dtype", "float32", "--threads", str(settings.num_threads)]
        with LocalServer(settings.backbone, store, log_path, *flags) as server, Client(server.address) as client:
            found = []
            for count in (few, many):
                if count > few:
                    fill_names(store, bench.backbone.spec, task, range(few, count))
                _wait_until_served(client, task_name(count - 1))
                processes = Processes.of(str(log_path), server.pid, running_processes(), front_ends=1)
                found.append(processes.resident_bytes("front ends"))
                say(f"g: a front end with {count} tasks has {found[-1] >> 20} MiB")
    return Footprint(few, many, *found)


def _wait_until_served(client: Client, task: str) -> None:
    """Raises Unavailable when the front end does not know the task in time."""
    end = time.monotonic() + _SEEN_WITHIN_S
    while True:
        try:
            client.predict([Input(task=task, text="one")])
            break
        except NotFound:
            if time.monotonic() > end:
                raise Unavailable(f"{task} is not served") from None
            time.sleep(0.1)
    time.sleep(_SETTLES_S)

"""A process to be killed: registers one version after the other and says what it has tried and what was acknowledged.

Started once, it imports everything and then forks a child for each line `CYCLE FAILPOINT` on stdin (`-`: none), so
that fifty kills do not cost fifty imports. On stdout: `pid N`, then `try TASK DIGEST` and `ack TASK DIGEST` in turn,
and `dead` when the child has ended. Usage: registering_process.py STORE FINGERPRINT MANIFEST_JSON
"""

import hashlib
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adamix_server.catalog import changes
from adamix_server.catalog.origins import Origins
from adamix_server.catalog.store import Catalog
from adamix_server.catalog.store_file import Progress
from adamix_testing.catalogs import registration

TASKS = ("a", "b", "c")


def say(*words: str) -> None:
    os.write(1, (" ".join(words) + "\n").encode())


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def break_at(failpoint: str) -> None:
    """Die before or after the named step of the first registration: `before:rename`, `after:record`, …"""
    when, _, name = failpoint.partition(":")
    owners: dict[str, Any] = {"fsync": os, "rename": Path, "record": changes, "register": Catalog}
    owner = (owners | {"put": Origins, "reached": Progress})[name]
    step: Callable[..., Any] = getattr(owner, name)

    def broken(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            die()
        result = step(*args, **kwargs)
        die()
        return result

    setattr(owner, name, broken)


def register_for_ever(store: Path, fingerprint: str, manifest_json: str, cycle: str, failpoint: str) -> None:
    catalog = Catalog(store, backbone_fingerprint=fingerprint)
    if failpoint != "-":
        break_at(failpoint)
    random.seed(cycle)
    i = 0
    while True:
        task, data = random.choice(TASKS), f"{cycle} {i} ".encode() * random.choice([1, 1000, 100_000])
        digest = hashlib.sha256(data).hexdigest()
        say("try", task, digest)
        with catalog.blobs.temporary() as upload:
            for start in range(0, len(data), 1 << 16):
                upload.write(data[start : start + (1 << 16)])
            catalog.blobs.put(upload.path, upload.digest)
        catalog.register(registration("default", task, digest, manifest_json, len(data), fingerprint))
        say("ack", task, digest)
        i += 1


def main() -> None:
    store, fingerprint, manifest_json = sys.argv[1:]
    for line in sys.stdin:
        cycle, failpoint = line.split()
        pid = os.fork()
        if pid == 0:
            say("pid", str(os.getpid()))
            register_for_ever(Path(store), fingerprint, manifest_json, cycle, failpoint)
        os.waitpid(pid, 0)
        say("dead")


if __name__ == "__main__":
    main()

"""A process to be killed: brings an old store up to date and dies before the n-th step of it.

Started once, it imports everything and then forks a child for each line `N STORE` on stdin. Its answer: `killed`, or
`done` when there were fewer steps. A step is a statement of SQLite, a rename or a sync.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Imported before the forks, not in each of them.
import alembic.operations
import alembic.runtime.migration
import alembic.script  # noqa: F401 - as above
from sqlalchemy import event
from sqlalchemy.engine import Engine

from adamix_server.catalog.recovery import recover


def die_before(step: int) -> None:
    left = step

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            count()
            return work(*args, **kwargs)

        return run

    event.listen(Engine, "before_cursor_execute", count)
    event.listen(Engine, "commit", count)
    for owner, name in ((os, "fsync"), (Path, "rename")):
        setattr(owner, name, counted(getattr(owner, name)))


def main() -> None:
    for line in sys.stdin:
        step, store = line.split()
        pid = os.fork()
        if pid == 0:
            die_before(int(step))
            recover(Path(store))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            print("killed", flush=True)
        else:
            assert os.WEXITSTATUS(status) == 0
            print("done", flush=True)


if __name__ == "__main__":
    main()

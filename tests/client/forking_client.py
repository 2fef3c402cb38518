"""A process that uses a client, forks, and uses it on both sides; what each side met goes to stdout as JSON.

`forking_client.py ADDRESS idle|watching`: what the client does in another thread while the process forks. In a process
of its own, because grpc and forks do not mix well and a test run has other channels.
"""

import json
import os
import sys
import threading
from collections.abc import Callable

from adamix.errors import AdamixError
from adamix_client import Client, Input, StreamInput

_LIMIT_S = 20


def outcome(work: Callable[[], object]) -> str:
    """The reason of the error that `work` raises; "" if it raises none."""
    try:
        work()
    except AdamixError as error:
        return error.reason
    return ""


def child(client: Client, address: str, is_idle: bool) -> dict[str, str]:
    stream = [StreamInput("1", Input("sst2", text="w1"))]
    found = {
        "call": outcome(client.server_info),
        "again": outcome(client.server_info),
        "stream": outcome(lambda: list(client.predict_stream(stream))),
        "watch": outcome(lambda: next(client.watch_tasks())),
        "ready": outcome(lambda: client.wait_until_serving(1)),
        "close": outcome(client.close),
    }
    if is_idle:
        with Client(address, timeout_s=_LIMIT_S) as own:
            found["own"] = outcome(own.server_info)
    return found


def main(address: str, doing: str) -> None:
    client = Client(address, timeout_s=_LIMIT_S)
    client.server_info()
    changes = client.watch_tasks()
    begun = threading.Event()

    def watch() -> None:
        for _ in changes:
            begun.set()

    if doing == "watching":
        threading.Thread(target=watch, daemon=True).start()
        assert begun.wait(_LIMIT_S)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(child(client, address, doing == "idle")).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        found = json.load(told)
    os.waitpid(pid, 0)
    found["parent"] = outcome(client.server_info)
    json.dump(found, sys.stdout)
    sys.stdout.flush()
    client.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

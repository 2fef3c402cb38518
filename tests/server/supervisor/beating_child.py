"""A child of a supervisor, without anything to do. What it is to do besides beating stands in `BEATING_CHILD`."""

import os
import sys
import threading
import time

from adamix_server.channel.pipe import SupervisorPipe
from adamix_server.channel.supervisor_frames import Agreed, Drain, Drained, Ready, Seen, StartFrontEnd
from adamix_server.telemetry import logs


def main() -> None:
    task = os.environ.get("BEATING_CHILD", "")
    pipe = SupervisorPipe.from_environment()
    start = pipe.receive_blocking()
    assert isinstance(start, StartFrontEnd)
    logs.configure(start.log_level, process=start.name)
    if task == "talk":
        talk()
    if task == "crash":
        crash()
    pipe.send(Ready(address="127.0.0.1:1"))
    threading.Thread(target=beat, args=(pipe,), daemon=True).start()
    while (frame := pipe.receive_blocking()) is not None:
        if isinstance(frame, Agreed):
            pipe.send(Seen(revision=frame.revision, oldest=frame.oldest))
        if isinstance(frame, Drain):
            pipe.send(Drained())
            break
    pipe.flush()


def beat(pipe: SupervisorPipe) -> None:
    while True:
        pipe.report(list)
        time.sleep(0.1)


def talk() -> None:
    """More than a pipe holds, and more than waits for one: as Python prints it, and as a library in C does."""
    for number in range(12_000):
        print(f"line {number} of a child that nobody listens to", file=sys.stderr)
    for _ in range(10):
        os.system("echo printed by another program >&2; echo and on stdout")


def crash() -> None:
    print("said by print", flush=True)
    os.write(2, b"said in C\nhalf a line")
    os.abort()


if __name__ == "__main__":
    main()

"""A process that is kept as an engine is, and does nothing but say how far it is. Run as a module, by a keeper."""

import threading
import time

from adamix_server.channel.pipe import SupervisorPipe
from adamix_server.channel.supervisor_frames import Beat, Ready


def main() -> None:
    pipe = SupervisorPipe.from_environment()
    if pipe.receive_blocking() is None:
        return
    pipe.send(Ready(address="nowhere"))
    threading.Thread(target=_beat, args=(pipe,), daemon=True).start()
    # Until the pipe closes.
    while pipe.receive_blocking() is not None:
        pass


def _beat(pipe: SupervisorPipe) -> None:
    while True:
        pipe.send(Beat(last_step=time.monotonic()))
        time.sleep(0.05)


if __name__ == "__main__":
    main()

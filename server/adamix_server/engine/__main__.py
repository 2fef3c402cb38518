"""The engine process. Started by the supervisor, which set the thread counts in its environment before torch loads."""

import os
import signal
import threading
import time
from functools import partial

from adamix.errors import AdamixError
from adamix_server.channel.channel import SocketEngineChannel
from adamix_server.channel.pipe import SupervisorPipe
from adamix_server.channel.supervisor_frames import Beat, Drain, Drained, Fatal, Ready, StartEngine
from adamix_server.engine.assembly import assemble, load_backbone
from adamix_server.engine.engine import Engine
from adamix_server.engine.host_memory import keep_freed_memory
from adamix_server.telemetry import logs
from adamix_server.telemetry.metrics import Recorder

# How often the watchdog says how far the loop is.
_BEATS_PER_STALL = 5
_LONGEST_PERIOD_S = 1.0


def main() -> None:
    # The supervisor alone decides when children end: by frames, or by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe = SupervisorPipe.from_environment()
    try:
        _serve(pipe)
    finally:
        pipe.flush()


def _serve(pipe: SupervisorPipe) -> None:
    start = pipe.receive_blocking()
    if not isinstance(start, StartEngine):
        return
    logs.configure(start.log_level, process=f"engine-{start.engine_id}")
    keep_freed_memory()
    recorder = Recorder()
    channel = SocketEngineChannel(start.address)
    report = partial(pipe.report, recorder.drain)
    try:
        engine = assemble(start, channel, load_backbone(start), recorder, report)
    except AdamixError as error:
        pipe.send(Fatal(message=error.message))
        return
    threading.Thread(target=_obey, args=(pipe, engine), daemon=True, name="supervisor-pipe").start()
    pipe.send(Ready(address=start.address, hello=engine.hello))
    period_s = min(start.settings.stall_s / _BEATS_PER_STALL, _LONGEST_PERIOD_S)
    threading.Thread(target=_watch, args=(pipe, engine, period_s), daemon=True, name="watchdog").start()
    engine.run()
    report()
    channel.close()
    pipe.send(Drained())


def _watch(pipe: SupervisorPipe, engine: Engine, period_s: float) -> None:
    """Say how far the loop is, also when it is stuck: only a process that stands still as a whole says nothing."""
    while True:
        time.sleep(period_s)
        pipe.send(Beat(last_step=engine.last_step))


def _obey(pipe: SupervisorPipe, engine: Engine) -> None:
    """Follow the supervisor's frames; end the process when it is gone, whatever the loop is doing."""
    while (frame := pipe.receive_blocking()) is not None:
        if isinstance(frame, Drain):
            engine.drain()
    os._exit(1)


if __name__ == "__main__":
    main()

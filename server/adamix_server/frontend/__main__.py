"""The front-end process: `python -m adamix_server.frontend`, started by the supervisor with a pipe."""

import asyncio
import signal
import sys

from adamix_server.channel.pipe import SupervisorPipe
from adamix_server.channel.supervisor_frames import StartFrontEnd
from adamix_server.telemetry import logs


async def serve(pipe: SupervisorPipe) -> int:
    """Wait for `StartFrontEnd`, then serve; returns the exit status."""
    # Imported only now: a process started by mistake has already said so, without the cost of grpc.
    from adamix_server.frontend.front_end import FrontEnd

    start = await pipe.receive()
    if not isinstance(start, StartFrontEnd):
        return 0 if start is None else 1
    logs.configure(start.log_level, process=start.name)
    return await FrontEnd(start, pipe).run()


def main() -> int:
    # The supervisor alone hears signals, and says by frames what is to be done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe = SupervisorPipe.from_environment()
    try:
        return asyncio.run(serve(pipe))
    finally:
        pipe.flush()


if __name__ == "__main__":
    sys.exit(main())

"""A process that keeps one child as the supervisor does, and says when one is started or has ended.

Arguments: the silence after which it is replaced, a directory.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from adamix_server.channel.supervisor_frames import Drain, StartFrontEnd
from adamix_server.config import FrontEndSettings
from adamix_server.supervisor.child import Child
from adamix_server.supervisor.keeper import Keeper


async def main(silence_s: float, directory: Path) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    environment = {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}

    first = StartFrontEnd(
        settings=FrontEndSettings(),
        name="frontend-0",
        listen="",
        store=directory,
        tokenizer=directory,
        reflection=False,
        shares_port=False,
        log_level="info",
    )

    async def start() -> Child:
        child = await Child.start("beating_child", first, environment)
        print("started", child.process.pid, flush=True)
        return child

    keeper = Keeper(
        "frontend-0",
        silence_s,
        start=start,
        on_frame=lambda frame: None,
        on_end=lambda: print("ended", flush=True),
        stopping=stopping,
    )
    running = asyncio.create_task(keeper.run())
    await stopping.wait()
    await keeper.drain(Drain(delay_s=0, grace_s=0), 1.0)
    await running


asyncio.run(main(float(sys.argv[1]), Path(sys.argv[2])))

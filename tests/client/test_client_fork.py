"""A client in a forked process: told what is wrong and what to do, and never a danger to the parent's."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import StartServing

FORKING_CLIENT = Path(__file__).parent / "forking_client.py"


@pytest.mark.parametrize("doing", ["idle", "watching"])
async def test_a_forked_client_says_so_and_the_parents_goes_on(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, doing: str
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(FORKING_CLIENT), harness.address, doing, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    found = json.loads(output)
    refused = dict.fromkeys(("call", "again", "stream", "watch", "ready"), "CLIENT_FORKED")
    answered = dict.fromkeys(("close", "parent", "own") if doing == "idle" else ("close", "parent"), "")
    assert found == {**refused, **answered}

"""A front end serves while nobody holds a reason against it."""

import asyncio

from adamix_server.frontend.readiness import Readiness


def test_it_serves_while_nobody_holds_a_reason() -> None:
    readiness = Readiness("ENGINE_RESTARTING")
    assert (readiness.is_ready, readiness.reasons) == (False, ("ENGINE_RESTARTING",))
    readiness.hold("STORE_LOST")
    readiness.lift("ENGINE_RESTARTING")
    assert (readiness.is_ready, readiness.reasons) == (False, ("STORE_LOST",))
    readiness.put("STORE_LOST", False)
    assert readiness.is_ready


def test_a_reason_that_two_hold_is_over_when_it_is_lifted_once() -> None:
    readiness = Readiness()
    readiness.hold("STORE_LOST")
    readiness.hold("STORE_LOST")
    readiness.lift("STORE_LOST")
    assert readiness.is_ready
    readiness.lift("STORE_LOST")
    assert readiness.is_ready


async def test_who_waits_is_told_of_a_change_and_of_nothing_else() -> None:
    readiness = Readiness()
    told = asyncio.ensure_future(readiness.changed(()))
    await asyncio.sleep(0)
    readiness.lift("STORE_LOST")
    await asyncio.sleep(0)
    assert not told.done()
    readiness.hold("STORE_LOST")
    assert await told == ("STORE_LOST",)

"""What calls leave behind, over a real port: an entry of each control call, and what was used."""

import pytest

from adamix_server.access.entries import Entry
from adamix_server.access.sums import Sums, add
from adamix_server.catalog.audit import EntryRow
from adamix_server.catalog.store import Catalog
from adamix_server.channel.supervisor_frames import Account, Drained
from adamix_testing.harness import Harness, StartServing


@pytest.fixture
async def harness(start_serving: StartServing) -> Harness:
    return await start_serving()


async def accounted(harness: Harness) -> tuple[list[Entry], dict[str, Sums]]:
    """All that the front end tells until it has ended."""
    harness.drain()
    entries, usage = list[Entry](), dict[str, Sums]()
    while not isinstance(frame := await harness.supervisor.from_child.get(), Drained):
        if isinstance(frame, Account):
            entries += frame.entries
            for sums in frame.usage:
                usage[sums.tenant] = add(usage[sums.tenant], sums) if sums.tenant in usage else sums
    return entries, usage


def stored(harness: Harness, spec_fingerprint: str) -> tuple[EntryRow, ...]:
    catalog = Catalog(harness.store, backbone_fingerprint=spec_fingerprint)
    try:
        assert catalog.audit_log.verify().fault is None
        return catalog.audit_log.page(None).rows[::-1]
    finally:
        catalog.close()

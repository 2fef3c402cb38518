"""Every limit the server sets, each said once: its value, what is refused beyond it, and the test that meets it.

They bound the memory and the time that one caller, one connection or one file can take, so they are constants and no
settings; where a setting decides, the line says which. `docs/limits.md` is written from here
(`python -m adamix_server.limits > docs/limits.md`). A line is written where its constant is made, so that no number
can be in force and not in the table. Knows no module that keeps a limit.
"""

from adamix_server.limits import (
    adapters,
    audit,
    calls,
    chats,
    control,
    files,
    generation,
    messages,
    operators,
    quotas,
    tenants,
)
from adamix_server.limits.table import Limit

TABLE: tuple[Limit, ...] = tuple(
    row
    for room in (messages, generation, calls, chats, adapters, control, tenants, quotas, audit, operators, files)
    for row in room.chapter.rows
)

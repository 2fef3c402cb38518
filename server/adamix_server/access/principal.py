"""Who calls. What a principal may do stands in it, so that no call asks anybody else.

Knows neither how a caller is recognised nor what tasks there are.
"""

import fnmatch
import math
from dataclasses import dataclass, field

from adamix_server.access.rights import ALL_RIGHTS, Right
from adamix_server.config import DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, as far as the server knows.

    Attributes:
        name: for logs and the audit: `keys/{id}`, a certificate's name, a token's subject; empty for nobody known.
        tenant: whose data and whose budget.
        rights: `admin` has all others in every tenant.
        task_pattern: only tasks with ids that match it (`fnmatch`, with capitals told apart); empty for all.
        key_id: of the API key, if that is what was shown.
        expire_time_s: seconds since 1970 UTC after which it is nobody any more; infinite for never.
    """

    name: str
    tenant: str
    rights: frozenset[Right]
    task_pattern: str = ""
    key_id: str = ""
    expire_time_s: float = math.inf

    @property
    def is_admin(self) -> bool:
        return "admin" in self.rights

    def has(self, right: Right) -> bool:
        return right in self.rights or "admin" in self.rights

    def may_name(self, task: str) -> bool:
        """Whether a task of this id is among those it was given."""
        return not self.task_pattern or fnmatch.fnmatchcase(task, self.task_pattern)


# Everyone, where nobody is asked who they are.
ANYONE = Principal("", DEFAULT_TENANT, ALL_RIGHTS)
# Who has shown nothing yet, or nothing that counts.
NOBODY = Principal("", "", frozenset())


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes something, for the audit.

    Attributes:
        principal: its name.
        peer: address it called from; empty for this machine's own command.
        method: as it was called, e.g. `adamix.v1.AdapterService/SetTraffic`.
        entries: ids of the audit's entries that were written in its name; None where nobody asks for them.
    """

    principal: str = ""
    peer: str = ""
    method: str = ""
    entries: list[int] | None = field(default=None, compare=False)


# The server itself, and commands on a stopped one.
SERVER = Actor()

"""What goes with a call so that a router between sends it to the right replica. Pure: no connection.

`adamix-task` names the task with its tenant, which the server told once. `adamix-min-revision` is the newest revision
of the catalog that this client has been told, so that it never reads what is older than what it wrote; a server that
tells none is sent none.
"""

import re
import threading
from collections.abc import Iterable

TASK_KEY = "adamix-task"
REVISION_KEY = "adamix-revision"
MIN_REVISION_KEY = "adamix-min-revision"
# Of a server that asks nobody who they are.
DEFAULT_TENANT = "default"

_ID = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
_BARE = re.compile(_ID)
_WHOLE = re.compile(f"tenants/({_ID})/tasks/({_ID})(?:/versions/.*)?")
_REVISION = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9]{1,19})")


class Routing:
    """What one client knows. For all its threads.

    Args:
        tenant: the caller's own; None until it is known.
    """

    def __init__(self, tenant: str | None) -> None:
        self.tenant = tenant
        # A credential that is refused is not shown once more to ask whose it is.
        self.was_answered = False
        self._is_asking = False
        self._revision: tuple[str, int] | None = None
        self._lock = threading.Lock()

    def metadata(self, task: str = "") -> tuple[tuple[str, str], ...]:
        """For a call about this task; empty for one about none, or about several."""
        found: list[tuple[str, str]] = []
        if (name := self._whole(task)) is not None:
            found.append((TASK_KEY, name))
        if (revision := self._revision) is not None:
            found.append((MIN_REVISION_KEY, f"{revision[0]}.{revision[1]}"))
        return tuple(found)

    def heard(self, trailers: Iterable[tuple[str, str | bytes]] | None) -> None:
        """A call was answered, with these. A revision of another head is another catalog's, and takes its place."""
        self.was_answered = True
        for key, value in trailers or ():
            if key == REVISION_KEY and isinstance(value, str) and (said := _REVISION.fullmatch(value)):
                head, number = said[1], int(said[2])
                with self._lock:
                    if self._revision is None or self._revision[0] != head or self._revision[1] < number:
                        self._revision = (head, number)

    def asks_tenant(self, task: str) -> bool:
        """Whether this call, about this task, is to ask for the tenant first; it then says so by `asked_tenant`.

        It would say more if the tenant were known, the server may be asked, and no other call asks.
        """
        if not task or self.tenant is not None or not self.was_answered or _WHOLE.fullmatch(task):
            return False
        with self._lock:
            asks = not self._is_asking and self.tenant is None
            self._is_asking = self._is_asking or asks
        return asks

    def asked_tenant(self, tenant: str | None) -> None:
        """What the answer was: empty where the server does not say, None where it is to be asked again."""
        with self._lock:
            self.tenant, self._is_asking = tenant, False

    def _whole(self, task: str) -> str | None:
        if named := _WHOLE.fullmatch(task):
            return f"{named[1]}/{named[2]}"
        return f"{self.tenant}/{task}" if self.tenant and _BARE.fullmatch(task) else None

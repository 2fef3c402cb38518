"""Callers that are known by a word in the metadata of their calls, or that they show as a key."""

from collections.abc import Callable, Mapping
from typing import Any

from adamix.errors import Unauthenticated
from adamix_server.access.principal import Principal
from adamix_server.access.refusal import RefusalKind
from adamix_server.access.rights import ROLES
from adamix_server.catalog.access import Access
from adamix_server.config import FrontEndSettings
from adamix_server.frontend.entrance import Entrance

WHO = "x-caller"
Metadata = tuple[tuple[str, str], ...]


class Callers:
    """Who calls, by the word that it says. Whoever says none of them is nobody."""

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        self.principals = dict(principals)

    def identify(self, context: Any) -> Principal:
        """What the gate asks. Raises Unauthenticated."""
        metadata = dict(context.invocation_metadata())
        said = metadata.get(WHO) or str(metadata.get("authorization", "")).removeprefix("Bearer ")
        if (principal := self.principals.get(str(said))) is None:
            raise Unauthenticated("no valid credential", reason="KEY_INVALID")
        return principal

    def enter(
        self,
        _settings: FrontEndSettings,
        _access: Callable[[], Access],
        _on_refused: Callable[[RefusalKind, str], None],
    ) -> Entrance:
        """For `FrontEnd(enter=)`."""
        return Entrance(identify=self.identify)


def of_role(role: str, tenant: str = "default", task_pattern: str = "") -> Principal:
    """A principal with the rights of a role."""
    return Principal(f"keys/{role}-of-{tenant}", tenant, ROLES[role], task_pattern)


def said(word: str) -> Metadata:
    """The metadata of a call by the caller of this word; of nobody if it is empty."""
    return ((WHO, word),) if word else ()

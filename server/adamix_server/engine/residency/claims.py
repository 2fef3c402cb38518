"""Which tenants have brought or used which adapters: where one is, only they are told.

Adapters are held by digest, so two tenants with the same bytes share them. What one of them does with its version must
not show in the answers of the other. Belongs to the engine's thread.
"""

from collections.abc import Callable


class Claims:
    """By digest, the tenants that know where it is.

    Args:
        is_away: whether an adapter is neither in a slot nor in host memory, nor on its way there. Claims on such are
            worth nothing, and are forgotten from time to time, so that there are about as many as adapters near.
    """

    _FEWEST = 1024

    def __init__(self, is_away: Callable[[str], bool]) -> None:
        self._is_away = is_away
        self._tenants: dict[str, set[str]] = {}
        self._look_at = self._FEWEST

    def note(self, digest: str, tenant: str) -> None:
        """A tenant has asked for an adapter."""
        if (tenants := self._tenants.get(digest)) is not None:
            tenants.add(tenant)
            return
        if len(self._tenants) >= self._look_at:
            self._tenants = {digest: known for digest, known in self._tenants.items() if not self._is_away(digest)}
            self._look_at = max(self._FEWEST, 2 * len(self._tenants))
        self._tenants[digest] = {tenant}

    def drop(self, digest: str, tenant: str) -> None:
        """A tenant has unloaded an adapter, as far as it knows."""
        self._tenants.get(digest, set()).discard(tenant)

    def has(self, digest: str, tenant: str) -> bool:
        return tenant in self._tenants.get(digest, ())

    def __len__(self) -> int:
        return len(self._tenants)

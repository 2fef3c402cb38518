"""What each tenant is among others and what it may have, by the newest snapshot and the server's defaults.

Two dict look-ups on the data path. Knows neither who calls nor what is used of anything.
"""

import msgspec

from adamix_server.access.quotas import DEFAULT_SHARES, NO_QUOTAS, Quotas, Shares
from adamix_server.catalog.access import NO_ACCESS, Access
from adamix_server.channel.engine_frames import TenantShare
from adamix_server.frontend.catalog_view import CatalogView


class Standing(msgspec.Struct, frozen=True):
    """One tenant.

    Attributes:
        shares: its weight and class.
        quotas: its hard limits, each its own or else the server's default.
        is_shared: whether there is another tenant that could call.
    """

    shares: Shares
    quotas: Quotas
    is_shared: bool


class Tenancy:
    """The tenants of a catalog as its view sees them. Belongs to one event loop.

    Args:
        default_quotas: of tenants that set none of their own, by name.
        is_open: nobody is asked who they are, so that all callers are one tenant, whatever tenants the catalog has.
    """

    def __init__(self, view: CatalogView, default_quotas: Quotas = NO_QUOTAS, *, is_open: bool = False) -> None:
        self._view = view
        # Where nobody set any, it is seen at a glance that there are none (`quotas is NO_QUOTAS`).
        self._default_quotas = NO_QUOTAS if default_quotas == NO_QUOTAS else default_quotas
        self._is_open = is_open
        # Values made of the rows of one revision. Only tenants that there are get one.
        self._access: Access = NO_ACCESS
        self._known: dict[str, Standing] = {}
        self._anybody = Standing(DEFAULT_SHARES, self._default_quotas, is_shared=False)

    def of(self, tenant: str) -> Standing:
        """What a tenant is; what anybody is for a tenant that there is not."""
        access = self._view.snapshot.access
        if access is not self._access:
            self._access, self._known = access, {}
            is_shared = len(access.tenants) > 1 and not self._is_open
            self._anybody = Standing(DEFAULT_SHARES, self._default_quotas, is_shared)
        if (known := self._known.get(tenant)) is not None:
            return known
        if (row := access.tenants.get(tenant)) is None:
            return self._anybody
        shares = Shares(weight=row.weight, service_class=row.service_class)
        quotas = self._default_quotas if row.quotas == NO_QUOTAS else row.quotas.over(self._default_quotas)
        standing = Standing(shares, quotas, self._anybody.is_shared)
        self._known[tenant] = standing
        return standing

    def shares(self, tenant: str) -> Shares:
        """Its weight and class; those of anybody for a tenant that there is not."""
        return self.of(tenant).shares

    def quotas(self, tenant: str) -> Quotas:
        """Its hard limits, each its own or else the server's default."""
        return self.of(tenant).quotas

    def uncommon(self) -> list[TenantShare]:
        """All tenants that are not of weight 1 and interactive, as an engine is told of them."""
        return [
            TenantShare(tenant=row.tenant, weight=row.weight, service_class=row.service_class)
            for row in self._view.snapshot.access.tenants.values()
            if (row.weight, row.service_class) != (DEFAULT_SHARES.weight, DEFAULT_SHARES.service_class)
        ]

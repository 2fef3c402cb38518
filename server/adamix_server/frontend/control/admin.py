"""`AdminService`: tenants, keys, grants, and what was written down of them.

Thin, as `service.py`: names are read, one thing is asked, the answer is converted. What a caller may name and hand on
is `scope.py`'s. A secret is made here, answered once, and kept nowhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from adamix.errors import Aborted, InvalidRequest, PermissionDenied
from adamix_protos.v1 import admin_pb2 as pb
from adamix_protos.v1 import admin_pb2_grpc
from adamix_server.access import api_keys
from adamix_server.access.principal import Actor
from adamix_server.access.rights import ROLES, Right, check_rights
from adamix_server.api.resource_names import parse_tenant, tenant_name
from adamix_server.catalog.access import Access, TenantRow
from adamix_server.catalog.key_checks import check_key_rights, check_networks, check_task_pattern
from adamix_server.frontend import convert_access as convert
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.control import tenant_changes
from adamix_server.frontend.control.converting import converted
from adamix_server.frontend.control.reclaimer import Reclaimer
from adamix_server.frontend.control.scope import check_may_give, its_key, its_task, its_tenant
from adamix_server.frontend.control.shares import Shares
from adamix_server.names import tenant_not_found

# In place of a tenant: all of them.
ALL = "-"
# What a column of the catalog can say; after the year 9999.
_MAX_TIME_US = 1 << 62

T = TypeVar("T")


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Who may use the server, as one front end tells and changes it."""

    def __init__(self, view: CatalogView, reclaimer: Reclaimer, shares: Shares) -> None:
        self._view = view
        self._catalog = view.catalog
        self._reclaimer = reclaimer
        self._shares = shares

    async def CreateTenant(self, request: pb.CreateTenantRequest, _context: Any) -> pb.CreateTenantResponse:
        tenant = _new_tenant(request)
        create = partial(
            self._catalog.tenants.create, tenant, **tenant_changes.of_new(request.tenant), by=calls.actor()
        )
        return pb.CreateTenantResponse(tenant=convert.to_tenant(await self._change(create)))

    async def GetTenant(self, request: pb.GetTenantRequest, _context: Any) -> pb.GetTenantResponse:
        tenant = its_tenant(request.tenant, self._access)
        row = await self._read(partial(self._catalog.tenants.get, tenant))
        return pb.GetTenantResponse(tenant=convert.to_tenant(row))

    async def ListTenants(self, request: pb.ListTenantsRequest, _context: Any) -> pb.ListTenantsResponse:
        async with self._shares.calls.turn():
            read = partial(self._catalog.tenants.list, request.page_size, request.page_token)
            page = await self._view.run(read)
            tenants = await converted(page.rows, convert.to_tenant)
        return pb.ListTenantsResponse(tenants=tenants, next_page_token=page.next_page_token)

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, _context: Any) -> pb.UpdateTenantResponse:
        tenant = its_tenant(parse_tenant(request.tenant.name, "tenant.name"), self._access, "tenant.name")
        row = await self._change(partial(self._update, tenant, request, calls.actor()))
        return pb.UpdateTenantResponse(tenant=convert.to_tenant(row))

    async def DeleteTenant(self, request: pb.DeleteTenantRequest, _context: Any) -> pb.DeleteTenantResponse:
        tenant = its_tenant(parse_tenant(request.tenant), self._access)
        delete = partial(self._catalog.tenants.delete, tenant, etag=request.etag, force=request.force, by=calls.actor())
        await self._change(delete)
        self._reclaimer.request()
        return pb.DeleteTenantResponse()

    async def CreateKey(self, request: pb.CreateKeyRequest, _context: Any) -> pb.CreateKeyResponse:
        tenant, principal = its_tenant(request.tenant, self._access), calls.current().principal
        rights = _rights(request)
        networks = check_networks(request.networks)
        check_may_give(principal, self._access, rights, check_task_pattern(request.task_pattern), networks)
        if request.certificate_name and not principal.is_admin:
            # A certificate is of the whole server: its name may be that of another tenant's caller.
            raise PermissionDenied(
                "this credential has no right 'admin', which a key for a certificate needs", reason="RIGHT_MISSING"
            )
        secret, key = ("", None) if request.certificate_name else api_keys.make()
        create = partial(
            self._catalog.keys.create,
            tenant,
            key,
            rights=rights,
            task_pattern=request.task_pattern,
            networks=networks,
            display_name=request.display_name,
            expire_time_us=_microseconds(request.expire_time) if request.HasField("expire_time") else None,
            certificate_name=request.certificate_name,
            by=calls.actor(),
        )
        row = await self._change(create)
        return pb.CreateKeyResponse(key=convert.to_key(row), secret=secret)

    async def ListKeys(self, request: pb.ListKeysRequest, _context: Any) -> pb.ListKeysResponse:
        tenant = its_tenant(request.tenant, self._access)
        async with self._shares.calls.turn():
            read = partial(self._catalog.keys.list, tenant, request.page_size, request.page_token)
            page = await self._view.run(read)
            days = await self._view.run(partial(self._catalog.keys.last_used, [row.id for row in page.rows]))
            keys = await converted(page.rows, lambda row: convert.to_key(row, days.get(row.id, "")))
        return pb.ListKeysResponse(keys=keys, next_page_token=page.next_page_token)

    async def RevokeKey(self, request: pb.RevokeKeyRequest, _context: Any) -> pb.RevokeKeyResponse:
        principal, row = calls.current().principal, its_key(request.key, self._access)
        # Its own it may always end.
        if row.id != principal.key_id:
            check_may_give(principal, self._access, row.rights, row.task_pattern, row.networks)
        revoke = partial(self._catalog.keys.revoke, row.id, tenant=row.tenant, by=calls.actor())
        row = await self._change(revoke, must_be_seen=True)
        return pb.RevokeKeyResponse(key=convert.to_key(row))

    async def GrantTask(self, request: pb.GrantTaskRequest, _context: Any) -> pb.GrantTaskResponse:
        owner, task = self._task(request.task)
        tenant = parse_tenant(request.tenant)
        if tenant not in self._access.tenants:
            calls.current().resource = tenant_name(tenant)
            raise tenant_not_found()
        row = await self._change(partial(self._catalog.grants.add, owner, task, tenant, by=calls.actor()))
        return pb.GrantTaskResponse(grant=convert.to_grant(row))

    async def RevokeGrant(self, request: pb.RevokeGrantRequest, _context: Any) -> pb.RevokeGrantResponse:
        owner, task = self._task(request.task)
        tenant = parse_tenant(request.tenant)
        await self._change(partial(self._catalog.grants.remove, owner, task, tenant, by=calls.actor()))
        return pb.RevokeGrantResponse()

    async def ListGrants(self, request: pb.ListGrantsRequest, _context: Any) -> pb.ListGrantsResponse:
        tenant, principal = its_tenant(request.tenant, self._access), calls.current().principal
        async with self._shares.calls.turn():
            may_name, size, token = principal.may_name, request.page_size, request.page_token
            page = await self._view.run(partial(self._catalog.grants.list, tenant, size, token, may_name))
            grants = await converted(page.rows, convert.to_grant)
        return pb.ListGrantsResponse(grants=grants, next_page_token=page.next_page_token)

    async def ListAudit(self, request: pb.ListAuditRequest, _context: Any) -> pb.ListAuditResponse:
        if request.after_id < 0:
            raise InvalidRequest("after_id must not be negative", field="after_id")
        read = partial(
            self._catalog.audit_log.page,
            self._audited(request.tenant),
            since_us=min(max(0, _microseconds(request.since)), _MAX_TIME_US),
            after_id=request.after_id,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        async with self._shares.calls.turn():
            page = await self._view.run(read)
            entries = await converted(page.rows, convert.to_entry)
        return pb.ListAuditResponse(entries=entries, next_page_token=page.next_page_token)

    async def GetUsage(self, request: pb.GetUsageRequest, _context: Any) -> pb.GetUsageResponse:
        tenant = its_tenant(request.tenant, self._access)
        row = await self._read(partial(self._catalog.usage.read, tenant))
        return pb.GetUsageResponse(usage=convert.to_usage(row))

    async def WhoAmI(self, _request: pb.WhoAmIRequest, _context: Any) -> pb.WhoAmIResponse:
        return convert.to_identity(calls.current().principal)

    @property
    def _access(self) -> Access:
        return self._view.snapshot.access

    def _task(self, name: str) -> tuple[str, str]:
        """(tenant, task) of a task that is there. Raises InvalidRequest, NotFound."""
        found = its_task(name)
        self._view.snapshot.task(*found)
        return found

    def _audited(self, name: str) -> str | None:
        """The tenant of which entries are asked for; None for all. Raises as `its_tenant`, and PermissionDenied."""
        if name != ALL:
            return its_tenant(name, self._access)
        if not calls.current().principal.is_admin:
            raise PermissionDenied(
                "this credential has no right 'admin', which the audit of all tenants needs", reason="RIGHT_MISSING"
            )
        return None

    def _update(self, tenant: str, request: pb.UpdateTenantRequest, by: Actor) -> TenantRow:
        """Blocks. Of a tenant that changes meanwhile, what the mask does not name stays as it has become."""
        etag = request.tenant.etag
        while True:
            before = self._catalog.tenants.get(tenant)
            given = tenant_changes.of_update(request, before)
            try:
                return self._catalog.tenants.update(tenant, **given, etag=etag or before.etag, by=by)
            except Aborted:
                if etag:
                    raise

    async def _read(self, work: Callable[[], T]) -> T:
        """What the catalog says, when it is this call's turn."""
        async with self._shares.calls.turn():
            return await self._view.run(work)

    async def _change(self, work: Callable[[], T], *, must_be_seen: bool = False) -> T:
        """Change the catalog, when it is this call's turn. Raises as `CatalogView.change`."""
        async with self._shares.calls.turn():
            return await self._view.change(work, must_be_seen=must_be_seen)


def _microseconds(time: Timestamp) -> int:
    """Since 1970 UTC, of what may be no valid time."""
    return time.seconds * 1_000_000 + time.nanos // 1_000


def _new_tenant(request: pb.CreateTenantRequest) -> str:
    """The id of a tenant that is to be made; the call's resource from now on. Raises InvalidRequest."""
    name = request.tenant.name
    tenant = parse_tenant(request.id or name, "id")
    if name and parse_tenant(name, "tenant.name") != tenant:
        raise InvalidRequest("id and tenant.name are not the same", reason="ID_INVALID", field="tenant.name")
    calls.current().resource = tenant_name(tenant)
    return tenant


def _rights(request: pb.CreateKeyRequest) -> frozenset[Right]:
    """The rights of a key that is to be made. Raises InvalidRequest."""
    if not request.role:
        return check_key_rights(check_rights(request.rights))
    if request.rights:
        raise InvalidRequest("say a role or rights, not both", reason="ROLE_AND_RIGHTS", field="role")
    if (rights := ROLES.get(request.role)) is None:
        raise InvalidRequest(
            f"role: {request.role[:64]!r} is none; there are {', '.join(ROLES)}", reason="ROLE_UNKNOWN", field="role"
        )
    return rights

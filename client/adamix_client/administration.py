"""The client's part for owners and operators: tenants, keys, grants, the audit and usage. One method per RPC."""

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from adamix_client.access_values import (
    SERVICE_CLASSES,
    AuditEntry,
    Grant,
    Identity,
    Key,
    NewKey,
    Tenant,
    Usage,
    to_entry,
    to_grant,
    to_identity,
    to_key,
    to_tenant,
    to_usage,
)
from adamix_client.connection import Connection, Link
from adamix_client.errors import InvalidConfig
from adamix_protos.v1 import admin_pb2

# In place of a tenant: all of them.
ALL_TENANTS = "-"


class Administration:
    """Part of a `Client`, which says what all its methods raise.

    Where a tenant may be left out, it is the caller's own.
    """

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    def create_tenant(
        self, tenant: str, *, weight: int = 0, service_class: str = "", quotas: Mapping[str, int] | None = None
    ) -> Tenant:
        """Make a tenant; what is not given has its default. `service_class` is `interactive` or `batch`."""
        message = _tenant_message("", weight, service_class, quotas or {})
        request = admin_pb2.CreateTenantRequest(id=tenant, tenant=message)
        return to_tenant(self._ask(lambda link: link.admin.CreateTenant, request).tenant)

    def get_tenant(self, tenant: str = "") -> Tenant:
        request = admin_pb2.GetTenantRequest(tenant=tenant)
        return to_tenant(self._ask(lambda link: link.admin.GetTenant, request).tenant)

    def tenants(self) -> list[Tenant]:
        """All tenants by id."""
        pages = self._pages(lambda link: link.admin.ListTenants, admin_pb2.ListTenantsRequest())
        return [to_tenant(message) for page in pages for message in page.tenants]

    def update_tenant(
        self,
        tenant: str,
        *,
        weight: int | None = None,
        service_class: str | None = None,
        quotas: Mapping[str, int | None] | None = None,
        only_these_quotas: bool = False,
        etag: str = "",
    ) -> Tenant:
        """Change what is given.

        Args:
            quotas: by name; None takes one back, so that the server's default holds. Others stay as they are.
            only_these_quotas: takes all others back.
            etag: only if the tenant still has it.
        """
        given = {name: value for name, value in (quotas or {}).items() if value is not None}
        message = _tenant_message(tenant, weight or 0, service_class or "", given)
        message.etag = etag
        request = admin_pb2.UpdateTenantRequest(tenant=message)
        paths = request.update_mask.paths
        if weight is not None:
            paths.append("weight")
        if service_class is not None:
            paths.append("service_class")
        paths.extend(["quotas"] if only_these_quotas else [f"quotas.{name}" for name in quotas or ()])
        return to_tenant(self._ask(lambda link: link.admin.UpdateTenant, request).tenant)

    def delete_tenant(self, tenant: str, *, etag: str = "", force: bool = False) -> None:
        """Delete a tenant with its keys and grants; one that has tasks only with `force`, and then these too."""
        request = admin_pb2.DeleteTenantRequest(tenant=tenant, etag=etag, force=force)
        self._ask(lambda link: link.admin.DeleteTenant, request)

    def create_key(
        self,
        *,
        tenant: str = "",
        role: str = "",
        rights: Collection[str] = (),
        task_pattern: str = "",
        networks: Collection[str] = (),
        display_name: str = "",
        expire_time: datetime | None = None,
        certificate_name: str = "",
    ) -> NewKey:
        """Make a key with a role or with rights. Its secret is told here, and nowhere again.

        Args:
            task_pattern: only for tasks with ids like this, such as `support-*`.
            networks: only from these, in CIDR notation.
            expire_time: without a zone it is this machine's.
            certificate_name: for whoever shows a certificate with this name; the key then has no secret.
        """
        request = admin_pb2.CreateKeyRequest(
            tenant=tenant,
            role=role,
            rights=rights,
            task_pattern=task_pattern,
            networks=networks,
            display_name=display_name,
            expire_time=_timestamp(expire_time),
            certificate_name=certificate_name,
        )
        response = self._ask(lambda link: link.admin.CreateKey, request)
        return NewKey(key=to_key(response.key), secret=response.secret)

    def keys(self, tenant: str = "") -> list[Key]:
        """All keys of a tenant, the last made first, also those that are revoked."""
        pages = self._pages(lambda link: link.admin.ListKeys, admin_pb2.ListKeysRequest(tenant=tenant))
        return [to_key(message) for page in pages for message in page.keys]

    def revoke_key(self, key: str) -> Key:
        """End a key, by its id or its name, for good: every front end refuses it before this returns.

        Raises Unavailable (`CHANGE_UNSEEN`) where one could not be told: do it again.
        """
        request = admin_pb2.RevokeKeyRequest(key=key)
        return to_key(self._ask(lambda link: link.admin.RevokeKey, request).key)

    def grant_task(self, task: str, tenant: str) -> Grant:
        """Let another tenant ask a task for answers."""
        request = admin_pb2.GrantTaskRequest(task=task, tenant=tenant)
        return to_grant(self._ask(lambda link: link.admin.GrantTask, request).grant)

    def revoke_grant(self, task: str, tenant: str) -> None:
        request = admin_pb2.RevokeGrantRequest(task=task, tenant=tenant)
        self._ask(lambda link: link.admin.RevokeGrant, request)

    def grants(self, tenant: str = "") -> list[Grant]:
        """All grants of a tenant's tasks and to it."""
        pages = self._pages(lambda link: link.admin.ListGrants, admin_pb2.ListGrantsRequest(tenant=tenant))
        return [to_grant(message) for page in pages for message in page.grants]

    def audit(
        self, tenant: str = "", *, since: datetime | None = None, after_id: int = 0, limit: int | None = None
    ) -> Iterator[AuditEntry]:
        """What was written down, the newest first; after the entry with `after_id`, the oldest first; page by page.

        Args:
            tenant: `ALL_TENANTS` for all, which is an operator's to ask.
            since: only entries from then on; without a zone it is this machine's time.
            limit: of entries; None for all.
        """
        request = admin_pb2.ListAuditRequest(tenant=tenant, since=_timestamp(since), after_id=after_id)
        request.page_size = 0 if limit is None else limit
        pages = self._pages(lambda link: link.admin.ListAudit, request)
        return map(to_entry, islice((each for page in pages for each in page.entries), limit))

    def usage(self, tenant: str = "") -> Usage:
        """What a tenant has used; some seconds late."""
        request = admin_pb2.GetUsageRequest(tenant=tenant)
        return to_usage(self._ask(lambda link: link.admin.GetUsage, request).usage)

    def who_am_i(self) -> Identity:
        """Who the server takes this client for."""
        return to_identity(self._ask(lambda link: link.admin.WhoAmI, admin_pb2.WhoAmIRequest()))

    def _ask(self, method: Callable[[Link], Any], request: Any) -> Any:
        with self._connection.calling() as link:
            return method(link)(request, timeout=self._timeout_s)

    def _pages(self, method: Callable[[Link], Any], request: Any) -> Iterator[Any]:
        while True:
            response = self._ask(method, request)
            yield response
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token


def _tenant_message(tenant: str, weight: int, service_class: str, quotas: Mapping[str, int]) -> admin_pb2.Tenant:
    """Raises InvalidConfig: what is no class, or no number for the wire."""
    if service_class not in SERVICE_CLASSES:
        raise InvalidConfig(f"the class must be interactive or batch, not {service_class}", field="service_class")
    try:
        return admin_pb2.Tenant(name=tenant, weight=weight, service_class=SERVICE_CLASSES[service_class], quotas=quotas)
    except ValueError:
        raise InvalidConfig("a weight or a quota is larger than any can be") from None


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    result = Timestamp()
    result.FromDatetime(time.astimezone(UTC))
    return result

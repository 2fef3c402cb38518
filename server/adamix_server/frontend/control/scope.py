"""Whose tenants, keys and tasks a caller of the control plane may name, and what it may hand on.

What is not there and what is another's is the same to it: one error, from one place, before the catalog is asked. Knows
principals and the newest snapshot; no message.
"""

from collections.abc import Collection

from adamix.errors import NotFound, PermissionDenied
from adamix_client.status import clip
from adamix_server.access.giving import may_give, networks_within
from adamix_server.access.principal import Principal
from adamix_server.access.rights import RIGHTS, Right
from adamix_server.api import status
from adamix_server.api.resource_names import key_name, parse_key, parse_task, parse_tenant, task_name, tenant_name
from adamix_server.catalog.access import Access, KeyRow
from adamix_server.catalog.rows import Name
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.visibility import NO_TASK, visible
from adamix_server.names import task_not_found, tenant_not_found


def its_tenant(name: str, access: Access, field: str = "tenant") -> str:
    """The tenant of a request, which is the caller's to see; the call's resource from now on.

    Args:
        name: as the caller wrote it; empty for its own.

    Raises:
        InvalidRequest: not an id.
        NotFound: no such tenant, or another's (`TENANT_NOT_FOUND`).
    """
    call = calls.current()
    tenant = parse_tenant(name, field) if name else call.tenant
    call.resource = tenant_name(tenant)
    if not (tenant == call.tenant or call.principal.is_admin) or tenant not in access.tenants:
        raise tenant_not_found()
    return tenant


def its_task(name: str, field: str = "task") -> Name:
    """(tenant, task) of a request, as it is looked up; the call's resource from now on. Raises InvalidRequest."""
    call = calls.current()
    # Of a name as large as a message no more is kept than an error says of it.
    call.resource = clip(name, status.MAX_ERROR_BYTES)
    asked = parse_task(name, call.tenant, field)
    call.resource = task_name(*asked)
    return visible(asked, call.principal)


def new_task(name: str, field: str) -> Name:
    """(tenant, task) of a task that need not be there yet. Raises InvalidRequest, NotFound."""
    if (found := its_task(name, field)) == NO_TASK:
        raise task_not_found()
    return found


def its_key(name: str, access: Access) -> KeyRow:
    """The key of a request, which is the caller's to see; the call's resource from now on.

    Raises:
        InvalidRequest: neither an id nor a name.
        NotFound: no such key, or another tenant's.
    """
    call = calls.current()
    tenant, key_id = parse_key(name)
    row = access.keys.get(key_id)
    is_its = row is not None and (row.tenant == call.tenant or call.principal.is_admin)
    if row is None or not is_its or tenant not in ("", row.tenant):
        call.resource = key_name(tenant or call.tenant, key_id)
        raise NotFound("key not found")
    call.resource = key_name(row.tenant, key_id)
    return row


def check_may_give(
    principal: Principal, access: Access, rights: Collection[Right], task_pattern: str, networks: Collection[str]
) -> None:
    """Whether a caller may make a key like this, or end one: nobody can hand on more than it has.

    Raises PermissionDenied (`RIGHT_MISSING`), saying what is too much.
    """
    if lacking := [right for right in RIGHTS if right in rights and not principal.has(right)]:
        raise _too_much(f"this credential has no right {lacking[0]!r}, so no key with it is its to make or to revoke")
    if not may_give(principal, rights, task_pattern):
        raise _too_much(
            f"this credential is for tasks like {principal.task_pattern!r} alone, and so is every key that it makes "
            "or revokes"
        )
    own = access.keys.get(principal.key_id)
    if own is not None and not networks_within(networks, own.networks):
        raise _too_much(
            f"this credential counts in {', '.join(own.networks)} alone, and so does every key that it makes or revokes"
        )


def _too_much(message: str) -> PermissionDenied:
    return PermissionDenied(message, reason="RIGHT_MISSING")

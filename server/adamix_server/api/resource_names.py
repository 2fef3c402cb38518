"""Resource names on the wire: `tenants/{tenant}/tasks/{task}/versions/{digest}`, `tenants/{tenant}/keys/{id}`.

Pure functions. What an id may look like is decided in `names`.
"""

from adamix.errors import InvalidRequest
from adamix_server.access import api_keys
from adamix_server.names import check_name


def parse_task(name: str, tenant: str, field: str = "task") -> tuple[str, str]:
    """(tenant, task) that `name` says: a bare id is of the caller's own tenant. Whose it may be is not asked here.

    Args:
        name: as the caller wrote it.
        tenant: the caller's tenant.
        field: the request field it stood in, for the error.

    Raises:
        InvalidRequest: no name, or not an id.
    """
    if not name:
        raise InvalidRequest(f"{field} is missing", reason="TASK_MISSING", field=field)
    if "/" not in name:
        return tenant, check_name(name, field)
    parts = name.split("/", 4)
    if len(parts) != 4 or (parts[0], parts[2]) != ("tenants", "tasks"):
        raise InvalidRequest(
            f"{field} is neither a task id nor tenants/TENANT/tasks/TASK", reason="ID_INVALID", field=field
        )
    return check_name(parts[1], field), check_name(parts[3], field)


def parse_tenant(name: str, field: str = "tenant") -> str:
    """The tenant that `name` says: an id, or `tenants/{id}`. Raises InvalidRequest: no name (`TENANT_MISSING`), or not
    an id."""
    if not name:
        raise InvalidRequest(f"{field} is missing", reason="TENANT_MISSING", field=field)
    return check_name(name.removeprefix("tenants/"), field)


def parse_key(name: str, field: str = "key") -> tuple[str, str]:
    """(tenant, id) that `name` says; the tenant is empty for an id alone. What is malformed, the error does not repeat:
    it may be a whole key.

    Raises:
        InvalidRequest: no name (`KEY_MISSING`), or neither form.
    """
    if not name:
        raise InvalidRequest(f"{field} is missing", reason="KEY_MISSING", field=field)
    tenant = ""
    key_id = name
    if "/" in name:
        parts = name.split("/", 4)
        if len(parts) != 4 or (parts[0], parts[2]) != ("tenants", "keys"):
            raise _no_key_name(field)
        tenant, key_id = check_name(parts[1], field), parts[3]
    if not api_keys.is_id(key_id):
        raise _no_key_name(field)
    return tenant, key_id


def tenant_name(tenant: str) -> str:
    return f"tenants/{tenant}"


def key_name(tenant: str, key_id: str) -> str:
    return f"tenants/{tenant}/keys/{key_id}"


def task_name(tenant: str, task: str) -> str:
    return f"tenants/{tenant}/tasks/{task}"


def version_name(tenant: str, task: str, digest: str) -> str:
    return f"tenants/{tenant}/tasks/{task}/versions/{digest}"


def _no_key_name(field: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field} is neither the id of a key nor tenants/TENANT/keys/ID", reason="ID_INVALID", field=field
    )

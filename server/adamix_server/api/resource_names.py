"""Resource names on the wire: `tenants/{tenant}/tasks/{task}/versions/{digest}`.

Pure functions. What an id may look like is decided in `names`.
"""

from adamix.errors import InvalidRequest
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


def task_name(tenant: str, task: str) -> str:
    return f"tenants/{tenant}/tasks/{task}"


def version_name(tenant: str, task: str, digest: str) -> str:
    return f"tenants/{tenant}/tasks/{task}/versions/{digest}"

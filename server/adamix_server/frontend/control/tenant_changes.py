"""What a request says of a tenant: read and checked, as arguments of the catalog. Pure."""

from typing import NotRequired, TypedDict

from adamix.errors import InvalidRequest
from adamix_protos.v1 import admin_pb2
from adamix_server.access.quotas import QUOTA_NAMES, Quotas, ServiceClass, check_quotas, check_weight
from adamix_server.catalog.access import TenantRow

_CLASSES: dict[int, ServiceClass] = {
    admin_pb2.SERVICE_CLASS_INTERACTIVE: "interactive",
    admin_pb2.SERVICE_CLASS_BATCH: "batch",
}
_QUOTA = "quotas."


class Given(TypedDict):
    """What is said; what is not has its default, or stays."""

    weight: NotRequired[int]
    service_class: NotRequired[ServiceClass]
    quotas: NotRequired[Quotas]


def of_new(message: admin_pb2.Tenant) -> Given:
    """What a tenant is to begin with; what is not set has its default. Raises InvalidRequest."""
    given = Given(quotas=check_quotas(message.quotas, "tenant.quotas"))
    if message.weight:
        given["weight"] = check_weight(message.weight, "tenant.weight")
    if message.service_class:
        given["service_class"] = _service_class(message)
    return given


def of_update(request: admin_pb2.UpdateTenantRequest, before: TenantRow) -> Given:
    """What the mask of an update names, as the tenant is to have it.

    Raises InvalidRequest: no mask, or a path that is none of `weight`, `service_class`, `quotas` and `quotas.{name}`
    (`UPDATE_MASK_INVALID`), or a value that is not valid.
    """
    message, given = request.tenant, Given()
    if not request.update_mask.paths:
        raise _no_path("update_mask is missing")
    for path in request.update_mask.paths:
        if path == "weight":
            given["weight"] = check_weight(message.weight, "tenant.weight")
        elif path == "service_class":
            given["service_class"] = _service_class(message)
        elif path == "quotas":
            given["quotas"] = check_quotas(message.quotas, "tenant.quotas")
        elif (name := path.removeprefix(_QUOTA)) in QUOTA_NAMES and path.startswith(_QUOTA):
            values = given.get("quotas", before.quotas).to_map()
            values.pop(name, None)
            if name in message.quotas:
                values[name] = message.quotas[name]
            given["quotas"] = check_quotas(values, "tenant.quotas")
        else:
            raise _no_path(f"update_mask: {path[:64]!r} is nothing that can be changed")
    return given


def _service_class(message: admin_pb2.Tenant) -> ServiceClass:
    if (service_class := _CLASSES.get(message.service_class)) is None:
        raise InvalidRequest(
            "tenant.service_class must be interactive or batch",
            reason="SERVICE_CLASS_INVALID",
            field="tenant.service_class",
        )
    return service_class


def _no_path(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{what}; say weight, service_class, quotas or quotas.NAME", reason="UPDATE_MASK_INVALID", field="update_mask"
    )

"""The rights, the roles, and which right every method of every service needs: one table.

A method that is not in it does not start with the server: see `missing`. Knows names alone; neither grpc nor servicers.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, get_args

from adamix.errors import InvalidRequest

Right = Literal["infer", "read", "register", "operate", "keys", "admin"]
# What a method asks of its caller: a right; any identity; or nothing, not even an identity.
Need = Right | Literal["identity", "nothing"]

RIGHTS: tuple[Right, ...] = get_args(Right)
ALL_RIGHTS: frozenset[Right] = frozenset(RIGHTS)

ROLES: Mapping[str, frozenset[Right]] = {
    "caller": frozenset({"infer"}),
    "publisher": frozenset({"infer", "read", "register", "operate"}),
    "owner": frozenset({"infer", "read", "register", "operate", "keys"}),
    "operator": frozenset({"admin"}),
}


def _methods(service: str, need: Need, names: str) -> dict[str, Need]:
    return {f"/{service}/{name}": need for name in names.split()}


NEEDS: Mapping[str, Need] = {
    **_methods("adamix.v1.InferenceService", "infer", "Predict PredictStream Generate"),
    **_methods("inference.GRPCInferenceService", "infer", "ModelInfer ModelMetadata ModelReady"),
    # Probes of stock clients, as `Health`.
    **_methods("inference.GRPCInferenceService", "nothing", "ServerLive ServerReady"),
    **_methods("inference.GRPCInferenceService", "identity", "ServerMetadata"),
    **_methods("adamix.v1.AdapterService", "read", "GetTask ListTasks ListVersions WatchTasks"),
    **_methods("adamix.v1.AdapterService", "register", "RegisterAdapter"),
    **_methods(
        "adamix.v1.AdapterService",
        "operate",
        "DeleteTask DeleteVersion SetTraffic Rollback LoadVersion UnloadVersion PinVersion",
    ),
    **_methods("adamix.v1.AdminService", "operate", "GrantTask RevokeGrant ListGrants"),
    **_methods("adamix.v1.AdminService", "keys", "CreateKey ListKeys RevokeKey ListAudit"),
    **_methods("adamix.v1.AdminService", "read", "GetTenant GetUsage"),
    **_methods("adamix.v1.AdminService", "admin", "CreateTenant ListTenants UpdateTenant DeleteTenant"),
    **_methods("adamix.v1.AdminService", "identity", "WhoAmI"),
    **_methods("adamix.v1.ServerService", "identity", "GetServerInfo GetLoad"),
    **_methods("adamix.v1.ServerService", "admin", "Drain"),
    **_methods("grpc.health.v1.Health", "nothing", "Check List Watch"),
    # There only where nobody is asked who they are.
    **_methods("grpc.reflection.v1alpha.ServerReflection", "nothing", "ServerReflectionInfo"),
}


def missing(methods: Iterable[str]) -> list[str]:
    """Those of the methods, by full name, that the table does not know."""
    return sorted(method for method in methods if method not in NEEDS)


def check_rights(names: Collection[str], field: str = "rights") -> frozenset[Right]:
    """The rights of these names. Raises InvalidRequest."""
    rights = frozenset(right for right in RIGHTS if right in names)
    if unknown := sorted(set(names) - rights):
        raise InvalidRequest(
            f"{field}: {unknown[0]!r} is no right; there are {', '.join(RIGHTS)}", reason="RIGHT_UNKNOWN", field=field
        )
    return rights


def role_of(rights: Collection[Right]) -> str:
    """The role that is exactly these rights; empty if none is."""
    return next((name for name, of_role in ROLES.items() if of_role == frozenset(rights)), "")

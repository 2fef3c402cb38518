"""The table of rights and the methods that there are say the same."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from adamix.errors import InvalidRequest
from adamix_protos.open_inference import open_inference_pb2
from adamix_protos.v1 import adapters_pb2, admin_pb2, inference_pb2, server_pb2
from adamix_server.access.rights import NEEDS, RIGHTS, ROLES, check_rights, missing, role_of

# Of everything that a server may register.
FILES = (
    inference_pb2.DESCRIPTOR,
    adapters_pb2.DESCRIPTOR,
    admin_pb2.DESCRIPTOR,
    server_pb2.DESCRIPTOR,
    open_inference_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
)


def methods(files: tuple[FileDescriptor, ...] = FILES) -> Iterator[str]:
    for file in files:
        for service in file.services_by_name.values():
            yield from (f"/{service.full_name}/{method.name}" for method in service.methods)


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    known = set(methods())
    assert known <= set(NEEDS)
    # Some packages of grpc have it, and some do not yet.
    assert set(NEEDS) - known <= {"/grpc.health.v1.Health/List"}


def test_every_right_is_needed_by_something() -> None:
    assert set(RIGHTS) <= set(NEEDS.values())


def test_what_is_missing_is_named() -> None:
    known = "/adamix.v1.InferenceService/Predict"
    assert missing([known, "/x.Y/Z", "/adamix.v1.InferenceService/Predict2"]) == [
        "/adamix.v1.InferenceService/Predict2",
        "/x.Y/Z",
    ]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_known_by_its_rights(role: str) -> None:
    assert role_of(list(ROLES[role])) == role
    assert check_rights(sorted(ROLES[role])) == ROLES[role]


def test_what_is_no_right_is_refused() -> None:
    assert role_of(["infer", "keys"]) == ""
    with pytest.raises(InvalidRequest) as refused:
        check_rights(["infer", "root"], "key.rights")
    assert (refused.value.reason, refused.value.field) == ("RIGHT_UNKNOWN", "key.rights")

"""Which version a `model` is, and that nothing else is one."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from adamix.errors import FailedPrecondition, InvalidRequest, NotFound
from adamix_server.access.principal import ANYONE
from adamix_server.catalog.access import NO_ACCESS
from adamix_server.catalog.rows import Snapshot
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.http.open_ai.models import LEAST_DIGEST, Models
from adamix_testing.adapters import NO_MAYBE_YES
from adamix_testing.identities import of_role

OLD, NEW = "abcdef" + "0" * 58, "abcdef" + "1" * 58
OTHER = "beef" * 16


@pytest.fixture
def models(make_row: Any) -> Models:
    rows = {
        ("default", "writer"): make_row(OLD, NEW, OTHER),
        ("default", "empty"): make_row(task="empty"),
        ("other", "secret"): make_row(OLD, tenant="other", task="secret"),
    }
    return Models(SimpleNamespace(snapshot=Snapshot(revision=1, tasks=rows)))  # type: ignore[arg-type]


@pytest.fixture
def call() -> Call:
    return Call("r1", "/m", 0.0, ANYONE)


@pytest.mark.parametrize("name", ["writer", "tenants/default/tasks/writer"])
def test_a_task_is_whichever_version_answers(models: Models, call: Call, name: str) -> None:
    found = models.find(name, call)
    assert (found.name, found.task, found.digest) == (name, "tenants/default/tasks/writer", "")


@pytest.mark.parametrize("digest", [OTHER, OTHER[:LEAST_DIGEST], OTHER[:40]])
def test_a_digest_may_be_cut(models: Models, call: Call, digest: str) -> None:
    assert models.find(f"writer@{digest}", call).digest == OTHER


def test_a_digest_of_several_versions_names_them(models: Models, call: Call) -> None:
    with pytest.raises(InvalidRequest) as caught:
        models.find("writer@abcdef", call)
    assert (caught.value.reason, caught.value.field) == ("DIGEST_AMBIGUOUS", "model")
    assert OLD[:16] in caught.value.message
    assert NEW[:16] in caught.value.message
    assert models.find(f"writer@{OLD[:7]}", call).digest == OLD


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gpt-4o",
        "minilm",
        "secret",
        "Writer",
        "writer@",
        f"writer@{OTHER[:5]}",
        f"writer@{OTHER}0",
        f"writer@{OTHER.upper()}",
        "writer@ffffff",
        "writer/../writer",
        "tenants/default/tasks/writer/versions/" + OTHER,
        "\N{RIGHT-TO-LEFT OVERRIDE}",
        "x" * 100_000,
    ],
)
def test_whatever_else_is_asked_for_is_not_there(models: Models, call: Call, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        models.find(name, call)
    assert len(caught.value.message) < 300


def test_of_a_task_that_was_lent_a_whole_digest_is_a_version(make_row: Any) -> None:
    rows = {("default", "writer"): make_row(OLD, OTHER)}
    access = replace(NO_ACCESS, grants=frozenset({("default", "writer", "acme")}))
    models = Models(SimpleNamespace(snapshot=Snapshot(revision=1, tasks=rows, access=access)))  # type: ignore[arg-type]
    call = Call("r1", "/m", 0.0, of_role("caller", tenant="acme"))
    name = "tenants/default/tasks/writer"
    assert models.find(name, call).task == name
    assert models.find(f"{name}@{OLD}", call).digest == OLD
    with pytest.raises(NotFound):
        models.find(f"{name}@{OLD[:40]}", call)


def test_a_head_that_answers_otherwise(models: Models, call: Call, make_row: Any) -> None:
    models.find("writer", call).check_head("causal_lm", instead="")
    with pytest.raises(FailedPrecondition) as caught:
        models.find("writer", call).check_head("embedding", instead="which writes")
    assert caught.value.reason == "WRONG_HEAD"
    # What nothing answers is told by its call.
    models.find("empty", call).check_head("embedding", instead="")
    assert make_row(OLD, head=NO_MAYBE_YES).heaviest.head.type == "classification"

"""Whose texts are written: a task's own tenant's, those it is lent to at their own expense, and nobody else's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from adamix.files.manifest import BackboneSpec
from adamix_protos.v1 import inference_pb2 as pb
from adamix_server.catalog.store import Catalog
from adamix_server.config import FrontEndSettings
from adamix_testing.adapters import WRITER, MakeAdapter
from adamix_testing.catalogs import Seed, make_tenant
from adamix_testing.generating import request, rest_of, saying, text_of
from adamix_testing.harness import Harness, StartServing
from adamix_testing.identities import Callers, of_role, said
from adamix_testing.refusals import details, failure, refusal, status_of

OWNER, GUEST = "owner", "guest"
LENT, KEPT = (f"tenants/{OWNER}/tasks/{task}" for task in ("lent", "kept"))
WHO = {
    "owner": of_role("publisher", OWNER),
    "guest": of_role("caller", GUEST),
    "narrowed": of_role("caller", GUEST, "other-*"),
    "narrowed owner": of_role("caller", OWNER, "len*"),
    "stranger": of_role("caller", "stranger"),
}
CHAT = pb.Chat(messages=[pb.ChatMessage(role="user", content="abc")])
HEAVY = pb.Chat(messages=[pb.ChatMessage(role="user", content="x")])
# Too much for some messages.
TEMPLATE = (
    "{% if messages[0].content == 'x' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}{{ messages[0].content }}"
)


@pytest.fixture
def catalog(store: Path, decoder_spec: BackboneSpec, seed: Seed, make_adapter: MakeAdapter) -> Iterator[Catalog]:
    """The store's, beside the front end's own."""
    catalog = Catalog(store, backbone_fingerprint=decoder_spec.fingerprint)
    for tenant in (OWNER, GUEST, "stranger"):
        make_tenant(catalog, tenant)
    for number, task in enumerate(("lent", "kept")):
        seed(task, make_adapter(WRITER, seed=number, prompt="text", chat_template=TEMPLATE), tenant=OWNER)
    catalog.grants.add(OWNER, "lent", GUEST)
    yield catalog
    catalog.close()


@pytest.fixture
async def harness(start_generating: StartServing, catalog: Catalog) -> Harness:
    return await start_generating(
        prepare=saying("hello"),
        callers=Callers(WHO),
        settings=FrontEndSettings(default_quotas={"generated_tokens_per_s": 100}),
    )


def asked(harness: Harness, task: str, who: str, **fields: Any) -> Any:
    return rest_of(harness.inference.Generate(request(task, **fields), metadata=said(who), timeout=30))


async def test_a_lent_task_writes_at_the_expense_of_who_asks(harness: Harness) -> None:
    harness.front_end._meter.drain()
    assert text_of(await asked(harness, LENT, "guest", max_new_tokens=1000)) == "hello"
    (row,) = harness.engine.submits[-1].rows
    assert row.tenant == GUEST, "whose prefixes are its own"
    (sums,) = harness.front_end._meter.drain()[0]
    assert (sums.tenant, sums.input_tokens, sums.generated_tokens) == (GUEST, 3, 5)
    # What was reserved is given back, so both go on.
    for who in ("guest", "owner", "narrowed owner"):
        assert text_of(await asked(harness, LENT, who, max_new_tokens=90)) == "hello"


async def test_what_is_not_ones_own_to_ask_is_not_there(harness: Harness) -> None:
    for task, who in (
        (KEPT, "guest"),
        (KEPT, "narrowed owner"),
        (LENT, "narrowed"),
        (LENT, "stranger"),
        (f"tenants/{OWNER}/tasks/none", "owner"),
        ("tenants/nobody/tasks/none", "guest"),
    ):
        # Whatever else is wrong with what is asked of it, as for one that does not exist.
        for fields in ({}, {"chat": CHAT}, {"chat": HEAVY}, {"max_new_tokens": 1024}, {"version": "0" * 64}):
            error = await failure(asked(harness, task, who, **fields))
            assert error.code() is grpc.StatusCode.NOT_FOUND, (task, who, fields)
            found = details(status_of(error))
            assert found["ErrorInfo"].reason == "NOT_FOUND"
            assert found["ResourceInfo"].resource_name.startswith(task)
    assert not harness.engine.submits


async def test_the_messages_of_a_guest_do_not_keep_a_template_from_its_owner(harness: Harness) -> None:
    for content in (HEAVY, CHAT):
        assert (await refusal(asked(harness, LENT, "guest", chat=content)))[1] == "CHAT_INVALID"
    assert text_of(await asked(harness, LENT, "owner", chat=CHAT)) == "hello"

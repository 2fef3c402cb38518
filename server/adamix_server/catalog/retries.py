"""Answers that are given again: what a registration that came with a request id was told.

A client that lost the answer cannot know whether the server acted; sending the same request again under the same id
is safe, whatever became of the task since. Each function runs inside a transaction of its caller, the one that acts,
so that an answer is remembered exactly if the action is durable. Knows nothing of how registering is done.
"""

import msgspec
from sqlalchemy import Connection, delete, insert, select

from adamix.errors import InvalidRequest
from adamix_server.catalog import changes, schema
from adamix_server.limits.messages import MAX_REQUEST_IDS_PER_TENANT

# Longer than any sensible retry; and a client that never repeats an id must not fill the disk.
KEPT_S = 24 * 3600

_requests = schema.requests.c


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be the same for a request to be a retry. `digest` stands for the bytes."""

    task: str
    digest: str
    make_live: bool


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What the first answer said, as far as it does not follow from the bytes."""

    create_time_us: int
    live: bool
    pinned: bool
    already_exists: bool


def recall(connection: Connection, tenant: str, request_id: str, asked: Asked) -> Answered | None:
    """The answer this request was given before; None if it is new, or its answer is older than a day.

    Raises:
        InvalidRequest: the id belongs to a request that asked for something else (`REQUEST_ID_REUSED`).
    """
    found = connection.execute(
        select(schema.requests).where(
            _requests.tenant == tenant, _requests.request_id == request_id, _requests.time_us >= _oldest_us()
        )
    ).one_or_none()
    if found is None:
        return None
    if (found.task, found.digest, found.make_live) != (asked.task, asked.digest, asked.make_live):
        raise InvalidRequest(
            "this request_id was used for another registration; give every new one an id of its own",
            reason="REQUEST_ID_REUSED",
            field="header.request_id",
        )
    return Answered(
        create_time_us=found.create_time_us,
        live=found.live,
        pinned=found.pinned,
        already_exists=found.already_exists,
    )


def remember(connection: Connection, tenant: str, request_id: str, asked: Asked, answered: Answered) -> None:
    """Keep the answer to a request that `recall` does not know, and drop the tenant's oldest ones."""
    mine = _requests.tenant == tenant
    connection.execute(delete(schema.requests).where(mine, _requests.time_us < _oldest_us()))
    # One place is for the new one. The oldest by id, since the clock may have been set back meanwhile.
    newest_dropped = (
        select(_requests.id)
        .where(mine)
        .order_by(_requests.id.desc())
        .offset(MAX_REQUEST_IDS_PER_TENANT - 1)
        .limit(1)
        .scalar_subquery()
    )
    connection.execute(delete(schema.requests).where(mine, _requests.id <= newest_dropped))
    connection.execute(
        insert(schema.requests).values(
            tenant=tenant,
            request_id=request_id,
            time_us=changes.now_us(),
            **msgspec.structs.asdict(asked),
            **msgspec.structs.asdict(answered),
        )
    )


def _oldest_us() -> int:
    return changes.now_us() - KEPT_S * 1_000_000

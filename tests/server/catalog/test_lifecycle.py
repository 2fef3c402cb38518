from collections.abc import Callable

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from adamix_server.catalog import schema
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog

Add = Callable[..., VersionRow]


@pytest.mark.parametrize("state", [*State, "VALIDATING", "FAILED", "DELETED", "ready", ""])
@pytest.mark.parametrize("has_task", [True, False])
def test_a_row_is_ready_with_its_task_or_retired(
    catalog: Catalog, add: Add, here: str, state: str, has_task: bool
) -> None:
    add("t", b"v1")
    row = {
        "task_id": 1 if has_task else None,
        "digest": "0" * 64,
        "state": state,
        "create_time_us": 0,
        "num_bytes": 0,
        "backbone_fingerprint": here,
        "manifest_json": "{}",
    }
    statement = insert(schema.versions).values(row)
    if state == State.RETIRED or (state == State.READY and has_task):
        with catalog._database.write() as connection:
            connection.execute(statement)
    else:
        with pytest.raises(IntegrityError), catalog._database.write() as connection:
            connection.execute(statement)

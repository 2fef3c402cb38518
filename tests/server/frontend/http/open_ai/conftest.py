"""Models as they are found in a catalog, without one."""

from collections.abc import Callable

import pytest

from adamix.files.manifest import HeadSpec
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.rows import TaskRow, VersionRow
from adamix_server.frontend.http.open_ai.models import Model
from adamix_testing.adapters import WRITER

MakeRow = Callable[..., TaskRow]


@pytest.fixture(scope="session")
def make_row() -> MakeRow:
    """A task `tenants/default/tasks/writer`, all versions of which are live."""

    def make(*digests: str, head: HeadSpec = WRITER, task: str = "writer", tenant: str = "default") -> TaskRow:
        versions = tuple(
            VersionRow(
                tenant=tenant,
                task=task,
                digest=digest,
                state=State.READY,
                create_time_us=0,
                num_bytes=1,
                backbone_fingerprint="",
                head=head,
                max_length=16,
                live=True,
            )
            for digest in sorted(digests)
        )
        return TaskRow(
            tenant=tenant,
            task=task,
            etag="",
            create_time_us=0,
            update_time_us=0,
            unavailable_reason="",
            ready=versions,
            live=versions,
            weights=(1,) * len(versions),
        )

    return make


@pytest.fixture
def model(make_row: MakeRow) -> Model:
    return Model("writer", make_row("a" * 64), None)

"""Which version a `model` is: `task`, `task@digest`, or either with the task's full name.

A digest of one's own task may be cut, down to six figures, where one version alone begins so; who was lent a task is
not told what versions it has. Asked before anything else of a body is judged; who asks is known from the call. Nothing
but a version is ever a model, least of all the backbone.
"""

from dataclasses import dataclass

from adamix.errors import FailedPrecondition, InvalidRequest, NotFound
from adamix.files.manifest import HeadSpec
from adamix_client.status import clip
from adamix_server.api import status
from adamix_server.api.resource_names import parse_task, task_name
from adamix_server.catalog.rows import TaskRow, VersionRow
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.visibility import visible
from adamix_server.names import version_not_found

LEAST_DIGEST = 6
_MOST_CANDIDATES = 5
_DIGEST_LENGTH = 64
_FIGURES = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Model:
    """What a name stands for.

    Attributes:
        name: as it was asked for.
        row: the task.
        version: the one that was named; None for whichever answers.
    """

    name: str
    row: TaskRow
    version: VersionRow | None

    @property
    def task(self) -> str:
        """The full name of its task."""
        return task_name(self.row.tenant, self.row.task)

    @property
    def digest(self) -> str:
        """Of its version; empty for whichever answers."""
        return "" if self.version is None else self.version.digest

    @property
    def head(self) -> HeadSpec | None:
        """What it answers with; None if nothing answers the task on this backbone, which its call will say."""
        if self.version is not None:
            return self.version.head
        return self.row.heaviest.head if self.row.live else None

    def check_head(self, *kinds: str, instead: str) -> None:
        """Raises FailedPrecondition (`WRONG_HEAD`) unless it answers with one of these kinds of head."""
        head = self.head
        if head is not None and head.type not in kinds:
            raise FailedPrecondition(
                f"the model {self.name} is a task of {head.type}, {instead}", reason="WRONG_HEAD", field="model"
            )


@dataclass(frozen=True)
class Models:
    """The models that there are for a caller."""

    view: CatalogView

    def find(self, name: str, call: Call) -> Model:
        """The model of this name.

        Raises:
            NotFound: there is none, or not for this caller; also for what can be no name.
            InvalidRequest: several versions begin with the digest (`DIGEST_AMBIGUOUS`), which it names.
        """
        call.resource = clip(name, status.MAX_ERROR_BYTES)
        asked, _, digest = name.partition("@")
        try:
            tenant, task = parse_task(asked, call.tenant, "model")
        except InvalidRequest:
            raise unknown(name) from None
        snapshot = self.view.snapshot
        key = visible((tenant, task), call.principal, snapshot.access.grants)
        row = snapshot.tasks.get(key)
        if row is None:
            raise unknown(name)
        if "@" not in name:
            return Model(name, row, None)
        is_own = call.principal.is_admin or row.tenant == call.tenant
        return Model(name, row, _version(row, digest, name, LEAST_DIGEST if is_own else _DIGEST_LENGTH))

    def head(self, model: Model, digest: str) -> HeadSpec:
        """The head of the version that has answered. Raises NotFound: it has been deleted meanwhile."""
        newest = self.view.snapshot.tasks.get((model.row.tenant, model.row.task), model.row)
        for row in (model.row, newest):
            if (version := row.versions.get(digest)) is not None:
                return version.head
        raise version_not_found()


def unknown(name: str) -> NotFound:
    """The same for what does not exist and for what is another's."""
    return NotFound(f"The model `{clip(name, 160)}` does not exist or you do not have access to it.", field="model")


def _version(row: TaskRow, digest: str, name: str, least: int) -> VersionRow:
    if not least <= len(digest) <= _DIGEST_LENGTH or not _FIGURES.issuperset(digest):
        raise unknown(name)
    found = [version for version in row.ready if version.digest.startswith(digest)]
    if not found:
        raise unknown(name)
    if len(found) > 1:
        some = ", ".join(version.digest[:16] for version in found[:_MOST_CANDIDATES])
        raise InvalidRequest(
            f"{len(found)} versions of this model begin with {digest}: {some}", reason="DIGEST_AMBIGUOUS", field="model"
        )
    return found[0]

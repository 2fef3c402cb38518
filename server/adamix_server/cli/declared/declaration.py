"""What a file declares: tasks, their versions by file, traffic, pins and grants. No server is asked here.

::

    tasks:
      support:
        versions:                       # names of your own, for files beside this one
          stable: adapters/support-1.safetensors
          canary: adapters/support-2.safetensors
        traffic: {stable: 95, canary: 5}
        pins: [stable]
        grants: [acme]
      spam: adapters/spam.safetensors   # one version, which answers everything

What a task does not say is left as it is on the server; what it says is all there is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adamix.errors import InvalidConfig, InvalidRequest
from adamix_server.cli.declared.yaml_nodes import Listing, Node, Scalar, Table, read_yaml
from adamix_server.cli.task_call import MIN_PREFIX_CHARS, nearest
from adamix_server.limits.control import MAX_TRAFFIC_SHARES, MAX_TRAFFIC_WEIGHT
from adamix_server.names import check_name

_KEYS = ("tasks",)
_TASK_KEYS = ("file", "versions", "traffic", "pins", "grants")
# Of a version in `file:`, which has no name of its own.
_ONLY = "file"
_NUMBER = re.compile(r"[0-9]{1,9}")
_PREFIX = re.compile(rf"[0-9a-f]{{{MIN_PREFIX_CHARS},64}}")


@dataclass(frozen=True)
class DeclaredTask:
    """One task of the file; None where it says nothing.

    Attributes:
        where: `FILE:LINE`.
        versions: files by the names that the declaration gives them.
        traffic, pins: by such a name, or by the beginning of a digest that the server has.
        grants: tenants that may ask it.
    """

    task: str
    where: str
    versions: Mapping[str, Path] | None = None
    traffic: Mapping[str, int] | None = None
    pins: tuple[str, ...] | None = None
    grants: tuple[str, ...] | None = None


def read_declaration(path: Path) -> list[DeclaredTask]:
    """The tasks of a file, in its order.

    Raises:
        InvalidConfig: it cannot be read, or says what is no declaration: with the line, and the nearest key.
    """
    return _Reading(path).tasks(read_yaml(path))


class _Reading:
    def __init__(self, path: Path) -> None:
        self._path = path

    def tasks(self, root: Node) -> list[DeclaredTask]:
        top = self._table(root, "the file", _KEYS)
        if "tasks" not in top.entries:
            raise self._wrong(root.line, "there is no key `tasks`")
        of_tasks = self._table(top.entries["tasks"], "tasks")
        return [self._task(task, of_tasks.lines[task], node) for task, node in of_tasks.entries.items()]

    def _task(self, task: str, line: int, node: Node) -> DeclaredTask:
        self._check_id(task, line, "a task")
        where = f"{self._path}:{line}"
        if isinstance(node, Scalar) and not node.is_nothing:
            return DeclaredTask(task, where, {_ONLY: self._file(node)}, {_ONLY: 1})
        table = self._table(node, task, _TASK_KEYS)
        said = table.entries
        if "file" in said and ("versions" in said or "traffic" in said):
            raise self._wrong(table.lines["file"], "`file` is one version with all traffic: say `versions` instead")
        versions: Mapping[str, Path] | None = None
        traffic: Mapping[str, int] | None = None
        if "file" in said:
            versions, traffic = {_ONLY: self._file(said["file"])}, {_ONLY: 1}
        if "versions" in said:
            named = self._table(said["versions"], "versions")
            versions = {name: self._file(file) for name, file in named.entries.items()}
            if len(versions) == 1 and "traffic" not in said:
                traffic = dict.fromkeys(versions, 1)
        known = versions or {}
        if "traffic" in said:
            traffic = self._traffic(said["traffic"], known)
        elif len(known) > 1:
            raise self._wrong(line, f"{task} has several versions: say their `traffic`")
        pins = self._list(said["pins"], "pins") if "pins" in said else None
        for item in pins or ():
            self._check_version(item, known)
        grants = self._list(said["grants"], "grants") if "grants" in said else None
        for item in grants or ():
            self._check_id(item.text, item.line, "a tenant")
        return DeclaredTask(task, where, versions, traffic, _texts(pins), _texts(grants))

    def _traffic(self, node: Node, known: Mapping[str, Path]) -> Mapping[str, int]:
        if isinstance(node, Scalar) and not node.is_nothing:
            self._check_version(node, known)
            return {node.text: 1}
        table = self._table(node, "traffic")
        if not 1 <= len(table.entries) <= MAX_TRAFFIC_SHARES:
            raise self._wrong(table.line, f"traffic names 1 to {MAX_TRAFFIC_SHARES} versions")
        weights = {}
        for name, weight in table.entries.items():
            self._check_version(Scalar(name, table.lines[name], is_plain=True), known)
            if not isinstance(weight, Scalar) or _NUMBER.fullmatch(weight.text) is None:
                raise self._wrong(weight.line, f"the weight of {name[:64]} is not a whole number")
            weights[name] = int(weight.text)
            if not 1 <= weights[name] <= MAX_TRAFFIC_WEIGHT:
                raise self._wrong(weight.line, f"the weight of {name[:64]} is not in 1..{MAX_TRAFFIC_WEIGHT:,}")
        return weights

    def _table(self, node: Node, what: str, keys: tuple[str, ...] | None = None) -> Table:
        if isinstance(node, Scalar) and node.is_nothing:
            return Table({}, {}, node.line)
        if not isinstance(node, Table):
            raise self._wrong(node.line, f"{what} must be a mapping")
        for key, line in node.lines.items():
            if keys is not None and key not in keys:
                near = nearest(key, keys) or f": there are {', '.join(keys)}"
                raise self._wrong(line, f"{what} has an unknown key {key[:64]!r}{near}")
        return node

    def _list(self, node: Node, what: str) -> list[Scalar]:
        """Texts, each once."""
        if isinstance(node, Scalar):
            items: tuple[Node, ...] = () if node.is_nothing else (node,)
        elif isinstance(node, Listing):
            items = node.items
        else:
            raise self._wrong(node.line, f"{what} must be a list")
        found: list[Scalar] = []
        for item in items:
            if not isinstance(item, Scalar) or item.is_nothing:
                raise self._wrong(item.line, f"{what} must be a list of names")
            if any(item.text == other.text for other in found):
                raise self._wrong(item.line, f"{what} names {item.text[:64]!r} twice")
            found.append(item)
        return found

    def _file(self, node: Node) -> Path:
        """Relative to the declaration, whoever reads it from where."""
        if not isinstance(node, Scalar) or node.is_nothing or "\0" in node.text:
            raise self._wrong(node.line, "this must be the name of a file")
        return self._path.parent / node.text

    def _check_version(self, node: Scalar, known: Mapping[str, Path]) -> None:
        if node.text not in known and _PREFIX.fullmatch(node.text) is None:
            near = nearest(node.text, list(known))
            raise self._wrong(
                node.line, f"{node.text[:64]!r} is neither one of `versions` nor the beginning of a digest{near}"
            )

    def _check_id(self, text: str, line: int, what: str) -> None:
        try:
            check_name(text, f"{what} {text[:64]!r}")
        except InvalidRequest as error:
            raise self._wrong(line, error.message) from None

    def _wrong(self, line: int, what: str) -> InvalidConfig:
        return InvalidConfig(f"{self._path}:{line}: {what}", field="file")


def _texts(nodes: list[Scalar] | None) -> tuple[str, ...] | None:
    return None if nodes is None else tuple(node.text for node in nodes)

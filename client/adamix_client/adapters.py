"""The client's part of the control plane: adapters registered, versions, traffic, pins, and what changes.

`adamix_client.aio.adapters` is made of this file: see `adamix_client.aio.make`.
"""

import math
from collections.abc import Generator, Mapping
from contextlib import closing

from adamix_client.bounds import MAX_TIMEOUT_S
from adamix_client.calling import Calls
from adamix_client.uploads import Adapter, Progress, Upload
from adamix_client.values import Registered, Task, TaskChange, Version, to_task, to_version
from adamix_client.watching import Watching
from adamix_protos.v1 import adapters_pb2


class Adapters:
    """Part of a `Client`, which says what all its methods raise."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def register(
        self,
        task: str,
        adapter: Adapter,
        *,
        expected_digest: str = "",
        make_live: bool = True,
        validate_only: bool = False,
        request_id: str = "",
        progress: Progress | None = None,
    ) -> Registered:
        """Register an adapter file; returns when it is stored (and live, if asked for).

        Args:
            adapter: a path, bytes or a file open for bytes to upload, or the name of a file that the server has itself.
            expected_digest: sha256 in hex that the bytes must have.
            validate_only: check the file and store nothing.
            request_id: of your choice, new for each registration: the same call again under the same id returns the
                first answer and changes nothing. 1 to 64 of `A-Z a-z 0-9 . _ -`. One is made for you, so that a call
                that is made again after a failure is the same registration.
            progress: called with the bytes that were handed on and all that there are (None for a file that cannot be
                sought in), in another thread. What it raises ends the upload, and is raised here.

        Raises:
            InvalidData: there is no such file here.
            InvalidInput: the server refuses the file; the reason says which check it failed.
        """
        header = adapters_pb2.RegisterAdapterHeader(
            task=task,
            expected_digest=expected_digest,
            make_live=make_live,
            validate_only=validate_only,
            request_id=request_id,
        )
        with closing(Upload(header, adapter, progress)) as upload:
            response = self._calls.upload(lambda link: link.adapters.RegisterAdapter, upload, MAX_TIMEOUT_S)
        return Registered(to_version(response.version), response.already_exists)

    def get_task(self, task: str) -> Task:
        response = self._calls.ask(lambda link: link.adapters.GetTask, adapters_pb2.GetTaskRequest(task=task))
        return to_task(response.task)

    def tasks(self) -> list[Task]:
        """All tasks by name."""
        pages = self._calls.pages(lambda link: link.adapters.ListTasks, adapters_pb2.ListTasksRequest())
        return [to_task(message) for page in pages for message in page.tasks]

    def versions(self, task: str) -> list[Version]:
        """All versions of a task, newest first."""
        pages = self._calls.pages(lambda link: link.adapters.ListVersions, adapters_pb2.ListVersionsRequest(task=task))
        return [to_version(message) for page in pages for message in page.versions]

    def delete(self, task: str, version: str = "", *, etag: str = "") -> None:
        """Delete a version that is not live, given by its digest; without one the whole task."""
        if version:
            self.delete_version(task, version, etag=etag)
        else:
            self.delete_task(task, etag=etag)

    def delete_task(self, task: str, *, etag: str = "") -> None:
        request = adapters_pb2.DeleteTaskRequest(task=task, etag=etag)
        self._calls.ask(lambda link: link.adapters.DeleteTask, request, is_safe=False)

    def delete_version(self, task: str, digest: str, *, etag: str = "") -> None:
        """Delete a version that is not live."""
        request = adapters_pb2.DeleteVersionRequest(task=task, digest=digest, etag=etag)
        self._calls.ask(lambda link: link.adapters.DeleteVersion, request, is_safe=False)

    def load(self, task: str, digest: str) -> Version:
        """Bring a version into a slot if one can be had for nothing, else to host memory: see its `residency`."""
        request = adapters_pb2.LoadVersionRequest(task=task, digest=digest)
        response = self._calls.ask(lambda link: link.adapters.LoadVersion, request)
        return to_version(response.version)

    def unload(self, task: str, digest: str) -> Version:
        """Take a version out of the server's memory until somebody asks for it. Refused while it is used or pinned."""
        request = adapters_pb2.UnloadVersionRequest(task=task, digest=digest)
        response = self._calls.ask(lambda link: link.adapters.UnloadVersion, request)
        return to_version(response.version)

    def pin(self, task: str, digest: str, *, pinned: bool = True) -> Version:
        """Load a version into a slot and keep it there, over every restart; or (`pinned=False`) no longer."""
        request = adapters_pb2.PinVersionRequest(task=task, digest=digest, pinned=pinned)
        response = self._calls.ask(lambda link: link.adapters.PinVersion, request)
        return to_version(response.version)

    def unpin(self, task: str, digest: str) -> Version:
        """A pinned version may be evicted again."""
        return self.pin(task, digest, pinned=False)

    def rollback(self, task: str, *, etag: str = "") -> Task:
        """Make live again what was live before."""
        request = adapters_pb2.RollbackRequest(task=task, etag=etag)
        response = self._calls.ask(lambda link: link.adapters.Rollback, request, is_safe=False)
        return to_task(response.task)

    def traffic(self, task: str, versions: str | Mapping[str, int], *, etag: str = "") -> Task:
        """Let one version answer a task, given by its digest; or several, given as {digest: weight}.

        >>> new, old = client.versions("sst2")
        >>> task = client.traffic("sst2", {old.digest: 95, new.digest: 5})
        >>> sorted(weight for _, weight in task.traffic)
        [5, 95]
        """
        weights = {versions: 1} if isinstance(versions, str) else versions
        traffic = [adapters_pb2.Traffic(digest=digest, weight=weight) for digest, weight in weights.items()]
        request = adapters_pb2.SetTrafficRequest(task=task, traffic=traffic, etag=etag)
        response = self._calls.ask(lambda link: link.adapters.SetTraffic, request, is_safe=not etag)
        return to_task(response.task)

    def watch(self, *, patience_s: float = math.inf) -> Generator[TaskChange, None, None]:
        """Every task once, then each change as it happens, for as long as it is iterated; close it to stop.

        The first stream is opened when the first change is asked for. Once every task has been told, the watch outlives
        its connections: when a stream ends for a reason that passes (the server restarts or closes the connection, the
        network forgets it), another is opened, after as long as the server advises, and only what differs from what was
        told comes out of it, deletions too. A server that is silent for 45 s is taken for dead; a living one says so
        every 15 s. Closing the client ends the watch as well.

        Args:
            patience_s: for how long a lost server is looked for before the error is raised; for ever unless told.

        Raises:
            AdamixError: the first stream could not be opened, ended before all was told, or is one of an older server,
                which does not say when that is; later, an error that does not pass.
        """
        return Watching(self._calls.connection, patience_s).changes()

    # What some of these are also called.
    set_traffic = traffic
    load_version = load
    unload_version = unload
    pin_version = pin
    watch_tasks = watch

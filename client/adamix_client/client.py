"""A small typed client: one method per RPC, plain values in and out, errors of `adamix_client.errors`.

Synchronous and safe to share between threads. Retries nothing by itself but watches: an error that may pass says so in
`retry_after_s`. Imports no torch, so that a client process stays small. Knows the wire; knows nothing of the server.
"""

import io
import math
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from adamix_client import connection
from adamix_client.administration import Administration
from adamix_client.bounds import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S
from adamix_client.connection import KEEPALIVE_S, KEEPALIVE_TIMEOUT_S, Connection
from adamix_client.destination import Credentials, Pem, from_environment
from adamix_client.errors import AdamixError, Code, InvalidData, Unavailable
from adamix_client.generate_values import ChatMessage, GenerateDelta, to_delta, to_generate_request
from adamix_client.values import (
    Input,
    Load,
    Predictions,
    Registered,
    ServerFile,
    ServerInfo,
    StreamedPrediction,
    StreamInput,
    Task,
    TaskChange,
    Version,
    to_input,
    to_json,
    to_predictions,
    to_stream_request,
    to_streamed_prediction,
    to_task,
    to_version,
)
from adamix_client.watching import Watching
from adamix_protos.v1 import adapters_pb2, inference_pb2, server_pb2

_CHUNK_BYTES = 512 << 10
_POLL_S = 0.1


class Client(Administration):
    """A connection to one server.

    Args:
        address: `host:port`; `grpcs://host:port` for TLS with the system's roots. None takes it, and the credentials
            that are not given, from the environment: `ADAMIX_SERVER`, `ADAMIX_API_KEY`, and the files `ADAMIX_CA`,
            `ADAMIX_CERT`, `ADAMIX_KEY`.
        ca: file of certificates (or their PEM, as bytes) of which one has signed the server's; implies TLS.
        cert, key: files (or PEM) of the client's own certificate and its key, for a server that asks for one.
        api_key: or a token; it is not sent unencrypted to another machine.
        timeout_s: limit of each call but uploads and generated texts, in seconds.
        keepalive_s: of silence after which the server is pinged, `math.inf` for never; it takes one ping in 10 s.
        keepalive_timeout_s: without an answer to a ping, after which the connection counts as dead and calls on it end.
            After three deadlines and at least this time without a byte it is made anew whatever answers pings.
        channel_options: further options of grpc by name, or other values for those this client sets.

    Every method raises the AdamixError the server answered with, Unavailable when there is no server, and
    FailedPrecondition after `close` (`CLIENT_CLOSED`) or in a process forked since (`CLIENT_FORKED`: make a client
    after the fork, in each process). Making one raises InvalidConfig for files that cannot be read, and for a key that
    would go unencrypted to another machine (`INSECURE_ADDRESS`).
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        ca: Pem | None = None,
        cert: Pem | None = None,
        key: Pem | None = None,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        keepalive_s: float = KEEPALIVE_S,
        keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S,
        channel_options: Mapping[str, str | int] | None = None,
    ) -> None:
        credentials = Credentials(ca=ca, cert=cert, key=key, api_key=api_key)
        if address is None:
            address, told = from_environment()
            credentials = credentials.over(told)
        self.address = address
        options = connection.channel_options(
            keepalive_s=keepalive_s, keepalive_timeout_s=keepalive_timeout_s, extra=channel_options
        )
        super().__init__(Connection(address, options, keepalive_timeout_s, credentials), timeout_s)

    def predict(
        self,
        inputs: Iterable[Input] = (),
        *,
        task: str = "",
        texts: Iterable[str] = (),
        truncate: bool = False,
        return_logits: bool = False,
    ) -> Predictions:
        """Answer up to 64 inputs in one call: `inputs`, then `texts`, which are all for `task`.

        An input that fails leaves an `error` in its place; the call raises when all fail for the same reason.
        """
        return to_predictions(self._predict(inputs, task, texts, truncate, return_logits))

    def predict_json(
        self,
        inputs: Iterable[Input] = (),
        *,
        task: str = "",
        texts: Iterable[str] = (),
        truncate: bool = False,
        return_logits: bool = False,
    ) -> dict[str, Any]:
        """As `predict`; the response in proto3 JSON with proto field names and default-valued fields printed."""
        return to_json(self._predict(inputs, task, texts, truncate, return_logits))

    def predict_stream(self, inputs: Iterable[StreamInput]) -> Generator[StreamedPrediction, None, None]:
        """Answer any number of inputs over one stream, each as soon as it is ready: in any order, under its id.

        `inputs` is read in a thread of its own, while there is room on the stream, so it may be endless and may wait
        for answers. An exception it raises is raised here, after the answers to what it gave before. Closing the
        iterator ends the stream, and what is under way.
        """
        failed: list[Exception] = []

        def requests() -> Iterator[inference_pb2.PredictStreamRequest]:
            try:
                for item in inputs:
                    yield to_stream_request(item)
            except Exception as error:  # noqa: BLE001 - of the caller's own code; raised below
                failed.append(error)

        with closing(self._connection.messages(lambda link: link.inference.PredictStream(requests()))) as messages:
            for message in messages:
                yield to_streamed_prediction(message)
        if failed:
            raise failed[0]

    def generate(
        self,
        task: str,
        prompt: str | None = None,
        *,
        chat: Sequence[ChatMessage | Mapping[str, str]] | None = None,
        token_ids: Sequence[int] | None = None,
        version: str = "",
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        seed: int | None = None,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        renormalize: bool | None = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        logprobs: int = 0,
        return_token_ids: bool = False,
        timeout_s: float = MAX_TIMEOUT_S,
    ) -> Generator[GenerateDelta, None, None]:
        """Write a text, and give it piece by piece as it comes; the last delta has its end, usage and seed.

        Leaving the iterator ends the call, and what the server computes for it. An error, also in the middle of a text,
        is raised after the deltas that came before it; nothing is asked for twice.

        Args:
            prompt: a text in the form that the task's adapter was made for; or in its place
            chat: messages, each a role and a content, for the chat template; or
            token_ids: ids of the backbone's vocabulary, taken as they are.
            version: a digest; the live version if empty.
            max_new_tokens: 1 up to the backbone's window; 64 if None.
            temperature: 0, or None, takes the likeliest token each time; what else is drawn by, `Sampling` says.
            seed: of the draws; the server's own choice if None, told in the last delta.
            stop, stop_token_ids: the text ends before any of these.
            ignore_eos: go on after an end of text.
            logprobs: how many alternatives to report per token, up to 20; 0 for no probabilities.
            timeout_s: for the whole text, in seconds; what came before it passes stays.

        Raises:
            InvalidConfig: at once: not exactly one of prompt, chat and token_ids, or a value that cannot be sent.
        """
        request = to_generate_request(
            task,
            prompt,
            chat,
            token_ids,
            sampling={
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "presence_penalty": presence_penalty,
                "frequency_penalty": frequency_penalty,
                "no_repeat_ngram_size": no_repeat_ngram_size,
                "seed": seed,
                "length_penalty": length_penalty,
                "renormalize": renormalize,
            },
            settings={
                "version": version,
                "max_new_tokens": max_new_tokens,
                "num_beams": num_beams,
                "stop": stop,
                "stop_token_ids": stop_token_ids,
                "ignore_eos": ignore_eos,
                "logprobs": logprobs,
                "return_token_ids": return_token_ids,
            },
        )
        return self._deltas(request, timeout_s)

    def register(
        self,
        task: str,
        adapter: Path | str | bytes | ServerFile,
        *,
        expected_digest: str = "",
        make_live: bool = True,
        validate_only: bool = False,
        request_id: str = "",
    ) -> Registered:
        """Register an adapter file; returns when it is stored (and live, if asked for).

        Args:
            adapter: a path or bytes to upload, or the name of a file that the server has itself.
            expected_digest: sha256 in hex that the bytes must have.
            validate_only: check the file and store nothing.
            request_id: of your choice, new for each registration: the same call again under the same id returns the
                first answer and changes nothing. 1 to 64 of `A-Z a-z 0-9 . _ -`.

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
        if isinstance(adapter, ServerFile):
            header.file = adapter.name
            requests = _upload(header, ())
        else:
            requests = _upload(header, _chunks(adapter))
        with self._connection.calling() as link:
            response = link.adapters.RegisterAdapter(requests, timeout=MAX_TIMEOUT_S)
        return Registered(to_version(response.version), response.already_exists)

    def get_task(self, task: str) -> Task:
        with self._connection.calling() as link:
            response = link.adapters.GetTask(adapters_pb2.GetTaskRequest(task=task), timeout=self._timeout_s)
        return to_task(response.task)

    def tasks(self) -> list[Task]:
        """All tasks by name."""
        found: list[Task] = []
        token = ""
        while True:
            request = adapters_pb2.ListTasksRequest(page_token=token)
            with self._connection.calling() as link:
                response = link.adapters.ListTasks(request, timeout=self._timeout_s)
            found += [to_task(message) for message in response.tasks]
            if not (token := response.next_page_token):
                return found

    def versions(self, task: str) -> list[Version]:
        """All versions of a task, newest first."""
        found: list[Version] = []
        token = ""
        while True:
            request = adapters_pb2.ListVersionsRequest(task=task, page_token=token)
            with self._connection.calling() as link:
                response = link.adapters.ListVersions(request, timeout=self._timeout_s)
            found += [to_version(message) for message in response.versions]
            if not (token := response.next_page_token):
                return found

    def delete_task(self, task: str, *, etag: str = "") -> None:
        request = adapters_pb2.DeleteTaskRequest(task=task, etag=etag)
        with self._connection.calling() as link:
            link.adapters.DeleteTask(request, timeout=self._timeout_s)

    def delete_version(self, task: str, digest: str, *, etag: str = "") -> None:
        """Delete a version that is not live."""
        request = adapters_pb2.DeleteVersionRequest(task=task, digest=digest, etag=etag)
        with self._connection.calling() as link:
            link.adapters.DeleteVersion(request, timeout=self._timeout_s)

    def load_version(self, task: str, digest: str) -> Version:
        """Bring a version into a slot if one can be had for nothing, else to host memory: see its `residency`."""
        request = adapters_pb2.LoadVersionRequest(task=task, digest=digest)
        with self._connection.calling() as link:
            response = link.adapters.LoadVersion(request, timeout=self._timeout_s)
        return to_version(response.version)

    def unload_version(self, task: str, digest: str) -> Version:
        """Take a version out of the server's memory until somebody asks for it. Refused while it is used or pinned."""
        request = adapters_pb2.UnloadVersionRequest(task=task, digest=digest)
        with self._connection.calling() as link:
            response = link.adapters.UnloadVersion(request, timeout=self._timeout_s)
        return to_version(response.version)

    def pin_version(self, task: str, digest: str, *, pinned: bool = True) -> Version:
        """Load a version into a slot and keep it there, over every restart; or (`pinned=False`) no longer."""
        request = adapters_pb2.PinVersionRequest(task=task, digest=digest, pinned=pinned)
        with self._connection.calling() as link:
            response = link.adapters.PinVersion(request, timeout=self._timeout_s)
        return to_version(response.version)

    def rollback(self, task: str, *, etag: str = "") -> Task:
        """Make live again what was live before."""
        request = adapters_pb2.RollbackRequest(task=task, etag=etag)
        with self._connection.calling() as link:
            response = link.adapters.Rollback(request, timeout=self._timeout_s)
        return to_task(response.task)

    def set_traffic(self, task: str, versions: str | Mapping[str, int], *, etag: str = "") -> Task:
        """Let one version answer a task, given by its digest; or several, given as {digest: weight}."""
        weights = {versions: 1} if isinstance(versions, str) else versions
        traffic = [adapters_pb2.Traffic(digest=digest, weight=weight) for digest, weight in weights.items()]
        request = adapters_pb2.SetTrafficRequest(task=task, traffic=traffic, etag=etag)
        with self._connection.calling() as link:
            response = link.adapters.SetTraffic(request, timeout=self._timeout_s)
        return to_task(response.task)

    def watch_tasks(self, *, patience_s: float = math.inf) -> Generator[TaskChange, None, None]:
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
        return Watching(self._connection, patience_s).changes()

    def server_info(self) -> ServerInfo:
        with self._connection.calling() as link:
            response = link.server.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=self._timeout_s)
        return ServerInfo(**to_json(response))

    def load(self) -> Load:
        """How busy the server's engine is. Raises Unavailable while there is none."""
        with self._connection.calling() as link:
            response = link.server.GetLoad(server_pb2.GetLoadRequest(), timeout=self._timeout_s)
        return Load(**to_json(response))

    def drain(self) -> None:
        """Ask the server to finish what runs and end, as SIGTERM does. Returns at once."""
        with self._connection.calling() as link:
            link.server.Drain(server_pb2.DrainRequest(), timeout=self._timeout_s)

    def health(self, service: str = "") -> str:
        """`SERVING` or another word of grpc.health.v1, for one service by its full name, or the whole server.

        Needs no key. Raises NotFound where there is no such service.
        """
        with self._connection.calling() as link:
            answer = link.health(connection.health_request(service), timeout=self._timeout_s)
        return connection.health_status(answer)

    def wait_until_serving(self, timeout_s: float) -> None:
        """Return when the server's health says SERVING. Raises Unavailable after `timeout_s` seconds."""
        end = time.monotonic() + timeout_s
        while True:
            left_s = end - time.monotonic()
            try:
                with self._connection.calling() as link:
                    answer = link.health(connection.HEALTH_OF_ALL, timeout=max(left_s, _POLL_S), wait_for_ready=True)
                if answer == connection.SERVING:
                    return
            except AdamixError as error:
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    raise
            if left_s <= 0:
                raise Unavailable(f"{self.address} did not become ready within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _deltas(self, request: inference_pb2.GenerateRequest, timeout_s: float) -> Generator[GenerateDelta, None, None]:
        call = self._connection.messages(lambda link: link.inference.Generate(request, timeout=timeout_s))
        with closing(call) as messages:
            for message in messages:
                yield to_delta(message)

    def _predict(
        self, inputs: Iterable[Input], task: str, texts: Iterable[str], truncate: bool, return_logits: bool
    ) -> inference_pb2.PredictResponse:
        asked = [*inputs, *(Input(task, text=text, truncate=truncate) for text in texts)]
        request = inference_pb2.PredictRequest(inputs=[to_input(item) for item in asked], return_logits=return_logits)
        with self._connection.calling() as link:
            response: inference_pb2.PredictResponse = link.inference.Predict(request, timeout=self._timeout_s)
        return response


def _upload(
    header: adapters_pb2.RegisterAdapterHeader, chunks: Iterable[bytes]
) -> Iterator[adapters_pb2.RegisterAdapterRequest]:
    yield adapters_pb2.RegisterAdapterRequest(header=header)
    for chunk in chunks:
        yield adapters_pb2.RegisterAdapterRequest(chunk=chunk)


def _chunks(adapter: Path | str | bytes) -> Iterator[bytes]:
    try:
        source = io.BytesIO(adapter) if isinstance(adapter, bytes) else Path(adapter).open("rb")  # noqa: SIM115
    except OSError as error:
        raise InvalidData(f"{adapter!s}: {error.strerror}") from None

    def read() -> Iterator[bytes]:
        with source:
            yield from iter(lambda: source.read(_CHUNK_BYTES), b"")

    return read()

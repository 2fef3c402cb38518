"""Judges an adapter file from a stranger, in a child process that may die of it.

`validate` is the parent's side: it starts `python -m adamix_server.frontend.control.validation`, tells it which file
to judge for which backbone, and believes only a well-formed verdict. The parent never sees a byte of the file. `main`
is the child's side: it lowers its own limits for good, then reads and checks the file with `adamix.files.adapter_file`.

A child that came to no verdict is either about the file, which is refused so that nobody sends it again, or about the
machine, and then the same call may succeed in a moment (`VALIDATION_INTERRUPTED`). `_without_verdict` tells them apart.

The child must start in a tenth of a second, so it imports numpy and msgspec but no torch and no grpc, and what only
the parent needs is imported in the parent's functions.
"""

import errno
import functools
import hashlib
import logging
import math
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from adamix.errors import AdamixError, FailedPrecondition, InvalidAdapter, Unavailable
from adamix.files.adapter_file import check_backbone, decode
from adamix.files.manifest import BackboneSpec
from adamix.files.tensors import MAX_FILE_BYTES, MAX_HEADER_BYTES, canonical_json
from adamix_server import retry
from adamix_server.limits.control import VALIDATION_TIMEOUT_S

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

# Each may take memory in proportion to the largest file, so two at a time; further files wait.
MAX_CHILDREN = 2
MAX_MESSAGE_CHARS = 512
# A child is nice: on a machine that is busy it waits longer than it computes.
_PATIENCE = 4.0

# Address space of the child: its libraries (about 110 MiB), a header at its limit, and per byte of the file the file
# itself, one tensor in fp32 and the temporaries of its check (a bf16 byte becomes two, three times).
_FIXED_BYTES = 256 << 20
_BYTES_PER_FILE_BYTE = 8

_LENGTH_BYTES = 8

# The child says this before it looks at the file; JSON allows it before a verdict.
_BEGUN = b"\n"
# Signals that a process earns itself, by what it does with the bytes it reads. Every other one is sent from outside, by
# the kernel for the memory of others or by a person; of the child's own limits, that of its CPU time sends SIGXCPU.
_OWN_FAULTS = frozenset(
    {
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS),
        signal.SIGXFSZ,
    }
)
_interruptions = retry.Lasting()

# -I: neither the environment nor the working directory can add code. -B: it may not write files.
_COMMAND = (sys.executable, "-I", "-B", "-m", "adamix_server.frontend.control.validation")

_log = logging.getLogger(__name__)


class Verdict(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The file is a valid adapter for the backbone it was judged for.

    `manifest_json` is canonical; `tensor_sizes` are the numbers of values of its tensors.
    """

    digest: str
    manifest_json: str
    num_bytes: int
    tensor_sizes: tuple[int, ...]


class _Refusal(msgspec.Struct, frozen=True, tag=True):
    """`is_valid`: it is an adapter for this backbone, and nothing that this server answers with."""

    reason: str
    message: str
    is_valid: bool = False


class _Trouble(msgspec.Struct, frozen=True, tag=True):
    """The operating system did not let the child read the file, which the server itself has just written."""

    errno: int


class _Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the child reads from stdin. `path` is bytes, because that is what file names are."""

    path: bytes
    spec: BackboneSpec
    expected_digest: str | None
    timeout_s: float


# Is told CPU seconds.
Spent = Callable[[float], None]
_Answer = Verdict | _Refusal | _Trouble
_decoder: msgspec.json.Decoder[_Answer] = msgspec.json.Decoder(_Answer)


def validate(
    path: Path,
    spec: BackboneSpec,
    *,
    expected_digest: str | None = None,
    timeout_s: float = VALIDATION_TIMEOUT_S,
    spent: Spent = lambda _seconds: None,
) -> Verdict:
    """Judge one file. At most two run at once in a process; the wait for a turn does not count.

    Args:
        path: a regular file, not a symbolic link. Nobody may write to it meanwhile.
        spec: of the backbone the adapter has to fit.
        expected_digest: sha256 in hex the file must have.
        timeout_s: CPU seconds for the child. It is given four times as long by the clock, since others come first.
        spent: is told, from another thread, the CPU seconds that the child has had, also where it gave no verdict.

    Raises:
        InvalidAdapter: with the check the file failed as `reason`; `VALIDATOR_TIMEOUT` or `VALIDATOR_CRASHED` if the
            child came to no verdict because of the file.
        FailedPrecondition: it has a cloze head on a decoder (`HEAD_UNSUPPORTED`).
        Unavailable: the child was ended from outside, could not be started, or got no processor
            (`VALIDATION_INTERRUPTED`).
        AdamixError: the file is not there any more, or what the machine lacks, as `from_os_error` says.
    """
    return _start(path, spec, expected_digest, timeout_s, spent).result()


async def validate_async(
    path: Path,
    spec: BackboneSpec,
    *,
    expected_digest: str | None = None,
    timeout_s: float = VALIDATION_TIMEOUT_S,
    spent: Spent = lambda _seconds: None,
) -> Verdict:
    """`validate` for an event loop. Cancelled before its turn, it starts nothing; later, it ends with the child."""
    from adamix_server.frontend.pool_threads import outcome

    return await outcome(_start(path, spec, expected_digest, timeout_s, spent))


def _start(
    path: Path, spec: BackboneSpec, expected_digest: str | None, timeout_s: float, spent: Spent
) -> "Future[Verdict]":
    order = _Order(path=os.fsencode(path), spec=spec, expected_digest=expected_digest, timeout_s=timeout_s)
    return _turns().submit(_ask_child, order, spent)


@functools.cache
def _turns() -> "ThreadPoolExecutor":
    """Threads of their own: uploads that wait for a turn must not hold up the threads of anything else."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(MAX_CHILDREN, thread_name_prefix="validation")


def _ask_child(order: _Order, spent: Spent) -> Verdict:
    from adamix_server.frontend.control import metered_child

    try:
        child = metered_child.run(
            _COMMAND,
            msgspec.json.encode(order),
            timeout_s=_PATIENCE * order.timeout_s,
            environment=_environment(os.environ),
            spent=spent,
        )
    except subprocess.TimeoutExpired:
        # Its own limit would have ended a child that computes: this one waited, for the processor or for the disk.
        raise _interrupted() from None
    except OSError as error:
        # No process, no memory for one, or no descriptors for its pipes. The file has done nothing yet.
        from adamix_server.blobs.os_errors import shortage

        raise shortage(error) or _interrupted() from error
    try:
        answer = _decoder.decode(child.stdout)
    except msgspec.MsgspecError:
        answer = None
    if child.returncode != 0 or answer is None:
        _log.error("validator ended with status %d: %s", child.returncode, child.stderr[-2_000:])
        raise _without_verdict(child.returncode, child.stdout, order.timeout_s)
    match answer:
        case _Refusal():
            # It quotes the file, so it is cut and made printable before it goes anywhere.
            message = "".join(c if c.isprintable() else "?" for c in answer.message[:MAX_MESSAGE_CHARS])
            refused = FailedPrecondition if answer.is_valid else InvalidAdapter
            raise refused(message, reason=answer.reason)
        case _Trouble():
            from adamix_server.blobs.os_errors import from_os_error

            raise from_os_error(OSError(answer.errno, os.strerror(answer.errno))) or _interrupted()
        case Verdict():
            return answer


def _without_verdict(status: int, said: bytes, timeout_s: float) -> AdamixError:
    """What a child that ended without a proper verdict says about the file.

    Args:
        status: its exit status; negative, the signal that ended it.
        said: what it wrote.
    """
    if status != 0 and not said:
        # It ended before it looked at the file: its libraries did not load, or found no memory.
        return _interrupted()
    if status < 0:
        if -status == signal.SIGXCPU:
            # Its own limit: the next child would need as long.
            return _too_slow(timeout_s)
        if -status in _OWN_FAULTS:
            # The bytes led the parser astray, and would again.
            return _crashed()
        # Killed: by a person, by the end of a session, or by the kernel, which needed memory. What a file can make the
        # child take is bounded by its own limits, and those end it in other ways; so this is about the machine.
        return _interrupted()
    # A traceback, such as of the MemoryError that its limit on memory brings, or words that are no verdict.
    return _crashed()


def _too_slow(timeout_s: float) -> InvalidAdapter:
    return InvalidAdapter(
        f"the file could not be checked within {timeout_s:g} s of processor time", reason="VALIDATOR_TIMEOUT"
    )


def _crashed() -> InvalidAdapter:
    return InvalidAdapter("the file could not be checked: the validator ended unexpectedly", reason="VALIDATOR_CRASHED")


def _interrupted() -> Unavailable:
    return Unavailable(
        "checking the file was interrupted, which is not the file's fault; send it again",
        reason="VALIDATION_INTERRUPTED",
        retry_after_s=_interruptions.next(time.monotonic()),
    )


def _environment(parent: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the parent's but where shared libraries are: the child needs no key and no token."""
    kept = {name: parent[name] for name in ("LD_LIBRARY_PATH",) if name in parent}
    # Each thread of a BLAS reserves address space; the checks use none.
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> None:
    """The child. Anything but a refusal ends it with a traceback, which the parent reports as a crash."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    sys.stdout.buffer.write(_BEGUN)
    sys.stdout.buffer.flush()
    answer: _Answer
    try:
        answer = judge(_read(order), order.spec, order.expected_digest)
    except InvalidAdapter as error:
        answer = _Refusal(error.reason, error.message)
    except FailedPrecondition as error:
        answer = _Refusal(error.reason, error.message, is_valid=True)
    except OSError as error:
        answer = _Trouble(error.errno or 0)
    sys.stdout.buffer.write(msgspec.json.encode(answer))


def judge(data: bytes, spec: BackboneSpec, expected_digest: str | None = None) -> Verdict:
    """All checks of a file's bytes, in this process. For the child, and for tests that judge thousands.

    Raises:
        InvalidAdapter: with the check the bytes failed as `reason`.
        FailedPrecondition: it has a cloze head on a decoder (`HEAD_UNSUPPORTED`).
    """
    digest = hashlib.sha256(data).hexdigest()
    if expected_digest is not None and digest != expected_digest:
        raise InvalidAdapter(
            f"the bytes have the sha256 {digest[:12]}…, not the expected one: damaged, or another file",
            reason="DIGEST_MISMATCH",
        )
    adapter = decode(data)
    check_backbone(adapter, spec)
    head = adapter.manifest.head
    if head.type == "cloze" and head.pooling == "last":
        # It reads the last token: its backbone is a decoder.
        raise FailedPrecondition(
            "a cloze head on a decoder is not served: it would be read off the language model; `adamix evaluate` does",
            reason="HEAD_UNSUPPORTED",
        )
    if head.type == "cloze":
        raise InvalidAdapter(
            "a cloze head is read off the backbone's language model, which this server does not load; "
            "`adamix evaluate` does",
            reason="HEAD_UNSUPPORTED",
        )
    return Verdict(
        digest=digest,
        manifest_json=canonical_json(adapter.manifest.to_json()),
        num_bytes=len(data),
        tensor_sizes=tuple(tensor.array.size for tensor in adapter.tensors.values()),
    )


def _read(order: _Order) -> bytes:
    """The bytes of the file, with the limits for what follows in force before the first of them is read.

    Of a file that announces a header over the limit only the beginning: it is refused for that, and the time and the
    memory for the rest of it are saved.

    Raises:
        InvalidAdapter: it is no regular file, or too large.
        OSError: it cannot be read.
    """
    try:
        descriptor = os.open(order.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        # A link, or a socket. Whatever else it is (no such file, no descriptor) is not about what the file holds.
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise InvalidAdapter("not a readable regular file", reason="NOT_A_FILE") from None
    # Not a with-block: the first refusal ends this process, and its descriptors with it.
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        raise InvalidAdapter("not a regular file", reason="NOT_A_FILE")
    if info.st_size > MAX_FILE_BYTES:
        raise InvalidAdapter(f"file is over {MAX_FILE_BYTES >> 20} MiB", reason="TOO_LARGE")
    _limit(resource.RLIMIT_AS, _FIXED_BYTES + _BYTES_PER_FILE_BYTE * info.st_size)
    # At the soft limit the kernel sends SIGXCPU, which says whose fault it was; at the hard one SIGKILL, which says
    # nothing.
    _limit(resource.RLIMIT_CPU, math.ceil(order.timeout_s), spare=1)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, 16)
    _limit(resource.RLIMIT_CORE, 0)
    with os.fdopen(descriptor, "rb") as file:
        start = file.read(_LENGTH_BYTES)
        if len(start) == _LENGTH_BYTES and int.from_bytes(start, "little") > MAX_HEADER_BYTES:
            decode(start)  # raises, and knows a pickle or an archive by its first bytes
        return start + file.read(info.st_size)


def _limit(which: int, value: int, *, spare: int = 0) -> None:
    """Soft, and hard `spare` above it, so that nothing raises it again; never above what the child was given."""
    _, given = resource.getrlimit(which)
    hard = value + spare if given == resource.RLIM_INFINITY else min(value + spare, given)
    resource.setrlimit(which, (min(value, hard), hard))


if __name__ == "__main__":
    main()

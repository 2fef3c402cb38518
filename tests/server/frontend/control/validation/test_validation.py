"""The parent's side: verdicts, and what becomes of a child that gives none."""

import asyncio
import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from adamix.errors import AdamixError, Code, FailedPrecondition, InvalidAdapter, Unavailable
from adamix.files.adapter_file import decode, encode
from adamix.files.manifest import BackboneSpec, HeadSpec, Manifest
from adamix.files.tensors import Dtype, TensorData, canonical_json
from adamix_server.frontend.control import metered_child, validation
from adamix_server.frontend.control.validation import MAX_CHILDREN, Verdict, validate, validate_async
from adamix_testing.adapters import adapter_bytes

Stored = Callable[[bytes], Path]


def test_a_valid_file_gets_its_digest_and_canonical_manifest(
    stored: Stored, spec: BackboneSpec, manifest: Manifest, valid: bytes
) -> None:
    verdict = validate(stored(valid), spec, expected_digest=hashlib.sha256(valid).hexdigest())
    assert verdict == Verdict(
        digest=hashlib.sha256(valid).hexdigest(),
        manifest_json=canonical_json(manifest.to_json()),
        num_bytes=len(valid),
        tensor_sizes=tuple(tensor.array.size for tensor in decode(valid).tensors.values()),
    )


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_large_file_of_any_dtype_fits_the_childs_memory(
    stored: Stored, spec: BackboneSpec, manifest: Manifest, dtype: Dtype
) -> None:
    """The worst case for the memory of the check is one tensor that is nearly the whole file."""
    labels = 4096
    wide = msgspec.structs.replace(spec, hidden_size=2048, sites={})
    backbone = msgspec.structs.replace(manifest.backbone, hidden_size=2048)
    head = msgspec.structs.replace(manifest.head, num_labels=labels)
    data = encode(
        msgspec.structs.replace(manifest, backbone=backbone, head=head),
        {
            "head.out_proj.weight": TensorData.from_float32(np.ones((labels, 2048)), dtype),
            "head.out_proj.bias": TensorData.from_float32(np.zeros(labels), dtype),
        },
    )
    assert validate(stored(data), wide).num_bytes == len(data) > 16 << 20


async def test_several_files_at_once_are_each_judged(
    stored: Stored, spec: BackboneSpec, valid: bytes, tmp_path: Path
) -> None:
    good = stored(valid)
    bad = tmp_path / "bad"
    bad.write_bytes(valid[:-1])
    answers = await asyncio.gather(*(validate_async(p, spec) for p in [good, bad] * 3), return_exceptions=True)
    assert [type(a) for a in answers] == [Verdict, InvalidAdapter] * 3


async def test_no_more_children_run_at_once_than_allowed(
    monkeypatch: pytest.MonkeyPatch, stored: Stored, spec: BackboneSpec, valid: bytes
) -> None:
    running, most, lock, run = 0, 0, threading.Lock(), metered_child.run

    def counted(*args: Any, **kwargs: Any) -> "subprocess.CompletedProcess[bytes]":
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return run(*args, **kwargs)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(metered_child, "run", counted)
    path = stored(valid)
    await asyncio.gather(*(validate_async(path, spec) for _ in range(2 * MAX_CHILDREN + 1)))
    assert most == MAX_CHILDREN


def test_a_child_has_so_much_processor_time(stored: Stored, spec: BackboneSpec, valid: bytes) -> None:
    endless = (
        "import os, sys\n"
        "from adamix_server.frontend.control import validation\n"
        "order = validation._Order(path=os.fsencode(sys.argv[1]), spec=None, expected_digest=None, timeout_s=1.0)\n"
        "validation._read(order)\n"
        "while True: pass\n"
    )
    child = subprocess.run([sys.executable, "-c", endless, str(stored(valid))], check=False, capture_output=True)
    assert child.returncode == -signal.SIGXCPU
    assert validation._without_verdict(child.returncode, b"\n", 1.0).reason == "VALIDATOR_TIMEOUT"


def test_a_child_that_gets_no_processor_says_nothing_of_the_file(
    stored: Stored, spec: BackboneSpec, valid: bytes
) -> None:
    with pytest.raises(Unavailable) as caught:
        validate(stored(valid), spec, timeout_s=0.001)
    assert caught.value.reason == "VALIDATION_INTERRUPTED"
    assert caught.value.retry_after_s is not None


@pytest.mark.parametrize("program", ["print('not a verdict')", "import time; time.sleep(600)"])
def test_what_a_child_has_cost_is_told_also_where_it_gives_no_verdict(
    monkeypatch: pytest.MonkeyPatch, stored: Stored, spec: BackboneSpec, valid: bytes, program: str
) -> None:
    monkeypatch.setattr(validation, "_COMMAND", [sys.executable, "-I", "-S", "-c", BURN + program])
    told: list[float] = []
    with pytest.raises((InvalidAdapter, Unavailable)):
        validate(stored(valid), spec, timeout_s=0.5, spent=told.append)
    assert len(told) == 1
    assert told[0] >= 0.05


def test_what_a_verdict_has_cost_is_told(stored: Stored, spec: BackboneSpec, valid: bytes) -> None:
    told: list[float] = []
    validate(stored(valid), spec, spent=told.append)
    # It has at least loaded its libraries.
    assert told[0] > 0.01


BURN = "import time\nwhile time.process_time() < 0.05: pass\n"
INTERRUPTED = (Code.UNAVAILABLE, "VALIDATION_INTERRUPTED")
CRASHED = (Code.INVALID_ARGUMENT, "VALIDATOR_CRASHED")

# What a child does instead of judging, and what that says of the file. It has begun once it has printed something.
ENDS = {
    # Its own doing: the next child would meet the same.
    **{
        f"dies of {name}": (f"import os; print(flush=True); os.kill(os.getpid(), {int(signal.Signals[name])})", CRASHED)
        for name in ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGSYS")
    },
    "has no more memory": ("print(flush=True); raise MemoryError", CRASHED),
    "noise": ("print('not a verdict')", CRASHED),
    "malformed": ("""print('{"type":"Verdict","digest":7}')""", CRASHED),
    "refused, then died": (
        'import os; os.write(1, b\'{"type":"_Refusal","reason":"R","message":"m"}\'); os._exit(3)',
        CRASHED,
    ),
    "its CPU time is over": (
        f"import os; print(flush=True); os.kill(os.getpid(), {int(signal.SIGXCPU)})",
        (Code.INVALID_ARGUMENT, "VALIDATOR_TIMEOUT"),
    ),
    # From outside: a person, a session that ends, the kernel for its memory.
    **{
        f"gets {name}": (
            # A shell's background jobs ignore some of them, and hand that on.
            "import os, signal; print(flush=True); "
            + ("" if name == "SIGKILL" else f"signal.signal(signal.{name}, signal.SIG_DFL); ")
            + f"os.kill(os.getpid(), signal.{name})",
            INTERRUPTED,
        )
        for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
    },
    "is killed after its verdict": (
        f"""import os; os.write(1, b'{{}}'); os.kill(os.getpid(), {int(signal.SIGKILL)})""",
        INTERRUPTED,
    ),
    # Before it looked at the file.
    "its libraries do not load": ("raise ImportError", INTERRUPTED),
    "its libraries crash": (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", INTERRUPTED),
    # The operating system kept it from reading what the server has written.
    "no descriptor": (
        f"""print('{{"type":"_Trouble","errno":{errno.EMFILE}}}')""",
        (Code.RESOURCE_EXHAUSTED, "OUT_OF_DESCRIPTORS"),
    ),
    "no file": (f"""print('{{"type":"_Trouble","errno":{errno.ENOENT}}}')""", (Code.UNAVAILABLE, "STORE_LOST")),
    "no idea": ("""print('{"type":"_Trouble","errno":0}')""", INTERRUPTED),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_child_without_a_verdict_is_about_the_file_or_about_the_machine(
    monkeypatch: pytest.MonkeyPatch, stored: Stored, spec: BackboneSpec, valid: bytes, end: str
) -> None:
    program, expected = ENDS[end]
    monkeypatch.setattr(validation, "_COMMAND", [sys.executable, "-I", "-S", "-c", program])
    with pytest.raises(AdamixError) as caught:
        validate(stored(valid), spec)
    error = caught.value
    assert (error.code, error.reason) == expected
    # What may pass says when to try again; what is the file's fault never does.
    assert (error.retry_after_s is None) == (error.code is Code.INVALID_ARGUMENT)
    assert "Traceback" not in error.message


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EAGAIN, INTERRUPTED),
        (errno.ENOENT, INTERRUPTED),
        (errno.ENOMEM, (Code.RESOURCE_EXHAUSTED, "OVERLOADED")),
        (errno.EMFILE, (Code.RESOURCE_EXHAUSTED, "OUT_OF_DESCRIPTORS")),
        (errno.ENFILE, (Code.RESOURCE_EXHAUSTED, "OUT_OF_DESCRIPTORS")),
    ],
)
def test_a_child_that_cannot_be_started_says_nothing_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
    stored: Stored,
    spec: BackboneSpec,
    valid: bytes,
    number: int,
    expected: tuple[Code, str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(metered_child, "Child", refuse)
    with pytest.raises(AdamixError) as caught:
        validate(stored(valid), spec)
    assert (caught.value.code, caught.value.reason) == expected
    assert caught.value.retry_after_s is not None


def test_a_file_that_has_gone_before_it_is_judged_is_about_the_store(tmp_path: Path, spec: BackboneSpec) -> None:
    """The server has just written it: nobody else can have taken it away but with its directory."""
    with pytest.raises(AdamixError) as caught:
        validate(tmp_path / "absent", spec)
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "STORE_LOST")


def test_what_a_refusal_quotes_is_printable_and_short(
    monkeypatch: pytest.MonkeyPatch, stored: Stored, spec: BackboneSpec, valid: bytes
) -> None:
    program = """print('{"type":"_Refusal","reason":"R","message":"a\\\\u001b[31m\\\\u202e\\\\n' + 'x' * 9999 + '"}')"""
    monkeypatch.setattr(validation, "_COMMAND", [sys.executable, "-I", "-S", "-c", program])
    with pytest.raises(InvalidAdapter) as caught:
        validate(stored(valid), spec)
    assert caught.value.message.startswith("a?[31m??x")
    assert len(caught.value.message) == validation.MAX_MESSAGE_CHARS


def test_a_cloze_head_on_a_decoder_is_a_precondition_and_no_fault_of_the_file(
    stored: Stored, spec: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloze = HeadSpec(
        type="cloze", pooling="last", num_labels=2, template="{text} It was", verbalizer=(5, 6), id2label=None
    )
    file = adapter_bytes(spec, cloze)
    with pytest.raises(FailedPrecondition, match="cloze head on a decoder") as judged:
        validation.judge(file, spec)
    answer = f'{{"type":"_Refusal","reason":"{judged.value.reason}","message":"m","is_valid":true}}'
    monkeypatch.setattr(validation, "_COMMAND", (sys.executable, "-c", f"print({answer!r})"))
    with pytest.raises(FailedPrecondition) as refused:
        validate(stored(file), spec)
    assert refused.value.reason == "HEAD_UNSUPPORTED"


def test_the_child_gets_no_secret_of_the_parents_environment(
    monkeypatch: pytest.MonkeyPatch, stored: Stored, spec: BackboneSpec, valid: bytes
) -> None:
    seen: dict[str, str] = {}
    run = metered_child.run

    def watched(*args: Any, environment: Mapping[str, str], **kwargs: Any) -> "subprocess.CompletedProcess[bytes]":
        seen.update(environment)
        return run(*args, environment=environment, **kwargs)

    monkeypatch.setenv("ADAMIX_TEST_SECRET", "s3cret")
    monkeypatch.setattr(metered_child, "run", watched)
    validate(stored(valid), spec)
    assert seen
    assert "s3cret" not in seen.values()


def test_the_childs_module_loads_neither_torch_nor_grpc_nor_asyncio() -> None:
    program = (
        "import sys, adamix_server.frontend.control.validation\n"
        "print([m for m in ('torch', 'grpc', 'transformers', 'sqlalchemy', 'asyncio') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


READ_AND_TRY = """
import pathlib, resource, sys, msgspec
from adamix_server.frontend.control import validation
validation._read(msgspec.json.decode(sys.stdin.buffer.read(), type=validation._Order))
try:
    pathlib.Path(sys.argv[1]).write_bytes(b"x")
except OSError as error:
    print(error.strerror)
for limit in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
    soft, hard = resource.getrlimit(limit)
    print(soft == hard != resource.RLIM_INFINITY)
# A second more, which nobody reaches: the soft limit's signal says what it was.
soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
print(soft == 5 and hard == 6)
try:
    bytearray(2 << 30)
except MemoryError:
    print("no memory")
"""


def test_the_child_cannot_write_files_or_raise_its_limits(
    stored: Stored, tmp_path: Path, spec: BackboneSpec, valid: bytes
) -> None:
    order = validation._Order(path=os.fsencode(stored(valid)), spec=spec, expected_digest=None, timeout_s=5.0)
    result = subprocess.run(
        [sys.executable, "-I", "-c", READ_AND_TRY, str(tmp_path / "leak")],
        input=msgspec.json.encode(order),
        capture_output=True,
        check=True,
    )
    assert result.stdout.decode().splitlines() == ["File too large", *["True"] * 4, "no memory"]

"""Compiles the kernels beside this file into a shared library, and says where one lies that can be loaded.

    python -m adamix_kernels.native.build

The library's name carries two digests: of what it was made from (sources, flags, kind of machine), so that one of other
sources is never found, and of its own bytes, so that one that was cut short or changed is never loaded. It lies in the
package's folder, or, where that cannot be written, in the user's cache. Knows neither torch nor what is in the library:
the build of a wheel runs this file by itself.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE_FOLDER = Path(__file__).parent
LIBRARY, VARIANT = "library.c", "variant.c"
# No -ffast-math: sums have the order that the sources give them.
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast")
# Sets of instructions, each with its flags; those that the compiler refuses are left out, the first must do.
PLAIN = "plain"
_X86 = {
    PLAIN: (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
}
VARIANTS = _X86 if platform.machine() in ("x86_64", "AMD64") else {PLAIN: ()}

_NAME = "adamix_native"
_DIGEST_CHARACTERS = 16
_LONGEST_COMPILATION_S = 300


class BuildError(RuntimeError):
    """There is no library, for the reason given in one line."""


def folders() -> tuple[Path, ...]:
    """Where a library may lie, the first place first."""
    beside = SOURCE_FOLDER / "lib"
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # nobody's home is known
        return (beside,)
    return (beside, cache / "adamix" / "native") if cache.is_absolute() else (beside,)


def find() -> Path | None:
    """The library of these very sources, with its bytes intact; None if it was never built.

    Raises:
        BuildError: there is one, but its bytes are not those that were built, or cannot be read.
    """
    broken = None
    for folder in folders():
        for path in sorted(folder.glob(f"{_NAME}-{_source_digest()}-*.so")):
            try:
                if path.stem.rpartition("-")[2] == _digest(path.read_bytes()):
                    return path
            except OSError as error:
                raise BuildError(f"{path}: {error.strerror}") from error
            broken = path
    if broken is not None:
        raise BuildError(f"{broken} is not what was built: run python -m adamix_kernels.native.build")
    return None


def build() -> Path:
    """Compile, in some ten seconds, and return where the library lies. One that is there already is kept.

    Raises:
        BuildError: there is no compiler, it failed, or no folder can be written.
    """
    try:
        found = find()
    except BuildError:
        found = None  # what is broken is replaced
    if found is not None:
        return found
    compiler = _compiler()
    with tempfile.TemporaryDirectory(prefix="adamix-native-") as scratch:
        data = _compile(compiler, Path(scratch))
    name = f"{_NAME}-{_source_digest()}-{_digest(data)}.so"
    reasons = []
    for folder in folders():
        try:
            return _place(data, folder, name)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
    raise BuildError(f"no folder for the native kernels: {'; '.join(reasons)}")


def _compiler() -> str:
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for name in names:
        if found := shutil.which(name):
            return found
    raise BuildError(f"no C compiler ({', '.join(names)}) is installed")


def _compile(compiler: str, scratch: Path) -> bytes:
    objects, present = [], []
    for variant, flags in VARIANTS.items():
        to = scratch / f"{variant}.o"
        command = [*FLAGS, *flags, "-Wno-psabi", f"-DKERNELS=kernels_{variant}", "-c", VARIANT, "-o", str(to)]
        failure = _run(compiler, command)
        if failure is None:
            objects.append(str(to))
            present.append(f"-DWITH_{variant.upper()}")
        elif variant == PLAIN:
            raise BuildError(failure)
    to = scratch / "library.so"
    failure = _run(compiler, [*FLAGS, *present, "-shared", LIBRARY, *objects, "-lm", "-o", str(to)])
    if failure is not None:
        raise BuildError(failure)
    return to.read_bytes()


def _run(compiler: str, arguments: list[str]) -> str | None:
    """None, or in one line why it failed."""
    command = [compiler, *arguments]
    try:
        done = subprocess.run(
            command, cwd=SOURCE_FOLDER, capture_output=True, text=True, timeout=_LONGEST_COMPILATION_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{compiler}: {error}"
    said = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else f"{compiler} failed: {said[0] if said else done.returncode}"


def _place(data: bytes, folder: Path, name: str) -> Path:
    """Write the library under its name, whole or not at all, and remove those of other sources."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o755)
        Path(temporary).replace(folder / name)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    for other in folder.glob(f"{_NAME}-*.so"):
        if other.name != name:
            other.unlink(missing_ok=True)
    return folder / name


def _source_digest() -> str:
    made_from = [repr((FLAGS, sorted(VARIANTS.items()), sys.platform, platform.machine())).encode()]
    made_from += [path.name.encode() + path.read_bytes() for path in sorted(SOURCE_FOLDER.glob("*.[ch]"))]
    return _digest(b"\0".join(made_from))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST_CHARACTERS]


def main() -> int:
    """Build, and say in one line what came of it."""
    try:
        path = build()
    except BuildError as error:
        print(f"native kernels: not built: {error}", file=sys.stderr)
        return 1
    print(f"native kernels: {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

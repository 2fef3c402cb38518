"""What the client needs, and what its wheel holds: gRPC and protobuf, the generated messages, and nothing of the rest.

`ADAMIX_WHEELS` names a folder with both wheels (`make dist` does); without it they are built here.
"""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What gRPC itself brings, and what it imports of its own where it is installed.
GRPC = {
    "_cython_3_2_8",
    "cython_runtime",
    "google",
    "grpc",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "grpc_tools",
}
ALLOWED = {"adamix_client", "adamix_protos", "typing_extensions", *GRPC}
MAX_BYTES = 60_000_000

EVERYTHING = """
import sys
before = set(sys.modules)
import adamix_client
bare = {name.partition(".")[0] for name in set(sys.modules) - before}
for name in adamix_client.__all__:
    getattr(adamix_client, name)
adamix_client.Client("127.0.0.1:1").close()
found = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(*sorted(bare - sys.stdlib_module_names), "|", *sorted(found))
"""


def test_the_client_loads_grpc_and_protobuf_alone_and_nothing_before_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", EVERYTHING], capture_output=True, text=True, check=True)
    bare, _, found = done.stdout.partition("|")
    assert bare.split() == ["adamix_client"]
    assert {name for name in found.split() if not name.startswith("_cython")} <= ALLOWED


def test_one_distribution_owns_the_messages() -> None:
    both, client = (tomllib.loads((ROOT / path).read_text()) for path in ("pyproject.toml", "client/pyproject.toml"))
    packages = both["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert not {"adamix_client", "adamix_protos"} & {Path(package).name for package in packages}
    assert client["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {
        "../protos/adamix_protos": "adamix_protos"
    }
    version = client["project"]["version"]
    assert version == both["project"]["version"]
    assert f"adamix-client=={version}" in both["project"]["dependencies"]
    names = {requirement.partition(">")[0] for requirement in client["project"]["dependencies"]}
    assert names == {"googleapis-common-protos", "grpcio", "protobuf"}


def pip(python: Path | str, *arguments: str) -> None:
    command = [str(python), "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By their distributions."""
    folder = Path(os.environ.get("ADAMIX_WHEELS") or tmp_path_factory.mktemp("wheels"))
    if not os.environ.get("ADAMIX_WHEELS"):
        pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), "./client", ".")
    return {path.name.partition("-")[0]: path for path in folder.glob("adamix*.whl")}


def fresh(folder: Path) -> Path:
    """The Python of a new environment that has pip alone."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Of an installed environment, which nothing of this tree's is laid over."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(program), *arguments]
    return subprocess.run(command, cwd=program.parent, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_no_file_is_in_both_wheels(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {"adamix", "adamix_client"}
    held = {name: set(zipfile.ZipFile(path).namelist()) for name, path in wheels.items()}
    assert held["adamix"] & held["adamix_client"] == set()
    folders = {
        name: {file.partition("/")[0] for file in files if ".dist-info" not in file} for name, files in held.items()
    }
    assert folders == {
        "adamix": {"adamix", "adamix_bench", "adamix_kernels", "adamix_server"},
        "adamix_client": {"adamix_client", "adamix_protos"},
    }
    assert "adamix_client/py.typed" in held["adamix_client"]


@pytest.mark.long
def test_the_client_alone_in_a_fresh_environment(wheels: dict[str, Path], tmp_path: Path) -> None:
    python = fresh(tmp_path / "venv")
    pip(python, "install", "-c", "constraints.txt", str(wheels["adamix_client"]))
    listed = run(python, "-m", "pip", "list", "--format=freeze").stdout
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert names - {"pip", "setuptools"} == {
        "adamix-client",
        "googleapis-common-protos",
        "grpcio",
        "protobuf",
        "typing_extensions",
    }
    size = sum(
        path.stat().st_size for path in (tmp_path / "venv").rglob("*") if path.is_file() and not path.is_symlink()
    )
    assert size <= MAX_BYTES
    asked = run(python, "-c", "import adamix_client as a; a.Client('127.0.0.1:1', timeout_s=5).predict('t', 'hello')")
    assert asked.returncode == 1
    assert (
        asked.stderr.strip()
        .splitlines()[-1]
        .startswith("adamix_client.errors.Unavailable: no server answers at 127.0.0.1:1")
    )
    both = run(python, "-c", "import adamix_client.aio.client, adamix_client.chain, adamix_client.status")
    assert both.returncode == 0, both.stderr


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("ADAMIX_WHEELS"), reason="installs torch: `make dist`")
def test_both_in_a_fresh_environment(wheels: dict[str, Path], tmp_path: Path) -> None:
    python = fresh(tmp_path / "venv")
    pip(python, "install", "-c", "constraints.txt", "torch")
    pip(python, "install", "-c", "constraints.txt", str(wheels["adamix_client"]), str(wheels["adamix"]))
    for program in ([python.with_name("adamix")], [python, "-m", "adamix_server"]):
        told = run(program[0], *program[1:], "--help")
        assert told.returncode == 0, told.stderr
        assert "serve" in told.stdout
    imported = run(python, "-c", "import adamix_server.frontend.front_end, adamix_client; print(adamix_client.Client)")
    assert imported.returncode == 0, imported.stderr
    checked = run(python, "-m", "pip", "check")
    assert checked.returncode == 0, checked.stdout

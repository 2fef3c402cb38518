"""The documents name every flag, RPC and metric there is, and none, and no file, that is not."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from adamix_protos.v1 import adapters_pb2, admin_pb2, inference_pb2, server_pb2
from adamix_server.cli.main import app
from adamix_server.limits import TABLE
from adamix_server.limits.page import page
from adamix_server.telemetry.metrics import METRICS

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
# What CONTRIBUTING.md writes short.
LETTERS = {"A": "adamix/adamix", "S": "adamix_server", "C": "adamix_client", "K": "adamix_kernels", "B": "adamix_bench"}
SOURCES = ("adamix", "benchmarks", "client", "kernels", "protos", "server", "tests")
# Of every command, or before any.
OF_ALL = {"--help", "--config", "--version"}
# Of other programs.
FOREIGN_FLAGS = {"--no-deps", "--nproc-per-node", "--num_processes"}


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def flags(command: Any) -> set[str]:
    words = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
    return {word for word in words if word.startswith("--")} - OF_ALL


@pytest.fixture(scope="module")
def flags_of() -> dict[str, set[str]]:
    return {name: flags(command) for name, command in commands(typer.main.get_command(app))}


@pytest.mark.parametrize(
    ("command", "page"),
    [
        ("train", "method.md"),
        ("merge", "merging.md"),
        ("evaluate", "method.md"),
        ("report", "method.md"),
        ("few-shot", "experiments.md"),
        ("sweep", "sweeps.md"),
        ("import peft", "interop.md"),
        ("import microsoft-adamix", "interop.md"),
        ("export peft", "interop.md"),
        ("serve", "serving.md"),
        ("predict", "serving.md"),
        ("generate", "serving.md"),
        ("audit", "serving.md"),
        ("register", "command-line.md"),
        ("embed", "command-line.md"),
        ("apply", "command-line.md"),
        ("tasks", "command-line.md"),
        ("show", "command-line.md"),
        ("traffic", "command-line.md"),
        ("delete", "command-line.md"),
        ("pin", "command-line.md"),
        ("load", "command-line.md"),
        ("info", "command-line.md"),
        ("top", "command-line.md"),
        ("health", "command-line.md"),
        ("drain", "command-line.md"),
        ("keys create", "tenants.md"),
        ("keys list", "tenants.md"),
        ("keys revoke", "tenants.md"),
        ("tenants create", "tenants.md"),
        ("tenants set", "tenants.md"),
        ("tenants delete", "tenants.md"),
        ("grants add", "tenants.md"),
        ("grants list", "tenants.md"),
        ("grants remove", "tenants.md"),
        ("usage", "tenants.md"),
        ("whoami", "tenants.md"),
        ("store backup", "backup.md"),
        ("store restore", "backup.md"),
        ("store rebuild", "backup.md"),
        ("store verify", "backup.md"),
        ("bench serving", "benchmarks.md"),
        ("bench training", "benchmarks.md"),
        ("bench quality", "benchmarks.md"),
        ("bench generation", "benchmarks.md"),
        ("bench faces", "benchmarks.md"),
    ],
)
def test_every_flag_is_on_its_page(command: str, page: str, flags_of: dict[str, set[str]]) -> None:
    named = set(re.findall(r"--[a-z][a-z-]*", PAGES[page]))
    # One of the two names of a switch is enough.
    missing = {
        f for f in flags_of[command] - named if f"--no-{f[2:]}" not in named and f.replace("--no-", "--") not in named
    }
    assert missing == set()


def test_no_page_names_a_flag_that_is_not(flags_of: dict[str, set[str]]) -> None:
    known = set().union(*flags_of.values()) | FOREIGN_FLAGS | OF_ALL
    named = {(page, flag) for page, text in PAGES.items() for flag in re.findall(r"(?<![\w-])--[a-z][a-z_-]*", text)}
    assert {(page, flag) for page, flag in named if flag not in known} == set()


def test_every_metric_is_named_and_no_other() -> None:
    named = set(re.findall(r"\badamix_(?!bench|client|kernels|protos|server)[a-z_]+", PAGES["serving.md"]))
    assert named == set(METRICS)


def test_every_rpc_is_named() -> None:
    services = [
        adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"],
        admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
        inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
        server_pb2.DESCRIPTOR.services_by_name["ServerService"],
    ]
    rpcs = {method.name for service in services for method in service.methods}
    # By its own name, or as the client's method, or as the command.
    ways = {rpc: (rpc, f".{re.sub(r'(?<!^)(?=[A-Z])', '_', rpc).lower()}(") for rpc in rpcs}
    pages = PAGES["serving.md"] + PAGES["tenants.md"]
    assert {rpc for rpc, names in ways.items() if not any(name in pages for name in names)} == set()


def test_every_file_that_a_page_names_is_there() -> None:
    files = [f"/{path.relative_to(ROOT)}" for folder in SOURCES for path in (ROOT / folder).glob("**/*.py")]
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.md")]
    named = {
        (page.name, name) for page in pages for name in re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.py)`", page.read_text())
    }
    assert len(named) > 100

    def is_there(name: str) -> bool:
        first, _, rest = name.partition("/")
        whole = f"/{LETTERS.get(first, first)}/{rest}"
        return any(file.endswith(whole) for file in files)

    assert {(page, name) for page, name in named if not is_there(name)} == set()


def test_the_page_of_limits_is_the_table() -> None:
    assert PAGES["limits.md"] == page(), "write it: python -m adamix_server.limits > docs/limits.md"


def test_every_limit_has_a_test_and_whoever_is_refused_a_reason() -> None:
    tests = ROOT / "tests"
    without = [
        limit.what
        for limit in TABLE
        if not _is_test(tests, *limit.proof.split("::"))
        or (limit.code is not None and not limit.reason and "transport" not in limit.note)
    ]
    assert without == []


def _is_test(tests: Path, file: str, function: str) -> bool:
    path = tests / file
    return path.is_file() and re.search(rf"^\s*(async )?def {function}\(", path.read_text(), re.MULTILINE) is not None

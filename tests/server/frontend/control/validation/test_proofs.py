"""The page of failures: every test it names exists, and every attack on its list has one."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[5]
PAGE = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
PROOF = re.compile(r"`([\w/]+\.py)::(\w+)`")
ATTACK = re.compile(r"^\| (\d+) \| .* \| (.*) \|$", re.MULTILINE)
ATTACKS = 20


def functions(path: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)}


@pytest.mark.parametrize(("file", "name"), sorted(set(PROOF.findall(PAGE))))
def test_a_named_test_exists(file: str, name: str) -> None:
    path = ROOT / "tests" / file
    assert path.is_file()
    assert name in functions(path)


def test_every_attack_names_its_test() -> None:
    proofs = {int(number): PROOF.findall(cell) for number, cell in ATTACK.findall(PAGE)}
    assert list(proofs) == list(range(1, ATTACKS + 1))
    assert all(proofs.values())


def test_every_row_has_its_proof() -> None:
    rows = [
        row for row in PAGE.splitlines() if row.startswith("| ") and not row.startswith(("| what happens", "| no."))
    ]
    assert len(rows) > ATTACKS + 10
    assert [row for row in rows if not PROOF.search(row)] == []

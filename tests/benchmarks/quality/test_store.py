"""The file of results: nothing that was written is lost, nothing half written is read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adamix.errors import InvalidConfig, InvalidData
from adamix_bench.quality.store import RunStore


def _store(directory: Path) -> RunStore:
    return RunStore(directory / "quality.jsonl", directory / "claims")


def test_records_come_back_in_order_and_by_kind(tmp_path: Path) -> None:
    store = _store(tmp_path / "new")
    assert store.records("run") == []
    store.append("run", {"value": 1.0})
    store.append("trial", {"value": 2.0})
    store.append("run", {"value": 3.0})
    assert [record["value"] for record in store.records("run")] == [1.0, 3.0]
    assert [record["value"] for record in store.records("trial")] == [2.0]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_off_by_a_kill_is_dropped_and_the_next_record_is_whole(tmp_path: Path, cut: int) -> None:
    store = _store(tmp_path)
    store.append("run", {"value": 1.0})
    store.append("run", {"value": 2.0})
    store.path.write_bytes(store.path.read_bytes()[:-cut])
    assert [record["value"] for record in store.records("run")] == [1.0]
    store.append("run", {"value": 3.0})
    assert [record["value"] for record in store.records("run")] == [1.0, 3.0]
    assert all(json.loads(line) for line in store.path.read_text().splitlines())


@pytest.mark.parametrize("line", ["nonsense", "[]", "{}", "3"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    store = _store(tmp_path)
    store.append("run", {"value": 1.0})
    with store.path.open("a") as file:
        file.write(line + "\n")
    store.append("run", {"value": 2.0})
    with pytest.raises(InvalidData, match=r"quality\.jsonl:2 "):
        store.records("run")


def test_values_that_json_cannot_hold_are_not_written(tmp_path: Path) -> None:
    store = _store(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        store.append("run", {"value": float("nan")})
    assert store.records("run") == []


def test_one_piece_of_work_is_claimed_once(tmp_path: Path) -> None:
    first, second = _store(tmp_path), _store(tmp_path)
    with first.claimed("cell") as mine, second.claimed("cell") as theirs, second.claimed("other") as another:
        assert (mine, theirs, another) == (True, False, True)
    with second.claimed("cell") as theirs:
        assert theirs


WRITER = """
import sys
from pathlib import Path
from adamix_bench.quality.store import RunStore

store = RunStore(Path(sys.argv[1]), Path(sys.argv[2]))
for number in range(20):
    store.append("run", {"writer": int(sys.argv[3]), "number": number})
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    store = _store(tmp_path)
    arguments = [str(store.path), str(tmp_path / "claims")]
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, *arguments, str(writer)]) for writer in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    records = [(record["writer"], record["number"]) for record in store.records("run")]
    assert sorted(records) == [(writer, number) for writer in range(2) for number in range(20)]


def test_runs_made_in_another_way_do_not_come_into_one_file(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.begin({"batch_size": 8, "steps": [5, 10]})
    store.append("run", {"value": 1.0})
    store.begin({"batch_size": 8, "steps": [5, 10]})
    assert len(store.path.read_text().splitlines()) == 2
    with pytest.raises(InvalidConfig, match=r"batch_size 8, not 16: name another --out"):
        store.begin({"batch_size": 16, "steps": [5, 10]})

"""What was measured is found again, by everything that a number depends on."""

from pathlib import Path

import pytest

from adamix_bench.kernels.store import Store, slug


def test_what_was_kept_is_there_in_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "new" / "kernels.jsonl"
    Store(path).keep({"form": "fused", "rows": 8}, {"us": 1.5})
    Store(path).keep({"form": "bmm", "rows": 8}, {"us": 2.5})
    again = Store(path)
    assert again.get({"rows": 8, "form": "fused"}) == {"us": 1.5}
    assert again.get({"form": "bmm", "rows": 8}) == {"us": 2.5}
    assert again.get({"form": "bmm", "rows": 9}) is None


def test_a_later_line_counts(tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    store.keep({"x": 1}, {"us": 1.0})
    store.keep({"x": 1}, {"us": 2.0})
    assert store.get({"x": 1}) == Store(tmp_path / "a").get({"x": 1}) == {"us": 2.0}


def test_a_line_that_was_cut_off_loses_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    Store(path).keep({"x": 1}, {"us": 1.0})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": {"x": 2}, "fou')
    Store(path).keep({"x": 3}, {"us": 3.0})
    again = Store(path)
    assert again.get({"x": 1}) == {"us": 1.0}
    assert again.get({"x": 2}) is None
    assert again.get({"x": 3}) == {"us": 3.0}


@pytest.mark.parametrize(
    "line", [b"5", b"[]", b'{"a": 1}', b'{"key": {"x": 1}, "found": 3}', b'{"key": 1, "found": {}}', b"\xff\xfe", b""]
)
def test_a_damaged_line_loses_itself_alone(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    Store(path).keep({"x": 1}, {"us": 1.0})
    with path.open("ab") as file:
        file.write(line + b"\n")
    Store(path).keep({"x": 3}, {"us": 3.0})
    again = Store(path)
    assert [again.get({"x": x}) for x in (1, 3)] == [{"us": 1.0}, {"us": 3.0}]


def test_a_devices_name_becomes_a_directory() -> None:
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert slug("../é") == "device"

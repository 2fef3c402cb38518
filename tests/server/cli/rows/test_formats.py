"""Files of rows: what is read of them, what is refused, and that what was in a row stays as it was."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix.errors import InvalidConfig, InvalidData
from adamix_server.cli.rows import answers, lines
from adamix_server.cli.rows.opening import format_of, open_rows
from adamix_server.cli.rows.row import Choice, Row
from adamix_server.cli.rows.row_file import RowFile
from adamix_server.limits import files

LABELS = {"label": "label", "score": "score", "error": "error"}
GOOD = {"label": "a,b", "score": 0.5}


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes | str], Path]:
    def write(name: str, data: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write


def opened(path: Path, column: str | None = None, pair: str | None = None, *, truncate: bool = False) -> RowFile:
    choice = Choice(column, pair, truncate)
    return open_rows(path, format_of(path, path.with_stem("out"), None), choice)


def texts(path: Path, column: str | None = None, pair: str | None = None) -> list[Any]:
    return [row.text if row.pair is None else (row.text, row.pair) for row in opened(path, column, pair).rows()]


def written(path: Path, answer: Any = GOOD, names: dict[str, str] = LABELS) -> bytes:
    out = path.with_name("written")
    opened(path).write(out, names, lambda row: answer)
    return out.read_bytes()


def test_csv_rows_stay_as_they_are_and_cells_follow(put: Any) -> None:
    data = '\ufeffid,"text",x\r\n=1+1,"a ""b""\r\nc",\r\n\r\n+x, d ,""\r\n-2,e,@z'
    path = put("in.csv", data)
    assert texts(path) == ['a "b"\r\nc', " d ", "e"]
    assert [row.where for row in opened(path).rows()] == ["in.csv:2", "in.csv:5", "in.csv:6"]
    cells = ',"a,b",0.5,\r\n'
    assert written(path).decode() == (
        f'\ufeffid,"text",x,label,score,error\r\n=1+1,"a ""b""\r\nc",{cells}+x, d ,""{cells}-2,e,@z{cells}'
    )


def test_tsv(put: Any) -> None:
    path = put("in.tsv", 'text\tn\na,b\t1\n"c\td"\t2\n')
    assert texts(path) == ["a,b", "c\td"]
    assert written(path) == b'text\tn\tlabel\tscore\terror\na,b\t1\ta,b\t0.5\t\n"c\td"\t2\ta,b\t0.5\t\n'


def test_jsonl_rows_keep_their_bytes(put: Any) -> None:
    path = put("in.jsonl", '{"text":"\\u00e9", "n": 1.50, "big": 12345678901234567890 }\r\n\n  {"text": "b", "o": {}}')
    assert texts(path) == ["é", "b"]
    assert written(path).decode() == (
        '{"text":"\\u00e9", "n": 1.50, "big": 12345678901234567890, "label": "a,b", "score": 0.5}\r\n'
        '  {"text": "b", "o": {}, "label": "a,b", "score": 0.5}\n'
    )


def test_a_row_of_jsonl_without_a_text_has_an_error_of_its_own(put: Any) -> None:
    path = put("in.jsonl", '{"text": "a"}\n{}\n{"text": null}\n{"text": 5}\n{"text": "\\ud800"}\n{"text": " "}\n')
    problems = [row.problem and row.problem.reason for row in opened(path).rows()]
    assert problems == [None, "TEXT_EMPTY", "TEXT_EMPTY", "TEXT_INVALID", "TEXT_INVALID", "TEXT_EMPTY"]
    found = written(path, {"error": {"reason": "R", "message": "m"}}).splitlines()
    assert json.loads(found[1]) == {"error": {"reason": "R", "message": "m"}}


@pytest.mark.parametrize("name", ["in.csv.gz", "in.jsonl.gz"])
def test_packed_files(name: str, put: Any) -> None:
    data = b"text\na\nb\n" if "csv" in name else b'{"text": "a"}\n{"text": "b"}\n'
    path = put(name, gzip.compress(data))
    assert texts(path) == ["a", "b"]
    found = written(path)
    assert gzip.decompress(found).startswith(data[:4])
    assert b"in" not in found[:20]
    with pytest.raises(InvalidData, match=r"in\.\w+\.gz:\d: the packed file is damaged or cut off"):
        opened(put(name, gzip.compress(data)[:-9]))
    with pytest.raises(InvalidData, match="damaged"):
        opened(put(name, data))


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def test_parquet_columns_go_through_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    whole = table(
        id=pa.array([1, None, 3], pa.int8()),
        text=pa.array(["a", None, ""]).dictionary_encode(),
        when=pa.array([0, 1, 2], pa.timestamp("us", "UTC")),
        deep=[{"a": [1]}, None, {"a": []}],
    ).replace_schema_metadata({"k": "v"})
    pq.write_table(whole, path)
    rows = list(opened(path).rows())
    assert [row.text for row in rows] == ["a", "", ""]
    assert [row.problem is None for row in rows] == [True, False, False]
    assert rows[1].where == "in.parquet: row 2"
    found = iter([GOOD, {"error": {"reason": "R", "message": "m"}}, GOOD])
    opened(path).write(tmp_path / "out.parquet", LABELS, lambda row: next(found))
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(whole.column_names).equals(whole)
    assert out.schema.metadata[b"k"] == b"v"
    assert out.column("label").to_pylist() == ["a,b", None, "a,b"]
    assert out.column("error").to_pylist() == [None, "R: m", None]
    assert out.schema.field("score").type == pa.float32()


def test_parquet_is_written_in_groups_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adamix_server.cli.rows import parquet

    monkeypatch.setattr(parquet, "_BATCH_ROWS", 2)
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 4)
    path, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table(text=[str(i) for i in range(9)]), path)
    opened(path).write(out, LABELS, lambda row: {"label": row.text, "score": 1.0})
    assert [pq.ParquetFile(out).metadata.row_group(i).num_rows for i in range(3)] == [4, 4, 1]
    assert pq.read_table(out).column("label").to_pylist() == [str(i) for i in range(9)]


def test_a_cell_of_parquet_that_is_no_text_is_that_rows_matter(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    raw = pa.array([b"a", b"\xff", b"c"])
    pq.write_table(pa.table({"text": raw.view(pa.string())}), path)
    rows = list(opened(path).rows())
    assert [row.text for row in rows] == ["a", "", "c"]
    assert rows[1].problem is not None
    opened(path).write(tmp_path / "out.parquet", LABELS, lambda row: GOOD)
    assert pq.read_table(tmp_path / "out.parquet").column("text").cast(pa.binary()).equals(pa.chunked_array([raw]))


@pytest.mark.parametrize(
    ("head", "answer", "cells"),
    [
        ({"labels", "scores"}, {"labels": ["x", "y"], "scores": [0.5, 0.25]}, ['["x","y"]', "[0.5,0.25]", ""]),
        ({"labels", "scores"}, {"labels": [], "scores": []}, ["[]", "[]", ""]),
        ({"score"}, {"score": -1.5}, ["-1.5", ""]),
        ({"embedding"}, {"embedding": [0.1, 2.0]}, ["[0.1,2.0]", ""]),
        ({"label", "score"}, {"error": {"reason": "R", "message": 'm "q"'}}, ["", "", 'R: m "q"']),
        (set(), {"error": {"reason": "R", "message": "m"}}, ["", "", "R: m"]),
    ],
)
def test_the_columns_of_each_head(head: set[str], answer: Any, cells: list[str], put: Any, tmp_path: Path) -> None:
    names = answers.columns(head, frozenset({"text"}), "in.csv")
    assert list(names)[-1] == "error"
    path = put("in.csv", "text\na\n")
    header, row = csv.reader(io.StringIO(written(path, answer, names).decode()))
    assert header == ["text", *names]
    assert row == ["a", *cells]
    pq.write_table(table(text=["a"]), tmp_path / "in.parquet")
    opened(tmp_path / "in.parquet").write(tmp_path / "out.parquet", names, lambda row: answer)
    (found,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    error = answer.get("error")
    expected = {name: answer.get(name) for name in names if name != "error"}
    assert {name: pytest.approx(value) if value else value for name, value in expected.items()} == {
        name: found[name] for name in expected
    }
    assert found["error"] == (None if error is None else answers.error_text(error))


def test_a_name_that_is_taken_is_another(put: Any) -> None:
    taken = frozenset({"text", "label"})
    assert answers.columns({"label", "score"}, taken, "f") == {
        "label": "predicted_label",
        "score": "score",
        "error": "error",
    }
    with pytest.raises(InvalidConfig, match="'label' and 'predicted_label' already"):
        answers.columns({"label", "score"}, taken | {"predicted_label"}, "f")
    # Of JSONL it may be any row that has it.
    assert opened(put("in.jsonl", '{"text": "a"}\n{"text": "b", "score": 1}\n')).names == {"score"}


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.parquet"])
def test_a_column_that_is_not_there_and_the_nearest(name: str, put: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "in.parquet":
        pq.write_table(table(Texts=["a"], other=["b"]), path)
    else:
        put(name, "Texts,other\na,b\n" if name == "in.csv" else '{"Texts": "a", "other": "b"}\n')
    with pytest.raises(InvalidConfig, match="no column 'text'; did you mean 'Texts'") as error:
        opened(path)
    assert error.value.field == "column"
    with pytest.raises(InvalidConfig, match="no column 'zzz'; it has 'Texts', 'other'; name one by --pair-column"):
        opened(path, "Texts", "zzz")
    assert texts(path, "Texts", "other") == [("a", "b")]


def test_a_second_text_is_read_beside_text_alone(put: Any) -> None:
    path = put("in.csv", "text,text_pair,other\na,b,c\n")
    assert texts(path) == [("a", "b")]
    assert texts(path, "other") == ["c"]


def test_columns_that_are_there_twice(put: Any) -> None:
    path = put("in.csv", "text,x,x\na,b,c\n")
    assert written(path).startswith(b"text,x,x,label")
    with pytest.raises(InvalidConfig, match="2 columns named 'x'"):
        opened(path, "x")
    with pytest.raises(InvalidData, match=r"in\.jsonl:2: a key stands there twice"):
        opened(put("in.jsonl", '{"text": "a"}\n{"text": "a", "text": "b"}\n'))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("in.csv", b"", "in.csv is empty"),
        ("in.csv", b"\n\n", "in.csv is empty"),
        ("in.csv", b"text,n\na,1\nb\n", "in.csv:3: 1 columns, but the header has 2"),
        ("in.csv", b"text\na\nb\xe9c\n", "in.csv:3: byte 2 is not UTF-8"),
        ("in.csv", b"te\xffxt\n", "in.csv:1: byte 3 is not UTF-8"),
        ("in.csv", "text\na\n".encode("utf-16"), "in.csv:1: UTF-16, not UTF-8"),
        ("in.csv", b'text\na\n"b\nc\n', "in.csv:3: malformed, or a quote is not closed"),
        ("in.csv", b'text\n"a"b\n', "in.csv:2: malformed"),
        ("in.jsonl", b'{"text": "a"}\nx\n', "in.jsonl:2: not valid JSON"),
        ("in.jsonl", b"[" * 100_000, "in.jsonl:1: not valid JSON"),
        ("in.jsonl", b'["text"]\n', "in.jsonl:1: not a JSON object"),
        ("in.jsonl", b'{"text": "\xff"}\n', "in.jsonl:1: byte 11 is not UTF-8"),
        ("in.parquet", b"PAR1 it is not PAR1", "in.parquet cannot be read as Parquet"),
        ("in.parquet", b"", "in.parquet cannot be read as Parquet"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(name: str, data: bytes, said: str, put: Any) -> None:
    with pytest.raises(InvalidData) as error:
        opened(put(name, data))
    assert said in error.value.message


def test_a_parquet_column_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(table(text=[1, 2]), path)
    with pytest.raises(InvalidConfig, match="column 'text' is int64, not text"):
        opened(path)


def test_a_parquet_file_that_is_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(table(text=[str(i) * 10 for i in range(1000)]), path)
    data = bytearray(path.read_bytes())
    data[10:2000] = b"\xaa" * 1990
    path.write_bytes(data)
    with pytest.raises(InvalidData, match=r"in\.parquet cannot be read as Parquet"):
        list(opened(path).rows())


def test_nul_bytes_are_part_of_a_text(put: Any) -> None:
    path = put("in.csv", b"text\na\0b\n")
    assert texts(path) == ["a\0b"]
    assert written(path) == b'text,label,score,error\na\0b,"a,b",0.5,\n'


def test_no_rows(put: Any, tmp_path: Path) -> None:
    assert written(put("in.csv", "text")) == b"text,label,score,error\n"
    assert written(put("in.jsonl", "\n")) == b""
    pq.write_table(table(text=pa.array([], pa.string())), tmp_path / "in.parquet")
    opened(tmp_path / "in.parquet").write(tmp_path / "out.parquet", LABELS, lambda row: GOOD)
    assert pq.read_table(tmp_path / "out.parquet").column_names == ["text", "label", "score", "error"]


def test_a_long_text_is_refused_or_cut(put: Any) -> None:
    path = put("in.csv", "text,n\n" + "é" * (32 << 10) + f",1\n{'é' * (32 << 10)}x,2\n")
    assert [row.problem and row.problem.reason for row in opened(path).rows()] == [None, "TEXT_TOO_LARGE"]
    rows = list(opened(path, truncate=True).rows())
    assert [(len(row.text), row.problem) for row in rows] == [(32 << 10, None)] * 2


def test_a_row_of_the_most_bytes_is_read_and_one_more_is_not(put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from adamix_server.cli.rows import delimited

    assert files.MAX_ROW_BYTES == 16 << 20
    for module in (lines, delimited):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 1 << 20)
    for header, row in (("text,n\n", "{},b\n"), ("text\n", '"a\n{}"\n')):
        data = row.format("a" * ((1 << 20) - len(row.format(""))))
        assert opened(put("in.csv", header + data)).num_rows == 1
        with pytest.raises(InvalidData, match=r"in\.csv:2: the row is over 1 MiB"):
            opened(put("in.csv", header + row.format("a" * ((1 << 20) - len(row.format("")) + 1))))
    line = '{"text": "a"}' + " " * ((1 << 20) - 14) + "\n"
    assert opened(put("in.jsonl", line)).num_rows == 1
    with pytest.raises(InvalidData, match=r"in\.jsonl:1: the row is over 1 MiB"):
        opened(put("in.jsonl", " " + line))


@pytest.mark.parametrize(
    ("file", "out", "said", "found"),
    [
        ("a.csv", "b.csv", None, "csv"),
        ("a.CSV", "b", None, "csv"),
        ("a.ndjson", "b.jsonl", None, "jsonl"),
        ("a.csv.gz", "b.csv.gz", None, "csv"),
        ("a.txt", "b.txt", "tsv", "tsv"),
        ("a.csv", "b.csv", "tsv", "tsv"),
        ("a.txt", "b.csv", None, "say by --format"),
        ("a.csv", "b.csv", "xml", "one of csv, tsv"),
        ("a.csv", "b.jsonl", None, "rows are written as they came"),
        ("a.csv", "b.csv.gz", None, "rows are written as they came"),
        ("a.csv.gz", "b.csv", None, "packed csv"),
        ("a.parquet.gz", "b.parquet.gz", None, "unpack"),
    ],
)
def test_which_format_a_file_has(file: str, out: str, said: str | None, found: str) -> None:
    if found in ("csv", "tsv", "jsonl"):
        assert format_of(Path(file), Path(out), said) == found
        return
    with pytest.raises(InvalidConfig) as error:
        format_of(Path(file), Path(out), said)
    assert found in error.value.message


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"in\.csv does not exist"):
        opened(tmp_path / "in.csv")
    (tmp_path / "in.csv").mkdir()
    with pytest.raises(InvalidData, match=r"in\.csv is not a regular file"):
        opened(tmp_path / "in.csv")


def test_a_score_is_the_shortest_number_of_its_precision() -> None:
    for value, short in ((0.8999999761581421, 0.9), (0.3333333432674408, 0.33333334), (1.0, 1.0), (1e-30, 1e-30)):
        single = answers._FLOAT.unpack(answers._FLOAT.pack(value))[0]
        assert answers._short(single) == short
        assert answers._FLOAT.pack(answers._short(single)) == answers._FLOAT.pack(single)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1),
            st.text(st.characters(codec="utf-8", exclude_characters="\r")),
        ),
        max_size=5,
    ),
    st.sampled_from([",", "\t"]),
    st.booleans(),
)
def test_whatever_csv_writes_is_read_and_goes_through(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str, quoted: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / ("in.csv" if delimiter == "," else "in.tsv")
    sink = io.StringIO(newline="")
    style = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    writer = csv.writer(sink, delimiter=delimiter, lineterminator="\n", quoting=style)
    writer.writerows([("text", "n"), *rows])
    path.write_bytes(sink.getvalue().encode())
    assert [row.text for row in opened(path).rows() if row.problem is None] == [
        text for text, _ in rows if not text.isspace()
    ]
    seen: list[Row] = []
    out = path.with_name("out")
    opened(path).write(out, LABELS, lambda row: (seen.append(row), GOOD)[1])
    found = list(csv.reader(io.StringIO(out.read_bytes().decode(), newline=""), delimiter=delimiter))
    assert found == [["text", "n", *LABELS], *([text, n, "a,b", "0.5", ""] for text, n in rows)]

"""CSV and JSONL files as `--data`: what is read, what is refused and where the message points."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adamix import data
from adamix.data import Example
from adamix.errors import InvalidConfig, InvalidData


def _write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


Everything = Callable[[str], list[Example]]


def _rows(n: int, label: str = "{i}") -> str:
    return "text,label\n" + "".join(f"sentence number {i},{label.format(i=i % 3)}\n" for i in range(n))


def test_csv_reads_quoted_commas_quotes_and_line_ends_inside_texts(tmp_path: Path, everything: Everything) -> None:
    source = _write(tmp_path / "d.csv", 'label,text\r\nyes,"a, ""b""\nc"\r\nno,plain\r\n')
    texts = {e.text for e in everything(source)}
    assert texts == {'a, "b"\nc', "plain"}


def test_csv_and_jsonl_of_the_same_rows_are_the_same_data(tmp_path: Path) -> None:
    rows = [(f"first {i}", f"second {i}", ("no", "yes")[i % 2]) for i in range(40)]
    as_csv = "text,text_pair,label\n" + "".join(",".join(row) + "\n" for row in rows)
    as_jsonl = "".join(json.dumps({"label": c, "text_pair": b, "text": a, "idx": 7}) + "\n\n" for a, b, c in rows)
    one = data.load(_write(tmp_path / "d.csv", as_csv), split="train")
    other = data.load(_write(tmp_path / "d.jsonl", as_jsonl), split="train")
    assert one == other
    assert one.name == "d"
    assert one.labels == ("no", "yes")
    assert one.examples[0].pair is not None


def test_byte_order_mark_and_other_columns_are_ignored(tmp_path: Path, everything: Everything) -> None:
    source = _write(tmp_path / "d.csv", "\ufeffid,text,label\n1,hello,a\n2,bye,b\n")
    assert {e.text for e in everything(source)} == {"hello", "bye"}


def test_line_separators_of_unicode_do_not_end_a_jsonl_line(tmp_path: Path, everything: Everything) -> None:
    lines = [json.dumps({"text": f"a\u2028b {i}", "label": i % 2}, ensure_ascii=False) for i in range(9)]
    assert len(everything(_write(tmp_path / "d.jsonl", "\n".join(lines)))) == 9


def test_integer_labels_are_classes_in_numeric_order(tmp_path: Path) -> None:
    text = "text,label\n" + "".join(f"t{i},{i % 12}\n" for i in range(60))
    loaded = data.load(_write(tmp_path / "d.csv", text), split="train")
    assert loaded.task_type == "classification"
    assert loaded.labels == tuple(str(i) for i in range(12))


@pytest.mark.parametrize(("one", "other"), [("--5", "7"), ("+", "-"), ("👩‍🚀", "x"), ("1_0", "2")])
def test_odd_names_are_classes_too(tmp_path: Path, one: str, other: str) -> None:
    text = "text,label\n" + "".join(f"t{i},{(one, other)[i % 2]}\n" for i in range(40))
    assert set(data.load(_write(tmp_path / "d.csv", text), split="train").labels) == {one, other}


@pytest.mark.parametrize(("values", "names"), [([True, False], ("false", "true")), ([3, 1], ("1", "3"))])
def test_json_booleans_and_integers_name_classes(tmp_path: Path, values: list[object], names: tuple[str]) -> None:
    lines = [json.dumps({"text": f"t{i}", "label": values[i % 2]}) for i in range(40)]
    assert data.load(_write(tmp_path / "d.jsonl", "\n".join(lines)), split="train").labels == names


def test_numbers_that_are_not_all_integers_are_regression(tmp_path: Path) -> None:
    loaded = data.load(_write(tmp_path / "d.csv", _rows(40, "{i}.5")), split="train")
    assert loaded.task_type == "regression"
    assert loaded.labels == ()
    assert {e.label for e in loaded.examples} == {0.5, 1.5, 2.5}


def test_task_type_overrules_inference(tmp_path: Path) -> None:
    source = _write(tmp_path / "d.csv", _rows(40))
    loaded = data.load(source, split="train", task_type="regression")
    assert all(type(e.label) is float for e in loaded.examples)


def test_multilabel_from_lists_and_from_bars(tmp_path: Path) -> None:
    sets = [["red", "blue"], [], ["blue"], ["green", "red", "red"]]
    lines = [json.dumps({"text": f"t{i}", "label": sets[i % 4]}) for i in range(40)]
    listed = data.load(_write(tmp_path / "d.jsonl", "\n".join(lines)), split="train")
    text = "text,label\n" + "".join(f"t{i},{'|'.join(sets[i % 4])}\n" for i in range(40))
    barred = data.load(_write(tmp_path / "d.csv", text), split="train", task_type="multilabel")
    assert listed == barred
    assert listed.labels == ("blue", "green", "red")
    assert {e.label for e in listed.examples} == {(0, 2), (), (0,), (1, 2)}


def test_directory_gives_its_files_as_they_are(tmp_path: Path) -> None:
    _write(tmp_path / "train.csv", "text,label\na,x\nb,y\n")
    _write(tmp_path / "test.jsonl", '{"text": "a", "label": "z"}\n')
    train, test = (data.load(str(tmp_path), split=split) for split in ("train", "test"))
    assert [e.text for e in train.examples] == ["a", "b"]
    assert train.labels == test.labels == ("x", "y", "z")
    assert test.examples == (Example("a", 2),)
    with pytest.raises(InvalidData, match="no validation split, only train, test") as caught:
        data.load(str(tmp_path), split="validation")
    assert caught.value.reason == "SPLIT_MISSING"


def test_directory_with_train_only_is_split_like_a_file(tmp_path: Path) -> None:
    _write(tmp_path / "train.csv", _rows(200))
    (tmp_path / "one").mkdir()
    source = _write(tmp_path / "one" / "d.csv", _rows(200))
    for split in data.SPLITS:
        assert data.load(str(tmp_path), split=split).examples == data.load(source, split=split).examples


def test_directory_refusals(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="without train, validation or test"):
        data.load(str(tmp_path), split="train")
    _write(tmp_path / "train.csv", _rows(3))
    _write(tmp_path / "train.jsonl", "{}")
    with pytest.raises(InvalidData, match=r"both train\.csv and train\.jsonl"):
        data.load(str(tmp_path), split="train")


CSV_REFUSALS = {
    "missing label column": ("text,lable\na,b\n", r"d\.csv:1: no column named label"),
    "missing text column": ("sentence,label\na,b\n", r"d\.csv:1: no column named text"),
    "column twice": ("text,text,label\na,b,c\n", r"d\.csv:1: two columns named text"),
    "too many columns": ("text,label\nfine,x\nhello, world,x\n", r"d\.csv:3: 3 columns, but the header has 2"),
    "too few columns": ("text,label\nfine\n", r"d\.csv:2: 1 columns"),
    "row after a text of several lines": ('text,label\n"a\nb\nc",x\n,x\n', r"d\.csv:5: text is empty"),
    "empty text": ("text,label\nfine,x\n  ,x\n", r"d\.csv:3: text is empty"),
    "empty label": ("text,label\na,x\nb,\n", r"d\.csv:3: label is empty"),
    "quote never closed": ('text,label\nfine,x\n"open,x\n', r"d\.csv:3: malformed CSV"),
    "text after a quote": ('text,label\n"a"b,x\n', r"d\.csv:2: malformed CSV"),
    "old Mac line ends": ("text,label\ra,x\rb,y\r", r"d\.csv:1: malformed CSV"),
    "pair in some rows": ("text,text_pair,label\na,b,x\nc,,y\n", r"d\.csv:3: no text_pair here"),
    "one class": ("text,label\na,x\nb,x\n", "d has one label only"),
    "gap in numbers": ("text,label\na,0.5\nb,n/a\n", r"d\.csv:3: label 'n/a' is not a number, but others are"),
    "no rows": ("text,label\n", "d has 0 rows"),
    "empty file": ("", "d has 0 rows"),
    "huge text": ("text,label\n" + "x" * 131_073 + ",a\n", r"d\.csv:2: malformed CSV|over 131072 characters"),
    "huge line": ("text,label\nfine,x\n" + "x" * (3 << 20), r"d\.csv:3: line is over 2048 KiB"),
    "unprintable label": ("text,label\na,b\x07\nb,c\n", r"d\.csv:2: label .* control characters"),
}


@pytest.mark.parametrize("case", CSV_REFUSALS)
def test_malformed_csv_is_refused_at_its_line(tmp_path: Path, case: str) -> None:
    content, message = CSV_REFUSALS[case]
    with pytest.raises(InvalidData, match=message):
        data.load(_write(tmp_path / "d.csv", content), split="train")


JSONL_REFUSALS = {
    "not JSON": ("{'text': 1}", "not valid JSON"),
    "not an object": ('["a", "b"]', "not a JSON object"),
    "no text": ('{"label": "x"}', "no key 'text'"),
    "no label": ('{"text": "x"}', "no key 'label'"),
    "text is null": ('{"text": null, "label": "x"}', "text is missing"),
    "text is a number": ('{"text": 5, "label": "x"}', "text is not a string"),
    "pair is a number": ('{"text": "a", "text_pair": 5, "label": "x"}', "text_pair is not a string"),
    "label is null": ('{"text": "a", "label": null}', "label is missing"),
    "label is an object": ('{"text": "a", "label": {}}', "label of type dict is not a name"),
    "half a surrogate pair": ('{"text": "\\ud800", "label": "x"}', "text is not valid Unicode"),
    "deep nesting": ("[" * 100_000, "not valid JSON"),
    "nested label": (
        '{"text": "a", "label": {"a": ' + "[" * 900 + "]" * 900 + "}}",
        "label of type dict is not a name",
    ),
    "number of 5,000 digits": ('{"text": "a", "label": ' + "9" * 5000 + "}", "not valid JSON"),
}


@pytest.mark.parametrize("case", JSONL_REFUSALS)
def test_malformed_jsonl_is_refused_at_its_line(tmp_path: Path, case: str) -> None:
    line, message = JSONL_REFUSALS[case]
    good = "".join(json.dumps({"text": f"t{i}", "label": "xy"[i % 2]}) + "\n" for i in range(20))
    with pytest.raises(InvalidData, match=r"d\.jsonl:21: " + message):
        data.load(_write(tmp_path / "d.jsonl", good + line + "\n"), split="train")


@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "1e400", "1e16"])
def test_regression_labels_must_be_finite(tmp_path: Path, value: str) -> None:
    _write(tmp_path / "train.csv", f"text,label\na,0.5\nb,{value}\n")
    _write(tmp_path / "test.csv", "text,label\na,0.5\n")
    with pytest.raises(InvalidData, match=r"train\.csv:3: label .* is not a finite number"):
        data.load(str(tmp_path), split="train", task_type="regression")


@pytest.mark.parametrize("label", ['"much"', "true", "[1.5]", "null"])
def test_regression_labels_must_be_numbers(tmp_path: Path, label: str) -> None:
    _write(tmp_path / "train.jsonl", '{"text": "a", "label": ' + label + "}\n")
    _write(tmp_path / "test.csv", "text,label\na,0.5\n")
    with pytest.raises(InvalidData, match=r"train\.jsonl:1: label .* is not a number"):
        data.load(str(tmp_path), split="train", task_type="regression")


def test_scalar_among_lists_is_refused(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": ["x"]}', '{"text": "b", "label": 3}']
    with pytest.raises(InvalidData, match=r"d\.jsonl:2: label 3 is not a list"):
        data.load(_write(tmp_path / "d.jsonl", "\n".join(lines)), split="train")


def test_latin_1_is_refused_and_not_guessed(tmp_path: Path) -> None:
    source = _write(tmp_path / "d.csv", "text,label\nfine,x\ncafé,y\n".encode("latin-1"))
    with pytest.raises(InvalidData, match=r"d\.csv:3: not UTF-8"):
        data.load(source, split="train")


def test_hidden_labels_are_named_as_such(tmp_path: Path) -> None:
    _write(tmp_path / "train.csv", "text,label\na,0.5\nb,1.5\n")
    _write(tmp_path / "test.csv", "text,label\na,-1\nb,-1.0\n")
    with pytest.raises(InvalidData, match="every label of the test split is -1"):
        data.load(str(tmp_path), split="test")


def test_too_many_labels_point_to_regression(tmp_path: Path) -> None:
    text = "text,label\n" + "".join(f"t{i},{i}\n" for i in range(4097))
    with pytest.raises(InvalidData, match=r"4097 different labels.*--task-type regression"):
        data.load(_write(tmp_path / "d.csv", text), split="train")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    source = _write(tmp_path / "d.csv", "text,label\na,x\na,y\n")
    empty = next(split for split in data.SPLITS if split != data.split_of("a"))
    with pytest.raises(InvalidData, match=f"2 rows, but none in its {empty} split"):
        data.load(source, split=empty)


@pytest.mark.parametrize("name", ["missing.csv", "missing.jsonl"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidData, match=f"{name} does not exist"):
        data.load(str(tmp_path / name), split="train")


def test_other_suffixes_and_special_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"d\.xlsx is neither"):
        data.load(_write(tmp_path / "d.xlsx", b"PK"), split="train")
    (tmp_path / "d.csv").symlink_to("/dev/zero")
    with pytest.raises(InvalidData, match="not a regular file"):
        data.load(str(tmp_path / "d.csv"), split="train")


@pytest.mark.parametrize("source", ["", "no such thing", "../outside", "a/b/c", "x" * 5000 + "/y/z", "nul\0"])
def test_names_that_mean_nothing_list_the_corpora(source: str) -> None:
    with pytest.raises(InvalidData, match=r"no file, and no corpus: those are .*trec"):
        data.load(source, split="train")


def test_messages_hold_no_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidData) as caught:
        data.load(_write(tmp_path / "d.csv", "nothing\n"), split="train")
    assert str(tmp_path) not in caught.value.message


def test_unknown_split_and_task_type_are_configuration_errors(tmp_path: Path) -> None:
    source = _write(tmp_path / "d.csv", _rows(9))
    with pytest.raises(InvalidConfig, match="'dev' is not one of train, validation, test"):
        data.load(source, split="dev")
    with pytest.raises(InvalidConfig, match="'ranking' is not one of classification"):
        data.load(source, split="train", task_type="ranking")


def test_one_class_is_enough_to_evaluate_on_and_too_little_to_learn_from(tmp_path: Path) -> None:
    source = tmp_path / "d"
    source.mkdir()
    for split in ("train", "test"):
        _write(source / f"{split}.csv", "text,label\none,spam\ntwo,spam\n")
    loaded = data.load(str(source), split="test")
    assert (loaded.labels, [e.label for e in loaded.examples]) == (("spam",), [0, 0])
    with pytest.raises(InvalidData, match="one label only, 'spam'"):
        data.load(str(source), split="train")

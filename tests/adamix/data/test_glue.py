"""GLUE's tasks from the files of the benchmark's archive and through `datasets`, and its averages by hand."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from adamix import data
from adamix.cli import app
from adamix.data.glue import TASKS
from adamix.errors import InvalidConfig, InvalidData
from adamix.experiments.glue import METRICS, report

MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
)
FILES = {
    "CoLA/train.tsv": "gj04\t1\t\tThe sailors rode the breeze.\ngj04\t0\t*\tThe more does Bill smoke.\n",
    "CoLA/dev.tsv": "gj04\t1\t\tA label without a header.\n",
    "SST-2/train.tsv": 'sentence\tlabel\na "film that loves \t0\ngood \t1\n',
    "SST-2/dev.tsv": "sentence\tlabel\nfine\t1\n",
    # As GLUE's own script writes it: with a byte order mark, and quotes that mean nothing.
    "MRPC/train.tsv": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "no\tNo, he said.\n',
    "MRPC/dev.tsv": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tOne.\tTwo.\n",
    "STS-B/train.tsv": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    "0\tx\ty\t2012\t1\tnone\tnone\tA plane.\tAn air plane.\t5.000\n1\tx\ty\t2012\t2\tnone\tnone\tA.\tB.\t3.8\n",
    "STS-B/dev.tsv": "index\tsentence1\tsentence2\tscore\n0\tA.\tB.\t2.5\n",
    "QQP/train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    "1\t2\t3\tHow?\tWhy?\t1\n2\t4\t5\tWho?\tI?\t0\n",
    "QQP/dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tHow?\tWhy?\t0\n",
    "MNLI/train.tsv": f"{MNLI}\tsentence1\tsentence2\tlabel1\tgold_label\n"
    "0\t1\t1n\tfiction\t(\t(\t(\t(\tP.\tH.\tneutral\tneutral\n"
    "1\t1\t1e\tfiction\t(\t(\t(\t(\tP.\tI.\tcontradiction\tcontradiction\n",
    "MNLI/dev_matched.tsv": "sentence1\tsentence2\tlabel1\tgold_label\nin\tin.\tneutral\tentailment\n",
    "MNLI/dev_mismatched.tsv": "sentence1\tsentence2\tlabel1\tgold_label\nout\tout.\tneutral\tcontradiction\n",
    "QNLI/train.tsv": "index\tquestion\tsentence\tlabel\n0\tWhen?\tIn 1.\tentailment\n1\tWho?\tIn 2.\tnot_entailment\n",
    "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\tWhen?\tIn 1.\tnot_entailment\n",
    "RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tC.\tD.\tentailment\n",
    "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tentailment\n",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
def test_every_task_loads_from_the_archive_and_from_its_own_folder(archive: Path, task: str) -> None:
    train = data.load(f"glue:{task}={archive}", split="train")
    folder = archive / TASKS[task].folder
    assert data.load(f"glue:{task}={folder}", split="train") == train
    validation = data.load(f"glue:{task}={archive}", split="validation")
    assert (len(train.examples), len(validation.examples)) == (1 if task == "mrpc" else 2, 1)
    assert train.name == f"glue:{task}"
    assert (train.task_type, train.labels) == (validation.task_type, validation.labels)
    assert all((example.pair is None) == (task in ("cola", "sst2")) for example in train.examples)


def test_labels_have_the_ids_of_the_datasets_library(archive: Path) -> None:
    def labels(task: str, split: str = "train") -> list[Any]:
        loaded = data.load(f"glue:{task}={archive}", split=split)
        return [loaded.labels[int(e.label)] if loaded.labels else e.label for e in loaded.examples]

    assert labels("cola") == ["acceptable", "unacceptable"]
    assert labels("sst2") == ["negative", "positive"]
    assert labels("qqp") == ["duplicate", "not_duplicate"]
    assert labels("mnli") == ["neutral", "contradiction"]
    assert labels("rte") == ["not_entailment", "entailment"]
    assert labels("stsb") == [5.0, 3.8]
    mnli = data.load(f"glue:mnli={archive}", split="train")
    assert mnli.labels == ("entailment", "neutral", "contradiction")


def test_quotes_and_spaces_mean_nothing(archive: Path) -> None:
    assert data.load(f"glue:sst2={archive}", split="train").examples[0].text == 'a "film that loves '
    assert data.load(f"glue:mrpc={archive}", split="train").examples[0] == data.Example(
        'He said "no', 1, "No, he said."
    )


def test_matched_and_mismatched_are_two_validation_sets_of_one_train_set(archive: Path) -> None:
    matched, mismatched = (data.load(f"glue:{t}={archive}", split="validation") for t in ("mnli", "mnli-mm"))
    assert [e.text for e in matched.examples] == ["in"]
    assert [e.text for e in mismatched.examples] == ["out"]
    first, second = (data.load(f"glue:{t}={archive}", split="train") for t in ("mnli", "mnli-mm"))
    assert first.examples == second.examples


def test_microsofts_mrpc_is_split_by_glues_list_of_ids(tmp_path: Path) -> None:
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    rows = "1\t10\t11\ta\tb\n0\t12\t13\tc\td\n1\t11\t10\te\tf\n"
    (tmp_path / "msr_paraphrase_train.txt").write_text("\ufeff" + header + rows)
    with pytest.raises(InvalidData, match=r"without GLUE's dev_ids\.tsv"):
        data.load(f"glue:mrpc={tmp_path}", split="train")
    (tmp_path / "dev_ids.tsv").write_text("12\t13\n10\t11\n")
    assert [e.text for e in data.load(f"glue:mrpc={tmp_path}", split="train").examples] == ["e"]
    assert [e.text for e in data.load(f"glue:mrpc={tmp_path}", split="validation").examples] == ["a", "c"]


@pytest.mark.parametrize(
    ("file", "text", "task", "message"),
    [
        ("RTE/train.tsv", "index\tsentence1\tlabel\n", "rte", r"train\.tsv:1: no column named sentence2"),
        ("RTE/train.tsv", FILES["RTE/train.tsv"] + "2\tA.\tB.\n", "rte", r"train\.tsv:4: 3 fields where 4"),
        ("RTE/train.tsv", FILES["RTE/train.tsv"] + "2\t \tB.\tentailment\n", "rte", r"train\.tsv:4: .* empty text"),
        ("RTE/train.tsv", FILES["RTE/train.tsv"] + "2\tA.\tB.\tmaybe\n", "rte", r"train\.tsv:4: label 'maybe'"),
        ("CoLA/train.tsv", "sentence\tlabel\nx\t1\n", "cola", r"train\.tsv:1: 2 fields where 4"),
        ("STS-B/train.tsv", "sentence1\tsentence2\tscore\na\tb\tx\n", "stsb", r"train\.tsv:2: label 'x' is not a num"),
    ],
)
def test_malformed_rows_are_named_by_file_and_line(
    archive: Path, file: str, text: str, task: str, message: str
) -> None:
    (archive / file).write_text(text)
    with pytest.raises(InvalidData, match=message):
        data.load(f"glue:{task}={archive}", split="train")


def test_the_torn_rows_of_qqp_are_passed_over_but_not_a_file_of_them(archive: Path) -> None:
    path = archive / "QQP/train.tsv"
    path.write_text(FILES["QQP/train.tsv"] + "3\t6\t7\tcut in\ntwo\tby a line feed\t0\n4\t8\t9\t\tempty\t1\n")
    assert len(data.load(f"glue:qqp={archive}", split="train").examples) == 2
    path.write_text(FILES["QQP/train.tsv"] + "torn\n" * 65)
    with pytest.raises(InvalidData, match=r"train\.tsv:68: 1 fields"):
        data.load(f"glue:qqp={archive}", split="train")


def test_test_sets_other_tasks_and_missing_files_are_refused_by_name(archive: Path) -> None:
    with pytest.raises(InvalidData, match="measure glue:rte with --split validation"):
        data.load(f"glue:rte={archive}", split="test")
    with pytest.raises(InvalidConfig, match="'wnli' is not one of the GLUE tasks cola, sst2"):
        data.load("glue:wnli", split="train")
    with pytest.raises(InvalidConfig, match="regression task, not classification"):
        data.load(f"glue:stsb={archive}", split="train", task_type="classification")
    with pytest.raises(InvalidConfig, match="names no directory"):
        data.load("glue:rte=", split="train")
    with pytest.raises(InvalidData, match=r"CoLA has no dev_matched\.tsv, as GLUE's MNLI does"):
        data.load(f"glue:mnli={archive / 'CoLA'}", split="validation")
    with pytest.raises(InvalidData, match="nowhere is not a directory"):
        data.load(f"glue:rte={archive / 'nowhere'}", split="validation")


def test_by_name_the_datasets_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["entailment", "neutral", "contradiction"]
    calls: list[tuple[str, str]] = []

    def load_dataset(name: str, config: str) -> Any:
        calls.append((name, config))

        def table(text: str) -> Any:
            features = datasets.Features(
                {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string")}
                | {"label": datasets.ClassLabel(names=names)}
            )
            return datasets.Dataset.from_dict({"premise": [text], "hypothesis": ["h"], "label": [2]}, features)

        splits = ("train", "validation_matched", "validation_mismatched")
        return datasets.DatasetDict({split: table(split) for split in splits})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert data.load("glue:mnli", split="validation").examples[0].text == "validation_matched"
    loaded = data.load("glue:mnli-mm", split="validation")
    assert loaded.examples[0] == data.Example("validation_mismatched", 2, "h")
    assert data.load("glue:mnli-mm", split="train").examples[0].text == "train"
    assert calls == [("nyu-mll/glue", "mnli")] * 3
    names.reverse()
    with pytest.raises(InvalidData, match="other labels than GLUE"):
        data.load("glue:mnli", split="validation")


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("cola", ("sentence",)),
        ("sst2", ("sentence",)),
        ("mrpc", ("sentence1", "sentence2")),
        ("stsb", ("sentence1", "sentence2")),
        ("qqp", ("question1", "question2")),
        ("qnli", ("question", "sentence")),
        ("rte", ("sentence1", "sentence2")),
    ],
)
def test_by_name_each_task_has_the_texts_of_its_files(
    monkeypatch: pytest.MonkeyPatch, task: str, columns: tuple[str, ...]
) -> None:
    """The columns of `nyu-mll/glue`: a pair is a pair there as it is in the files."""
    labels = TASKS[task].labels
    kind = datasets.ClassLabel(names=list(labels)) if labels else datasets.Value("float32")
    features = datasets.Features({name: datasets.Value("string") for name in columns} | {"label": kind})
    table = datasets.Dataset.from_dict({name: [f"the {name}"] for name in columns} | {"label": [0]}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=table, validation=table))
    (example,) = data.load(f"glue:{task}", split="validation").examples
    assert [example.text, example.pair] == [f"the {columns[0]}", f"the {columns[1]}" if len(columns) > 1 else None]
    assert (TASKS[task].pair is None) == (len(columns) == 1)


def _published(mnli: float, qnli: float, sst2: float, qqp: Any, mrpc: Any, cola: float, rte: float, stsb: float) -> Any:
    percent = {
        "mnli": {"accuracy": mnli},
        "qnli": {"accuracy": qnli},
        "sst2": {"accuracy": sst2},
        "qqp": dict(zip(("accuracy", "f1"), qqp, strict=True)),
        "mrpc": dict(zip(("accuracy", "f1"), mrpc, strict=True)),
        "cola": {"matthews": cola},
        "rte": {"accuracy": rte},
        "stsb": {"pearson": stsb, "spearman": 0.0},
    }
    return {task: {name: value / 100 for name, value in scores.items()} for task, scores in percent.items()}


# The rows of AdaMix in Tables 1 (RoBERTa-large) and 2 (BERT-base) of the paper, which end in 89.9 and 84.5.
ROBERTA = _published(90.9, 95.4, 97.1, (92.3, 89.8), (91.9, 94.1), 70.2, 89.2, 92.4)
BERT = _published(84.7, 91.5, 92.4, (90.7, 87.6), (89.5, 92.4), 62.9, 74.7, 89.9)


def test_the_averages_are_those_of_the_published_rows() -> None:
    large, small = report(ROBERTA), report(BERT)
    assert large.average == pytest.approx(89.925)  # printed as 89.9
    assert small.average_f1 == pytest.approx(84.5125)  # printed as 84.5
    # The other one of each, by hand: the difference of two terms over eight.
    assert large.average_f1 == pytest.approx(89.925 + (89.8 - 92.3 + 94.1 - 91.9) / 8)
    assert small.average == pytest.approx(84.5125 + (90.7 - 87.6 + 89.5 - 92.4) / 8)


def test_there_is_no_average_of_seven_tasks() -> None:
    part = {task: scores for task, scores in ROBERTA.items() if task != "cola"}
    result = report(part | {"mnli-mm": {"accuracy": 0.5}})
    assert (result.average, result.average_f1, result.missing) == (None, None, ("cola",))
    assert result.scores["mnli-mm"] == {"accuracy": 50.0}
    # The mismatched set is reported and not averaged.
    assert report(ROBERTA | {"mnli-mm": {"accuracy": 0.1}}).average == report(ROBERTA).average
    assert set(METRICS) == set(TASKS)
    with pytest.raises(InvalidData, match="'wnli' is not one of"):
        report({"wnli": {"accuracy": 1.0}})
    with pytest.raises(InvalidData, match="qqp have no f1"):
        report({"qqp": {"accuracy": 1.0}})


def test_the_command_reads_what_evaluate_printed(tmp_path: Path) -> None:
    for task, metrics in BERT.items():
        (tmp_path / f"{task}.json").write_text(json.dumps({"metrics": metrics, "rows": 1, "truncated": 0}))
    files = [str(tmp_path / f"{task}.json") for task in BERT if task != "rte"]
    result = CliRunner().invoke(app, ["glue", *files, f"rte={tmp_path / 'rte.json'}", "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["average_f1"] == pytest.approx(84.5125)
    assert document["missing"] == []
    shown = CliRunner().invoke(app, ["glue", *files]).stdout
    assert "cola      matthews 62.9" in shown
    assert "no average: rte missing" in shown


@pytest.mark.parametrize("content", ["", "[]", '{"metrics": 3}', '{"metrics": {"accuracy": "NaN"}}', "[" * 100_000])
def test_the_command_refuses_what_evaluate_never_printed(tmp_path: Path, content: str) -> None:
    (tmp_path / "rte.json").write_text(content)
    result = CliRunner().invoke(app, ["glue", str(tmp_path / "rte.json")])
    assert result.exit_code == 1
    assert "rte.json" in result.stderr

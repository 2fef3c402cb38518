"""The commands of docs/tutorials/predict-files.md, as they stand there."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from adamix_testing.label_server import LabelServer, label

PAGE = Path(__file__).parents[3] / "docs" / "tutorials" / "predict-files.md"


def test_a_file_is_made_and_answered_and_so_are_lines(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    make, predict, pipe = re.findall(r"^```sh\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    program = tmp_path / "bin" / "adamix"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m adamix_server "$@"\n')
    program.chmod(0o755)
    with LabelServer(lambda item: label(item.text[-1])) as server:
        path = f"{program.parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "ADAMIX_SERVER": server.address}

        def run(line: str) -> str:
            done = subprocess.run(
                ["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, (line, done.stderr)
            return done.stdout

        run(make)
        run(predict)
        before, after = ((tmp_path / name).read_text() for name in ("letters.csv", "sorted.csv"))
        assert re.sub(r",(label,score,error|.,0\.75,)$", "", after, flags=re.MULTILINE) == before
        rows = list(csv.DictReader(after.splitlines(keepends=True)))
        assert [(row["id"], row["label"]) for row in rows] == [("1", "g"), ("2", ")"), ("3", "?")]
        assert rows[1]["body"] == "=SUM(A1:A9)"
        assert run(pipe) == "g\t0.75\n?\t0.75\n"

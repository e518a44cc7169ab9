"""The examples run, on less data than `make demo` takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support import ROOT


def run_example(name: str, *args: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_train_digits_learns_from_s3_and_writes_its_files(tmp_path: Path) -> None:
    out = run_example(
        "train_digits.py", "--epochs", "2", "--limit", "300", "--min-accuracy", "20", cwd=tmp_path
    )
    last = out.strip().splitlines()[-4:]
    assert "%" in "\n".join(last)
    assert "samples/s" in out
    assert ".png" in "\n".join(last)


def test_every_example_compiles_and_has_a_docstring() -> None:
    import ast

    for path in (ROOT / "examples").rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path

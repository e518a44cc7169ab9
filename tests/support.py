"""What the tests share: arrays as bytes, and scripts run in an interpreter of their own."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

import torchnpy

TESTS = Path(__file__).parent
ROOT = TESTS.parent


def npy(array: Any) -> bytes:
    """The array as numpy writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Values that no two tests share by accident."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# TorchScript reads the source of what it compiles: scripts must be files.
_scripts = tempfile.TemporaryDirectory()
_script_numbers = itertools.count()


def script_environment() -> dict[str, str]:
    """In which a script imports what the tests import, and from the same place."""
    package = Path(torchnpy.__file__).parents[1]
    return {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{package}"}


def write_script(code: str) -> Path:
    path = Path(_scripts.name) / f"script_{next(_script_numbers)}.py"
    path.write_text(textwrap.dedent(code))
    return path


def start_script(code: str, *args: object) -> subprocess.Popen[str]:
    """Starts `code` in a fresh interpreter."""
    return subprocess.Popen(
        [sys.executable, str(write_script(code)), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=script_environment(),
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 120) -> tuple[int, str, str]:
    """Exit status, stdout, stderr; a process that hangs is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def run_script(code: str, *args: object) -> str:
    """stdout of `code`, which must exit with 0 and say nothing on stderr."""
    status, out, err = finish(start_script(code, *args))
    assert (status, err) == (0, ""), out
    return out

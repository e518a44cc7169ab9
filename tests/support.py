"""What the tests share: arrays as bytes, and scripts run in an interpreter of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

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


def start_script(code: str, *args: object, **env: str) -> subprocess.Popen[str]:
    """Starts `code` in a fresh interpreter, which can import what the tests can."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)} | env,
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


def run_script(code: str, *args: object, **env: str) -> str:
    """stdout of `code`, which must exit with 0 and say nothing on stderr."""
    status, out, err = finish(start_script(code, *args, **env))
    assert (status, err) == (0, ""), out
    return out

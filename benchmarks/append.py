"""Rows added to a .npy whose header counts them after each append, and large batches of rows.

The limit is a C++ program that makes one system call an append (raw_append.cpp).
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import Contender, Row, Sample, compile_cpp, cpu_seconds, parse_args, run

ROW_NBYTES = 64
BATCH_NBYTES = 256 << 10


def main() -> None:
    args = parse_args(__doc__.split("\n")[0], "append")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "x.npy"))
        run([row_row(path, args), batch_row(path, args)], args)


def row_row(path: str, args: argparse.Namespace) -> Row:
    count = 2_000 if args.quick else 20_000
    row = np.ones((1, ROW_NBYTES // 8))
    title = "append a row of 64 bytes, the header kept current"
    return Row("append_row", title, "us", contenders(path, row, count))


def batch_row(path: str, args: argparse.Namespace) -> Row:
    count = 40 if args.quick else 400
    batch = np.ones((BATCH_NBYTES // ROW_NBYTES, ROW_NBYTES // 8))
    return Row("append_batch", "append a batch of 256 KiB", "us", contenders(path, batch, count))


def contenders(path: str, rows: np.ndarray, count: int) -> list[Contender]:
    def torchnpy(rows: Any, **options: Any) -> Callable[[], Sample]:
        from torchnpy import NpyAppendArray

        return lambda: appended(path, NpyAppendArray(path, True, **options), rows, count)

    def npy_append_array() -> Callable[[], Sample]:
        from npy_append_array import NpyAppendArray

        return lambda: appended(path, NpyAppendArray(path, delete_if_exists=True), rows, count)

    return [
        Contender("torchnpy", "ours", lambda: torchnpy(rows)),
        Contender("torchnpy, tensors", "variant", lambda: torchnpy(torch.from_numpy(rows))),
        Contender("npy-append-array", "peer", npy_append_array),
        Contender("C++ pwrite", "limit", lambda: lambda: limit(path, rows.nbytes, count)),
    ]


def appended(path: str, appender: Any, rows: Any, count: int) -> Sample:
    """One append, on average; the file is checked, and removed."""
    with appender:
        cpu, start = cpu_seconds(), time.perf_counter()
        for _ in range(count):
            appender.append(rows)
        seconds, cpu_s = time.perf_counter() - start, cpu_seconds() - cpu
    array = np.load(path, mmap_mode="r")
    assert array.shape == (count * len(rows), rows.shape[1])
    assert array[-1, -1] == 1
    os.unlink(path)
    return Sample(seconds / count, cpu_s / count)


def limit(path: str, nbytes: int, count: int) -> Sample:
    program = compile_cpp("raw_append.cpp")
    command = [str(program), path, str(nbytes), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    os.unlink(path)
    seconds, cpu_s = map(float, done.stdout.split())
    return Sample(seconds / count, cpu_s / count)


if __name__ == "__main__":
    main()

"""The examples run, on less data than `make demo` takes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from servers.http import ObjectServer
from support import ROOT, npy, run_script

EXAMPLES = ROOT / "examples"


def run_example(name: str, *args: object) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, args)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_training(name: str, steps: int, *args: object) -> list[str]:
    """The summary of an example that trains; it complains that the result is not good enough."""
    command = [sys.executable, EXAMPLES / name, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    # All is done before it complains.
    assert (done.returncode, "should be at least" in done.stderr) == (1, True), done.stderr
    for number in range(1, steps + 1):
        assert f"[{number}/{steps}] " in done.stdout
    summary = done.stdout.strip().splitlines()[-3:]
    assert "samples/s" in summary[1]
    return summary


def percent_of(line: str) -> float:
    return float(re.findall(r"([\d.]+) %", line)[0])


def test_train_digits_learns_from_s3_and_says_when_it_learnt_too_little(tmp_path: Path) -> None:
    options = ["--limit", 300, "--epochs", 2, "--min-accuracy", 101, "--output", tmp_path]
    summary = run_training("train_digits.py", 5, *options)
    assert percent_of(summary[0]) > 30
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "digit_reader.pt").stat().st_size > 0


def test_segment_npz_learns_from_s3_and_says_when_it_learnt_too_little(tmp_path: Path) -> None:
    options = ["--limit", 300, "--epochs", 4, "--min-overlap", 101, "--output", tmp_path]
    summary = run_training("segment_npz.py", 4, *options)
    # Marking everything would give about 15 %.
    assert percent_of(summary[0]) > 25
    assert (tmp_path / "segments.png").read_bytes().startswith(b"\x89PNG")


def test_throughput_draws_what_was_loaded(tmp_path: Path) -> None:
    options = ["--count", 20, "--kilobytes", 100, "--epochs", 2, "--output", tmp_path]
    out = run_example("throughput.py", *options)
    assert "Loaded 4.0 MB in " in out
    assert "0 retries" in out
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")


def test_formats_compares_them_in_a_table_and_a_picture(tmp_path: Path) -> None:
    out = run_example("formats.py", "--rows", 200, "--rounds", 1, "--output", tmp_path)
    names = ["text", "gzip text", "npy", "npz", "compressed npz", "pickle"]
    found = re.findall(r"^(\w[\w ]*?) +([\d.]+)(?: +([\d.]+|-)){4}$", out, re.MULTILINE)
    assert [name for name, *_ in found] == names
    assert float(found[1][1]) < float(found[0][1])  # megabytes
    assert (tmp_path / "formats.png").read_bytes().startswith(b"\x89PNG")


def test_botocore_credentials_load_in_workers() -> None:
    assert "Loaded 16 arrays from " in run_example("botocore_credentials.py")


def test_map_ray_writes_each_image_into_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)  # else one is written to the home folder
    out = run_example("map_ray.py", "--limit", 60, "--shard", 30)
    assert "wrote 2 shards" in out
    assert "image: float32 (30, 8, 8)" in out
    assert "images   60, " in out


def test_read_http_serves_and_reads_its_own_array() -> None:
    assert "equal True" in run_example("read_http.py")


def test_read_http_reads_the_url_that_it_is_given(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.arange(60.0).reshape(20, 3)))
    out = run_example("read_http.py", url)
    assert "(20, 3)" in out
    assert "equal True" in out


def test_every_example_says_what_it_is() -> None:
    paths = list(EXAMPLES.rglob("*.py"))
    assert len(paths) >= 3
    for path in paths:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_the_readmes_archive_is_read(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("### Archives")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    out = run_script(f"import os, sys\nos.chdir(sys.argv[1])\n{code}", tmp_path)
    assert "image" in out
    assert "(480, 640, 3)" in out


def test_train_ddp_shows_each_sample_once_in_both_styles() -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--limit", "121", "--epochs", "2"]
    done = subprocess.run(
        [sys.executable, *command, EXAMPLES / "train_ddp.py", *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for style in ("map", "stream"):
        for epoch in range(2):
            expected = f"{style}, epoch {epoch}: ranks saw [61, 61] samples, together 121 of 121, 1"
            assert expected in done.stdout

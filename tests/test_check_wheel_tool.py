"""What tools/check_wheel refuses, counts and writes into docs/install.md."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import ROOT, load_tool

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_tls" name="a" />
<testcase classname="tests.test_tls" name="b"><failure message="x" /></testcase>
<testcase classname="tests.test_npz.TestClass" name="c"><skipped message="x" /></testcase>
<testcase classname="tests.test_processes" name="d"><error message="x" /></testcase>
<testcase classname="tests.test_tls" name="e" />
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("check_wheel")


def row(**changes: Any) -> dict[str, Any]:
    counts = {"passed": 12, "skipped": 1, "failed": 0}
    parts = {part: {**counts, "skipped": 0} for part in ("TLS", "C++ program")}
    return {
        "system": "Debian 12",
        "glibc": "2.36",
        "python": "3.11.7",
        "torch": "2.13.0+cpu",
        "wheel": "torchnpy-0.1.0-cp311-cp311-manylinux_2_34_x86_64.whl",
        "tests": "all",
        **counts,
        "parts": parts,
        "date": "2026-12-01",
        **changes,
    }


@pytest.mark.parametrize(
    "name",
    [
        "libboost_system.so.1.74.0",
        "libcurl.so.4",
        "libcurl-gnutls.so.4",
        "libdeflate.so.0",
        "libfmt.so.9.1.0",
        "libisal.so.2",
        "libnghttp2.so.14",
        "libpugixml.so.1",
    ],
)
def test_a_system_that_has_a_library_of_the_wheel_is_refused(
    tool: ModuleType, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "usr" / "lib" / "x86_64-linux-gnu"
    (tmp_path / "python" / "lib").mkdir(parents=True)
    folder.mkdir(parents=True)
    (folder / "libssl.so.3").touch()
    python = tool.Interpreter("python3", "3.11.7", tmp_path / "python")
    tool.check_clean(tmp_path, python)
    (folder / name).touch()
    with pytest.raises(SystemExit, match=f"found {name}; see what of PACKAGES brings them"):
        tool.check_clean(tmp_path, python)


def test_the_python_of_another_release_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "usr" / "lib").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text('NAME="Debian GNU/Linux"\nVERSION_ID="12"\n')
    python = tool.Interpreter("/usr/bin/python3", "3.13.5", Path("/usr"))
    with pytest.raises(
        SystemExit,
        match=r"^/usr/bin/python3: expected Python of Debian 12 but found 3\.13\.5; choose",
    ):
        tool.check_clean(tmp_path, python)


def test_outcomes_are_counted_in_all_and_by_part(tool: ModuleType) -> None:
    counts = tool.count(REPORT)
    assert [counts[each] for each in ("passed", "skipped", "failed")] == [2, 1, 2]
    assert counts["parts"]["TLS"] == {"passed": 2, "skipped": 0, "failed": 1}
    assert counts["parts"]["fork, spawn, exit"] == {"passed": 0, "skipped": 0, "failed": 1}
    assert counts["parts"]["C++ program"] == {"passed": 0, "skipped": 0, "failed": 0}


def test_a_new_row_replaces_that_of_the_same_combination(tool: ModuleType) -> None:
    old = [row(), row(torch="2.14.1+cu130"), row(python="3.9.1"), row(tests="smoke")]
    new = [row(passed=13, python="3.11.9", torch="2.13.1")]
    assert tool.merge(old, new) == [old[2], new[0], old[3], old[1]]


def test_the_table_has_a_line_for_each_row(tool: ModuleType, monkeypatch: Any) -> None:
    monkeypatch.setattr(tool, "PARTS", {"TLS": (), "C++ program": ()})
    table = tool.describe([row(failed=2)])
    assert table.removesuffix(tool.LEGEND) == (
        "| System | Python | torch | Tests | Passed | TLS | C++ program | Date |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| Debian 12, glibc 2.36 | 3.11.7 | 2.13.0+cpu | all | 12, 1 skipped, 2 failed | 12 | 12 "
        "| 2026-12-01 |\n"
    )


def test_the_documented_table_is_that_of_the_results(tool: ModuleType) -> None:
    text = (ROOT / "docs" / "install.md").read_text()
    rows = json.loads((ROOT / "docs" / "tested.json").read_text())
    assert tool.replace_table(text, "tested", tool.describe(rows)) == text


def test_the_files_of_the_smoke_suite_and_of_the_parts_exist(tool: ModuleType) -> None:
    files = {f"test_{name}" for name in tool.SMOKE}.union(*tool.PARTS.values())
    assert [name for name in files if not (ROOT / "tests" / f"{name}.py").exists()] == []

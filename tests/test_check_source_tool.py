"""What tools/check_source counts and writes into docs/install.md."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT, load_tool

REPORT = {
    "testsuites": [
        {"testsuite": [{"name": "a", "result": "COMPLETED"}]},
        {
            "testsuite": [
                {"name": "b", "result": "COMPLETED", "failures": [{"failure": "x"}]},
                {"name": "c", "result": "SKIPPED"},
                {"name": "d", "result": "COMPLETED"},
            ]
        },
    ]
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("check_source")


def test_outcomes_are_counted(tool: ModuleType) -> None:
    assert tool.count(REPORT) == {"passed": 2, "skipped": 1, "failed": 1}


def test_the_table_has_a_line_for_each_row(tool: ModuleType) -> None:
    versions = {"g++": "12.2.0", "cmake": "3.25.1", "libcurl": "7.88.1"}
    counts = {"passed": 3, "skipped": 0, "failed": 1}
    row = {"system": "Debian 12", **versions, "python": "3.11.2", "torch": "", **counts}
    assert tool.describe([{**row, "date": "2026-12-01"}]) == (
        "| System | g++ | CMake | libcurl | Python | torch | Passed | Date |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| Debian 12 | 12.2.0 | 3.25.1 | 7.88.1 | 3.11.2 | none | 3, 1 failed "
        "| 2026-12-01 |\n"
    )


def test_the_documented_table_is_that_of_the_results(tool: ModuleType) -> None:
    text = (ROOT / "docs" / "install.md").read_text()
    rows = json.loads((ROOT / "docs" / "built.json").read_text())
    shared = load_tool("shared")
    assert shared.replace_table(text, "built", tool.describe(rows)) == text


def test_another_keyring_of_ubuntu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systems = load_tool("clean_system")
    (tmp_path / "keyring.deb").write_bytes(b"other")
    monkeypatch.setattr(systems, "WORK", tmp_path / "work")
    monkeypatch.setattr(systems, "UBUNTU_MIRROR", tmp_path.as_uri())
    monkeypatch.setattr(systems, "UBUNTU_KEYRING", "keyring.deb")
    with pytest.raises(SystemExit, match=r"keyring\.deb: expected SHA-256 36de\w+ but found \w+"):
        systems.find_ubuntu("jammy")
    assert not (tmp_path / "work" / "ubuntu-archive-keyring.gpg").exists()

"""What the programs in tools share: which files they refuse, and the table that they replace."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest
from support import load_tool


@pytest.fixture(scope="module")
def shared() -> ModuleType:
    return load_tool("shared")


def test_whoever_is_not_root_learns_it(shared: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    shared.require_root()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match=r"^expected root but found uid 1000; run with sudo$"):
        shared.require_root()


def test_no_wheel_and_two_wheels_are_refused(shared: ModuleType, tmp_path: Path) -> None:
    message = r"expected one \*\.whl but found {}; make wheel makes it"
    with pytest.raises(SystemExit, match=message.format(0)):
        shared.only_wheel(tmp_path, "*.whl", "make wheel makes it")
    (tmp_path / "a.whl").touch()
    assert shared.only_wheel(tmp_path, "*.whl", "") == tmp_path / "a.whl"
    (tmp_path / "b.whl").touch()
    with pytest.raises(SystemExit, match=message.format(2)):
        shared.only_wheel(tmp_path, "*.whl", "make wheel makes it")


def test_packages_are_those_of_the_readme(
    shared: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"g++", "libcurl4-openssl-dev", "python3-dev"} <= set(shared.documented_packages())
    monkeypatch.setattr(shared, "SOURCE", tmp_path)
    (tmp_path / "README.md").write_text("no list\n")
    with pytest.raises(SystemExit, match=r"README\.md: expected the comment <!-- packages -->"):
        shared.documented_packages()


def test_outcomes_name_what_did_not_pass(shared: ModuleType) -> None:
    counts = {"passed": 12, "skipped": 1, "failed": 0}
    assert shared.format_outcomes(counts) == "12, 1 skipped"
    assert shared.format_outcomes({**counts, "failed": 2}) == "12, 1 skipped, 2 failed"


def test_a_table_has_a_rule_below_its_titles(shared: ModuleType) -> None:
    assert shared.format_table([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_the_table_replaces_what_stands_between_its_comments(shared: ModuleType) -> None:
    text = "a\n<!-- tested -->\nold\n<!-- /tested -->\nb\n"
    assert shared.replace_table(text, "tested", "new\n") == text.replace("old", "new")
    with pytest.raises(SystemExit, match=r"expected the comments <!-- tested --> and <!-- /tes"):
        shared.replace_table("a <!-- tested -->\n", "tested", "new\n")

"""pyproject.toml gives ranges, requirements.lock versions, README.md system packages."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import ROOT, load_tool

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, GROUPS = PYPROJECT["project"], PYPROJECT["dependency-groups"]
PUBLISHED = {
    "build-system": PYPROJECT["build-system"]["requires"],
    "dependencies": PROJECT["dependencies"],
    **PROJECT["optional-dependencies"],
}
LOCK = [
    line
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if not line.startswith("#")
]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_the_lock_has_one_exact_version_a_name_and_is_sorted() -> None:
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in LOCK)
    locked = [line.partition("==")[0] for line in LOCK]
    assert locked == sorted(locked, key=str.lower)
    assert len(names(LOCK)) == len(LOCK)


def test_the_lock_has_what_is_required_and_nothing_else() -> None:
    required = [text for group in (PUBLISHED | GROUPS).values() for text in group]
    assert names(LOCK) == names(required)


@pytest.mark.parametrize("group", PUBLISHED | GROUPS)
def test_locked_versions_satisfy_the_ranges(group: str) -> None:
    locked = dict(line.split("==") for line in LOCK)
    for text in (PUBLISHED | GROUPS)[group]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[requirement.name]), text


@pytest.mark.parametrize("group", PUBLISHED)
def test_what_users_install_is_bounded_below_only(group: str) -> None:
    for text in PUBLISHED[group]:
        assert [bound.operator for bound in Requirement(text).specifier] == [">="], text


def test_a_build_brings_no_torch_of_its_own() -> None:
    assert "torch" not in names(PYPROJECT["build-system"]["requires"])


@pytest.mark.parametrize("group", GROUPS)
def test_the_makefile_installs_locked_versions(group: str) -> None:
    command = [sys.executable, ROOT / "tools/requirements", group]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert names(printed) == names(GROUPS[group])
    assert {re.sub(r"\[.*\]", "", text) for text in printed} <= set(LOCK)


def test_documented_packages_are_those_of_tools_system() -> None:
    cases = re.search(r"\n  build\)\n(.*?);;", (ROOT / "tools/system").read_text(), re.DOTALL)
    assert cases is not None
    script = cases[1].replace("\\\n", " ")
    needed = {
        *re.findall(r"need_program \S+ ([\w+-]+)", script),
        *(name for line in re.findall(r"need_package (.*)", script) for name in line.split()),
        *re.findall(r"missing\+=\((.*?)\)", script),
    }
    assert needed >= {"g++", "libcurl4-openssl-dev", "python3-dev"}
    assert set(load_tool("shared").documented_packages()) == needed

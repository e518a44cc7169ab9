"""Which torch setup.py builds for. In CMake's place a program writes down its arguments."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
import setuptools
import torch
from support import ROOT

TORCH = Path(torch.__file__).parent
CMAKE = """#!/bin/sh
printf '%s\\n' "$@" >>"$CMAKE_LOG"
"""
# As pip's: the environment's packages are hidden, its interpreter runs.
HIDE_PACKAGES = """
import sys
sys.path = [path for path in sys.path if not path.endswith("-packages")]
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "torchnpy" / "lib").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    program = tmp_path / "bin" / "cmake"
    program.parent.mkdir()
    program.write_text(CMAKE)
    program.chmod(0o755)
    return folder


def build(
    source: Path,
    *,
    isolated: bool = False,
    torch_folders: str = "",
    python: str = sys.executable,
) -> tuple[str, list[str]]:
    """(stderr where the build fails, the arguments of CMake)."""
    log = source.parent / "cmake.log"
    log.touch()
    environment = {
        "PATH": str(source.parent / "bin"),
        "CMAKE_LOG": str(log),
        "TORCHNPY_TORCH": torch_folders,
    }
    if isolated:
        overlay = source.parent / "overlay"
        packages = Path(setuptools.__file__).parents[1]
        for name in ("setuptools", "_distutils_hack"):
            shutil.copytree(packages / name, overlay / name)
        (overlay / "sitecustomize.py").write_text(HIDE_PACKAGES)
        environment["PYTHONPATH"] = str(overlay)
    command = [python, "setup.py", "-q", "build_ext"]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    return done.stderr if done.returncode else "", log.read_text().splitlines()


@pytest.mark.parametrize("isolated", [False, True], ids=["plain", "isolated"])
def test_the_torch_of_the_environment_is_built_for(source: Path, isolated: bool) -> None:
    error, arguments = build(source, isolated=isolated)
    assert error == ""
    assert f"-DTORCHNPY_TORCH={TORCH}" in arguments
    assert f"-DPython_EXECUTABLE={sys.executable}" in arguments


def test_a_named_torch_is_built_for(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "torch"
    config = other / "share/cmake/Torch/TorchConfigVersion.cmake"
    config.parent.mkdir(parents=True)
    config.touch()
    error, arguments = build(source, torch_folders=f"{other}:{TORCH}:")
    assert error == ""
    assert f"-DTORCHNPY_TORCH={other};{TORCH}" in arguments


def test_a_named_folder_without_torch_is_refused(source: Path, tmp_path: Path) -> None:
    error, arguments = build(source, torch_folders=str(tmp_path))
    assert f"{tmp_path}: expected a folder of torch, as TORCHNPY_TORCH names it, but found" in error
    assert arguments == []


def test_a_python_without_torch_is_told_what_to_do(source: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = str(tmp_path / "venv/bin/python")
    error, arguments = build(source, isolated=True, python=python)
    assert f"torchnpy: expected torch beside {python} but found none; install it there" in error
    assert "name its folder in TORCHNPY_TORCH" in error
    assert arguments == []


def test_what_cmake_cached_for_another_generator_is_forgotten(source: Path) -> None:
    _, arguments = build(source)
    assert "Ninja" not in arguments
    cache = source / "build/cmake/CMakeCache.txt"
    cache.touch()
    build(source)
    assert cache.exists()
    shutil.copy(source.parent / "bin/cmake", source.parent / "bin/ninja")
    _, arguments = build(source)
    assert "Ninja" in arguments
    assert not cache.exists()


def test_an_sdist_has_all_that_a_build_needs(source: Path) -> None:
    for folder in ("cmake", "csrc", "tests", "torchnpy"):
        shutil.copytree(ROOT / folder, source / folder, dirs_exist_ok=True)
    for name in ("CHANGELOG.md", "CMakeLists.txt", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    script = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", script], cwd=source, check=True, capture_output=True)
    (archive,) = (source / "dist").iterdir()
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    for folder in ("csrc", "cmake"):
        assert {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.*")} <= names
    assert {"CMakeLists.txt", "setup.py", "LICENSE", "torchnpy/_C.pyi"} <= names
    assert not [name for name in names if name.endswith(".so") or name.startswith("tests")]


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("2.8.1", "expected torch 2.9 or newer but found 2.8"),
        ("unknown", "expected torch's version but found 'unknown'"),
    ],
)
def test_a_torch_that_cannot_be_built_for_is_named(
    tmp_path: Path, version: str, found: str
) -> None:
    config = tmp_path / "torch/share/cmake/Torch/TorchConfigVersion.cmake"
    config.parent.mkdir(parents=True)
    config.write_text(f'set(PACKAGE_VERSION "{version}")\n')
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(one_pair LANGUAGES NONE)\n"
        f"include({ROOT}/cmake/TorchLibraries.cmake)\ninclude({ROOT}/cmake/TorchPair.cmake)\n"
        f"torchnpy_add_pair({tmp_path}/torch)\n"
    )
    command = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{tmp_path}/torch: {found}" in " ".join(done.stderr.split())

"""Builds the C++ libraries with CMake into the package; the metadata is in pyproject.toml."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import torch.utils
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent
BUILD = SOURCE / "build" / "cmake"


class CMakeBuild(build_ext):
    """Puts _C, lib/, include/ and share/ into the package: the source's own if editable.

    All builds share one folder, so that each compiles only what changed. CMAKE_ARGS adds options.
    """

    def run(self) -> None:
        in_source = self.inplace or self.editable_mode
        package = (SOURCE if in_source else Path(self.build_lib).resolve()) / "torchnpy"
        self._forget_other_torch()
        self._cmake(
            *("-S", str(SOURCE), "-B", str(BUILD)),
            *(("-G", "Ninja") if shutil.which("ninja") else ()),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DTorch_DIR={torch.utils.cmake_prefix_path}/Torch",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        )
        self._cmake("--build", str(BUILD), "--parallel", "--target", "torchnpy", "_C")
        self._cmake("--install", str(BUILD), "--prefix", str(package))

    def get_source_files(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_outputs(self) -> list[str]:
        return []

    @staticmethod
    def _forget_other_torch() -> None:
        """An isolated build has its torch and Python elsewhere: what CMake cached is void."""
        built_with = BUILD / "built_with.txt"
        this = f"{sys.executable} {torch.__file__} {torch.__version__}\n"
        if not built_with.exists() or built_with.read_text() != this:
            BUILD.mkdir(parents=True, exist_ok=True)
            (BUILD / "CMakeCache.txt").unlink(missing_ok=True)
            built_with.write_text(this)

    @staticmethod
    def _cmake(*arguments: str) -> None:
        if subprocess.run(["cmake", *arguments], check=False).returncode:
            raise SystemExit(f"cmake {' '.join(arguments)}: failed, see above")


setup(ext_modules=[Extension("torchnpy._C", sources=[])], cmdclass={"build_ext": CMakeBuild})

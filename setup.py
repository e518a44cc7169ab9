"""Builds the C++ libraries with CMake into the package; the metadata is in pyproject.toml."""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent
BUILD = Path(os.environ.get("TORCHNPY_BUILD") or SOURCE / "build" / "cmake")


def find_torches() -> list[Path]:
    """The folders of torch to build for: those of TORCHNPY_TORCH, else the torch at hand.

    Torch is not imported, and is no requirement of the build: in an isolated build pip would
    install another one than the environment has, and libraries made for one minor release do not
    load with another. pip hides the environment's packages there, but runs its interpreter, which
    knows where they are.
    """
    named = os.environ.get("TORCHNPY_TORCH")
    if named:
        folders = [Path(folder).resolve() for folder in named.split(os.pathsep) if folder]
    else:
        paths = sysconfig.get_paths()
        places = [*sys.path, paths["purelib"], paths["platlib"]]
        folders = [Path(place or ".").resolve() / "torch" for place in places]
        folders = [folder for folder in folders if (folder / "share/cmake/Torch").is_dir()][:1]
    for folder in folders:
        if not (folder / "share/cmake/Torch/TorchConfigVersion.cmake").is_file():
            raise SystemExit(
                f"{folder}: expected a folder of torch, as TORCHNPY_TORCH names it, but found no "
                "share/cmake/Torch/TorchConfigVersion.cmake; it is what `import torch; "
                "print(*torch.__path__)` prints"
            )
    if not folders:
        raise SystemExit(
            f"torchnpy: expected torch beside {sys.executable} but found none; install it there "
            "and build again, or name its folder in TORCHNPY_TORCH"
        )
    return folders


class CMakeBuild(build_ext):
    """Puts lib/, include/ and share/ into the package: the source's own if editable.

    All builds share one folder (TORCHNPY_BUILD names another), so that each compiles only what
    changed. CMAKE_ARGS adds options.
    """

    def run(self) -> None:
        in_source = self.inplace or self.editable_mode
        package = (SOURCE if in_source else Path(self.build_lib).resolve()) / "torchnpy"
        torches = find_torches()
        BUILD.mkdir(parents=True, exist_ok=True)
        with open(BUILD / "lock", "w") as lock:  # of builds of one clone at once
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._build(package, torches)

    def _build(self, package: Path, torches: list[Path]) -> None:
        generator = ("-G", "Ninja") if shutil.which("ninja") else ()
        self._forget_other_builds(*generator)
        self._cmake(
            *("-S", str(SOURCE), "-B", str(BUILD)),
            *generator,
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DTORCHNPY_TORCH={';'.join(map(str, torches))}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        )
        self._cmake("--build", str(BUILD), "--parallel", "--target", "package_libraries")
        # Libraries of an earlier build do not fit the new core.
        shutil.rmtree(package / "lib", ignore_errors=True)
        self._cmake("--install", str(BUILD), "--prefix", str(package))

    def get_source_files(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_outputs(self) -> list[str]:
        return []

    @staticmethod
    def _forget_other_builds(*generator: str) -> None:
        """What CMake cached for another interpreter or generator is void."""
        built_with = BUILD / "built_with.txt"
        this = " ".join([sys.executable, sys.version, *generator]) + "\n"
        if not built_with.exists() or built_with.read_text() != this:
            (BUILD / "CMakeCache.txt").unlink(missing_ok=True)
            shutil.rmtree(BUILD / "CMakeFiles", ignore_errors=True)
            built_with.write_text(this)

    @staticmethod
    def _cmake(*arguments: str) -> None:
        if subprocess.run(["cmake", *arguments], check=False).returncode:
            raise SystemExit(f"cmake {' '.join(arguments)}: failed, see above")


setup(ext_modules=[Extension("torchnpy._C", sources=[])], cmdclass={"build_ext": CMakeBuild})

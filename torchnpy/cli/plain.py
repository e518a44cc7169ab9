"""What the command answers without click and rich, so that bug reports need neither."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch.utils

import torchnpy
from torchnpy import doctor

_VERBOSE = {"--verbose", "-v"}


def answer(arguments: Sequence[str]) -> int | None:
    """The exit status, or None where the arguments are for the other commands."""
    if arguments[:1] == ["doctor"]:
        return doctor.main(arguments[1:])
    given = set(arguments)
    if given == {"--cmake-prefix"}:
        return print_cmake_prefix()
    if "--version" in given and given <= {"--version", *_VERBOSE}:
        return doctor.main([]) if given & _VERBOSE else print_version()
    return None


def print_version() -> int:
    """Returns the exit status."""
    print(f"torchnpy {torchnpy.__version__}")
    return 0


def print_cmake_prefix() -> int:
    """What CMAKE_PREFIX_PATH takes: our folder of packages, and torch's. Returns the exit status:
    1 when ours is missing."""
    own = Path(torchnpy.__file__).parent / "share" / "cmake"
    if not (own / "TorchNpy" / "TorchNpyConfig.cmake").is_file():
        print(
            f"torchnpy: {own}: expected TorchNpy/TorchNpyConfig.cmake but found none; install "
            "torchnpy anew",
            file=sys.stderr,
        )
        return 1
    print(f"{own};{torch.utils.cmake_prefix_path}")
    return 0

"""What the built libraries export, hold and need."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest
import torch

import torchnpy

LIB = Path(torchnpy.__file__).parent / "lib"
CORE = LIB / "libnpy_core.so"
PAIR = LIB / f"torch-{'.'.join(torch.__version__.split('.')[:2])}"
OPS = PAIR / "libtorchnpy.so"
(BINDINGS,) = PAIR.glob("_C.*.so")


def symbols(library: Path, *options: str) -> list[tuple[str, str]]:
    """(type, demangled name), as nm prints them."""
    command = ["nm", "--demangle", "--defined-only", *options, str(library)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [(kind, name) for _, kind, name in (line.split(" ", 2) for line in lines)]


@pytest.mark.parametrize(
    ("library", "name"),
    [(CORE, "torchnpy::Client::default_client"), (OPS, "torchnpy::use_ops")],
    ids=["libnpy_core", "libtorchnpy"],
)
def test_library_exports_only_our_names(library: Path, name: str) -> None:
    exported = [name for _, name in symbols(library, "--dynamic")]
    assert any(each.startswith(name) for each in exported)
    assert [each for each in exported if "torchnpy::" not in each] == []


def test_core_needs_nothing_of_torch_and_python() -> None:
    command = ["nm", "--demangle", "--dynamic", "--undefined-only", str(CORE)]
    needed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "pthread" in needed
    assert [
        line for line in needed.splitlines() if re.search(r"\b(at|c10|torch|pybind11)::|\bPy", line)
    ] == []
    assert "torch" not in re.sub("torchnpy", "", needed_libraries(CORE))
    assert "python" not in needed_libraries(CORE)


def all_symbols(library: Path) -> list[tuple[str, str]]:
    """Those of a stripped library, as in the wheel, are the dynamic ones."""
    return symbols(library) or symbols(library, "--dynamic")


def variables(library: Path) -> set[str]:
    """Those of our namespace that have a name in other files, without the compiler's tables."""
    tables = ("vtable for", "VTT for", "typeinfo for", "typeinfo name for", "(anonymous namespace)")
    return {
        name
        for kind, name in all_symbols(library)
        if kind in "BbDdGgSsuVv" and "torchnpy::" in name and not any(t in name for t in tables)
    }


def test_no_variable_exists_in_two_libraries() -> None:
    assert variables(CORE)
    for one, other in itertools.combinations((CORE, OPS, BINDINGS), 2):
        assert variables(one) & variables(other) == set(), (one, other)


def needed_libraries(library: Path) -> str:
    command = ["readelf", "--dynamic", str(library)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return "\n".join(line for line in lines if "(NEEDED)" in line)


@pytest.mark.parametrize("library", [OPS, BINDINGS], ids=["libtorchnpy", "_C"])
def test_library_needs_no_libpython(library: Path) -> None:
    needed = needed_libraries(library)
    assert "libtorch_cpu.so" in needed
    assert "libpython" not in needed
    assert "libtorch_python" not in needed or library == BINDINGS


def test_ops_and_bindings_link_the_core_and_none_of_its_libraries() -> None:
    for library in (OPS, BINDINGS):
        needed = needed_libraries(library)
        assert "libnpy_core.so" in needed
        assert re.search("libcurl|libssl|libcrypto|libz|libdeflate|libisal|pugixml", needed) is None
    assert "libtorchnpy.so" in needed_libraries(BINDINGS)

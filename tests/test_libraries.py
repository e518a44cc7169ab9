"""What the built libraries export, hold and need."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import torchnpy

PACKAGE = Path(torchnpy.__file__).parent
OPS = PACKAGE / "lib" / "libtorchnpy.so"
(BINDINGS,) = PACKAGE.glob("_C.*.so")


def symbols(library: Path, *options: str) -> list[tuple[str, str]]:
    """(type, demangled name), as nm prints them."""
    command = ["nm", "--demangle", "--defined-only", *options, str(library)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [(kind, name) for _, kind, name in (line.split(" ", 2) for line in lines)]


def test_ops_export_only_our_names() -> None:
    exported = [name for _, name in symbols(OPS, "--dynamic")]
    assert any(name.startswith("torchnpy::use_ops") for name in exported)
    assert [name for name in exported if "torchnpy::" not in name] == []


def variables(library: Path) -> set[str]:
    """Those of our namespace that have a name in other files, without the compiler's tables."""
    tables = ("vtable for", "VTT for", "typeinfo for", "typeinfo name for", "(anonymous namespace)")
    return {
        name
        for kind, name in symbols(library)
        if kind in "BbDdGgSsuVv" and "torchnpy::" in name and not any(t in name for t in tables)
    }


def test_no_variable_exists_in_both_libraries() -> None:
    assert variables(OPS) & variables(BINDINGS) == set()


@pytest.mark.parametrize("library", [OPS, BINDINGS], ids=["libtorchnpy", "_C"])
def test_library_needs_no_libpython(library: Path) -> None:
    dynamic = subprocess.run(["readelf", "-d", str(library)], check=True, capture_output=True)
    assert b"libtorch_cpu.so" in dynamic.stdout
    assert b"libpython" not in dynamic.stdout
    assert b"libtorch_python" not in dynamic.stdout or library == BINDINGS


def test_bindings_link_the_ops_and_none_of_their_libraries() -> None:
    dynamic = subprocess.run(["readelf", "-d", str(BINDINGS)], check=True, capture_output=True)
    assert b"libtorchnpy.so" in dynamic.stdout
    assert b"libcurl" not in dynamic.stdout

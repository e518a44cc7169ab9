"""The folder is the layer, and the layer is the include rule (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Layer: the layers that it may include.
LAYERS = {
    "base": {"base"},
    "format": {"base", "format"},
    "transport": {"base", "transport"},
    "archive": {"base", "format", "transport", "archive"},
    "torch": {"base", "format", "transport", "archive", "torch"},
    "python": {"base", "format", "transport", "archive", "torch", "python"},
}

# Library: its headers, and the files that may include them.
LIBRARIES = {
    "fmt": (r"fmt/", r".*"),
    "curl": (r"curl/", r"transport/(engine\.cpp|reactor\w*\.(h|cpp))"),
    "openssl": (r"openssl/", r"transport/.*\.cpp"),
    "pugixml": (r"pugixml", r"transport/(s3\w*|list\w*|credentials_sts)\.cpp"),
    "json": (r"nlohmann/", r"transport/credentials_parse\.cpp"),
    "codec": (
        r"zlib|libdeflate|zstd|lzma|bzlib|brotli|lz4|isa-l|boost/crc",
        r"format/(deflate(_write)?|gzip)\.cpp|base/checksum\.cpp",
    ),
    "torch": (r"(ATen|torch|c10)/", r"(torch|python)/.*"),
    "pybind11": (r"pybind11/|Python\.h|torch/csrc/utils/pybind\.h", r"python/.*"),
}

SYSTEM_HEADER = re.compile(
    r"[a-z_]+|(sys|netinet|arpa|linux)/\w+\.h"
    r"|(dirent|dlfcn|errno|fcntl|limits|locale|netdb|poll|pthread|pwd|sched|signal|spawn|stdio|stdlib|string"
    r"|strings|time|unistd)\.h"
)

# Modules that `import torchnpy` must not load: an optional package, and one that takes seconds.
LAZY_MODULES = ("numpy", "torch._dynamo")

# Of the command line, which nothing else imports.
CLI_MODULES = ("click", "rich", "torchnpy.cli")


def includes(file: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, header, quoted) of each #include."""
    pattern = re.compile(r'\s*#\s*include\s*(?:<([^>]+)>|"([^"]+)")')
    for line, text in enumerate(file.read_text().splitlines(), 1):
        if match := pattern.match(text):
            yield line, match[1] or match[2], match[1] is None


def library_violation(name: str, header: str) -> str | None:
    owners = [key for key, (headers, _) in LIBRARIES.items() if re.match(headers, header)]
    if not owners:
        known = SYSTEM_HEADER.fullmatch(header)
        return None if known else f"<{header}> is of no library that this project uses"
    for owner in owners:
        if not re.fullmatch(LIBRARIES[owner][1], name):
            return f"<{header}>: {owner} is used only in {LIBRARIES[owner][1]}"
    return None


def cpp_violations(root: Path) -> Iterator[str]:
    csrc = root / "csrc"
    for file in sorted([*csrc.rglob("*.h"), *csrc.rglob("*.cpp")]):
        name = file.relative_to(csrc).as_posix()
        layer = name.split("/")[0]
        if layer not in LAYERS:
            yield f"{name}: csrc/{layer} is no layer"
            continue
        for line, header, quoted in includes(file):
            found = None
            if not quoted:
                found = library_violation(name, header)
            elif name == "torch/torchnpy.h":
                found = f'"{header}": the public header is installed alone'
            elif not (csrc / header).exists():
                found = f'"{header}" is no file of csrc/; a library\'s header goes in <>'
            elif header.split("/")[0] not in LAYERS[layer]:
                found = f'"{header}": {layer} may include only {", ".join(sorted(LAYERS[layer]))}'
            if found:
                yield f"{name}:{line}: {found}"


def core_test_violations(root: Path) -> Iterator[str]:
    """The core's tests and fuzz targets are built without torch and Python."""
    for file in sorted((root / "tests").rglob("*.[ch]*")):
        if file.suffix not in {".cpp", ".h"}:
            continue
        for line, header, _ in includes(file):
            if re.match(r"(ATen|torch|c10|pybind11|python)/|Python\.h", header):
                name = file.relative_to(root)
                yield f"{name}:{line}: {header}: the core's tests know no torch and no Python"


def imported(node: ast.AST, package: str) -> set[str]:
    """The modules that an import statement may load, absolute."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: 1 - node.level or None] if node.level else []
        module = ".".join([*parents, *filter(None, [node.module])])
        return {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return set()


def executed_on_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from executed_on_import(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from executed_on_import(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from executed_on_import(handler.body)


def typing_only(tree: ast.Module) -> set[ast.AST]:
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }


def is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def is_cli(file: Path) -> bool:
    return "cli" in file.parts or file.name == "__main__.py"


def python_violations(root: Path) -> Iterator[str]:
    for file in sorted((root / "torchnpy").rglob("*.py")):
        name = file.relative_to(root)
        package = ".".join(name.parent.parts)
        tree = ast.parse(file.read_text())
        for node in executed_on_import(tree.body):
            for module in imported(node, package):
                if is_in(module, LAZY_MODULES):
                    yield f"{name}:{node.lineno}: imports {module} when it is imported itself"
                if is_in(module, CLI_MODULES) and not is_cli(name):
                    yield f"{name}:{node.lineno}: imports {module}: only the command line does"
        if name.as_posix() == "torchnpy/_ops.py":
            continue
        skipped = typing_only(tree)
        for node in ast.walk(tree):
            modules = set() if node in skipped else imported(node, package)
            attribute = node.attr if isinstance(node, ast.Attribute) else ""
            if attribute == "load_library" or modules & {"torchnpy._C", "ctypes", "importlib.util"}:
                yield f"{name}:{node.lineno}: only _ops.py loads libraries"


def violations(root: Path) -> list[str]:
    return [*cpp_violations(root), *core_test_violations(root), *python_violations(root)]


def test_every_file_includes_and_imports_only_what_its_layer_may() -> None:
    assert (ROOT / "csrc/base/bytes.h").exists()
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("name", "line", "violation"),
    [
        ("csrc/base/x.h", '#include "format/npy.h"', "base may include only base"),
        ("csrc/base/x.h", "#include <boost/any.hpp>", "is of no library"),
        ("csrc/base/x.h", '#include "bytes.h"', "is no file of csrc/"),
        ("csrc/format/x.cpp", '#include "transport/source.h"', "format may include only"),
        ("csrc/transport/x.cpp", '#  include "format/npy.h"', "transport may include only"),
        ("csrc/transport/http.cpp", "#include <curl/curl.h>", "curl is used only in"),
        ("csrc/transport/http.cpp", "#include <pugixml.hpp>", "pugixml is used only in"),
        ("csrc/format/zip.cpp", "#include <zlib.h>", "codec is used only in"),
        ("csrc/format/zip.cpp", "#include <openssl/sha.h>", "openssl is used only in"),
        ("csrc/archive/x.cpp", "#include <ATen/ATen.h>", "torch is used only in"),
        ("csrc/archive/x.cpp", '#include "torch/tensor.h"', "archive may include only"),
        ("csrc/torch/x.cpp", "#include <pybind11/pybind11.h>", "pybind11 is used only in"),
        ("csrc/torch/x.cpp", "#include <Python.h>", "pybind11 is used only in"),
        ("csrc/torch/x.cpp", "#include <torch/csrc/utils/pybind.h>", "pybind11 is used only in"),
        ("csrc/torch/torchnpy.h", '#include "base/bytes.h"', "is installed alone"),
        ("csrc/util/x.h", "", "csrc/util is no layer"),
        ("tests/cpp/x.cpp", "#include <torch/torch.h>", "know no torch"),
        ("torchnpy/x.py", "import numpy as np", "imports numpy when"),
        ("torchnpy/data/x.py", "try:\n    from numpy import array\nexcept: pass", "imports numpy"),
        ("torchnpy/x.py", "from torch import _dynamo", "imports torch._dynamo when"),
        ("torchnpy/x.py", "class X:\n    import torch._dynamo.eval_frame", "imports torch._dynamo"),
        ("torchnpy/x.py", "def f(): torch.ops.load_library('x')", "only _ops.py loads libraries"),
        ("torchnpy/x.py", "from . import _C", "only _ops.py loads libraries"),
        ("torchnpy/data/x.py", "from .. import _C", "only _ops.py loads libraries"),
        ("torchnpy/x.py", "def f(): from torchnpy import _C", "only _ops.py loads libraries"),
        ("torchnpy/x.py", "import ctypes", "only _ops.py loads libraries"),
        ("torchnpy/x.py", "import click", "only the command line does"),
        ("torchnpy/x.py", "from rich.table import Table", "only the command line does"),
        ("torchnpy/x.py", "from torchnpy.cli import main", "only the command line does"),
    ],
)
def test_violation_is_found(tmp_path: Path, name: str, line: str, violation: str) -> None:
    tree = {"csrc/base/bytes.h": "", "csrc/format/npy.h": "", "csrc/transport/source.h": ""}
    for file, text in {**tree, "csrc/torch/tensor.h": "", name: f"\n{line}\n"}.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    found = violations(tmp_path)[0]
    assert violation in found
    assert Path(name).name in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("csrc/base/x.h", "#include <fmt/format.h>\n#include <sys/mman.h>\n#include <string_view>"),
        ("csrc/transport/engine.cpp", "#include <curl/curl.h>\n#include <openssl/ssl.h>"),
        ("csrc/transport/s3_list.cpp", "#include <pugixml.hpp>"),
        ("csrc/python/module.cpp", "#include <torch/csrc/utils/pybind.h>\n#include <ATen/ATen.h>"),
        ("torchnpy/x.py", "def f():\n    import numpy\n    import torch._dynamo"),
        ("torchnpy/x.py", "if TYPE_CHECKING:\n    import numpy\n    from torchnpy import _C"),
        ("torchnpy/cli/x.py", "import click\nfrom rich.table import Table"),
        ("torchnpy/_ops.py", "from torchnpy import _C\ntorch.ops.load_library('x')"),
    ],
)
def test_what_a_layer_may_use_is_no_violation(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    assert violations(tmp_path) == []

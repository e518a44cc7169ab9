"""What tools/wheel adds to a wheel, takes of torch's, and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT, load_tool

METADATA = """Metadata-Version: 2.4
Name: torchnpy
Version: 0.1.0
License-Expression: BSD-3-Clause
License-File: LICENSE

The description.
"""
TAGS = (
    "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux_x86_64\n"
)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("wheel")


def zip_of(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


@pytest.fixture
def noticed(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel with the notices of two libraries."""
    info = tmp_path / "torchnpy-0.1.0" / "torchnpy-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    (info / "WHEEL").write_text(TAGS)
    pack = [sys.executable, "-m", "wheel", "pack", "--dest-dir", str(tmp_path), str(info.parent)]
    subprocess.run(pack, check=True)
    prefix = tmp_path / "static"
    (prefix / "licenses").mkdir(parents=True)
    (prefix / "licenses" / "curl.txt").write_text("Permission to use curl\n")
    (prefix / "licenses" / "zlib.txt").write_text("This software is provided as-is\n")
    (prefix / "libraries.tsv").write_text(
        "zlib\t1:1.2.13\tZlib\tpkg:deb/debian/zlib1g-dev@1:1.2.13\n"
        "curl\t8.22.0\tcurl\tpkg:generic/curl@8.22.0\n"
    )
    monkeypatch.setattr(tool, "WORK", tmp_path / "work")
    (wheel,) = tmp_path.glob("*.whl")
    added: Path = tool.add_notices(wheel, tool.read_libraries(prefix), tmp_path / "dist")
    return added


def read_info(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"torchnpy-0.1.0.dist-info/{name}").decode()


def test_wheel_carries_the_licence_of_each_library(noticed: Path) -> None:
    text = read_info(noticed, "licenses/LICENSES")
    assert (ROOT / "LICENSE").read_text().rstrip() in text
    assert "curl 8.22.0 (curl), in libnpy_core.so\n\nPermission to use curl\n" in text
    assert "zlib 1:1.2.13 (Zlib), in libnpy_core.so\n\nThis software is provided as-is\n" in text


def test_metadata_names_all_licences_and_their_files(noticed: Path) -> None:
    fields = message_from_string(read_info(noticed, "METADATA"))
    assert fields["License-Expression"] == "BSD-3-Clause AND curl AND Zlib"
    assert set(fields.get_all("License-File", [])) == {"LICENSE", "LICENSES"}
    assert fields.get_payload() == "The description.\n"


def test_sbom_describes_each_library(noticed: Path) -> None:
    sbom = json.loads(read_info(noticed, "sboms/libraries.cdx.json"))
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.4")
    assert sbom["metadata"]["component"]["purl"] == "pkg:pypi/torchnpy@0.1.0"
    found = {
        c["name"]: (c["version"], c["licenses"][0]["license"]["id"]) for c in sbom["components"]
    }
    assert found == {"curl": ("8.22.0", "curl"), "zlib": ("1:1.2.13", "Zlib")}
    (dependencies,) = sbom["dependencies"]
    assert dependencies["dependsOn"] == [c["bom-ref"] for c in sbom["components"]]


def test_record_has_the_hashes_of_what_was_added(noticed: Path, tmp_path: Path) -> None:
    # It compares each file with RECORD.
    unpack = [sys.executable, "-m", "wheel", "unpack", "--dest", str(tmp_path / "u"), str(noticed)]
    subprocess.run(unpack, check=True)
    assert "sboms/libraries.cdx.json,sha256=" in read_info(noticed, "RECORD")


def test_metadata_without_a_licence_is_refused(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match="METADATA: expected License-Expression but found none"):
        tool.amend_metadata("Name: torchnpy\n\n", [])


def test_of_torch_only_what_compiling_needs_is_unpacked(tmp_path: Path) -> None:
    needed = {
        "torch/version.py",
        "torch/include/ATen/ATen.h",
        "torch/share/cmake/Torch/TorchConfig.cmake",
        "torch/lib/libtorch_cpu.so",
        "torch/lib/libc10.so",
    }
    others = {
        "torch/__init__.py",
        "torch/lib/libtorch_cuda.so",
        "torch/testing/version.py",
        "torchgen/include/x.h",
    }
    wheel = zip_of(tmp_path / "torch.whl", *needed, *others)
    root = tmp_path / "unpacked"
    load_tool("torch_files").unpack_torch(wheel, root)
    unpacked = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    assert unpacked == needed


LIBRARIES = [
    "libnpy_core.so",
    *(f"torch-{minor}/libtorchnpy.so" for minor in ("2.13", "2.14")),
    *(f"torch-{minor}/_C.cpython-311-x86_64-linux-gnu.so" for minor in ("2.13", "2.14")),
]


def test_wheel_with_the_ops_of_each_torch_passes(tool: ModuleType, tmp_path: Path) -> None:
    wheel = zip_of(tmp_path / "a.whl", *(f"torchnpy/lib/{name}" for name in LIBRARIES))
    tool.check(wheel, {"2.13", "2.14"})


@pytest.mark.parametrize("missing", LIBRARIES)
def test_library_that_the_wheel_lacks_is_named(
    tool: ModuleType, tmp_path: Path, missing: str
) -> None:
    names = [f"torchnpy/lib/{name}" for name in LIBRARIES if name != missing]
    with pytest.raises(SystemExit, match=f"expected {missing.split('.cpython')[0]} but found only"):
        tool.check(zip_of(tmp_path / "a.whl", *names), {"2.13", "2.14"})


def test_library_of_the_system_in_the_wheel_is_named(tool: ModuleType, tmp_path: Path) -> None:
    wheel = zip_of(tmp_path / "a.whl", "torchnpy/lib/libnpy_core.so", "torchnpy.libs/libz-1.so.1")
    with pytest.raises(SystemExit, match=r"found torchnpy\.libs/libz-1\.so\.1; link them statical"):
        tool.check(wheel, set())


def test_ops_of_a_torch_that_was_not_asked_for_are_named(tool: ModuleType, tmp_path: Path) -> None:
    wheel = zip_of(tmp_path / "a.whl", "torchnpy/lib/torch-2.12/libtorchnpy.so")
    with pytest.raises(SystemExit, match=r"ops for torch 2\.13 but found 2\.12; remove"):
        tool.check(wheel, {"2.13"})

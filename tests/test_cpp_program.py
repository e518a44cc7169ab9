"""examples/cpp: a C++ program without Python runs a saved module that loads its input."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from servers.http import ObjectServer, status
from support import ROOT, npy

import torchnpy


class Double(torch.nn.Module):
    def forward(self, url: str) -> torch.Tensor:
        return torch.ops.npy.load(url) * 2


class SaveAndLoad(torch.nn.Module):
    def forward(self, path: str) -> torch.Tensor:
        torch.ops.npy.save(path, torch.ones(3, 4)[:, ::2] * 2)
        return torch.ops.npy.load(path)


def configure(build: Path, prefix: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", str(ROOT / "examples/cpp"), "-B", str(build)]
    options = [f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Release"]
    return subprocess.run([*command, *options], capture_output=True, text=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with find_package(TorchNpy) against the package that the tests import."""
    build = tmp_path_factory.mktemp("cpp")
    prefix = [sys.executable, "-m", "torchnpy", "--cmake-prefix"]
    prefix = subprocess.run(prefix, check=True, capture_output=True, text=True).stdout.strip()
    done = configure(build, prefix)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(["cmake", "--build", str(build)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (binary,) = (
        path
        for path in build.iterdir()
        if path.is_file() and path.stat().st_mode & 0o100 and not path.suffix
    )
    return binary


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "double.pt"
    torch.jit.script(Double()).save(path)
    return path


def test_the_program_prints_shape_and_sum(
    program: Path, module: Path, server: ObjectServer
) -> None:
    url = server.put("/x.npy", npy(np.arange(12, dtype=np.float32).reshape(3, 4)))
    done = subprocess.run([program, module, url], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "[3, 4]" in done.stdout
    assert "132" in done.stdout
    assert len(server.requests) == 1


def test_the_program_saves(program: Path, tmp_path: Path) -> None:
    torch.jit.script(SaveAndLoad()).save(tmp_path / "save.pt")
    command = [program, tmp_path / "save.pt", tmp_path / "x.npy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "[3, 2], sum 12" in done.stdout
    assert (tmp_path / "x.npy").read_bytes() == npy(np.full((3, 2), 2, "f4"))


def test_the_program_fails_with_the_librarys_message(
    program: Path, module: Path, server: ObjectServer
) -> None:
    server.always("/x.npy", status(404))
    done = subprocess.run([program, module, server.url + "/x.npy"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "/x.npy" in done.stderr
    assert "404" in done.stderr


def test_a_torch_that_torchnpy_was_not_built_for_is_named(tmp_path: Path) -> None:
    package = shutil.copytree(Path(torchnpy.__file__).parent / "share", tmp_path / "share").parent
    (package / "lib" / "torch-2.8").mkdir(parents=True)
    found = Path(torch.utils.cmake_prefix_path).parents[1]
    prefix = f"{package}/share/cmake;{torch.utils.cmake_prefix_path}"
    done = configure(tmp_path / "build", prefix)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    release = ".".join(torch.__version__.split(".")[:2])
    assert "expected a torch that torchnpy was built for (torch-2.8) but found torch" in said
    assert f"{release} in {found}. Build torchnpy for it: pip install --no-deps" in said


def test_a_torch_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    share = shutil.copytree(Path(torchnpy.__file__).parent / "share", tmp_path / "a/b/share")
    done = configure(tmp_path / "build", f"{share}/cmake")
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "expected torch's TorchConfig.cmake but found none; set CMAKE_PREFIX_PATH" in said


def test_the_program_needs_no_python(program: Path) -> None:
    needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libtorchnpy.so" in needed
    assert "libpython" not in needed
    assert "libtorch_python" not in needed
    assert sysconfig.get_config_var("LDLIBRARY")  # there is a Python that it could have needed

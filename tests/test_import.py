"""What importing the package does, and above all what it does not; and that there is one engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from servers.http import ObjectServer
from support import npy, ops_library, run_fresh, run_script

import torchnpy as tnp

PACKAGE = Path(tnp.__file__).parent


def test_importing_is_light_and_starts_no_thread() -> None:
    out = run_fresh(
        """
        import os, sys, torch
        def count():
            return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
        modules, before = set(sys.modules), count()
        import torchnpy, torchnpy.data
        torchnpy.default_client(), torchnpy.Client(io_threads=2)
        torchnpy.load_npy(b"\\x93NUMPY\\x01\\x00\\x36\\x00"
                          b"{'descr':'<f4','fortran_order':False,'shape':(0,)}   \\n")
        print(count() == before)
        heavy = ("torch._dynamo", "torch._inductor", "numpy", "boto", "requests", "torchdata",
                 "asyncio", "urllib3", "http", "ray", "pyarrow", "pandas", "click", "rich")
        print([name for name in set(sys.modules) - modules if name.startswith(heavy)])
        """
    )
    assert out == "True\n[]\n"


def test_importing_survives_a_bare_environment() -> None:
    package = {"PYTHONPATH": str(PACKAGE.parent)}
    assert run_fresh("import torchnpy; print(torchnpy.default_client())", env=package)


def test_importing_twice_and_reloading_is_harmless() -> None:
    run_script(
        """
        import importlib, sys, torch, torchnpy
        importlib.import_module("torchnpy")
        torch.ops.load_library(sys.argv[1])
        """,
        ops_library(),
    )


def test_io_threads_start_once_for_plain_calls_ops_and_all_clients(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.zeros(3)))
    out = run_script(
        """
        import os, sys, torch, torchnpy as tnp
        def threads():
            return len(os.listdir("/proc/self/task"))
        before, counts = threads(), []
        for call in (tnp.load, torch.ops.npy.load, lambda url: tnp.load(url, client=tnp.Client())):
            for _ in range(4):
                call(sys.argv[1])
            counts.append(threads() - before)
        print(min(counts) > 0, max(counts) <= 2, len(set(counts)))
        """,
        url,
    )
    assert out == "True True 1\n"


def test_python_and_the_ops_share_one_default_client(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.zeros(3)))
    before = tnp.default_client()
    client = tnp.Client()
    try:
        tnp.set_default_client(client)
        assert tnp.default_client() is client
        tnp.load(url)
        torch.ops.npy.load(url)
        assert client.metrics()["requests"] == 2
    finally:
        tnp.set_default_client(before)


def test_the_public_names_have_docs() -> None:
    expected = (
        "Client FormatError LockError TransportError UnsupportedError default_client header load "
        "load_many load_npy load_rows set_default_client"
    )
    assert set(expected.split()) <= set(tnp.__all__)
    for name in expected.split():
        assert getattr(tnp, name).__doc__, name


RELEASE = ".".join(torch.__version__.split(".")[:2])
BUILD = "pip install --no-deps --force-reinstall ."


def import_error(folder: Path, libraries: dict[str, bytes]) -> str:
    """What `import torchnpy` raises where lib/ holds these files alone."""
    ignored = shutil.ignore_patterns("lib", "__pycache__")
    package = Path(shutil.copytree(PACKAGE, folder / "torchnpy", ignore=ignored))
    for name, content in libraries.items():
        path = package / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return run_fresh(
        """
        try:
            import torchnpy
        except ImportError as error:
            print(error)
        """,
        env={"PYTHONPATH": str(folder)},
    ).strip()


def test_a_torch_that_the_package_was_not_built_for_is_named(tmp_path: Path) -> None:
    held = ("torch-2.98/x", "torch-2.9/x", "torch-2.100/x")
    found = import_error(tmp_path, dict.fromkeys(held, b""))
    lib = tmp_path / "torchnpy" / "lib"
    assert found.startswith(
        f"torchnpy: expected torch 2.9, 2.98, 2.100 (what {lib} holds) but found "
        f"torch {torch.__version__}; install one of those, or build for yours: {BUILD}"
    )


def test_a_package_that_was_not_built_says_so(tmp_path: Path) -> None:
    found = import_error(tmp_path, {})
    lib = tmp_path / "torchnpy" / "lib"
    assert found.startswith(
        f"torchnpy: expected libraries in {lib} but found none; build them: {BUILD}"
    )


def test_what_an_uninstalled_torch_left_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "torch"
    (folder / "lib").mkdir(parents=True)
    package = shutil.copytree(PACKAGE, tmp_path / "torchnpy", ignore=shutil.ignore_patterns("lib"))
    script = "import sys, torch; sys.path.insert(0, sys.argv[1]); import torchnpy"
    command = [sys.executable, "-S", "-c", script, Path(package).parent]
    environment = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: torchnpy: expected torch but found only a folder of its name, {folder}, "
        "as an uninstallation leaves; remove the folder and install torch"
    )


def test_bindings_of_another_python_are_named(tmp_path: Path) -> None:
    other = "_C.cpython-310-x86_64-linux-gnu.so"
    found = import_error(tmp_path, {f"torch-{RELEASE}/{other}": b""})
    assert found.startswith(
        f"torchnpy: expected torch-{RELEASE}/_C.cpython-3{sys.version_info.minor}-"
    )
    assert f", for this Python, but found {other}; install the wheel of this Python" in found
    assert BUILD in found


def test_a_library_that_does_not_load_is_named(tmp_path: Path) -> None:
    found = import_error(
        tmp_path,
        {f"torch-{RELEASE}/libtorchnpy.so": b"\x7fELF", f"torch-{RELEASE}/_C.abi3.so": b"\x7fELF"},
    )
    folder = tmp_path / "torchnpy" / "lib" / f"torch-{RELEASE}"
    assert found.startswith(
        f"torchnpy: expected {folder} to load with torch {torch.__version__} but found: {folder}/"
    )
    assert "file too short; docs/install.md says what to do" in found

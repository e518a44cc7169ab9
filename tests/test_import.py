"""What importing the package does, and above all what it does not; and that there is one engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from servers.http import ObjectServer
from support import npy, run_fresh, run_script

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
        import importlib, pathlib, torch, torchnpy
        importlib.import_module("torchnpy")
        (library,) = pathlib.Path(torchnpy.__file__).parent.rglob("libtorchnpy.so")
        torch.ops.load_library(str(library))
        """
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
    import torch

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

"""TorchScript (deprecated upstream, still wanted): loads are neither folded, merged nor dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from servers.http import ObjectServer, status
from support import npy, ops_library, run_script

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)
EXPECTED = torch.from_numpy(ARRAY)


@pytest.fixture
def url(server: ObjectServer) -> str:
    return server.put("/x.npy", npy(ARRAY))


class Literal(torch.nn.Module):
    """The URL is a constant of the graph: what an optimizer would like to fold."""

    __constants__ = ("url",)

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.ops.npy.load(self.url)
        second = torch.ops.npy.load(self.url)
        torch.ops.npy.load(self.url)  # its result is not used
        return first + second * self.weight + x


FORMS = {
    "scripted": lambda module: module,
    "frozen": lambda module: torch.jit.freeze(module),
    "optimized": lambda module: torch.jit.optimize_for_inference(module),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_load_of_a_literal_url_is_run_in_every_call(
    server: ObjectServer, url: str, form: str
) -> None:
    module = FORMS[form](torch.jit.script(Literal(url).eval()))
    assert len(server.requests) == 0
    for call in range(1, 5):  # the profiling executor optimizes after the first calls
        assert torch.equal(module(torch.ones(4)), 2 * EXPECTED + 1)
        assert len(server.requests) == 3 * call


def test_a_load_sees_an_object_that_changed(server: ObjectServer, url: str) -> None:
    module = torch.jit.freeze(torch.jit.script(Literal(url).eval()))
    module(torch.ones(4))
    server.put("/x.npy", npy(ARRAY + 1))
    assert torch.equal(module(torch.ones(4)), 2 * (EXPECTED + 1) + 1)


class All(torch.nn.Module):
    def forward(self, url: str) -> tuple[torch.Tensor, int]:
        descr, shape, fortran_order, offset = torch.ops.npy.header(url)
        assert descr == "<f4"
        assert not fortran_order
        many = torch.ops.npy.load_many([url, url])
        rows = torch.ops.npy.load_rows(url, 0, 1)
        decoded = torch.ops.npy.decode(torch.ops.npy.fetch(url))
        return many[0] + many[1] + rows + decoded, offset + shape[0]


def test_all_ops_can_be_scripted_saved_and_loaded(url: str, tmp_path: Path) -> None:
    torch.jit.script(All()).save(tmp_path / "all.pt")
    result, number = torch.jit.load(tmp_path / "all.pt")(url)
    assert torch.equal(result, 3 * EXPECTED + EXPECTED[:1])
    assert number == 128 + 3


def test_a_saved_module_runs_where_only_the_library_is_loaded(url: str, tmp_path: Path) -> None:
    library = ops_library()
    torch.jit.script(All()).save(tmp_path / "all.pt")
    out = run_script(
        """
        import sys, warnings, torch
        warnings.simplefilter("ignore")
        torch.ops.load_library(sys.argv[1])
        print(torch.jit.load(sys.argv[2])(sys.argv[3])[0].sum().item())
        """,
        library,
        tmp_path / "all.pt",
        url,
    )
    assert float(out) == float((3 * EXPECTED + EXPECTED[:1]).sum())


def test_an_error_arrives_with_its_whole_message(server: ObjectServer, url: str) -> None:
    server.always("/x.npy", status(404, b"gone away"))
    with pytest.raises(RuntimeError, match=r"/x.npy.*404"):
        torch.jit.script(All())(url)


def test_ctrl_c_ends_a_scripted_load_even_where_errors_are_caught(server: ObjectServer) -> None:
    from servers.http import cut

    url = server.put("/x.npy", npy(ARRAY))
    server.always("/x.npy", cut(None, "stall"))
    out = run_script(
        """
        import os, signal, sys, threading, warnings, torch, torchnpy as tnp
        warnings.simplefilter("ignore")
        tnp.set_default_client(tnp.Client(stall_timeout_s=600))

        class Module(torch.nn.Module):
            def forward(self, url: str):
                return torch.ops.npy.load(url)

        module = torch.jit.script(Module())
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            try:
                module(sys.argv[1])
            except Exception:
                pass  # TorchScript makes a RuntimeError of the interrupt
            for _ in range(1000):
                pass
        except KeyboardInterrupt:
            print("interrupted")
        """,
        url,
    )
    assert out == "interrupted\n"


def test_forked_scripts_load_at_once(server: ObjectServer) -> None:
    server.hold_until(3)
    urls = [server.put(f"/{i}.npy", npy(ARRAY + i)) for i in range(3)]
    first, second, third = urls

    def load(url: str) -> torch.Tensor:
        return torch.ops.npy.load(url)

    class Three(torch.nn.Module):
        def forward(self, a: str, b: str, c: str) -> torch.Tensor:
            one, two = torch.jit.fork(load, a), torch.jit.fork(load, b)
            return torch.ops.npy.load(c) + torch.jit.wait(one) + torch.jit.wait(two)

    assert torch.equal(torch.jit.script(Three())(first, second, third), 3 * EXPECTED + 3)

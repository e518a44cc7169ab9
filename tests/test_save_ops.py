"""torch.ops.npy.save: eager, compiled, scripted, frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import npy

import torchnpy as tnp

X = torch.arange(12, dtype=torch.float32).view(3, 4)
# Not test_aot_dispatch_dynamic: it asks for one graph, and saving breaks it.
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def test_the_schema_is_this() -> None:
    assert str(torch.ops.npy.save.default._schema) == "npy::save(str url, Tensor array) -> ()"
    assert torch.Tag.nondeterministic_seeded in torch.ops.npy.save.default.tags


def test_opcheck_passes(tmp_path: Path) -> None:
    for array in (X, X.T[1:], X.clone().requires_grad_()):
        torch.library.opcheck(
            torch.ops.npy.save.default, (f"{tmp_path}/x.npy", array), test_utils=CHECKS
        )


def test_the_op_saves_what_the_function_saves(tmp_path: Path) -> None:
    for array in (X, X.T, X[:, ::2], X.clone().requires_grad_()):
        torch.ops.npy.save(f"{tmp_path}/x", array)  # a URL: nothing is added to it
        assert (tmp_path / "x").read_bytes() == npy(array.detach().numpy())


def test_a_refusal_names_the_object(tmp_path: Path) -> None:
    with pytest.raises(tnp.UnsupportedError) as refused:
        torch.ops.npy.save(f"{tmp_path}/x.npy", X.to_sparse())
    assert str(refused.value).startswith(f"{tmp_path}/x.npy: expected a tensor that is a plain")
    with pytest.raises(FileNotFoundError):
        torch.ops.npy.save(f"{tmp_path}/no/x.npy", X)


def test_every_compiled_call_saves(tmp_path: Path) -> None:
    def double(url: str, array: torch.Tensor) -> torch.Tensor:
        torch.ops.npy.save(url, array * 2)
        return array + 1

    torch._dynamo.reset()
    compiled = torch.compile(double, backend="aot_eager")
    for i in range(3):
        assert torch.equal(compiled(f"{tmp_path}/x.npy", X + i), X + i + 1)
        assert np.array_equal(np.load(tmp_path / "x.npy"), ((X + i) * 2).numpy())


class Saver(torch.nn.Module):
    """What it saves and where to are constants of the graph."""

    __constants__ = ("url",)

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.weight = torch.nn.Parameter(X.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.ops.npy.save(self.url, self.weight)
        torch.ops.npy.save(self.url + "2", x * 2)
        return torch.ops.npy.load(self.url + "2") + 1


@pytest.mark.parametrize("is_frozen", [False, True])
def test_every_scripted_call_saves_and_then_loads(tmp_path: Path, is_frozen: bool) -> None:
    path = tmp_path / "x.npy"
    module = torch.jit.script(Saver(str(path)).eval())
    if is_frozen:
        module = torch.jit.freeze(module)
    for i in range(4):  # the profiling executor optimizes after the first calls
        path.unlink(missing_ok=True)
        assert torch.equal(module(X + i), (X + i) * 2 + 1)
        assert path.read_bytes() == npy(X.numpy())

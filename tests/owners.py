"""Owners of bytes that tensors share, and holders that keep such tensors to the end."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def mapped(data: bytes) -> mmap.mmap:
    owner = mmap.mmap(-1, len(data))
    owner[:] = data
    return owner


# Every kind of object that holds bytes.
OWNERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": lambda data: bytes(bytearray(data)),
    "bytearray": bytearray,
    "memoryview": lambda data: memoryview(bytearray(data)),
    "read-only memoryview": lambda data: memoryview(bytearray(data)).toreadonly(),
    "mmap": mapped,
    "numpy": lambda data: np.frombuffer(data, np.uint8).copy(),
    "numpy int8": lambda data: np.frombuffer(data, np.int8).copy(),
    "tensor": lambda data: torch.frombuffer(bytearray(data), dtype=torch.uint8).clone(),
}


def overwrite_free_memory(nbytes: int) -> None:
    """So that a view of memory which was freed shows it."""
    gc.collect()
    for _ in range(20):
        bytearray(b"\xff" * nbytes)


def address(owner: Any) -> int:
    if isinstance(owner, torch.Tensor):
        return owner.data_ptr()
    return int(np.frombuffer(owner, np.uint8).__array_interface__["data"][0])


class Owner(bytearray):
    """Can be watched dying."""


# What holds `tensor` when the interpreter ends.
EXITS = {
    "a global": "keep = tensor",
    "a module": "import builtins; builtins.keep = tensor",
    "a scripted module": """
        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("x", tensor)
            def forward(self):
                return self.x.sum()
        import warnings; warnings.simplefilter("ignore")
        keep = torch.jit.script(Module())
        keep()
        """,
    "an autograd graph": """
        weight = torch.ones(3, requires_grad=True)
        keep = (weight * tensor[:3].float()).exp()
        """,
    "a future": "keep = torch.futures.Future(); keep.set_result(tensor)",
    "a daemon thread": """
        import threading, time
        def hold(t):
            view = t[1:]
            time.sleep(1e6)
        threading.Thread(target=hold, args=(tensor,), daemon=True).start()
        """,
    "an atexit hook": "import atexit; atexit.register(lambda t=tensor: print(int(t[0])))",
    "a leaked C++ reference": """
        class Module(torch.nn.Module):
            def forward(self, x: torch.Tensor):
                # A view that Python never saw: a wrapper that dies on a thread of torch while
                # the interpreter ends makes torch itself abort, whoever owns the bytes.
                return torch.jit.fork(child, x.view(-1))
        def child(x: torch.Tensor) -> torch.Tensor:
            return x.view(-1) + 0
        import warnings; warnings.simplefilter("ignore")
        keep = [torch.jit.script(Module())(tensor) for _ in range(50)]
        """,
    "a thread-local of torch": """
        class Keep(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, t):
                ctx.save_for_backward(t)
                return x.clone()
            @staticmethod
            def backward(ctx, g):
                return g, None
        keep = Keep.apply(torch.ones(1, requires_grad=True), tensor)
        """,
}

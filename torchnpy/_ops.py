"""Loads the native libraries, once, and gives the ops of ``torch.ops.npy`` their fakes."""

from pathlib import Path
from typing import NoReturn

import torch

torch.ops.load_library(str(Path(__file__).parent / "lib" / "libtorchnpy.so"))  # type: ignore[no-untyped-call]

from torchnpy import _C  # noqa: E402  (needs the library)

__all__ = ["_C"]


def _data_dependent(op: str) -> NoReturn:
    # torch.compile takes this as "call it for real": it breaks the graph instead of failing.
    from torch._subclasses.fake_tensor import UnsupportedOperatorException

    raise UnsupportedOperatorException(getattr(torch.ops.npy, op).default)


def _fake_load(url: str) -> torch.Tensor:
    _data_dependent("load")


def _fake_load_rows(url: str, start: int, stop: int) -> torch.Tensor:
    _data_dependent("load_rows")


def _fake_load_many(urls: list[str]) -> list[torch.Tensor]:
    _data_dependent("load_many")


def _fake_load_npz(url: str) -> dict[str, torch.Tensor]:
    _data_dependent("load_npz")


def _fake_load_npz_keys(url: str, keys: list[str]) -> list[torch.Tensor]:
    _data_dependent("load_npz_keys")


def _fake_npz_keys(url: str) -> list[str]:
    _data_dependent("npz_keys")


def _fake_header(url: str) -> tuple[str, list[int], bool, int]:
    _data_dependent("header")


def _fake_fetch(url: str, offset: int = 0, nbytes: int = -1) -> torch.Tensor:
    size = nbytes if nbytes >= 0 else torch.library.get_ctx().new_dynamic_size()
    return torch.empty(size, dtype=torch.uint8)


def _fake_decode(data: torch.Tensor) -> torch.Tensor:
    _data_dependent("decode")


# Writing breaks the graph, too: from inside one a call without a result would be dropped.
def _fake_save(url: str, array: torch.Tensor) -> None:
    _data_dependent("save")


def _fake_append(path: str, rows: torch.Tensor) -> None:
    _data_dependent("append")


# In Python: a Meta kernel of an op without tensor arguments is never reached.
for _fake in (
    _fake_load,
    _fake_load_rows,
    _fake_load_many,
    _fake_load_npz,
    _fake_load_npz_keys,
    _fake_npz_keys,
    _fake_header,
    _fake_fetch,
    _fake_decode,
    _fake_save,
    _fake_append,
):
    torch.library.register_fake(_fake.__name__.replace("_fake_", "npy::"), _fake)

"""Saving arrays: to files, HTTP and S3, and to open files."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.destinations import Target, destination
from torchnpy.errors import UnsupportedError
from torchnpy.sources import Array, NumpyArray

if TYPE_CHECKING:
    import numpy.typing

    ArrayLike: TypeAlias = Array | numpy.typing.ArrayLike
else:
    ArrayLike: TypeAlias = Any


def save(
    target: Target,
    array: ArrayLike,
    *,
    sync: bool = False,
    if_none_match: bool = False,
    client: Client | None = None,
) -> None:
    """Saves one array as a ``.npy``: what numpy.save writes, byte for byte.

    A file is written beside its place and renamed when it is whole: whatever happens, the one
    before is there until then. An object of a store is seen when all of it is there. An open file
    gets the array at its position.

    Args:
        target: A URL, a path or an open binary file; see docs/writing.md. A path without
            ``.npy`` gets it, as numpy's.
        array: A tensor; a dict of tensors, which makes a structured array with a field for each;
            a numpy array, or what numpy makes one of. In any order, contiguous or not: no copy of
            the whole is made. A tensor of another device is copied to the CPU. bfloat16 and
            float8 are saved as ml_dtypes has them, so load() needs ``dtype=`` for them.
        sync: A file is on the disk when this returns, also after a power failure.
        if_none_match: Never replace what is there.
        client: For remote targets. Default: default_client().

    Raises:
        TransportError: It could not be written; also FileNotFoundError, PermissionError,
            FileExistsError or TimeoutError where that was the reason. What was there is unchanged.
        UnsupportedError: Arrays of objects (docs/pickle.md); sparse, quantized and nested
            tensors; dtypes that numpy lacks. The message says what to call.
        ValueError: A dict without fields.
    """
    view = view_array(array)
    where = destination(
        target, suffix=".npy", sync=sync, if_none_match=if_none_match, client=client
    )
    _C.save(where, view)


def view_array(array: ArrayLike, name: str = "") -> _C.ArrayView:
    """The memory of an array, to be written; `name` is for messages."""
    if isinstance(array, torch.Tensor):
        return _C.view_tensor(array)
    if isinstance(array, dict):
        return _C.copy_record(_checked_fields(array))
    return _view_numpy(array)


def _checked_fields(array: dict[Any, Any]) -> dict[str, torch.Tensor]:
    for name, field in array.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"expected a field's name, a str, but found {name!r}")
        if not isinstance(field, torch.Tensor):
            raise TypeError(
                f"field {name!r}: expected a tensor but found {type(field).__name__}; convert it "
                "with torch.as_tensor()"
            )
    return array


def _view_numpy(array: Any) -> _C.ArrayView:
    import numpy  # the program's, if it has numpy arrays; else it is what lists need

    if isinstance(array, numpy.ma.MaskedArray):
        raise UnsupportedError(
            "expected a plain array but found a masked one; call .filled(), or save .data and "
            ".mask with savez()"
        )
    array = numpy.asanyarray(array)
    dtype = array.dtype
    if dtype.hasobject or not getattr(type(dtype), "_legacy", True):
        raise UnsupportedError(
            f"expected an array of numbers or text of a fixed size but found {dtype}; it would be "
            "saved as a pickle, which can run code when it is read: docs/pickle.md shows how to "
            "convert it"
        )
    descr = repr(numpy.lib.format.dtype_to_descr(dtype))
    address = array.__array_interface__["data"][0]
    return _C.view_memory(array, address, descr, dtype.itemsize, array.shape, array.strides)

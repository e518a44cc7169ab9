"""Saving arrays: to files, HTTP and S3, and to open files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.destinations import Target, destination
from torchnpy.errors import UnsupportedError
from torchnpy.sources import Array

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
            float8 are saved as ml_dtypes has them: load() needs ``dtype=`` for all but float8_e5m2.
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
    where = destination(
        target, suffix=".npy", sync=sync, if_none_match=if_none_match, client=client
    )
    _C.save(where, view_array(array, where.name))


def savez(target: Target, /, *args: ArrayLike, **arrays: ArrayLike) -> None:
    """Saves arrays as the members of a ``.npz``, not compressed, so that files of them are mapped.

    Args:
        target: As in save(), with the suffix ``.npz``.
        *args: Arrays of the names ``arr_0``, ``arr_1``...
        **arrays: Arrays by name. ``allow_pickle`` is numpy's option when it is a bool, and then
            of no effect.

    Raises:
        ValueError: An array is called as one without a name would be; a name is none for a member.
        TransportError, UnsupportedError: See save(); the message names the member.
    """
    _savez(target, args, arrays, 0)


def savez_compressed(
    target: Target, /, *args: ArrayLike, level: int | ArrayLike | None = None, **arrays: ArrayLike
) -> None:
    """The same, compressed: by all of the machine's CPUs, and by blocks of large arrays.

    Args:
        target, *args, **arrays: See savez().
        level: 1 (fastest) to 9 (smallest); 0 does not compress. Default: 2, which is made for
            arrays. An array, or a bool, is a member of that name.

    Raises:
        ValueError, TransportError, UnsupportedError: See savez().
    """
    if level is None or (isinstance(level, int) and not isinstance(level, bool)):
        _savez(target, args, arrays, level)
    else:
        _savez(target, args, {**arrays, "level": level}, None)


def _savez(
    target: Target, args: tuple[ArrayLike, ...], arrays: dict[str, ArrayLike], level: int | None
) -> None:
    named = dict(arrays)
    if isinstance(named.get("allow_pickle"), bool):
        del named["allow_pickle"]  # numpy's option; there are no pickles, whatever it says
    for i, array in enumerate(args):
        name = f"arr_{i}"
        if name in named:
            raise ValueError(f"Cannot use un-named variables and keyword {name}")
        named[name] = array
    where = destination(target, suffix=".npz")
    members = [
        (name.encode(), view_array(array, f"{where.name}[{name}]")) for name, array in named.items()
    ]
    _C.savez(where, members, level)


def view_array(array: ArrayLike, name: str) -> _C.ArrayView:
    """The memory of an array, to be written; `name` is for messages."""
    encoded = name.encode("utf-8", "surrogateescape")
    if isinstance(array, torch.Tensor):
        return _C.view_tensor(array, encoded)
    if isinstance(array, dict):
        return _C.copy_record(_checked_fields(array, name), encoded)
    return _view_numpy(array, name)


def _checked_fields(fields: dict[Any, Any], name: str) -> dict[str, torch.Tensor]:
    for key, field in fields.items():
        if not isinstance(key, str) or not key:
            raise TypeError(f"{name}: expected a field's name, a str, but found {key!r}")
        if not isinstance(field, torch.Tensor):
            raise TypeError(
                f"{name}: expected a tensor as field {key!r} but found {type(field).__name__}; "
                "save what is no structured array with savez(target, **arrays)"
            )
    return fields


def _view_numpy(array: Any, name: str) -> _C.ArrayView:
    import numpy  # the program's own, if it has arrays; else lists need it

    if isinstance(array, numpy.ma.MaskedArray):
        raise UnsupportedError(
            f"{name}: expected a plain array but found a masked one; call .filled(), or save .data "
            "and .mask with savez()"
        )
    array = numpy.asanyarray(array)
    dtype = array.dtype
    if dtype.hasobject or not getattr(type(dtype), "_legacy", True):
        raise UnsupportedError(
            f"{name}: expected numbers, or text of a fixed size, but found {dtype!r}; it would be "
            "saved as a pickle, which can run code when it is read: docs/pickle.md shows what to "
            "do instead"
        )
    descr = repr(numpy.lib.format.dtype_to_descr(dtype))
    address = array.__array_interface__["data"][0]
    return _C.view_memory(array, address, descr, dtype.itemsize, array.shape, array.strides)

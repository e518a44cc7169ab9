"""What arrays are loaded from, and what is said of them.

A ``source`` is a URL (``s3://bucket/key``, ``http(s)://``, ``file://``), a path, an open binary
file, or bytes. An ``Array`` is a tensor; for a structured dtype a dict of tensors, one a field.
"""

from __future__ import annotations

import mmap as _mmap
import os
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias, TypeGuard

import torch

from torchnpy._ops import _C
from torchnpy.client import Client, default_client
from torchnpy.log import refresh

if TYPE_CHECKING:
    import numpy

    NumpyArray = numpy.ndarray[Any, Any]
else:
    NumpyArray = Any

Array: TypeAlias = torch.Tensor | dict[str, torch.Tensor]
Buffer: TypeAlias = bytes | bytearray | memoryview | _mmap.mmap | NumpyArray | torch.Tensor
Url: TypeAlias = str | os.PathLike[str]
Source: TypeAlias = Url | BinaryIO | Buffer

# The shortest file: magic, version and a header's length, as version 2.0 and 3.0 have them.
_PREAMBLE_NBYTES = 12
_STREAM_CHUNK_NBYTES = 64 << 20


class NpyHeader(NamedTuple):
    """What the header of a ``.npy`` says (numpy.lib.format)."""

    descr: str
    """The dtype as it stands in the file: ``<f4``, or the list of fields."""
    dtype: torch.dtype | dict[str, Any] | None
    """In torch; a dict for a structured dtype; None where torch has none (objects, text)."""
    shape: tuple[int, ...]
    fortran_order: bool
    data_offset: int
    """Bytes from the start of the file to the data."""
    nbytes: int
    """Bytes of data."""
    version: tuple[int, int]
    unit: str
    """Of datetime64 and timedelta64, which load as int64: ``ns``, ``25s``; else empty."""


def native(client: Client | None) -> _C.Client:
    refresh()
    return (client or default_client())._native


def encode(source: Url) -> bytes:
    name = os.fspath(source)
    if "://" in name:
        return name.encode("utf-8", "surrogateescape")
    return os.fsencode(name)  # in the encoding of the file system


def decode(encoded: bytes) -> str:
    """What encode() was given."""
    if b"://" in encoded:
        return encoded.decode("utf-8", "surrogateescape")
    return os.fsdecode(encoded)


def is_url(source: object) -> TypeGuard[Url]:
    return isinstance(source, (str, os.PathLike))


def is_stream(source: object) -> TypeGuard[BinaryIO]:
    return hasattr(source, "read") and not isinstance(source, _mmap.mmap)


def stream_name(stream: BinaryIO) -> str:
    name = str(getattr(stream, "name", "<stream>"))
    return name.encode("utf-8", "backslashreplace").decode()


def read_more(stream: BinaryIO, data: bytearray, goal: int) -> None:
    """Reads until ``data`` holds ``goal`` bytes or the stream ends; allocates as they arrive."""
    while len(data) < goal:
        chunk = stream.read(min(goal - len(data), _STREAM_CHUNK_NBYTES))
        if not chunk:
            return
        data += chunk


def read_header(stream: BinaryIO, data: bytearray) -> NpyHeader:
    """The header of the array that begins with ``data``, to which what is read is added."""
    name = stream_name(stream)
    read_more(stream, data, _PREAMBLE_NBYTES)
    read_more(stream, data, _C.find_data_offset(data, name) or 0)
    return NpyHeader(*_C.parse_header(data, name))


def read_array(stream: BinaryIO, data: bytearray) -> None:
    """Adds the array that begins with ``data`` to it, and leaves the stream behind the array."""
    found = read_header(stream, data)
    read_more(stream, data, found.data_offset + found.nbytes)

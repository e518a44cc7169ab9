"""Loading arrays: from bytes, files, HTTP and S3.

A ``source`` is a URL (``s3://bucket/key``, ``http(s)://``, ``file://``), a path, an open binary
file, or bytes. An ``Array`` is a tensor; for a structured dtype a dict of tensors, one a field.
"""

from __future__ import annotations

import mmap as _mmap
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias, TypeGuard, cast

import torch

from torchnpy._ops import _C
from torchnpy.client import Client, default_client

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


# No wrapper: a call of Python would cost a tenth of its time.
load_npy = _C.load_npy


def load(
    source: Source,
    *,
    mmap: bool = True,
    dtype: torch.dtype | None = None,
    client: Client | None = None,
) -> Array:
    """Loads one array.

    Local files of at least 256 KiB are mapped copy-on-write: no copy is made, and writes to the
    tensor never reach the file. An open file is left positioned after the array, so that arrays
    written one after another load one by one.

    Args:
        source: See the module.
        mmap: False reads a local file into memory; for files that others may truncate.
        dtype: See load_npy().
        client: For remote sources. Default: default_client().

    Raises:
        TransportError: The object could not be read; also FileNotFoundError, PermissionError or
            TimeoutError where that was the reason.
        FormatError, UnsupportedError, ValueError: See load_npy().
    """
    if _is_url(source):
        return _C.load(_native(client), _encode(source), mmap, dtype)
    if _is_stream(source):
        return _load_stream(source, dtype)
    return load_npy(cast(Buffer, source), dtype=dtype)


def load_many(
    sources: Sequence[Source], *, dtype: torch.dtype | None = None, client: Client | None = None
) -> list[Array]:
    """Loads many arrays at once; the requests are in flight together.

    Returns:
        The arrays in the order of ``sources``.

    Raises:
        As load(); the first failure ends the rest.
    """
    urls = [_encode(source) for source in sources if _is_url(source)]
    loaded = iter(_C.load_many(_native(client), urls, dtype))
    return [
        next(loaded) if _is_url(source) else load(source, dtype=dtype, client=client)
        for source in sources
    ]


def load_rows(
    source: Source,
    start: int | None,
    stop: int | None,
    *,
    dtype: torch.dtype | None = None,
    client: Client | None = None,
) -> Array:
    """Loads rows ``[start, stop)`` of the first axis, as slices do; fetches only their bytes.

    Raises:
        UnsupportedError: The array is in Fortran order, where rows do not lie together.
        ValueError: The array has shape ``()``.
        TransportError, FormatError, UnsupportedError, ValueError: See load().
    """
    first = 0 if start is None else start
    last = sys.maxsize if stop is None else stop
    if _is_url(source):
        return _C.load_rows(_native(client), _encode(source), first, last, dtype)
    array = load(source, dtype=dtype)
    if isinstance(array, dict):
        return {name: field[first:last] for name, field in array.items()}
    if array.dim() == 0:
        raise ValueError("expected an array with rows but found one of shape (); load it whole")
    return array[first:last]


def header(source: Source, *, client: Client | None = None) -> NpyHeader:
    """Reads only the header: of a remote object at most its first 64 KiB.

    Also of arrays that cannot be loaded. An open file is left positioned at the data.

    Raises:
        TransportError, FormatError: See load().
    """
    if _is_url(source):
        return NpyHeader(*_C.header(_native(client), _encode(source)))
    if _is_stream(source):
        return _read_header(source)[0]
    return NpyHeader(*_C.parse_header(cast(Buffer, source), "<bytes>"))


def _native(client: Client | None) -> _C.Client:
    return (client or default_client())._native


def _encode(source: Url) -> bytes:
    # Paths may hold bytes that are no UTF-8; URLs are passed as they are.
    return os.fsencode(source)


def _is_url(source: Source) -> TypeGuard[Url]:
    return isinstance(source, (str, os.PathLike))


def _is_stream(source: Source) -> TypeGuard[BinaryIO]:
    return hasattr(source, "read") and not isinstance(source, _mmap.mmap)


def _stream_name(stream: BinaryIO) -> str:
    return str(getattr(stream, "name", "<stream>"))


def _read_more(stream: BinaryIO, data: bytearray, goal: int) -> None:
    """Reads until ``data`` holds ``goal`` bytes or the stream ends; allocates as they arrive."""
    while len(data) < goal:
        chunk = stream.read(min(goal - len(data), _STREAM_CHUNK_NBYTES))
        if not chunk:
            return
        data += chunk


def _read_header(stream: BinaryIO) -> tuple[NpyHeader, bytearray]:
    name = _stream_name(stream)
    data = bytearray()
    _read_more(stream, data, _PREAMBLE_NBYTES)
    _read_more(stream, data, _C.find_data_offset(data, name) or 0)
    return NpyHeader(*_C.parse_header(data, name)), data


def _load_stream(stream: BinaryIO, dtype: torch.dtype | None) -> Array:
    found, data = _read_header(stream)
    _read_more(stream, data, found.data_offset + found.nbytes)
    return _C.load_named(data, _stream_name(stream), dtype)

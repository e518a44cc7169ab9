"""Loading arrays: from bytes, files, HTTP and S3."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable
from typing import BinaryIO, cast

import torch

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.npz import DEFAULT_LIMITS, NpzFile, NpzLimits
from torchnpy.sources import (
    Array,
    Buffer,
    NpyHeader,
    Source,
    encode,
    is_stream,
    is_url,
    native,
    read_array,
    read_header,
    read_more,
    stream_name,
)

# Enough to tell an archive from an array.
_MAGIC_NBYTES = 4

# No wrapper: a call of Python would cost a tenth of its time.
load_npy = _C.load_npy


def load(
    source: Source,
    *,
    mmap: bool = True,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    limits: NpzLimits | None = None,
    client: Client | None = None,
) -> Array | NpzFile:
    """Loads one array, or opens an archive of arrays: the content says which it is.

    Local files of at least 256 KiB are mapped copy-on-write: no copy is made, and writes to the
    tensor never reach the file. An open file is left positioned after the array, so that arrays
    written one after another load one by one; an archive is read to its end.

    Args:
        source: See torchnpy.sources. A name that ends in ``.npz`` makes the object's end be read
            first.
        mmap: False reads a local file into memory; for files that others may truncate.
        dtype: See load_npy(); of an archive, what members of a void dtype are.
        verify, limits: Of an archive; see open_npz().
        client: For remote sources. Default: default_client().

    Raises:
        TransportError: The object could not be read; also FileNotFoundError, PermissionError or
            TimeoutError where that was the reason.
        FormatError, UnsupportedError, ValueError: See load_npy() and open_npz().
    """
    values = (limits or DEFAULT_LIMITS).values
    if is_url(source):
        loaded = _C.load(native(client), encode(source), mmap, dtype, values, verify)
        return NpzFile(loaded) if isinstance(loaded, _C.NpzArchive) else loaded
    name, data = "<bytes>", cast(Buffer, source)
    if is_stream(source):
        name, data = stream_name(source), bytearray()
        read_more(source, data, _MAGIC_NBYTES)
        if not _C.begins_as_zip(data, name):
            return _load_stream(source, data, dtype)
        read_more(source, data, sys.maxsize)
    if _C.begins_as_zip(data, name):
        return NpzFile(_C.open_npz_bytes(data, name, False, values, verify, dtype))
    return load_npy(data, dtype=dtype)


def load_many(
    sources: Iterable[Source], *, dtype: torch.dtype | None = None, client: Client | None = None
) -> list[Array]:
    """Loads many arrays at once; the requests are in flight together.

    Returns:
        The arrays in the order of ``sources``.

    Raises:
        As load(); the first failure ends the rest.
    """
    sources = list(sources)
    urls = [encode(source) for source in sources if is_url(source)]
    loaded = iter(_C.load_many(native(client), urls, dtype))
    return [next(loaded) if is_url(source) else _load_here(source, dtype) for source in sources]


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
    first = _slice_index(start, 0)
    last = _slice_index(stop, sys.maxsize)
    if is_url(source):
        return _C.load_rows(native(client), encode(source), first, last, dtype)
    data = cast(Buffer, source)
    if is_stream(source):
        data = bytearray()
        read_array(source, data)
    if header(data).shape == ():
        raise ValueError("expected an array with rows but found one of shape (); load it whole")
    array = load_npy(data, dtype=dtype)
    if isinstance(array, dict):
        return {name: field[first:last] for name, field in array.items()}
    return array[first:last]


def header(source: Source, *, client: Client | None = None) -> NpyHeader:
    """Reads only the header: of a remote object at most its first 64 KiB.

    Also of arrays that cannot be loaded. An open file is left positioned at the data.

    Raises:
        TransportError, FormatError: See load().
    """
    if is_url(source):
        return NpyHeader(*_C.header(native(client), encode(source)))
    if is_stream(source):
        return read_header(source, bytearray())
    return NpyHeader(*_C.parse_header(cast(Buffer, source), "<bytes>"))


def _slice_index(index: int | None, default: int) -> int:
    if index is None:
        return default
    return max(-sys.maxsize, min(operator.index(index), sys.maxsize))


def _load_here(source: Source, dtype: torch.dtype | None) -> Array:
    if is_stream(source):
        return _load_stream(source, bytearray(), dtype)
    return load_npy(cast(Buffer, source), dtype=dtype)


def _load_stream(stream: BinaryIO, data: bytearray, dtype: torch.dtype | None) -> Array:
    """The array that begins with ``data``, which was read already."""
    read_array(stream, data)
    return _C.load_named(data, stream_name(stream), dtype)

"""What arrays are written to: a URL, a path, or an open binary file."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from typing import Any, BinaryIO, TypeAlias, TypeGuard

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.sources import Url, encode, native, stream_name

Target: TypeAlias = Url | BinaryIO

# Their write() keeps nothing of what it is given.
_LENT_TO = (io.BytesIO, io.FileIO, io.BufferedWriter, io.BufferedRandom)


def destination(
    target: Target,
    *,
    suffix: str = "",
    sync: bool = False,
    if_none_match: bool = False,
    client: Client | None = None,
) -> _C.Destination:
    """Where `target` is. A path without `suffix` gets it, as numpy's, unless it is that of a pipe
    or device.

    Raises:
        ValueError: `sync` or `if_none_match` for an open file.
        TypeError: `target` is neither.
    """
    if is_writable(target):
        for name, wanted in (("sync", sync), ("if_none_match", if_none_match)):
            if wanted:
                raise ValueError(f"{name}: expected False for an open file but found {wanted!r}")
        lends = type(target) in _LENT_TO
        return _C.StreamDestination(stream_name(target), whole_writer(target), lends)
    if not isinstance(target, (str, os.PathLike)):
        raise TypeError(
            "target: expected a URL, a path or an open binary file but found "
            + type(target).__name__
        )
    url = _with_suffix(os.fspath(target), suffix)
    return _C.UrlDestination(native(client), encode(url), bool(sync), bool(if_none_match))


def is_writable(target: Target) -> TypeGuard[BinaryIO]:
    return hasattr(target, "write")


def _with_suffix(url: str, suffix: str) -> str:
    is_named = not url.endswith(suffix) and "://" not in url
    return url + suffix if is_named and not _is_pipe_or_device(url) else url


def _is_pipe_or_device(path: str) -> bool:
    if path.startswith(("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")):
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def whole_writer(stream: BinaryIO) -> Callable[[bytes | memoryview], None]:
    """Writes all that it is given: the write() of raw files and sockets may take less."""

    def write(data: bytes | memoryview) -> None:
        count: Any = stream.write(data)
        rest = len(data) - _checked(count, data)
        while rest:
            with memoryview(data)[-rest:] as view:
                count = stream.write(view.tobytes())
                rest -= _checked(count, view)

    def _checked(count: Any, data: bytes | memoryview) -> int:
        if isinstance(count, int) and 0 < count <= len(data):
            return count
        if count is None and not isinstance(stream, io.RawIOBase):
            return len(data)  # says nothing: a file-like object, as numpy takes it
        if count is None:
            raise BlockingIOError(
                f"{stream_name(stream)}: expected a file that blocks but found one that does not, "
                "and is full; make it blocking"
            )
        raise OSError(
            f"{stream_name(stream)}: expected write() to take 1 to {len(data)} bytes but it says "
            f"{count!r}"
        )

    return write

"""Archives of arrays (NPZ): ZIP files with a ``.npy`` a member, read member by member."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import cast

import torch

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.log import refresh
from torchnpy.sources import (
    Array,
    Buffer,
    NpyHeader,
    Source,
    encode,
    is_stream,
    is_url,
    native,
    read_more,
    stream_name,
)

_MAX_SHOWN = 20  # members in a repr


@dataclass(frozen=True)
class NpzLimits:
    """What an archive may claim; more is a FormatError that names the limit.

    Raises:
        ValueError: A limit is negative or too large.
    """

    members: int = 500_000
    """Entries of the directory."""
    total_nbytes: int = 64 << 30
    """Bytes of all compressed members, inflated. Stored ones are no larger than the file."""
    expansion: int = 1032
    """Bytes that one compressed byte may give. DEFLATE cannot give more than 1032."""

    def __post_init__(self) -> None:
        for field, value in zip(fields(self), self.values, strict=True):
            if not isinstance(value, int) or not 0 <= value <= sys.maxsize:
                raise ValueError(
                    f"limits.{field.name}: expected 0 to {sys.maxsize} but found {value!r}"
                )

    @property
    def values(self) -> tuple[int, int, int]:
        return self.members, self.total_nbytes, self.expansion


DEFAULT_LIMITS = NpzLimits()


def limit_values(limits: NpzLimits | None) -> tuple[int, int, int]:
    if limits is None:
        limits = DEFAULT_LIMITS
    if not isinstance(limits, NpzLimits):
        raise TypeError(f"limits: expected NpzLimits or None but found {limits!r}")
    return limits.values


class NpzFile(Mapping[str, Array]):
    """An open archive: a mapping of its members, which are read when they are asked for.

    Keys are the members' names without ``.npy``, in the archive's order; ``npz["x"]`` and
    ``npz["x.npy"]`` are the same array, unless the archive has a member ``x``. Members that are
    not arrays are uint8 tensors of their bytes. Of members with the same name the last counts.

    Stored members of bytes and of mapped files are views without a copy; they keep alive what
    they view, as all arrays do that were handed out, also after close(). Compressed members are
    inflated anew each time they are asked for. Any number of threads may use an archive at once.

    load(), load_npz() and open_npz() make it. As a context manager it closes itself.
    """

    def __init__(self, archive: _C.NpzArchive) -> None:
        self._archive: _C.NpzArchive | None = archive
        self._files: list[str] | None = None

    @property
    def name(self) -> str:
        """The object that it was opened from, without a query: for messages."""
        return self._open().name

    @property
    def files(self) -> list[str]:
        """The keys, in the archive's order."""
        archive = self._open()
        if self._files is None:
            self._files = archive.keys()
        return self._files

    def __getitem__(self, name: str) -> Array:
        """One member.

        Raises:
            KeyError: There is no such member.
            FormatError: The archive or the member breaks its format, or is corrupt.
            UnsupportedError: The member is encrypted, compressed other than by DEFLATE, or an
                array that has no tensor (see load_npy()).
            TransportError: It could not be read, or the object has changed since it was opened.
        """
        return _C.read_npz_member(self._open(), _check_name(name))

    def read(
        self, names: Iterable[str] | None = None, *, dtype: torch.dtype | None = None
    ) -> dict[str, Array]:
        """Many members at once: fetched together, near ones in one request, inflated in parallel.

        Inflating takes up to torch.get_num_threads() threads.

        Args:
            names: Default: all members. The result has them in this order and by these names.
            dtype: What items are that the file cannot name (``V1``, ``V2``), as in load_npy();
                members of other dtypes do not heed it.

        Raises:
            As npz[name]; the first failure ends the rest.
        """
        keys = None if names is None else check_names(names)
        return _C.read_npz(self._open(), keys, dtype)

    def header(self, name: str) -> NpyHeader:
        """The header of a member, of which only the first bytes are read and inflated.

        Also of arrays that cannot be loaded.

        Raises:
            KeyError, FormatError, UnsupportedError, TransportError: See npz[name]; FormatError
                also where the member is no array.
        """
        return NpyHeader(*_C.read_npz_headers(self._open(), [_check_name(name)])[0])

    def close(self) -> None:
        """Lets go of the archive; what was handed out stays valid. May be called again."""
        self._archive = None

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self._open())

    def __contains__(self, name: object) -> bool:
        archive = self._open()
        return isinstance(name, str) and _is_text(name) and name in archive

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        """Names, dtypes and shapes; sizes in bytes where these would have to be fetched."""
        if self._archive is None:
            return "NpzFile(closed)"
        lines = [f"NpzFile({self.name!r}, {len(self)} members)"]
        for key, description in _C.describe_npz(self._archive, _MAX_SHOWN):
            lines.append(f"  {key}: {description}")
        if len(self) > _MAX_SHOWN:
            lines.append("  ...")
        return "\n".join(lines)

    def _open(self) -> _C.NpzArchive:
        if self._archive is None:
            raise ValueError("expected an open archive but found a closed one; open it again")
        refresh()
        return self._archive


def load_npz(
    data: Buffer, *, copy: bool = False, verify: bool = True, limits: NpzLimits | None = None
) -> NpzFile:
    """Opens the archive in ``data`` without copying it.

    Args:
        data: See load_npy(). Stored members share its memory, as load_npy() does.
        copy: Always copy: no member shares the memory of ``data``.
        verify: Check the CRC-32 of each member when it is read, of views the first time.
        limits: Default: DEFAULT_LIMITS.

    Raises:
        FormatError: ``data`` is no archive, breaks the format, or exceeds a limit.
    """
    values = limit_values(limits)
    return NpzFile(_C.open_npz_bytes(data, "<bytes>", copy, values, verify, None))


def open_npz(
    source: Source,
    *,
    verify: bool = True,
    limits: NpzLimits | None = None,
    client: Client | None = None,
) -> NpzFile:
    """Opens an archive: of a remote one only its directory is fetched, then what is asked for.

    Args:
        source: See torchnpy.sources. Of an open file the rest is read.
        verify: Check the CRC-32 of each member when it is read, of views the first time.
        limits: Default: DEFAULT_LIMITS.
        client: For remote sources. Default: default_client().

    Raises:
        FormatError: It is no archive, breaks the format, or exceeds a limit.
        TransportError: See load().
    """
    values = limit_values(limits)
    if is_url(source):
        return NpzFile(_C.open_npz(native(client), encode(source), values, verify))
    name, data = "<bytes>", cast(Buffer, source)
    if is_stream(source):
        name, data = stream_name(source), bytearray()
        read_more(source, data, sys.maxsize)
    return NpzFile(_C.open_npz_bytes(data, name, False, values, verify, None))


def check_names(names: Iterable[str]) -> list[str]:
    """The names as a list; raises for what can be none."""
    if isinstance(names, str):
        raise TypeError(f"names: expected names of members but found one text, {names!r}")
    return [_check_name(name) for name in names]


def _check_name(name: str) -> str:
    if not isinstance(name, str) or not _is_text(name):
        raise KeyError(f"expected the name of a member but found {name!r}")
    return name


def _is_text(name: str) -> bool:
    """False with lone surrogates, which no name in an archive has."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

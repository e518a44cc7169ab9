"""Names on the command line: what they are, and what lies below folders and prefixes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import click

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.errors import FormatError
from torchnpy.npz import DEFAULT_LIMITS, NpzFile
from torchnpy.sources import NpyHeader, encode, native

# What one request fetches of an object to tell what it is; a header is no longer.
_PREFIX_NBYTES = 64 << 10


class Entry(NamedTuple):
    """An object or a file of a listing, or one that was named."""

    url: str
    nbytes: int | None = None  # None: not known yet
    etag: str = ""
    modified: str = ""  # ISO 8601; "" where it is not known

    @property
    def modified_s(self) -> float | None:
        """Seconds since 1970."""
        return parse_time(self.modified)


def parse_time(text: str) -> float | None:
    """Of ISO 8601, or of a date as HTTP has it; None of what is neither."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = parse(text)
        except ValueError:
            continue
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC)
        return found.timestamp()
    return None


def is_remote(name: str) -> bool:
    return name.lower().startswith(("s3://", "http://", "https://"))


def is_s3(name: str) -> bool:
    return name.lower().startswith("s3://")


def local_path(name: str) -> str:
    """The path of what is not remote."""
    if name.lower().startswith("file://"):
        parts = urlsplit(name)
        if parts.netloc.lower() not in ("", "localhost") or not parts.path:
            raise click.UsageError(f"{name}: expected file:///path")
        return unquote(parts.path, errors="surrogateescape")
    return name


def path_of(name: str) -> str:
    """Without an http URL's query, which may hold a secret."""
    return name if is_s3(name) or not is_remote(name) else name.partition("?")[0].partition("#")[0]


def base_name(name: str) -> str:
    return path_of(name).rpartition("/")[2]


def list_below(client: Client, name: str, suffixes: tuple[str, ...] = ()) -> Iterator[Entry]:
    """The objects below a prefix, which is taken as a folder, or the files below a folder.

    Raises:
        NotADirectoryError, FileNotFoundError: ``name`` is no folder.
        TransportError, UnsupportedError: See Client.list().
    """
    if is_remote(name):
        for found in client.list(as_folder(name)):
            if found.url.endswith(suffixes or ""):
                yield Entry(*found)
        return
    yield from _walk(local_path(name), suffixes)


def as_folder(name: str) -> str:
    return name if name.endswith("/") else name + "/"


def _walk(folder: str, suffixes: tuple[str, ...]) -> Iterator[Entry]:
    with os.scandir(folder) as listing:
        found = sorted(listing, key=lambda entry: os.fsencode(entry.name))
    for entry in found:
        # Of links only those to files are followed: others may lead back.
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, suffixes)
        elif entry.name.endswith(suffixes or "") and entry.is_file():
            yield describe_file(entry.path, entry.stat())


def describe_file(path: str, status: os.stat_result) -> Entry:
    when = datetime.fromtimestamp(status.st_mtime_ns // 1000 / 1e6, UTC)
    return Entry(path, status.st_size, "", when.isoformat().replace("+00:00", "Z"))


def expand(
    client: Client, name: str, *, recursive: bool, suffixes: tuple[str, ...]
) -> Iterator[Entry]:
    """What a command that reads arrays is to read: ``name`` itself, or what lies below it."""
    if is_remote(name):
        if recursive or name.endswith("/"):
            yield from list_below(client, name, suffixes)
        else:
            yield Entry(name)
    elif os.path.isdir(local_path(name)):
        yield from list_below(client, name, suffixes)
    else:
        yield Entry(name)


class Array(NamedTuple):
    """An array's header and the length of its object."""

    name: str
    header: NpyHeader
    nbytes: int

    @property
    def end(self) -> int:
        """Where its data should end."""
        return self.header.data_offset + self.header.nbytes


def identify(client: Client, name: str) -> Array | NpzFile:
    """The header of an array, or an archive, opened; the content tells which.

    Of the array only the first bytes are fetched, of the archive its directory.

    Raises:
        As torchnpy.header() and torchnpy.open_npz().
    """
    if path_of(name).endswith(".npz"):
        try:
            return open_archive(client, name)
        except FormatError:
            if not read_prefix(client, name)[1].startswith(b"\x93NUMPY"):
                raise
    reader, prefix = read_prefix(client, name)
    if _C.begins_as_zip(prefix, reader.name):
        return open_archive(client, name)
    header = NpyHeader(*_C.parse_header(prefix, reader.name))
    return Array(reader.name, header, reader.nbytes or 0)


def open_archive(client: Client, name: str) -> NpzFile:
    return NpzFile(_C.open_npz(native(client), encode(name), DEFAULT_LIMITS.values, True))


def read_prefix(client: Client, name: str) -> tuple[_C.ObjectReader, bytearray]:
    reader = _C.ObjectReader(native(client), encode(name))
    prefix = bytearray(_PREFIX_NBYTES)
    del prefix[reader.read(0, prefix) :]
    return reader, prefix


class Member(NamedTuple):
    """What an archive's directory says of a member."""

    key: str
    name: str
    method: int
    crc32: int
    compressed_nbytes: int
    nbytes: int

    @property
    def method_name(self) -> str:
        return {0: "stored", 8: "deflated"}.get(self.method, f"method {self.method}")


def members_of(archive: NpzFile) -> list[Member]:
    return [Member(*values) for values in _C.list_npz(archive._open())]

"""One object from here to there, piece by piece, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from torchnpy._ops import _C
from torchnpy.cli.folder import Folder
from torchnpy.cli.objects import Entry, is_remote, local_path, parse_time
from torchnpy.cli.parallel import Stop
from torchnpy.client import Client
from torchnpy.errors import TransportError
from torchnpy.sources import encode, native

PIECE_NBYTES = 16 << 20
# Objects of several pieces at once: each has two in memory.
_LARGE_AT_ONCE = 4


class Reader:
    """The bytes of a source, all of one version."""

    def __init__(self, client: Client, url: str) -> None:
        self._native = _C.ObjectReader(native(client), encode(url))
        self._path = None if is_remote(url) else local_path(url)
        self._status = os.stat(self._path) if self._path is not None else None

    @property
    def name(self) -> str:
        return self._native.name

    @property
    def nbytes(self) -> int:
        """After a read."""
        return self._native.nbytes or 0

    @property
    def version(self) -> str:
        """Of a remote object that has a strong name for it; else empty."""
        return self._native.version if self.etag.startswith('"') else ""

    @property
    def etag(self) -> str:
        """After a read; with its quotes."""
        return self._version_line(1)

    @property
    def modified_s(self) -> float | None:
        """After a read."""
        if self._status:
            return self._status.st_mtime_ns / 1e9
        return parse_time(self.modified)

    @property
    def modified(self) -> str:
        """As the store gives it; after a read."""
        return self._version_line(2)

    def _version_line(self, index: int) -> str:
        # transport/http.cpp: the length, the ETag, Last-Modified. Nothing of a file.
        lines = self._native.version.split("\n")
        return lines[index] if index < len(lines) else ""

    def expect_version(self, version: str) -> None:
        self._native.expect_version(version)

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Fewer bytes only where the object ends."""
        room = bytearray(nbytes)
        return memoryview(room)[: self._native.read(offset, room)]

    def check_unchanged(self) -> None:
        """Of a file, before its copy becomes visible; stores look to it themselves."""
        if self._path is None or self._status is None:
            return
        now = os.stat(self._path)
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise TransportError(
                f"{self._path}: expected the file that the copy began with but found it changed "
                "meanwhile; copy it again"
            )


class Transfer:
    """What copies share. ``advance`` is told the bytes as they arrive, on any thread."""

    def __init__(
        self, client: Client, stop: Stop, advance: Callable[[int], None], *, sync: bool
    ) -> None:
        self._client, self._stop, self._advance, self._sync = client, stop, advance, sync
        self._large = threading.BoundedSemaphore(_LARGE_AT_ONCE)

    def look(self, source: Entry) -> Entry:
        """The same with its length and time, of which a store is asked with one byte."""
        reader = Reader(self._client, source.url)
        reader.read(0, 1)
        return Entry(source.url, reader.nbytes, reader.etag.strip('"'), reader.modified)

    def to_file(self, source: Entry, folder: Folder, parts: list[str]) -> int:
        """Bytes that were fetched. Goes on where a copy of the same version was interrupted."""
        with folder.partial(parts, source.url) as partial:
            reader, done = self._resume(source, *partial.resume())
            first = reader.read(done, self._first_nbytes(source))
            if done:
                partial.keep()
            else:
                is_large = reader.version and len(first) < reader.nbytes
                partial.begin(_note(reader) if is_large else None)
            self._advance(done)
            fetched = 0
            for offset, data in self._pieces(reader, done, first):
                partial.write(offset, data)
                fetched += len(data)
                self._advance(len(data))
            reader.check_unchanged()
            modified_s = source.modified_s or reader.modified_s
            partial.finish(reader.nbytes, modified_s, sync=self._sync)
            return fetched

    def to_url(self, source: Entry, url: str) -> int:
        """Bytes that were sent."""
        reader = Reader(self._client, source.url)
        first = reader.read(0, self._first_nbytes(source))
        target = _C.create(native(self._client), encode(url), reader.nbytes, self._sync, False)
        try:
            for _, data in self._pieces(reader, 0, first):
                target.write(data.toreadonly())  # held until it is sent, not copied
                self._advance(len(data))
            reader.check_unchanged()
            target.finish()
        except BaseException:
            target.abandon()
            raise
        return reader.nbytes

    def _read(self, reader: Reader, offset: int, nbytes: int) -> memoryview:
        return self._stop.call(lambda: reader.read(offset, nbytes))

    def _first_nbytes(self, source: Entry) -> int:
        # At least a byte: only an answer tells the length.
        return max(1, min(PIECE_NBYTES, PIECE_NBYTES if source.nbytes is None else source.nbytes))

    def _resume(self, source: Entry, note: dict[str, object], nbytes: int) -> tuple[Reader, int]:
        """A reader, and from where on it is to read."""
        reader = Reader(self._client, source.url)
        version, total = str(note.get("version", "")), note.get("nbytes")
        agrees = note.get("source") == reader.name and version and isinstance(total, int)
        if not agrees or not isinstance(total, int) or source.nbytes not in (None, total):
            return reader, 0
        # At least a byte is read: the answer to it tells whether the version is still there.
        done = min(nbytes, total - 1)
        if done <= 0:
            return reader, 0
        reader.expect_version(version)
        with contextlib.suppress(TransportError):
            reader.read(done, 1)
            return reader, done
        return Reader(self._client, source.url), 0

    def _pieces(
        self, reader: Reader, offset: int, first: memoryview
    ) -> Iterator[tuple[int, memoryview]]:
        """``first``, which is here, and what follows it, one piece ahead."""
        end = reader.nbytes
        if offset + len(first) >= end:
            yield offset, first
            return
        with self._large, ThreadPoolExecutor(1, "torchnpy-cli-ahead") as ahead:
            data = first
            while offset < end:
                following = offset + len(data)
                wanted = min(PIECE_NBYTES, end - following)
                future = ahead.submit(self._read, reader, following, wanted) if wanted else None
                yield offset, data
                offset = following
                if future:
                    data = future.result()


def _note(reader: Reader) -> dict[str, object]:
    return {"source": reader.name, "version": reader.version, "nbytes": reader.nbytes}

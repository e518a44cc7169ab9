"""Text as it comes, and as it goes: from and to anywhere, in any encoding, compressed or not."""

from __future__ import annotations

import codecs
import functools
import io
import itertools
import locale
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TextIO, TypeAlias

import torch

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.destinations import whole_writer
from torchnpy.errors import FormatError
from torchnpy.sources import Buffer, Url, encode, is_stream, is_url, native, stream_name

TextSource: TypeAlias = Url | TextIO | BinaryIO | Buffer | Iterable[str | bytes]
TextTarget: TypeAlias = Url | TextIO | BinaryIO

PIECE_NBYTES = 1 << 20
PIECE_ROWS = 4096


class Source:
    """What loadtxt() reads, as pieces of UTF-8."""

    def __init__(
        self, source: TextSource, encoding: str | None, quote: str | None, client: Client | None
    ) -> None:
        self._source: Any = source
        self._client = client
        self._is_named = is_url(source)
        self._is_content = isinstance(source, torch.Tensor) or _exports_bytes(source)
        self._may_hold_lines = quote is not None
        self.name = "<lines>"
        self._suffix = ""
        default = "latin-1"
        if is_url(source):
            self.name, default = _C.display_name(encode(source)), locale.getencoding()
            self._suffix = suffix_of_compressed(self.name)
        elif self._is_content:
            self.name, default = "<bytes>", locale.getencoding()
        elif is_stream(source):
            self.name = stream_name(source)
        self._encoding = codecs.lookup(encoding or default).name
        # UTF-8 is fed as it is; what is wrong in it is no number either.
        self._is_plain = self._encoding in ("utf-8", "utf-8-sig", "ascii")
        self.is_gzip = self._suffix == ".gz" and self._is_plain

    def feed(self, reader: _C.TextReader, skiprows: int, max_rows: int | None) -> None:
        if self._is_plain and (self.is_gzip or not self._suffix):
            if self._is_named:
                reader.feed(_C.read_object(native(self._client), encode(self._source)))
                return
            if self._is_content:
                reader.feed(self._source)
                return
        for piece in self._pieces(reader, skiprows, max_rows):
            if reader.is_done:
                return
            reader.feed(piece)
            if reader.is_done:
                return

    def _pieces(
        self, reader: _C.TextReader, skiprows: int, max_rows: int | None
    ) -> Iterator[bytes]:
        if self._is_named:
            data = _C.fetch(native(self._client), encode(self._source))
            return self._decoded(_decompressed(self._suffix, data, self.name))
        if self._is_content:
            return self._decoded(_slices(self._source))
        if is_stream(self._source) and max_rows is None:
            return self._decoded(iter(functools.partial(self._source.read, PIECE_NBYTES), None))
        try:
            lines = iter(self._source)
        except TypeError:
            raise TypeError(
                "fname: expected a URL, a path, an open file, bytes or lines of text but found "
                f"{type(self._source).__name__}"
            ) from None
        return self._line_pieces(lines, reader, skiprows, max_rows)

    def _decoded(self, pieces: Iterator[Any]) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder(self._encoding)()
        for piece in pieces:
            if not piece:
                break
            if isinstance(piece, str):
                yield to_utf8(piece)
            elif self._is_plain:
                yield piece
            else:
                yield decoder.decode(piece).encode()
        yield decoder.decode(b"", True).encode()

    def _line_pieces(
        self, lines: Iterator[Any], reader: _C.TextReader, skiprows: int, max_rows: int | None
    ) -> Iterator[bytes]:
        """Never takes a line that may be beyond the last row."""
        is_file = is_stream(self._source)
        taken, count = 0, PIECE_ROWS
        while True:
            if max_rows is not None:
                wanted = max(skiprows - taken, 0) + max_rows - reader.rows
                count = min(wanted, PIECE_ROWS)
            piece = [self._as_line(line, is_file) for line in itertools.islice(lines, count)]
            if not piece:
                return
            taken += len(piece)
            yield to_utf8("".join(piece))

    def _as_line(self, line: Any, is_file: bool) -> str:
        if isinstance(line, bytes):
            line = line.decode(self._encoding)
        if not isinstance(line, str):
            raise TypeError(
                f"fname: expected lines of text, str or bytes, but found {type(line).__name__}"
            )
        if is_file:
            return line
        text = line.removesuffix("\n").removesuffix("\r")
        if not self._may_hold_lines and ("\n" in text or "\r" in text):
            raise FormatError(
                f'{self.name}: expected one line but found a line end in "{text[:40]!a}"'
            )
        return text + "\n"


def _exports_bytes(source: Any) -> bool:
    try:
        return memoryview(source).format in ("B", "b", "c")
    except (TypeError, ValueError):
        return False


def to_utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _slices(data: Any) -> Iterator[bytes]:
    exported: Any = data.numpy() if isinstance(data, torch.Tensor) else data
    view = memoryview(exported).cast("B")
    for begin in range(0, len(view), PIECE_NBYTES):
        yield bytes(view[begin : begin + PIECE_NBYTES])


def _decompressed(suffix: str, data: bytes, name: str) -> Iterator[bytes]:
    import bz2
    import gzip
    import lzma
    import zlib

    openers: dict[str, Callable[[BinaryIO], Any]] = {
        "": lambda file: file,
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".lzma": lzma.open,
    }
    try:
        file = openers[suffix](io.BytesIO(data))
        while piece := file.read(PIECE_NBYTES):
            yield piece
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise FormatError(f"{name}: expected {suffix} data but found it broken: {error}") from error


def suffix_of_compressed(name: str) -> str:
    return next((end for end in (".gz", ".bz2", ".xz", ".lzma") if name.endswith(end)), "")


@contextmanager
def open_target(
    fname: Any, encoding: str | None, client: Client | None
) -> Iterator[Callable[[bytes], None]]:
    """What takes UTF-8."""
    if not is_url(fname):
        if not hasattr(fname, "write"):
            raise ValueError(
                f"fname: expected a URL, a path or an open file but found {type(fname).__name__}"
            )
        yield _StreamWriter(fname, encoding or "latin-1").write
        return
    name = encode(fname)
    recode = _recoder(encoding or locale.getencoding())
    compress, finish = _compressor(suffix_of_compressed(_C.display_name(name)))
    target = _C.create(native(client), name, None, False, False)
    try:
        yield lambda text: target.write(compress(recode(text)))
        target.write(finish())
        target.finish()
    except BaseException:
        target.abandon()
        raise


def _recoder(encoding: str) -> Callable[[bytes], bytes]:
    """From UTF-8; the calls are for pieces of one text."""
    if codecs.lookup(encoding).name == "utf-8":
        return lambda text: text
    encoder = codecs.getincrementalencoder(encoding)()
    return lambda text: encoder.encode(text.decode())


def _compressor(suffix: str) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    """Compresses pieces; gives the end."""
    if suffix == ".gz":
        gzip = _C.GzipWriter()
        return gzip.write, gzip.finish
    if suffix == ".bz2":
        import bz2

        bzip = bz2.BZ2Compressor()
        return bzip.compress, bzip.flush
    if suffix in (".xz", ".lzma"):
        import lzma

        xz = lzma.LZMACompressor()
        return xz.compress, xz.flush
    return lambda data: data, lambda: b""


class _StreamWriter:
    """Writes to an open file: text, or bytes where it takes none."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._recode = _recoder(encoding)
        self._write_whole = whole_writer(stream)
        self._takes_text: bool | None = None  # not known yet

    def write(self, text: bytes) -> None:
        if self._takes_text is not False:
            try:
                self._stream.write(text.decode())
                self._takes_text = True
                return
            except TypeError:
                if self._takes_text:
                    raise
                self._takes_text = False
        if data := self._recode(text):
            self._write_whole(data)

"""Tables of numbers as text: what numpy.savetxt and numpy.loadtxt do, from and to everywhere."""

from __future__ import annotations

import codecs
import functools
import io
import itertools
import locale
import mmap as _mmap
import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, TypeAlias, cast

import torch

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.errors import FormatError, UnsupportedError
from torchnpy.sources import (
    Array,
    Url,
    encode,
    is_stream,
    is_url,
    native,
    stream_name,
)

if TYPE_CHECKING:
    import numpy.typing

    ArrayLike: TypeAlias = Array | numpy.typing.ArrayLike
    DTypeLike: TypeAlias = torch.dtype | numpy.typing.DTypeLike
else:
    ArrayLike: TypeAlias = Any
    DTypeLike: TypeAlias = Any

Content: TypeAlias = bytes | bytearray | memoryview | _mmap.mmap | torch.Tensor
TextSource: TypeAlias = Url | TextIO | BinaryIO | Content | Iterable[str | bytes]
TextTarget: TypeAlias = Url | TextIO | BinaryIO
Converter: TypeAlias = Callable[[Any], Any]

_PIECE_NBYTES = 1 << 20
_PIECE_ROWS = 4096

# What is read and written in the dtype of NumPy that has all its values.
_DESCRS = {
    torch.bool: "|b1",
    torch.int8: "|i1",
    torch.int16: "<i2",
    torch.int32: "<i4",
    torch.int64: "<i8",
    torch.uint8: "|u1",
    torch.uint16: "<u2",
    torch.uint32: "<u4",
    torch.uint64: "<u8",
    torch.float16: "<f2",
    torch.float32: "<f4",
    torch.float64: "<f8",
    torch.complex64: "<c8",
    torch.complex128: "<c16",
}
_PYTHON_TYPES: dict[Any, torch.dtype] = {
    None: torch.float64,
    float: torch.float64,
    int: torch.int64,
    bool: torch.bool,
    complex: torch.complex128,
}


def loadtxt(
    fname: TextSource,
    dtype: DTypeLike = float,
    comments: str | bytes | Sequence[str | bytes] | None = "#",
    delimiter: str | bytes | None = None,
    converters: Mapping[int, Converter] | Converter | None = None,
    skiprows: int = 0,
    usecols: int | Sequence[int] | None = None,
    unpack: bool = False,
    ndmin: int = 0,
    encoding: str | None = None,
    max_rows: int | None = None,
    *,
    quotechar: str | None = None,
    client: Client | None = None,
) -> Any:
    """Loads a table of numbers from text; numpy.loadtxt() in parameters and results.

    Args:
        fname: A URL, a path, an open file, text or binary, the text as bytes, or an iterable of
            lines. A name that ends in ``.gz``, ``.bz2``, ``.xz`` or ``.lzma`` is decompressed.
            Of an open file, ``max_rows`` leaves what follows unread.
        dtype: A torch dtype, or what NumPy takes for one; a structured dtype gives a dict of
            tensors, one a field, of which each column fills one.
        comments: What begins a comment, up to the line's end: one, several, or None.
        delimiter: One character; default: any blanks.
        converters: A function from a field's text to its value for all columns, or a dict of them
            by column.
        skiprows: Lines to skip first, of any kind.
        usecols: The columns to read, from the end where negative.
        unpack: The array is transposed, so that columns can be assigned to names; of a structured
            dtype a list of its fields.
        ndmin: 0, 1 or 2: how many axes are kept although they have the length 1.
        encoding: Of the bytes. Default: the locale's, of open files and lines latin-1. ``"bytes"``
            gives converters bytes.
        max_rows: Rows to read; lines without fields are none.
        quotechar: A field in these may hold delimiters, comments and line ends; two stand for one.
        client: For remote sources. Default: default_client().

    Returns:
        A tensor of shape (rows, columns), without axes of length 1 unless ``ndmin`` keeps them; a
        dict of tensors, or a list of them.

    Raises:
        FormatError: A field is no number of that dtype, or a line has another count of columns
            than the first: the message has the line and the column. Compressed data is broken.
        UnsupportedError: A dtype that tensors lack.
        TransportError: See load().
        ValueError, TypeError: A parameter is wrong.

    Warns:
        UserWarning: There are no rows.
    """
    descr, cast_to = _parse_dtype(dtype)
    if ndmin not in (0, 1, 2):
        raise ValueError(f"ndmin: expected 0, 1 or 2 but found {ndmin!r}")
    gives_bytes = encoding == "bytes"
    source = _Source(fname, None if gives_bytes else encoding, quotechar, client)
    skip_lines = _count("skiprows", skiprows)
    if max_rows is not None:
        max_rows = _count("max_rows", max_rows)
    reader = _C.TextReader(
        name=source.name,
        descr=descr,
        delimiter=_one_character("delimiter", delimiter),
        comments=_comment_list(comments),
        quote=_one_character("quotechar", quotechar),
        skip_lines=skip_lines,
        max_rows=max_rows,
        columns=None if usecols is None else _column_list(usecols),
        text_columns=_converted_columns(converters),
        is_gzip=source.is_gzip,
    )
    source.feed(reader, skip_lines, max_rows)
    reader.end()
    if converters is not None:
        _convert(reader, converters, usecols, source.name, gives_bytes)
    if reader.rows == 0:
        warnings.warn(f'loadtxt: input contained no data: "{source.name}"', stacklevel=2)
    return _shaped(reader.take(), cast_to, unpack, ndmin)


class _Source:
    """Text, wherever it comes from, as pieces of UTF-8."""

    def __init__(
        self, source: TextSource, encoding: str | None, quote: str | None, client: Client | None
    ) -> None:
        self._source: Any = source
        self._client = client
        self._is_named = is_url(source)
        self._is_content = isinstance(
            source, (bytes, bytearray, memoryview, _mmap.mmap, torch.Tensor)
        )
        self._may_hold_lines = quote is not None
        self.name = "<lines>"
        self._suffix = ""
        default = "latin-1"
        if is_url(source):
            self.name, default = _C.display_name(encode(source)), locale.getencoding()
            self._suffix = _suffix_of_compressed(self.name)
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
            return self._decoded(iter(functools.partial(self._source.read, _PIECE_NBYTES), None))
        try:
            lines = iter(self._source)
        except TypeError:
            raise TypeError(
                "fname: expected a URL, a path, an open file, bytes or lines of text but found "
                f"{type(self._source).__name__}"
            ) from None
        if max_rows is None:
            return self._line_pieces(lines, lambda: _PIECE_ROWS)
        return self._line_pieces(lines, lambda: max(skiprows + max_rows - reader.rows, 1))

    def _decoded(self, pieces: Iterator[Any]) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder(self._encoding)()
        for piece in pieces:
            if not piece:
                break
            if isinstance(piece, str):
                yield _to_utf8(piece)
            elif self._is_plain:
                yield piece
            else:
                yield decoder.decode(piece).encode()
        yield decoder.decode(b"", True).encode()

    def _line_pieces(self, lines: Iterator[Any], count: Callable[[], int]) -> Iterator[bytes]:
        is_file = is_stream(self._source)
        while piece := [
            self._as_line(line, is_file)
            for line in itertools.islice(lines, min(count(), _PIECE_ROWS))
        ]:
            yield _to_utf8("".join(piece))

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


def _to_utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _suffix_of_compressed(name: str) -> str:
    return next((end for end in (".gz", ".bz2", ".xz", ".lzma") if name.endswith(end)), "")


def _slices(data: Any) -> Iterator[bytes]:
    view = memoryview(data.numpy() if isinstance(data, torch.Tensor) else data).cast("B")
    for begin in range(0, len(view), _PIECE_NBYTES):
        yield bytes(view[begin : begin + _PIECE_NBYTES])


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
        while piece := file.read(_PIECE_NBYTES):
            yield piece
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise FormatError(f"{name}: expected {suffix} data but found it broken: {error}") from error


def _parse_dtype(dtype: Any) -> tuple[str, torch.dtype | None]:
    """The descr to read, and the dtype that what was read is cast to."""
    if dtype is None or (isinstance(dtype, type) and dtype in _PYTHON_TYPES):
        dtype = _PYTHON_TYPES[dtype]
    if isinstance(dtype, str):
        named = getattr(torch, dtype, None)
        if str(named) == f"torch.{dtype}":  # torch.float is not NumPy's
            dtype = named
    if isinstance(dtype, torch.dtype):
        if dtype in _DESCRS:
            return repr(_DESCRS[dtype]), None
        if dtype.is_complex:
            return repr("<c16"), dtype
        if dtype.is_floating_point:
            return repr("<f8"), dtype
        raise UnsupportedError(f"dtype: expected a dtype of numbers but found {dtype}")
    import numpy  # its names, or the program's own dtypes

    return repr(numpy.lib.format.dtype_to_descr(numpy.dtype(dtype))), None


def _one_character(parameter: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str) or len(value) != 1:
        raise TypeError(f"{parameter}: expected one character or None but found {value!r}")
    return value


def _comment_list(comments: Any) -> list[str]:
    if comments is None:
        return []
    if isinstance(comments, (str, bytes)):
        comments = [comments]
    return [c.decode("latin-1") if isinstance(c, bytes) else c for c in comments]


def _count(parameter: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{parameter}: expected an integer but found {value!r}") from None
    if number < 0:
        raise ValueError(f"{parameter}: expected no negative number but found {number}")
    return min(number, sys.maxsize)


def _column_list(usecols: Any) -> list[int]:
    columns = list(usecols) if isinstance(usecols, Iterable) else [usecols]
    try:
        return [operator.index(column) for column in columns]
    except TypeError:
        raise TypeError(f"usecols: expected integers but found {usecols!r}") from None


def _converted_columns(converters: Any) -> list[int] | None:
    """None for all."""
    if converters is None:
        return []
    if callable(converters):
        return None
    if not isinstance(converters, Mapping):
        raise TypeError(f"converters: expected a function or a dict but found {converters!r}")
    for function in converters.values():
        if not callable(function):
            raise TypeError(f"converters: expected a function but found {function!r}")
    try:
        return [operator.index(column) for column in converters]
    except TypeError:
        raise TypeError(f"converters: expected columns as keys but found {converters}") from None


def _convert(
    reader: _C.TextReader, converters: Any, usecols: Any, name: str, gives_bytes: bool
) -> None:
    find = _finder(converters, None if usecols is None else _column_list(usecols), reader.columns)
    for index, (column, text, kind, line, field) in enumerate(reader.texts()):
        word = text.decode("utf-8", "backslashreplace")
        try:
            value = find(column)(word.encode("latin-1") if gives_bytes else word)
            spelled = _spell(value, kind)
        except Exception as error:
            raise FormatError(
                f'{name}: expected text that the converter takes but found "{word}" at line '
                f"{line}, column {field}: {error}"
            ) from error
        reader.store(index, spelled)


def _finder(converters: Any, columns: list[int] | None, count: int) -> Callable[[int], Converter]:
    """From a column of the result to what converts it."""
    if callable(converters):
        return lambda column: converters
    if columns is not None:
        return lambda column: converters[columns[column]]
    by_column = {column % count: function for column, function in converters.items()}
    return lambda column: by_column[column]


def _spell(value: Any, kind: str) -> bytes:
    """Text that reads back as the value, in a column of that kind."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _to_utf8(value)
    spelled: object
    if kind == "f":
        spelled = float(value)
    elif kind == "c":
        spelled = complex(value)
    else:
        spelled = int(bool(value)) if kind == "b" else int(value)
    return repr(spelled).encode()


def _shaped(array: Array, cast_to: torch.dtype | None, unpack: bool, ndmin: int) -> Any:
    if isinstance(array, dict):
        rows = len(next(iter(array.values())))
        fields = {name: _shaped_field(field, rows, ndmin) for name, field in array.items()}
        return list(fields.values()) if unpack else fields
    if cast_to:
        array = array.to(cast_to)
    if array.dim() > ndmin:
        array = array.squeeze()
    if array.dim() < ndmin:
        array = array.reshape(-1) if ndmin == 1 else array.reshape(1, -1).t()
    return array.t() if unpack else array


def _shaped_field(field: torch.Tensor, rows: int, ndmin: int) -> torch.Tensor:
    if ndmin == 2:
        return field.unsqueeze(1)
    return field[0] if ndmin == 0 and rows == 1 else field


def savetxt(
    fname: TextTarget,
    X: ArrayLike,
    fmt: str | Sequence[str] = "%.18e",
    delimiter: str = " ",
    newline: str = "\n",
    header: str = "",
    footer: str = "",
    comments: str = "# ",
    encoding: str | None = None,
    *,
    client: Client | None = None,
) -> None:
    """Saves numbers as text, a line a row; numpy.savetxt() in parameters and bytes.

    Args:
        fname: A URL, a path or an open file, text or binary. A name that ends in ``.gz``,
            ``.bz2``, ``.xz`` or ``.lzma`` is compressed. A file is replaced when the new one is
            whole.
        X: A tensor or array of 1 or 2 dimensions, lists, or a dict of tensors with a column each.
        fmt: A format of Python's % operator for each number, one for a whole row, or one for each
            column; of complex numbers also one that both parts get.
        delimiter: Between columns; not with a format for a whole row.
        newline: Behind each row.
        header: Text before the rows; ``comments`` is put before each of its lines.
        footer: The same behind them.
        comments: What begins a comment.
        encoding: Default: the locale's for names, latin-1 for open binary files.
        client: For remote targets. Default: default_client().

    Raises:
        TransportError: See save(). What was there is unchanged.
        TypeError: A format does not fit a column.
        ValueError: ``fmt`` is wrong, or X has other dimensions.
        UnsupportedError: Sparse and quantized tensors.
    """
    table = _table(X)
    row_format = _row_format(fmt, delimiter, table.count, table.is_complex)
    with _open_target(fname, encoding, client) as write:
        if header:
            write(_to_utf8(_commented(header, comments) + newline))
        for piece in table.text(row_format + newline.replace("%", "%%")):
            write(piece)
        if footer:
            write(_to_utf8(_commented(footer, comments) + newline))


def _commented(text: str, comments: str) -> str:
    return comments + text.replace("\n", "\n" + comments)


def _row_format(fmt: Any, delimiter: str, count: int, is_complex: bool) -> str:
    if isinstance(fmt, (list, tuple)):
        if len(fmt) != count:
            raise ValueError(f"fmt: expected {count} formats, one a column, but found {fmt}")
        return delimiter.join(fmt)
    if not isinstance(fmt, str):
        raise ValueError(f"fmt: expected a format or a list of them but found {fmt!r}")
    found = fmt.count("%")
    if found == 1:
        return delimiter.join([f" ({fmt}+{fmt}j)" if is_complex else fmt] * count)
    expected = 2 * count if is_complex else count
    if found != expected:
        raise ValueError(f"fmt: expected 1 or {expected} % formats but found {found}: {fmt}")
    return fmt


@dataclass
class _Table:
    """Rows of numbers, as columns of tensors, of complex numbers two, or as NumPy has them."""

    rows: int
    count: int
    is_complex: bool = False
    columns: list[torch.Tensor] | None = None
    array: Any = None  # NumPy's, whose scalars know how they look

    def text(self, row_format: str) -> Iterator[bytes]:
        if self.columns is not None:
            writer = _C.make_text_writer(row_format, self.rows, self.columns, self.is_complex)
            if writer is not None:
                return iter(writer.next, b"")
        return self._formatted(row_format)

    def _formatted(self, row_format: str) -> Iterator[bytes]:
        """What _C does not print: by Python's own operator."""
        rows = iter(self._values())
        while piece := list(itertools.islice(rows, _PIECE_ROWS)):
            try:
                lines = [row_format % row for row in piece]
            except TypeError as error:
                raise TypeError(
                    f"fmt: expected formats that fit the columns but found {row_format!r}: {error}"
                ) from error
            if self.is_complex:
                lines = [line.replace("+-", "-") for line in lines]
            yield _to_utf8("".join(lines))

    def _values(self) -> Iterator[tuple[Any, ...]]:
        if self.array is not None:
            for row in self.array:
                parts = ((number.real, number.imag) for number in row) if self.is_complex else ()
                yield tuple(itertools.chain.from_iterable(parts)) if self.is_complex else tuple(row)
            return
        for begin in range(0, self.rows, _PIECE_ROWS):
            piece = slice(begin, begin + _PIECE_ROWS)
            columns = [column[piece].tolist() for column in self.columns or []]
            yield from (
                zip(*columns, strict=True) if columns else [()] * len(range(self.rows)[piece])
            )


def _table(X: Any) -> _Table:
    if isinstance(X, dict):
        return _table_of_fields([_plain(field) for field in X.values()])
    if isinstance(X, (list, tuple)) and any(isinstance(row, torch.Tensor) for row in X):
        X = torch.stack([torch.as_tensor(row) for row in X])
    if isinstance(X, torch.Tensor):
        return _table_of_tensor(_plain(X))
    import numpy  # the program's, if it has numpy arrays; else it is what lists need

    array = numpy.asarray(X)
    _check_dimensions(array.ndim)
    if array.dtype.names is not None:
        fields = [_from_numpy(array[name]) for name in array.dtype.names]
        if None in fields or array.ndim != 1:
            return _Table(len(array), len(fields), array=array)
        table = _table_of_fields(cast("list[torch.Tensor]", fields))
    else:
        array = array if array.ndim == 2 else array.reshape(-1, 1)
        tensor = _from_numpy(array)
        if tensor is None:
            rows, count = array.shape
            return _Table(rows, count, numpy.iscomplexobj(array), array=array)
        table = _table_of_tensor(tensor)
    table.array = array
    return table


def _table_of_tensor(tensor: torch.Tensor) -> _Table:
    _check_dimensions(tensor.dim())
    if tensor.dim() == 1:
        tensor = tensor.unsqueeze(1)
    rows, count = tensor.shape
    if tensor.is_complex():
        parts = torch.view_as_real(tensor).reshape(rows, 2 * count)
        return _Table(rows, count, True, list(parts.unbind(1)))
    return _Table(rows, count, False, list(tensor.unbind(1)))


def _table_of_fields(fields: list[torch.Tensor]) -> _Table:
    for field in fields:
        if field.shape != fields[0].shape or field.dim() != 1:
            raise ValueError(
                "X: expected fields of one dimension and the same length but found "
                f"{[tuple(field.shape) for field in fields]}"
            )
    return _Table(len(fields[0]) if fields else 0, len(fields), False, fields)


def _check_dimensions(found: int) -> None:
    if found not in (1, 2):
        raise ValueError(f"X: expected an array of 1 or 2 dimensions but found {found}")


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, of a dtype that NumPy has, in memory as it reads."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UnsupportedError(
            "X: expected a dense tensor but found a sparse or quantized one; call .to_dense() or "
            ".dequantize()"
        )
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype in _DESCRS:
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)


def _from_numpy(array: Any) -> torch.Tensor | None:
    """A tensor over its memory; None where torch has no such dtype."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(step < 0 for step in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError):
        return None


@contextmanager
def _open_target(
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
    compress, finish = _compressor(_suffix_of_compressed(_C.display_name(name)))
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
        data = memoryview(self._recode(text))
        while data:  # a raw file may take less
            data = data[self._stream.write(data) or len(data) :]

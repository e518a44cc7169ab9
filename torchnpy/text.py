"""Tables of numbers as text: what numpy.savetxt and numpy.loadtxt do, from and to everywhere."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.errors import FormatError, UnsupportedError
from torchnpy.sources import Array
from torchnpy.text_source import Source, TextSource, TextTarget, open_target, to_utf8
from torchnpy.text_table import DESCRS, ArrayLike, make_table, row_format

if TYPE_CHECKING:
    import numpy.typing

    DTypeLike: TypeAlias = torch.dtype | numpy.typing.DTypeLike
else:
    DTypeLike: TypeAlias = Any

Converter: TypeAlias = Callable[[Any], Any]

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
    source = Source(fname, None if gives_bytes else encoding, quotechar, client)
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


def _parse_dtype(dtype: Any) -> tuple[str, torch.dtype | None]:
    """The descr to read, and the dtype that what was read is cast to."""
    if dtype is None or (isinstance(dtype, type) and dtype in _PYTHON_TYPES):
        dtype = _PYTHON_TYPES[dtype]
    if isinstance(dtype, str):
        named = getattr(torch, dtype, None)
        if str(named) == f"torch.{dtype}":  # torch.float is not NumPy's
            dtype = named
    if isinstance(dtype, torch.dtype):
        if dtype in DESCRS:
            return repr(DESCRS[dtype]), None
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
    if not isinstance(comments, Iterable) or not all(isinstance(c, (str, bytes)) for c in comments):
        raise TypeError(f"comments: expected text, texts or None but found {comments!r}")
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
            shown = word[:100].encode("unicode_escape").decode()
            raise FormatError(
                f'{name}: expected text that the converter takes but found "{shown}" at line '
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
        return to_utf8(value)
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
    table = make_table(X)
    format = row_format(fmt, delimiter, table.count, table.is_complex)
    with open_target(fname, encoding, client) as write:
        if header:
            write(to_utf8(_commented(header, comments) + newline))
        for piece in table.text(format + newline.replace("%", "%%")):
            write(piece)
        if footer:
            write(to_utf8(_commented(footer, comments) + newline))


def _commented(text: str, comments: str) -> str:
    return comments + text.replace("\n", "\n" + comments)

"""Numbers in columns, and the text of their rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from torchnpy._ops import _C
from torchnpy.errors import UnsupportedError
from torchnpy.sources import Array
from torchnpy.text_source import PIECE_ROWS, to_utf8

if TYPE_CHECKING:
    import numpy.typing

    ArrayLike: TypeAlias = Array | numpy.typing.ArrayLike
else:
    ArrayLike: TypeAlias = Any

# What is read and written in the dtype of NumPy that has all its values.
DESCRS = {
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


def row_format(fmt: Any, delimiter: str, count: int, is_complex: bool) -> str:
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
class Table:
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
        while piece := list(itertools.islice(rows, PIECE_ROWS)):
            try:
                lines = [row_format % row for row in piece]
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(
                    f"fmt: expected formats that fit the columns but found {row_format!r}: {error}"
                ) from error
            if self.is_complex:
                lines = [line.replace("+-", "-") for line in lines]
            yield to_utf8("".join(lines))

    def _values(self) -> Iterator[tuple[Any, ...]]:
        if self.array is not None:
            for row in self.array:
                parts = ((number.real, number.imag) for number in row) if self.is_complex else ()
                yield tuple(itertools.chain.from_iterable(parts)) if self.is_complex else tuple(row)
            return
        for begin in range(0, self.rows, PIECE_ROWS):
            piece = slice(begin, begin + PIECE_ROWS)
            columns = [column[piece].tolist() for column in self.columns or []]
            yield from (
                zip(*columns, strict=True) if columns else [()] * len(range(self.rows)[piece])
            )


def make_table(X: Any) -> Table:
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
            return Table(len(array), len(fields), array=array)
        table = _table_of_fields(cast("list[torch.Tensor]", fields))
    else:
        array = array if array.ndim == 2 else array.reshape(-1, 1)
        tensor = _from_numpy(array)
        if tensor is None:
            rows, count = array.shape
            return Table(rows, count, numpy.iscomplexobj(array), array=array)
        table = _table_of_tensor(tensor)
    table.array = array
    return table


def _table_of_tensor(tensor: torch.Tensor) -> Table:
    _check_dimensions(tensor.dim())
    if tensor.dim() == 1:
        tensor = tensor.unsqueeze(1)
    rows, count = tensor.shape
    if tensor.is_complex():
        parts = torch.view_as_real(tensor).reshape(rows, 2 * count)
        return Table(rows, count, True, list(parts.unbind(1)))
    return Table(rows, count, False, list(tensor.unbind(1)))


def _table_of_fields(fields: list[torch.Tensor]) -> Table:
    for field in fields:
        if field.shape != fields[0].shape or field.dim() != 1:
            raise ValueError(
                "X: expected fields of one dimension and the same length but found "
                f"{[tuple(field.shape) for field in fields]}"
            )
    return Table(len(fields[0]) if fields else 0, len(fields), False, fields)


def _check_dimensions(found: int) -> None:
    if found not in (1, 2):
        raise ValueError(f"X: expected an array of 1 or 2 dimensions but found {found}")


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, of a dtype that NumPy has, in memory as it reads."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"X: expected a dict of tensors but found one of {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UnsupportedError(
            "X: expected a dense tensor but found a sparse or quantized one; call .to_dense() or "
            ".dequantize()"
        )
    tensor = tensor.detach()
    if not tensor.is_meta:
        tensor = tensor.cpu().resolve_conj().resolve_neg()
    if tensor.dtype not in DESCRS:
        tensor = tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
    _C.view_tensor(tensor, b"X")  # refuses what has no memory to read
    return tensor


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

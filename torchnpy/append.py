"""Files that grow: ``NpyAppendArray`` and its functions, as npy-append-array has them.

docs/append.md says what a crash leaves, and where this differs from npy-append-array.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import os
import sys
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch

from torchnpy._ops import _C
from torchnpy.sources import NumpyArray, Url, encode
from torchnpy.write import view_array

if TYPE_CHECKING:
    import numpy

    NumpyDtype: TypeAlias = numpy.dtype[Any]
else:
    NumpyDtype: TypeAlias = Any

Rows: TypeAlias = torch.Tensor | NumpyArray
Fsync: TypeAlias = Literal["never", "header", "always"]
Casting: TypeAlias = Literal["no", "equiv", "safe", "same_kind", "unsafe"]


class NpyAppendArray(_C.Appender):
    """A ``.npy`` that grows, row by row or many at once, larger than memory.

    ``append()`` makes the file, fixes its dtype and order with the first array, and adds to the
    first axis (in Fortran order to the last). Data is written first and the count last, by one
    store: a reader that opens or maps the file at any moment sees a whole number of rows, and a
    process that is killed leaves such a file. Nobody else can append to it until ``close()``.

    Args:
        filename: A path. There need not be a file; nothing is made before the first append.
        delete_if_exists: Begin a new file.
        rewrite_header_on_append: False leaves the count to ``update_header()`` and ``close()``;
            rows that a killed process did not count are found by ``recover()``.
        fsync: ``"never"``: a power failure may lose rows; ``"header"``: the rows that the header
            counts are on the disk; ``"always"``: so are all when ``append()`` returns.
        header_every: Appends after which the count is written.
        casting: Which casts to the file's dtype are allowed, as in numpy.

    Raises:
        LockError: Another writer has the file.
        ValueError: The file needs ``ensure_appendable()`` or ``recover()`` first, or has shape ();
            an argument is wrong.
        FormatError, UnsupportedError, TransportError: It is no ``.npy``; it holds objects; it
            cannot be opened.
    """

    def __init__(
        self,
        filename: Url,
        delete_if_exists: bool = False,
        rewrite_header_on_append: bool = True,
        *,
        fsync: Fsync = "never",
        header_every: int = 1,
        casting: Casting = "unsafe",
    ) -> None:
        if not hasattr(header_every, "__index__") or not 1 <= header_every <= sys.maxsize:
            raise ValueError(f"header_every: expected 1 or more but found {header_every}")
        every = header_every if rewrite_header_on_append else 0
        super().__init__(
            encode(filename),
            bool(delete_if_exists),
            every,
            _choose("fsync", fsync, _C.AppendSync),
            _choose("casting", casting, _C.Casting),
        )
        self.filename = filename
        self._name = os.fspath(filename)
        self._casting = casting
        if every != 1:
            _uncounted.add(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """With all rows that were appended. AttributeError before there is a file, as for all."""
        return self._header("shape")[2]

    @property
    def fortran_order(self) -> bool:
        return self._header("fortran_order")[3]

    @property
    def dtype(self) -> NumpyDtype | torch.dtype:
        """A numpy.dtype, as npy-append-array has it; without numpy, or where it has none
        (bfloat16 by name), the torch.dtype."""
        descr, torch_dtype, _, _ = self._header("dtype")
        return _numpy_dtype(descr) or cast(torch.dtype, torch_dtype)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """None where torch has none: text, records, bits that the file cannot name."""
        torch_dtype = self._header("torch_dtype")[1]
        return torch_dtype if isinstance(torch_dtype, torch.dtype) else None

    def update_header(self) -> None:
        """Makes the header count all rows, where ``append()`` does not."""
        self._update_header()

    def close(self) -> None:
        """Makes the header count all rows and gives the file up; again does nothing."""
        self._close()

    def __enter__(self) -> NpyAppendArray:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        known = self._describe()
        array = f" {known[0]} {known[2]}" if known else ""
        return f"<torchnpy.NpyAppendArray {self._name!r}{array}>"

    def _header(self, name: str) -> _C.GrowingHeader:
        known = self._describe()
        if known is None:
            raise AttributeError(
                f"{self._name}: there is no {name} before the first append",
                name=name,
                obj=self,
            )
        return known

    def _append(self, rows: Rows | Sequence[Rows]) -> None:
        """What append() does with rows that are not in memory as the file is."""
        parts = self._with_axis(rows) if isinstance(rows, (list, tuple)) else [self._checked(rows)]
        while not self._append_views([self._view(part) for part in parts]):
            pass  # another thread made the file meanwhile, of another dtype
        for part in parts[:1]:
            if isinstance(part, torch.Tensor) or part.dtype == self.dtype:
                self._learn(part)

    def _checked(self, rows: Any) -> Rows:
        if isinstance(rows, torch.Tensor):
            return rows
        numpy = sys.modules.get("numpy")  # who has its arrays has imported it
        if numpy is not None and isinstance(rows, (numpy.ndarray, numpy.generic)):
            return cast(Rows, numpy.asanyarray(rows))
        raise ValueError(
            f"{self._name}: expected a tensor, a numpy array or a list of them but "
            f"found {type(rows).__name__}; convert it with torch.tensor()"
        )

    def _with_axis(self, rows: Sequence[Any]) -> list[Rows]:
        known = self._describe()
        if known is not None and known[3]:
            return [self._checked(row)[..., None] for row in rows]
        return [self._checked(row)[None] for row in rows]

    def _view(self, rows: Rows) -> _C.ArrayView:
        if isinstance(rows, torch.Tensor):
            return self._view_tensor(rows)
        view = view_array(rows, self._name)  # or what is wrong with them
        known = self._describe()
        dtype = _numpy_dtype(known[0]) if known else rows.dtype
        if dtype is None:  # numpy has no name for it, torch has
            return self._view_tensor(torch.as_tensor(rows))
        if rows.dtype == dtype:
            return view
        import numpy

        if not numpy.can_cast(rows.dtype, dtype, self._casting):
            raise TypeError(
                f"{self._name}: expected rows of {dtype} but found {rows.dtype}; "
                f'cast them, or pass casting="unsafe" to lose what does not fit'
            )
        return view_array(rows.astype(dtype, casting=self._casting), self._name)


def is_appendable(filename: Url) -> bool:
    """Whether the header has room for its count to grow; else call ensure_appendable().

    Raises:
        TransportError, FormatError: The file cannot be read; it is no ``.npy``.
    """
    return _C.is_appendable(encode(filename))


def needs_recovery(filename: Url) -> bool:
    """Whether the file's data is not as long as its header says, or ensure_appendable() was cut
    short; then call recover(). Never of objects.

    Raises:
        As is_appendable().
    """
    return _C.needs_recovery(encode(filename))


def ensure_appendable(filename: Url, inplace: bool = False) -> bool:
    """Gives the file a header with room for its count, if it has none.

    Args:
        inplace: Move the data inside the file instead of copying it into a new one: that needs no
            room on the disk. Nobody can read the file meanwhile, and if the process is killed,
            recover() must finish it.

    Returns:
        True.

    Raises:
        ValueError: An array of shape () cannot grow.
        LockError, TransportError, FormatError: Somebody appends to the file; it cannot be read or
            written; it is no ``.npy``.
    """
    _C.ensure_appendable(encode(filename), bool(inplace))
    return True


def recover(filename: Url, zerofill_incomplete: bool = False) -> bool:
    """Makes the header count the rows that the file has, after a crash or a broken download.

    Finishes what ensure_appendable(inplace=True) began. What an append() of this library left that
    did not return is dropped.

    Args:
        zerofill_incomplete: Fill the last row with zeros where it is incomplete, instead of
            cutting it off.

    Returns:
        True.

    Raises:
        ValueError: ensure_appendable() must come first.
        LockError, TransportError, FormatError: As ensure_appendable(); another array follows the
            first.
    """
    _C.recover(encode(filename), bool(zerofill_incomplete))
    return True


# Of these some rows may not be counted yet.
_uncounted: weakref.WeakSet[NpyAppendArray] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    with contextlib.ExitStack() as stack:  # all of them, also where one fails
        for appender in list(_uncounted):
            stack.callback(appender.close)


def _choose(name: str, value: str, kind: Any) -> Any:
    choices = list(kind.__members__)
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)} but found {value!r}")
    return getattr(kind, value)


def _numpy_dtype(descr: str) -> NumpyDtype | None:
    """None without numpy, and where it does not know the name."""
    try:
        import numpy
    except ImportError:
        return None
    literal: Any = ast.literal_eval(descr) if descr[:1] in "[(" else descr
    try:
        return numpy.lib.format.descr_to_dtype(literal)
    except TypeError:
        return None

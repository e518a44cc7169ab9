"""A dataset of rows of arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset, get_worker_info

from torchnpy._ops import _C
from torchnpy.client import Client, default_client
from torchnpy.data.collate import rows_of
from torchnpy.data.listing import FromUrls
from torchnpy.data.urls import UrlList
from torchnpy.sources import Array, Url, encode, native

Column: TypeAlias = Url | Sequence[Url]


class NpyRowDataset(FromUrls, Dataset[Any]):
    """Rows of one array or of many as samples, for a DataLoader.

    A batch costs only the bytes of its rows: they are sorted, near ones are read together, and all
    that it takes of all arrays is in flight at once. Headers are read once, together, at the first
    use of ``len`` or a row; nothing is opened before. The dataset forks, spawns and pickles small,
    and takes along what it knows of the headers. All rows are of the version of an object that its
    header was of: where it changed since, that is an error.

    Args:
        columns: One array, anything that load() takes by name; or a sequence of arrays, seen as one
            along the first axis: their rows need equal shape and dtype; or a dict of such by name,
            of equal length. A sample is a row, a tensor of shape ``array.shape[1:]``; of a dict one
            a column, by name. Of a structured dtype a row is a dict of its fields.
        transform: Applied to each sample, which then has memory of its own.
        dtype: See load_npy(); in a dict of columns, what those of a void dtype are.
        client: Default: the default client; a dataset that is pickled takes along its options.

    Raises:
        ValueError: ``columns`` holds no array. At first use, arrays of one column differ in the
            shape or dtype of their rows, columns differ in length, or an array has shape ``()``.
        IndexError: There is no such row; negative ones count from the end.
        UnsupportedError: An array is in Fortran order and has more than one axis.
        TransportError, FormatError, UnsupportedError: See load().
    """

    _suffix = ".npy"

    def __init__(
        self,
        columns: Column | Mapping[str, Column],
        *,
        transform: Callable[[Any], Any] | None = None,
        dtype: torch.dtype | None = None,
        client: Client | None = None,
    ) -> None:
        self._names, self._urls = _check_columns(columns)
        self._transform = transform
        self._dtype = dtype
        self._client = client
        self._known: list[_C.RowState] = []  # of the headers, from another process
        self._opened: _C.RowReader | None = None

    def __len__(self) -> int:
        return self._reader().count()

    def __getitem__(self, index: int) -> Any:
        return self._make_samples(self._read([index], shared=False), _first_row)[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples at ``indices``, read together."""
        if self._transform is not None:
            return self._make_samples(self._read(indices, shared=False), _own_rows)
        return self._make_samples(
            self._read(indices, shared=get_worker_info() is not None), rows_of
        )

    def _make_samples(
        self, batches: list[Array], split: Callable[[torch.Tensor], list[torch.Tensor]]
    ) -> list[Any]:
        columns = [_split(batch, split) for batch in batches]
        samples: list[Any] = columns[0]
        if self._names is not None:
            names = self._names
            samples = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        if self._transform is not None:
            return [self._transform(sample) for sample in samples]
        return samples

    def _read(self, indices: Sequence[int], *, shared: bool) -> list[Array]:
        return self._reader().read(indices, shared)

    def _reader(self) -> _C.RowReader:
        if self._opened is None:
            names = self._names or [""]
            columns = [(name, _encode(urls)) for name, urls in zip(names, self._urls, strict=True)]
            self._opened = _C.RowReader(native(self._client), columns, self._dtype)
            self._opened.set_state(self._known)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        known = self._known if self._opened is None else self._opened.state()
        # A spawned worker has no other way to learn what the default client was.
        client = self._client or default_client()
        return {**self.__dict__, "_client": client, "_known": known, "_opened": None}


def _check_columns(
    columns: Column | Mapping[str, Column],
) -> tuple[list[str] | None, list[Sequence[Url]]]:
    """The names, None of a column that has none, and each column's arrays."""
    if not isinstance(columns, Mapping):
        return None, [_check_urls(columns, "columns")]
    if not columns:
        raise ValueError("columns: expected at least one but found none")
    for name in columns:
        if not isinstance(name, str):
            raise ValueError(f"columns: expected names, which are strings, but found {name!r}")
    return list(columns), [_check_urls(of, f"columns[{name!r}]") for name, of in columns.items()]


def _encode(urls: Sequence[Url]) -> list[bytes]:
    if isinstance(urls, UrlList):
        return urls.encoded(range(len(urls)))
    return [encode(url) for url in urls]


def _check_urls(urls: Column, parameter: str) -> Sequence[Url]:
    if isinstance(urls, (str, os.PathLike)):
        return [urls]
    if not isinstance(urls, Sequence) or isinstance(urls, (bytes, bytearray, memoryview)):
        found = type(urls).__name__
        raise ValueError(f"{parameter}: expected a URL or a sequence of URLs but found a {found}")
    for url in () if isinstance(urls, UrlList) else urls:
        if not isinstance(url, (str, os.PathLike)):
            raise ValueError(f"{parameter}: expected URLs but found a {type(url).__name__}")
    if not urls:
        raise ValueError(f"{parameter}: expected at least one URL but found none")
    return urls if isinstance(urls, UrlList) else list(urls)


def _split(batch: Array, split: Callable[[torch.Tensor], list[torch.Tensor]]) -> list[Any]:
    """The rows of a batch; of a structured dtype each a dict of its fields."""
    if isinstance(batch, torch.Tensor):
        return split(batch)
    # In a record the fields lie side by side; in a batch each lies together.
    fields = [split(field.contiguous()) for field in batch.values()]
    return [dict(zip(batch, row, strict=True)) for row in zip(*fields, strict=True)]


def _own_rows(batch: torch.Tensor) -> list[torch.Tensor]:
    """Each in memory of its own: what a transform keeps does not keep the batch."""
    return [row.clone() for row in batch.unbind(0)]


def _first_row(batch: torch.Tensor) -> list[torch.Tensor]:
    return [batch[0]]

"""Datasets of Ray Data from ``.npy`` and ``.npz`` objects: ``pip install torchnpy[ray]``.

The driver learns how large the objects are and divides them into read tasks by bytes. A task
fetches its objects concurrently, wherever Ray runs it, and makes blocks of Arrow's tensors.
"""

from __future__ import annotations

import bisect
import itertools
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import torch

try:
    import ray.data
    from ray.data.block import BlockAccessor, BlockMetadata
except ImportError as error:
    raise ImportError(
        f"torchnpy.ray: expected Ray Data but found none ({error}); pip install 'torchnpy[ray]'"
    ) from error

from torchnpy.client import Client, default_client
from torchnpy.data.npz import ArchiveReader
from torchnpy.errors import UnsupportedError
from torchnpy.io import header, load_many, load_rows
from torchnpy.npz import open_npz
from torchnpy.sources import Array, NpyHeader, NumpyArray, Url, encode

__all__ = ["read_npy", "read_npz"]

_T = TypeVar("_T")

_COLUMN = "data"  # as ray.data.read_numpy names it
_PATH_COLUMN = "path"
# A block, where Ray's context does not say.
_BLOCK_NBYTES = 128 << 20
# Arrays above it are read by several tasks, where they have rows to divide.
_MIN_PIECE_NBYTES = 8 << 20
# Headers that are read before the tasks are made; of more objects some stand for all.
_MAX_HEADERS = 4096
_MAX_ARCHIVES = 16
_THREADS = 64

# Arrow has neither complex numbers nor bfloat16; numpy lacks the latter and float8, too.
_ARROW_DTYPES = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64),
}


def read_npy(
    urls: Url | Iterable[Url],
    *,
    split_rows: bool = True,
    include_paths: bool = False,
    client: Client | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """A dataset of the arrays in ``.npy`` objects, in the column ``data``.

    An array of more than 8 MiB is divided into read tasks by its rows. A structured dtype gives
    one column a field.

    Args:
        urls: Objects, as load() takes them by name. One that ends with ``/`` stands for all
            objects below it that end in ``.npy``: of ``s3://`` or a local folder.
        split_rows: True: each row of an array, along its first axis, is a row of the dataset, as
            ray.data.read_numpy has it. False: each array is one row.
        include_paths: Adds a column ``path`` with each row's URL (of http, without its query).
        client: Goes to the tasks as its options; credentials are looked up where a task runs.
            Default: default_client().
        options: As ray.data.read_datasource takes them: ``override_num_blocks``,
            ``concurrency``, ``num_cpus``...

    Raises:
        ValueError: There is no object.
        TransportError, FormatError, UnsupportedError: A header could not be read, now; or, when
            the dataset is used, an array (see load()), or one whose dtype Arrow lacks: complex,
            bfloat16, float8.
    """
    client = client or default_client()
    reader = _NpyReader(split_rows, include_paths, client)
    found = _find_objects(urls, ".npy", client)
    return ray.data.read_datasource(_Datasource("Npy", found, reader), **options)


def read_npz(
    urls: Url | Iterable[Url],
    members: Iterable[str] | None = None,
    *,
    split_rows: bool = True,
    verify: bool = True,
    include_paths: bool = False,
    client: Client | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """A dataset of the arrays in ``.npz`` archives, one column a member.

    Only the members asked for are fetched. A structured dtype gives one column a field, named
    ``member.field``.

    Args:
        urls: Archives, as open_npz() takes them by name; see read_npy().
        members: Names of the members to load. Default: all; archives should have the same.
        split_rows: True: the members of an archive are equally long, and their n-th rows make a
            row of the dataset. False: each archive is one row.
        verify: False does not check the members' CRC-32.
        include_paths, client, options: See read_npy().

    Raises:
        ValueError: There is no object; or, when the dataset is used, members differ in length.
        KeyError: An archive lacks a member.
        TransportError, FormatError, UnsupportedError: See read_npy().
    """
    client = client or default_client()
    names = None if members is None else _check_members(members)
    reader = _NpzReader(split_rows, include_paths, client, names, verify)
    found = _find_objects(urls, ".npz", client)
    return ray.data.read_datasource(_Datasource("Npz", found, reader), **options)


def _check_members(members: Iterable[str]) -> tuple[str, ...]:
    names = () if isinstance(members, str) else tuple(members)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"members: expected a list of names, each once, but found {members!r}")
    return names


class _Object(NamedTuple):
    """An object, or some rows of its array."""

    url: str
    nbytes: int  # in memory; perhaps an estimate
    row_count: int | None = None  # of the dataset, where it is known
    divisible: bool = False  # into rows
    start: int = 0  # the first row; of a part only
    is_part: bool = False

    @property
    def stop(self) -> int:
        assert self.row_count is not None
        return self.start + self.row_count

    def divide(self, nbytes: int) -> Iterator[_Object]:
        """Parts of at most so many bytes, or of one row; itself where it has none."""
        if not self.divisible or self.nbytes <= nbytes or not self.row_count:
            yield self
            return
        count = min(-(-self.nbytes // nbytes), self.row_count)
        bounds = [self.row_count * i // count for i in range(count + 1)]
        for start, stop in itertools.pairwise(bounds):
            part_nbytes = self.nbytes * (stop - start) // self.row_count
            yield self._replace(
                nbytes=part_nbytes, row_count=stop - start, start=start, is_part=True
            )


@dataclass(frozen=True)
class _Found:
    """An object before its header is read."""

    url: str
    nbytes: int | None  # of the object, where that is known without asking for it


def _find_objects(urls: Url | Iterable[Url], suffix: str, client: Client) -> list[_Found]:
    names = [urls] if isinstance(urls, (str, os.PathLike)) else urls
    found = [entry for name in names for entry in _expand(os.fspath(name), suffix, client)]
    if not found:
        raise ValueError(f"urls: expected objects that end in {suffix!r} but found none")
    return found


def _expand(url: str, suffix: str, client: Client) -> Iterable[_Found]:
    if "://" in url:
        if not url.endswith("/"):
            return [_Found(url, None)]
        listed = client.list(url, suffix=suffix)
        return sorted((_Found(entry.url, entry.nbytes) for entry in listed), key=lambda o: o.url)
    try:
        status = os.stat(url)
    except OSError:
        return [_Found(url, None)]  # reading it says what is wrong
    if not stat.S_ISDIR(status.st_mode):
        return [_Found(url, status.st_size)]
    files = sorted(path for path in Path(url).rglob(f"*{suffix}") if path.is_file())
    return [_Found(str(path), path.stat().st_size) for path in files]


@dataclass(frozen=True)
class _Reader(ABC):
    """What a task does. It travels by pickle."""

    split_rows: bool
    include_paths: bool
    client: Client

    @abstractmethod
    def measure(self, found: Sequence[_Found]) -> list[_Object]:
        """What the objects take in memory, from the headers of some of them."""

    @abstractmethod
    def read(self, objects: Sequence[_Object]) -> Sequence[dict[str, Array]]:
        """The columns of each, fetched concurrently."""

    def blocks(self, objects: Sequence[_Object], nbytes: int, count: int) -> Iterator[Any]:
        """Blocks of about so many bytes and at most so many objects, which are fetched at once."""
        dtypes: dict[str, tuple[object, str]] = {}  # of each column, and where it was found first
        for group in _groups(objects, nbytes, count):
            yield from self._make_blocks(group, dtypes)

    def _make_blocks(
        self, group: Sequence[_Object], dtypes: dict[str, tuple[object, str]]
    ) -> list[Any]:
        """Not as a generator, which would keep the arrays while Ray takes the blocks."""
        rows = [
            (entry, _to_numpy(_shown(entry.url), columns))
            for entry, columns in zip(group, self.read(group), strict=True)
        ]
        for entry, columns in rows:
            _check_dtypes(_shown(entry.url), columns, dtypes)
            if self.split_rows:
                _check_lengths(_shown(entry.url), columns)
        runs = itertools.groupby(rows, lambda row: self._kind(row[1]))
        blocks = [self._merge(list(run)) for _, run in runs]
        return [block for block in blocks if block is not None]

    def _kind(self, columns: dict[str, NumpyArray]) -> list[object]:
        """What arrays that share a block have in common."""
        if self.split_rows:
            return [(name, array.shape[1:]) for name, array in columns.items()]
        return [(name, array.ndim) for name, array in columns.items()]

    def _merge(self, rows: Sequence[tuple[_Object, dict[str, NumpyArray]]]) -> Any:
        """A block, or None for one without rows."""
        import numpy

        _, first = rows[0]
        join = _concatenate if self.split_rows else _stack
        block = {name: join([columns[name] for _, columns in rows]) for name in first}
        if not block or not len(next(iter(block.values()))):
            return None
        if self.include_paths:
            if _PATH_COLUMN in block:
                raise ValueError(
                    f"include_paths: expected no column named {_PATH_COLUMN!r} but found one in "
                    f"{_shown(rows[0][0].url)}"
                )
            paths = numpy.array([_shown(entry.url) for entry, _ in rows], dtype=object)
            if self.split_rows:
                counts = [len(next(iter(columns.values()))) for _, columns in rows]
                paths = numpy.repeat(paths, counts)
            block[_PATH_COLUMN] = paths
        return BlockAccessor.batch_to_block(block)


@dataclass(frozen=True)
class _NpyReader(_Reader):
    def measure(self, found: Sequence[_Found]) -> list[_Object]:
        doubtful = [
            index
            for index, entry in enumerate(found)
            if entry.nbytes is None or entry.nbytes > _MIN_PIECE_NBYTES
        ]
        chosen = _evenly(doubtful, _MAX_HEADERS)
        urls = [found[index].url for index in chosen]
        read = _at_once(partial(header, client=self.client), urls)
        headers = dict(zip(chosen, read, strict=True))
        mean = sum(one.nbytes for one in headers.values()) // max(1, len(headers))
        objects = []
        for index, entry in enumerate(found):
            one = headers.get(index)
            if one is None:
                objects.append(_Object(entry.url, mean if entry.nbytes is None else entry.nbytes))
            else:
                objects.append(self._measured(entry.url, one))
        return objects

    def _measured(self, url: str, found: NpyHeader) -> _Object:
        if not self.split_rows:
            return _Object(url, found.nbytes, row_count=1)
        row_count = found.shape[0] if found.shape else None
        return _Object(url, found.nbytes, row_count, divisible=not found.fortran_order)

    def read(self, objects: Sequence[_Object]) -> Sequence[dict[str, Array]]:
        whole = [entry.url for entry in objects if not entry.is_part]
        arrays = iter(load_many(whole, client=self.client))
        return [
            {_COLUMN: self._read_part(entry) if entry.is_part else next(arrays)}
            for entry in objects
        ]

    def _read_part(self, part: _Object) -> Array:
        return load_rows(part.url, part.start, part.stop, client=self.client)


@dataclass(frozen=True)
class _NpzReader(_Reader):
    members: tuple[str, ...] | None
    verify: bool

    def measure(self, found: Sequence[_Found]) -> list[_Object]:
        chosen = _evenly(range(len(found)), _MAX_ARCHIVES)
        sizes = list(_at_once(self._inflated_nbytes, [found[index].url for index in chosen]))
        mean = sum(sizes) // len(sizes)
        known = [found[index].nbytes or 0 for index in chosen]
        growth = sum(sizes) / sum(known) if all(known) else 1
        row_count = None if self.split_rows else 1
        return [
            _Object(entry.url, int(growth * entry.nbytes) if entry.nbytes else mean, row_count)
            for entry in found
        ]

    def _inflated_nbytes(self, url: str) -> int:
        with open_npz(url, verify=self.verify, client=self.client) as archive:
            names = archive.files if self.members is None else self.members
            return sum(archive.header(name).nbytes for name in names)

    def read(self, objects: Sequence[_Object]) -> Sequence[dict[str, Array]]:
        reader = ArchiveReader(self.client, self.members, self.verify)
        urls = [encode(entry.url) for entry in objects]
        found, _ = reader.read(urls, together=False, keep_going=False)
        return found


class _Datasource(ray.data.Datasource):
    def __init__(self, name: str, found: Sequence[_Found], reader: _Reader) -> None:
        super().__init__()
        self._name = name
        self._reader = reader
        self._objects = reader.measure(found)

    def get_name(self) -> str:
        return self._name

    def estimate_inmemory_data_size(self) -> int:
        return sum(entry.nbytes for entry in self._objects)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,
    ) -> list[ray.data.ReadTask]:
        context = data_context or ray.data.DataContext.get_current()
        block_nbytes = context.target_max_block_size or _BLOCK_NBYTES
        share = -(-self.estimate_inmemory_data_size() // parallelism)
        piece_nbytes = max(_MIN_PIECE_NBYTES, min(block_nbytes, share))
        pieces = [part for entry in self._objects for part in entry.divide(piece_nbytes)]
        return [
            self._make_task(task, block_nbytes, per_task_row_limit)
            for task in _share_out(pieces, parallelism)
        ]

    def _make_task(
        self, objects: Sequence[_Object], block_nbytes: int, row_limit: int | None
    ) -> ray.data.ReadTask:
        # Not of self, which knows all objects.
        reader, count = self._reader, row_limit or len(objects)

        def read() -> Iterator[Any]:
            row_count = 0
            for block in reader.blocks(objects, block_nbytes, count):
                yield block
                row_count += BlockAccessor.for_block(block).num_rows()
                if row_limit and row_count >= row_limit:
                    return  # before more is fetched

        counts = [entry.row_count for entry in objects]
        metadata = BlockMetadata(
            num_rows=None if None in counts else sum(filter(None, counts)),
            size_bytes=sum(entry.nbytes for entry in objects),
            exec_stats=None,
            input_files=list(dict.fromkeys(_shown(entry.url) for entry in objects)),
        )
        return ray.data.ReadTask(read, metadata, per_task_row_limit=row_limit)


def _share_out(objects: Sequence[_Object], count: int) -> Iterator[Sequence[_Object]]:
    """At most `count` runs of about as many bytes, none empty."""
    sizes = [max(1, entry.nbytes) for entry in objects]
    ends = list(itertools.accumulate(sizes))
    middles = [end - nbytes / 2 for end, nbytes in zip(ends, sizes, strict=True)]
    start = 0
    for number in range(1, count + 1):
        stop = bisect.bisect_left(middles, ends[-1] * number / count)
        if start < stop:
            yield objects[start:stop]
            start = stop


def _groups(objects: Sequence[_Object], nbytes: int, count: int) -> Iterator[Sequence[_Object]]:
    """Runs of at most so many bytes and objects, or of one object."""
    start, held = 0, 0
    for index, entry in enumerate(objects):
        if index > start and (held + entry.nbytes > nbytes or index - start >= count):
            yield objects[start:index]
            start, held = index, 0
        held += entry.nbytes
    yield objects[start:]


def _evenly(indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, spread evenly."""
    count = min(count, len(indices))
    return [indices[len(indices) * i // count] for i in range(count)]


def _at_once(call: Callable[[str], _T], urls: Sequence[str]) -> list[_T]:
    if not urls:
        return []
    with ThreadPoolExecutor(min(_THREADS, len(urls))) as pool:
        return list(pool.map(call, urls))


def _shown(url: str) -> str:
    """The URL without what may be secret."""
    if not url.startswith(("http://", "https://")):
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _to_numpy(url: str, columns: dict[str, Array]) -> dict[str, NumpyArray]:
    """Arrays that Arrow can hold; the fields of structured ones become columns."""
    found: dict[str, NumpyArray] = {}
    for name, array in columns.items():
        if isinstance(array, torch.Tensor):
            fields = {name: array}
        elif name == _COLUMN and len(columns) == 1:
            fields = array
        else:
            fields = {f"{name}.{field}": tensor for field, tensor in array.items()}
        for column, tensor in fields.items():
            if tensor.dtype not in _ARROW_DTYPES:
                raise UnsupportedError(
                    f"{url}: expected {column!r} to have a dtype that Arrow has but found "
                    f"{tensor.dtype}; map over the URLs instead, with torchnpy.load"
                )
            if column in found:
                raise UnsupportedError(f"{url}: expected one column {column!r} but found two")
            found[column] = tensor.numpy()
    return found


def _check_dtypes(
    url: str, columns: dict[str, NumpyArray], dtypes: dict[str, tuple[object, str]]
) -> None:
    for name, array in columns.items():
        dtype, other = dtypes.setdefault(name, (array.dtype, url))
        if array.dtype != dtype:
            raise ValueError(
                f"{url}: expected {name!r} to be {dtype} as in {other} but found {array.dtype}; "
                "a column has one dtype"
            )


def _check_lengths(url: str, columns: dict[str, NumpyArray]) -> None:
    first = next(iter(columns), "")
    for name, array in columns.items():
        if array.ndim == 0:
            raise ValueError(
                f"{url}: expected {name!r} to have rows but found shape (); pass split_rows=False"
            )
        if len(array) != len(columns[first]):
            raise ValueError(
                f"{url}: expected members of equal length but found {first!r} with "
                f"{len(columns[first])} rows and {name!r} with {len(array)}; "
                "pass split_rows=False, or members= that agree"
            )


def _concatenate(arrays: Sequence[NumpyArray]) -> NumpyArray:
    import numpy

    return arrays[0] if len(arrays) == 1 else numpy.concatenate(arrays)


def _stack(arrays: Sequence[NumpyArray]) -> NumpyArray:
    """A row each; an array of arrays where they differ in shape."""
    import numpy

    if len({array.shape for array in arrays}) == 1:
        return numpy.stack(arrays)
    ragged = numpy.empty(len(arrays), dtype=object)
    for index, array in enumerate(arrays):  # at once, numpy would look into them
        ragged[index] = array
    return ragged

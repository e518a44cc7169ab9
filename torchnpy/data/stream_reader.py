"""Reads rows of shards ahead of who takes them, by bytes and with back pressure."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.data.stream_plan import ConsumerPlan, Run
from torchnpy.data.urls import UrlList
from torchnpy.errors import FormatError
from torchnpy.sources import Array, native

Row: TypeAlias = Array

_THREAD_COUNT = 4
# A chunk has at most this share of the bytes that may be read ahead, the first ones less: they
# shall arrive soon.
_CHUNK_SHARE = 8
_FIRST_CHUNK_NBYTES = 256 << 10
_CHUNK_ROWS = 16 << 10
_CHUNK_PIECES = 512
# Rows of one shard with a gap of at most so many bytes between them are read together.
_GAP_NBYTES = 16 << 10
# Rows from this size on are looked at: whether they are all of what was loaded, and need no copy.
_LARGE_ROW_NBYTES = 64 << 10


class Shard(NamedTuple):
    """What is known of a shard before its rows are read."""

    row_count: int
    row_nbytes: int
    is_whole: bool
    """Its rows do not lie together (Fortran order): it can only be read as a whole."""


@dataclass
class Piece:
    """Rows ``[start, stop)`` of a shard that are read at once; of them those in ``kept`` (numbers
    within the shard) are wanted."""

    shard: int
    start: int
    stop: int
    kept: list[Run]


@dataclass
class Chunk:
    """What one call loads: rows that follow one another in the order of reading."""

    begin: int
    """How many rows come before it."""
    pieces: list[Piece] = field(default_factory=list)
    row_count: int = 0
    nbytes: int = 0


class Shards:
    """The shards of a stream, by number.

    Args:
        row_offsets: Of each shard the number of its first row, then that of all rows.
    """

    def __init__(
        self,
        urls: UrlList,
        row_offsets: Sequence[int],
        find: Callable[[int], Shard],
        *,
        dtype: torch.dtype | None,
        client: Client | None,
    ) -> None:
        self._urls = urls
        self.row_offsets = row_offsets
        self.find = find
        self._dtype = dtype
        self._client = client

    def load(self, chunk: Chunk, stop: _C.StopFlag) -> list[Array]:
        """The rows of a chunk's pieces; waits. KeyboardInterrupt once ``stop`` is set.

        Raises:
            FormatError: A shard does not have the rows that its header promised before.
            TransportError, UnsupportedError, ValueError: See load().
        """
        slices: list[tuple[int, int] | None] = []
        for piece in chunk.pieces:
            shard = self.find(piece.shard)
            # Asked for as a whole, a small shard takes one request.
            is_all = shard.is_whole or piece.stop - piece.start == shard.row_count
            slices.append(None if is_all else (piece.start, piece.stop))
        urls = self._urls.encoded([piece.shard for piece in chunk.pieces])
        arrays = _C.load_slices(native(self._client), urls, slices, self._dtype, stop)
        for url, piece, slice_, array in zip(urls, chunk.pieces, slices, arrays, strict=True):
            self._check(url, piece, slice_, array)
        return arrays

    def _check(
        self, url: bytes, piece: Piece, slice_: tuple[int, int] | None, array: Array
    ) -> None:
        expected = self.find(piece.shard).row_count if slice_ is None else slice_[1] - slice_[0]
        tensor = next(iter(array.values())) if isinstance(array, dict) else array
        found = tensor.shape[0] if tensor.dim() else 0
        if found != expected:
            raise FormatError(
                f"{_C.display_name(url)}: expected {expected} rows but found {found}; the shard "
                "has changed since its header was read"
            )

    def chunks(self, runs: Iterable[Run], most_nbytes: int) -> Iterator[Chunk]:
        """Chunks of about ``most_nbytes``, smaller at first, that hold the rows of ``runs``."""
        goal = min(_FIRST_CHUNK_NBYTES, most_nbytes)
        chunk = Chunk(0)
        for start, stop in runs:
            shard_number = bisect_right(self.row_offsets, start) - 1
            offset = self.row_offsets[shard_number]
            start, stop = start - offset, stop - offset
            shard = self.find(shard_number)
            while start < stop:
                end = stop
                if not shard.is_whole:
                    room = max(1, (goal - chunk.nbytes) // max(1, shard.row_nbytes))
                    end = min(stop, start + min(room, _CHUNK_ROWS - chunk.row_count))
                _add(chunk, shard_number, shard, Run(start, end))
                start = end
                if (
                    chunk.nbytes + shard.row_nbytes > goal
                    or chunk.row_count >= _CHUNK_ROWS
                    or len(chunk.pieces) >= _CHUNK_PIECES
                ):
                    yield chunk
                    chunk = Chunk(chunk.begin + chunk.row_count)
                    goal = min(2 * goal, most_nbytes)
        if chunk.pieces:
            yield chunk


def _add(chunk: Chunk, shard_number: int, shard: Shard, rows: Run) -> None:
    chunk.row_count += rows.stop - rows.start
    last = chunk.pieces[-1] if chunk.pieces else None
    if last and last.shard == shard_number and rows.start >= last.stop:
        gap = (rows.start - last.stop) * shard.row_nbytes
        if shard.is_whole or gap <= _GAP_NBYTES:
            if not shard.is_whole:
                chunk.nbytes += gap + (rows.stop - rows.start) * shard.row_nbytes
            last.stop = rows.stop
            last.kept.append(rows)
            return
    row_count = shard.row_count if shard.is_whole else rows.stop - rows.start
    chunk.nbytes += row_count * shard.row_nbytes
    chunk.pieces.append(Piece(shard_number, rows.start, rows.stop, [rows]))


def unpack(chunk: Chunk, shards: Shards, arrays: list[Array]) -> Iterator[list[Row]]:
    """The rows of a chunk as views, a list for each run of them."""
    for piece, array in zip(chunk.pieces, arrays, strict=True):
        first = 0 if shards.find(piece.shard).is_whole else piece.start
        for start, stop in piece.kept:
            yield _unbind(array, start - first, stop - first)


def _unbind(array: Array, start: int, stop: int) -> list[Row]:
    if isinstance(array, dict):
        names = list(array)
        columns = [field[start:stop].unbind(0) for field in array.values()]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return list(array[start:stop].unbind(0))


class RowReader:
    """Reads the rows of ``runs`` ahead on threads of its own, which begin with the first take().

    The chunks that were read, or are being read, and whose rows were not released, have at most
    ``limit_nbytes``; only what take() waits for, and what want() asked for, is read in any case.

    For one thread of one process. It must be closed; at the end of the process it is.
    """

    def __init__(self, shards: Shards, runs: Iterable[Run], limit_nbytes: int) -> None:
        self._shards = shards
        self._limit_nbytes = limit_nbytes
        self._chunks = shards.chunks(runs, max(1, limit_nbytes // _CHUNK_SHARE))
        self._next = next(self._chunks, None)
        self._changed = threading.Condition()
        self._stop = _C.StopFlag()
        self._closed = False
        self._failed = False
        self._broken: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._pid = os.getpid()
        self._started: deque[Chunk] = deque()
        """In order, from the first that is not released."""
        self._loaded: dict[int, list[Array] | BaseException] = {}
        """By Chunk.begin."""
        self._taken = 0
        """Rows that were taken."""
        self._wanted_before = 0
        _readers.add(self)

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child, where the threads are missing."""
        return self._pid == os.getpid()

    def want(self, before: int) -> None:
        """The rows before this number are read, however many bytes they have; and other bytes may
        be read ahead besides."""
        with self._changed:
            self._wanted_before = before
            self._changed.notify_all()

    def take(self) -> Iterator[list[Row]]:
        """The rows of the next chunk, as views of what was loaded; waits for them.

        Raises:
            What ended the load of this chunk.
        """
        with self._changed:
            self._start_threads()
            while (loaded := self._loaded.pop(self._taken, self._broken)) is None:
                self._changed.wait()
            if isinstance(loaded, BaseException):
                raise loaded
            chunk = next(chunk for chunk in self._started if chunk.begin == self._taken)
            self._taken += chunk.row_count
        return unpack(chunk, self._shards, loaded)

    def release(self, before: int) -> None:
        """The rows before this number are gone."""
        with self._changed:
            while self._started and _end(self._started[0]) <= before:
                self._started.popleft()
            self._changed.notify_all()

    def close(self) -> None:
        """Ends what is being read and waits for the threads."""
        if not self.is_of_this_process:
            return  # what a lock of another process's threads guards is nobody's now
        self._stop.set()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._loaded.clear()

    def _start_threads(self) -> None:
        while len(self._threads) < _THREAD_COUNT:
            # They shall not keep a process that exits; atexit ends them.
            thread = threading.Thread(target=self._work, name="torchnpy-stream", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        try:
            self._load_chunks()
        except BaseException as error:  # who waits for this thread would wait forever
            with self._changed:
                self._broken = error
                self._changed.notify_all()

    def _load_chunks(self) -> None:
        while (chunk := self._begin_chunk()) is not None:
            loaded: list[Array] | BaseException
            try:
                loaded = self._shards.load(chunk, self._stop)
            except BaseException as error:
                loaded = error
            with self._changed:
                if self._closed:
                    return
                self._failed = self._failed or isinstance(loaded, BaseException)
                self._loaded[chunk.begin] = loaded
                self._changed.notify_all()

    def _begin_chunk(self) -> Chunk | None:
        """The next chunk, once it may be read; None: there is nothing more to do."""
        with self._changed:
            while True:
                chunk = self._next
                if chunk is None or self._closed or self._failed:
                    return None
                if self._may_begin(chunk):
                    break
                self._changed.wait()
            self._started.append(chunk)
            self._next = next(self._chunks, None)
            return chunk

    def _may_begin(self, chunk: Chunk) -> bool:
        if not self._started or chunk.begin < self._wanted_before:
            return True
        ahead = sum(one.nbytes for one in self._started if one.begin >= self._wanted_before)
        return ahead + chunk.nbytes <= self._limit_nbytes


def _end(chunk: Chunk) -> int:
    return chunk.begin + chunk.row_count


def read_in_order(reader: RowReader, plan: ConsumerPlan, position: int) -> Iterator[list[Row]]:
    """The rows, which become samples, in the order in which they are yielded. When it goes on,
    those that it gave before have been yielded. Ends early in a forked child."""
    taken = 0
    waiting: list[Row] = []
    for count, picks in plan.blocks(position):
        goal = taken - len(waiting) + count
        while taken < goal:
            if not reader.is_of_this_process:
                return
            reader.release(taken - len(waiting) if picks is None else goal - count)
            if picks is not None:
                reader.want(goal)
            for rows in reader.take():
                taken += len(rows)
                if picks is None:
                    yield rows
                else:
                    waiting += rows
        if picks is not None:
            ordered = [waiting[pick] for pick in picks]
            del waiting[:count]
            yield ordered


def choose_own(rows: list[Row]) -> Callable[[Row], Row]:
    """What makes rows that were taken tensors of their own: a view of a chunk would keep all of it
    alive, and take it along out of a worker."""
    return _own_large if _nbytes(rows[0]) >= _LARGE_ROW_NBYTES else _own


def _own(row: Row) -> Row:
    if isinstance(row, dict):
        return {name: field.clone() for name, field in row.items()}
    return row.clone()


def _own_large(row: Row) -> Row:
    if isinstance(row, torch.Tensor) and row.untyped_storage().nbytes() == row.nbytes:
        return row
    return _own(row)


def _nbytes(row: Row) -> int:
    if isinstance(row, dict):
        return sum(field.nbytes for field in row.values())
    return row.nbytes


_readers: weakref.WeakSet[RowReader] = weakref.WeakSet()


def _close_readers() -> None:
    for reader in list(_readers):
        reader.close()


# A tensor that dies on a thread while the interpreter is torn down aborts the process.
atexit.register(_close_readers)

"""An iterable dataset of the rows of ``.npy`` shards."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from torchnpy.client import Client, default_client
from torchnpy.data.listing import FromUrls
from torchnpy.data.stream_board import MAX_WORKERS, Board
from torchnpy.data.stream_plan import (
    UNEVEN,
    ConsumerPlan,
    Layout,
    Shuffle,
    Uneven,
    order_epoch,
    positions_after,
)
from torchnpy.data.stream_reader import Row, RowReader, Shards, choose_own, read_in_order
from torchnpy.data.stream_state import (
    Identity,
    Place,
    Start,
    continue_from,
    describe_rows,
    describe_urls,
    format_state,
    parse_states,
)
from torchnpy.data.urls import UrlList
from torchnpy.sources import Url


class _Rank(NamedTuple):
    number: int
    world_size: int
    is_distributed: bool


@dataclass(frozen=True)
class _Batches:
    """A place that resume() was given, in batches of each rank's DataLoader."""

    epoch: int
    done: int
    batch_size: int
    num_workers: int
    drop_last: bool
    world_size: int | None


class _Resume(NamedTuple):
    place: Place | _Batches
    ticket: int
    """Of the board; 0: loaded in the worker that resumes."""


class NpyStream(FromUrls, IterableDataset[Any]):
    """The rows of ``.npy`` shards, one a sample, read ahead while they are consumed.

    A sample is a row of the first axis: a tensor of its own, or a dict of them for a structured
    dtype. The shards need not agree in shape or dtype. The rows are divided over the ranks of
    torch.distributed, where that is initialised, and over DataLoader's workers: each gets
    consecutive rows of the epoch's order, as many as the others up to one, of shards that are read
    in pieces. The order is a function of the arguments, the epoch and the number of consumers;
    docs/stream.md tells it, and how to resume.

    Nothing is opened before the first sample or len(): then the headers of all shards are read,
    once, concurrently.

    Args:
        urls: The shards; anything that load() takes by name.
        shuffle: Take the shards in an order that depends on the seed and the epoch.
        seed: Of all random choices.
        shuffle_rows: Shuffle the rows within windows of so many, which a consumer holds in memory
            at once. 0: not at all.
        prefetch_nbytes: Bytes that each consumer holds at most of rows that were read, or are being
            read, and not yielded; besides the window of ``shuffle_rows``. A single row may be
            larger.
        uneven: When the ranks cannot all have as many rows: "exact", some have one more; "pad",
            some rows are repeated; "drop", some are left out. Default: "pad" where
            torch.distributed is initialised, whose training would wait forever for a rank that has
            ended; else "exact".
        dtype: See load_npy().
        transform: Applied to each sample.
        client: Default: the default client; a dataset that is pickled takes along its options.

    Raises:
        ValueError: An argument is wrong; the message names it.
    """

    _suffix = ".npy"

    def __init__(
        self,
        urls: Iterable[Url],
        *,
        shuffle: bool = False,
        seed: int = 0,
        shuffle_rows: int = 0,
        prefetch_nbytes: int = 64 << 20,
        uneven: Uneven | None = None,
        dtype: torch.dtype | None = None,
        transform: Callable[[Any], Any] | None = None,
        client: Client | None = None,
    ) -> None:
        if uneven is not None and uneven not in UNEVEN:
            raise ValueError(
                f"uneven: expected one of {', '.join(map(repr, UNEVEN))} or None but found "
                f"{uneven!r}"
            )
        self._urls = UrlList(urls)
        self._shuffle = bool(shuffle)
        self._seed = operator.index(seed)
        self._shuffle_rows = _check_count("shuffle_rows", shuffle_rows, 0)
        self._prefetch_nbytes = _check_count("prefetch_nbytes", prefetch_nbytes, 1)
        self._uneven = uneven
        self._dtype = dtype
        self._transform = transform
        self._client = client
        self._board = Board(len(self._urls))
        self._described: Identity | None = None
        self._parent_rank: _Rank | None = None
        self._resume: _Resume | None = None
        self._pass: _Pass | None = None
        """The iteration that was begun last in this process."""

    @property
    def urls(self) -> UrlList:
        return self._urls

    @property
    def epoch(self) -> int:
        return self._board.epoch

    def set_epoch(self, epoch: int) -> None:
        """Begins another epoch: later iterations are in its order; also those of workers that
        already run (``persistent_workers``), which share a word of memory with this process.

        A state that was loaded for another epoch is forgotten.
        """
        epoch = _check_count("epoch", epoch, 0)
        if epoch != self.epoch:
            self._resume = self._pass = None
            self._board.withdraw_ticket()
            self._board.has_workers = False
        self._board.epoch = epoch

    def __len__(self) -> int:
        """Samples that this rank yields in a whole epoch. Reads the headers of the shards, once.

        A DataLoader's workers each end with a batch that may not be full: ``len(loader)`` may be
        less than the number of batches then, of which torch warns.
        """
        self._board.read_headers(self._urls, self._client)
        rank = self._rank()
        row_count = self._board.row_offsets()[-1]
        return self._layout(rank, 1).rank_length(row_count, rank.number)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        rank = self._rank()
        resume = self._take_resume()
        self._board.has_workers = info is not None
        self._pass = _Pass(self, rank.number, worker, self._layout(rank, num_workers), resume)
        return self._pass.samples()

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration that was begun last is: load_state_dict() goes on at the next sample.

        Of this process: a StatefulDataLoader asks its workers. Small, of plain Python values.

        Raises:
            RuntimeError: DataLoader's workers iterate, not this process, which cannot know how much
                of what they have read ahead was used.
        """
        if get_worker_info() is None and self._board.has_workers:
            raise RuntimeError(
                "state_dict: expected an iteration in this process but found that DataLoader's "
                "workers iterate, whose position this process cannot know; call state_dict() of "
                "torchdata's StatefulDataLoader, or count batches and use NpyStream.resume()"
            )
        if self._pass is not None:
            return format_state(self._identity(), self._pass.place())
        rank = self._rank()
        layout = self._layout(rank, 1)
        place = Place(self.epoch, "", (), layout, dict.fromkeys(range(layout.world_size), 0), {})
        if self._resume is not None:
            place = self._find_place(self._resume.place, layout)
        return {"states": list(place.split(self._identity()))}

    def load_state_dict(self, state: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Makes the next iteration, here or in the workers of a DataLoader, go on where the state
        was taken. Sets the epoch, too.

        Args:
            state: What state_dict() gave; for another number of ranks or workers those of all of
                them, in a list. A StatefulDataLoader's state is searched for those of its workers;
                but for as many workers as before, load it into the StatefulDataLoader.

        Raises:
            ValueError: The state is of other shards or arguments; or, in a worker at once and
                else at the first sample, of another number of consumers and not complete.
        """
        identity, place = parse_states(state)
        self._identity().check(identity)
        info = get_worker_info()
        if info is not None:
            rank = self._rank()
            continue_from(place, rank.number, info.id, self._layout(rank, info.num_workers))
        self._load(place)

    def resume(
        self,
        epoch: int,
        batches_done: int,
        batch_size: int,
        num_workers: int,
        *,
        drop_last: bool = False,
        world_size: int | None = None,
    ) -> None:
        """Makes the next iteration go on in an epoch of a plain DataLoader, after the batches that
        it has given.

        The order of the batches is as if nothing had happened. With another number of workers or
        ranks it is new, and what is left is divided anew.

        Args:
            batches_done: Of each rank, since the epoch began.
            batch_size, num_workers, drop_last: Of the DataLoader that gave them.
            world_size: Ranks that there were. Default: as many as now.
        """
        self._load(
            _Batches(
                _check_count("epoch", epoch, 0),
                _check_count("batches_done", batches_done, 0),
                _check_count("batch_size", batch_size, 1),
                max(1, _check_count("num_workers", num_workers, 0)),
                bool(drop_last),
                None if world_size is None else _check_count("world_size", world_size, 1),
            )
        )

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no other way to learn the default client and the rank.
        return {
            **self.__dict__,
            "_client": self._client or default_client(),
            "_parent_rank": self._rank(),
            "_pass": None,
        }

    def _load(self, place: Place | _Batches) -> None:
        is_parent = get_worker_info() is None
        self._pass = None
        self._board.epoch = place.epoch
        if is_parent:
            self._board.has_workers = False
        self._resume = _Resume(place, self._board.issue_ticket() if is_parent else 0)

    def _take_resume(self) -> Place | _Batches | Exception | None:
        """What the iteration that begins goes on from. Each loaded state is used once: here, or
        once by each worker of a DataLoader. Errors are for its first sample: a persistent worker
        that raises before ends without a word."""
        resume, info = self._resume, get_worker_info()
        if info is None or (resume is not None and resume.ticket == 0):
            self._resume = None
            if info is None:
                self._board.withdraw_ticket()
            was_used = info is None and self._board.has_workers
            return None if resume is None or was_used else resume.place
        ticket = self._board.ticket
        if ticket == 0:
            return None
        if resume is None or resume.ticket != ticket:
            return RuntimeError(
                "expected workers that began after a state was loaded but found persistent ones "
                "from before, which do not know it; load it before the first iteration, or make "
                "a new DataLoader"
            )
        if info.id >= MAX_WORKERS:
            return ValueError(
                f"num_workers: expected at most {MAX_WORKERS} to resume but found "
                f"{info.num_workers}"
            )
        return resume.place if self._board.use_ticket(info.id) else None

    def _rank(self) -> _Rank:
        if dist.is_available() and dist.is_initialized():
            return _Rank(dist.get_rank(), dist.get_world_size(), True)
        if self._parent_rank is not None and get_worker_info() is not None:
            return self._parent_rank
        return _Rank(0, 1, False)

    def _layout(self, rank: _Rank, num_workers: int) -> Layout:
        uneven = self._uneven or ("pad" if rank.is_distributed else "exact")
        return Layout(rank.world_size, num_workers, uneven)

    def _identity(self) -> Identity:
        if self._described is None:
            self._described = Identity(
                describe_urls(self._urls), self._seed, self._shuffle, self._shuffle_rows
            )
        return self._described

    def _find_place(self, place: Place | _Batches, layout: Layout) -> Place:
        """As a place; ``layout`` is that of now."""
        if isinstance(place, Place):
            return place
        self._board.read_headers(self._urls, self._client)
        offsets = self._board.row_offsets()
        before = Layout(place.world_size or layout.world_size, place.num_workers, layout.uneven)
        positions = positions_after(
            offsets[-1], before, place.done, place.batch_size, place.drop_last
        )
        rotation = place.done % place.num_workers
        return Place(
            place.epoch,
            describe_rows(offsets),
            (),
            before,
            dict(enumerate(positions)),
            dict.fromkeys(range(before.world_size), rotation),
        )


class _Pass:
    """One iteration of a stream in one process."""

    def __init__(
        self,
        stream: NpyStream,
        rank: int,
        worker: int,
        layout: Layout,
        resume: Place | _Batches | Exception | None,
    ) -> None:
        self._stream = stream
        self._rank = rank
        self._worker = worker
        self._layout = layout
        self._epoch = stream.epoch
        self._resume = resume
        self._rows = resume.rows if isinstance(resume, Place) else ""
        """Digest of the shards' numbers of rows, once they are known."""
        self._found: Start | None = None
        self._ready: list[Row] = []
        """The samples to yield next, last first."""
        self._ready_end: int | None = None
        """Position behind them; None: nothing was read yet."""

    def place(self) -> Place:
        start = self._find_start()
        position = start.position
        if self._ready_end is not None:
            position = self._ready_end - len(self._ready)
        return Place(
            self._epoch,
            self._rows,
            start.stages,
            self._layout,
            {start.consumer: position},
            {self._rank: start.rotation},
        )

    def samples(self) -> Iterator[Any]:
        plan, shards, position = self._prepare()
        transform = self._stream._transform
        self._ready_end = position
        while position < len(plan):
            reader = RowReader(shards, plan.read_runs(position), self._stream._prefetch_nbytes)
            try:
                for rows in read_in_order(reader, plan, position):
                    rows.reverse()
                    self._ready = rows
                    self._ready_end += len(rows)
                    own = choose_own(rows)
                    while rows:
                        sample = own(rows.pop())
                        yield sample if transform is None else transform(sample)
            finally:
                reader.close()
            position = self._ready_end  # a forked child goes on with a reader of its own

    def _find_start(self) -> Start:
        if self._found is None:
            worker, layout = self._worker, self._layout
            if isinstance(self._resume, Exception):
                raise self._resume
            if self._resume is None:
                consumer = self._rank * layout.num_workers + worker
                self._found = Start((), consumer, 0, 0)
            else:
                place = self._stream._find_place(self._resume, layout)
                self._found = continue_from(place, self._rank, worker, layout)
        return self._found

    def _prepare(self) -> tuple[ConsumerPlan, Shards, int]:
        stream, layout = self._stream, self._layout
        stream._board.read_headers(
            stream._urls,
            stream._client,
            share=self._worker,
            share_count=layout.num_workers,
        )
        offsets = stream._board.row_offsets()
        rows = describe_rows(offsets)
        if self._rows not in ("", rows):
            raise ValueError(
                f"state: expected shards with {rows} but found that it was saved with "
                f"{self._rows}; the shards have changed"
            )
        self._rows = rows
        start = self._find_start()
        shuffle = Shuffle(stream._seed, self._epoch, stream._shuffle, stream._shuffle_rows)
        order = order_epoch(offsets, shuffle, start.stages)
        span = layout.span(len(order), start.consumer)
        plan = ConsumerPlan(order, span, shuffle, len(start.stages))
        shards = Shards(
            stream._urls,
            offsets,
            stream._board.find,
            dtype=stream._dtype,
            client=stream._client,
        )
        return plan, shards, start.position


def _check_count(name: str, value: int, least: int) -> int:
    count = operator.index(value)
    if count < least:
        raise ValueError(f"{name}: expected at least {least} but found {count}")
    return count

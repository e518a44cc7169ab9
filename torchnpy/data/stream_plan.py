"""Which rows each consumer of a stream yields, and in which order: indices only, no I/O.

Rows are numbered through all shards, in the order of their URLs. The order of an epoch is a pure
function of what a plan is made from, so resuming is to begin a plan at a later position.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

Uneven: TypeAlias = Literal["exact", "pad", "drop"]
UNEVEN: tuple[Uneven, ...] = get_args(Uneven)

_WORD = (1 << 64) - 1
# What a random choice is for; part of its key.
_SHARDS, _ROWS, _PHASE = range(3)


class Run(NamedTuple):
    """Consecutive rows ``[start, stop)``, or positions."""

    start: int
    stop: int


@dataclass(frozen=True)
class Shuffle:
    """How an epoch is shuffled."""

    seed: int
    epoch: int
    shards: bool
    window_rows: int
    """Rows that are shuffled with each other; below 2: none are."""


@dataclass(frozen=True)
class Layout:
    """Who consumes an epoch: ``world_size`` ranks with ``num_workers`` workers each."""

    world_size: int
    num_workers: int
    uneven: Uneven

    @property
    def consumer_count(self) -> int:
        return self.world_size * self.num_workers

    def rank_length(self, row_count: int, rank: int) -> int:
        """Samples that a rank yields of ``row_count`` rows."""
        span = self._rank_span(row_count, rank)
        return span.stop - span.start

    def span(self, row_count: int, consumer: int) -> Run:
        """The positions of a consumer in an order of ``row_count`` rows; behind its end the order
        begins again.

        Consumers of a rank differ by one row at most, so do ranks unless they are made equal.
        """
        rank, worker = divmod(consumer, self.num_workers)
        start, stop = self._rank_span(row_count, rank)
        length, count = stop - start, self.num_workers
        return Run(start + length * worker // count, start + length * (worker + 1) // count)

    def _rank_span(self, row_count: int, rank: int) -> Run:
        if self.uneven == "exact":
            size = self.world_size
            return Run(row_count * rank // size, row_count * (rank + 1) // size)
        padding = self.world_size - 1 if self.uneven == "pad" else 0
        length = (row_count + padding) // self.world_size
        return Run(rank * length, (rank + 1) * length)


@dataclass(frozen=True)
class Stage:
    """A part of an epoch that ended early: how far each consumer of a layout got."""

    layout: Layout
    positions: tuple[int, ...]
    """Samples that each consumer has yielded."""


class Block(NamedTuple):
    """The next ``row_count`` samples. They are the rows that are read next, in the order ``picks``
    (of their numbers among these), or as they are read."""

    row_count: int
    picks: list[int] | None


class RowOrder:
    """A sequence of rows, held as runs of consecutive ones."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._starts = array("q")
        self._ends = array("q")
        """Positions behind each run."""
        end = 0
        for start, stop in runs:
            if start < stop:
                end += stop - start
                self._starts.append(start)
                self._ends.append(end)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The rows at positions ``[start, stop)``."""
        index = bisect_right(self._ends, start)
        while start < stop:
            end = self._ends[index]
            begin = self._ends[index - 1] if index else 0
            first = self._starts[index] - begin
            yield Run(first + start, first + min(end, stop))
            start = end
            index += 1


class ConsumerPlan:
    """What one consumer yields.

    Args:
        order: The rows of all consumers.
        span: The positions of this one.
        shuffle: How.
        stage: Number of the stage of the epoch; part of the key of all random choices.
    """

    def __init__(self, order: RowOrder, span: Run, shuffle: Shuffle, stage: int = 0) -> None:
        self._order = order
        self._span = span
        self._key = (shuffle.seed, shuffle.epoch, stage, span.start)
        self._window_rows = min(shuffle.window_rows, len(self))
        # Other rows meet at the edges of the windows in each epoch.
        has_edges = 1 < self._window_rows < len(self)
        self._phase = 1 + _mix(_PHASE, *self._key) % self._window_rows if has_edges else 0

    def __len__(self) -> int:
        return self._span.stop - self._span.start

    def blocks(self, position: int = 0) -> Iterator[Block]:
        """How to make samples, from the one at ``position`` on, of what read_runs() gives."""
        if self._window_rows < 2:
            if position < len(self):
                yield Block(len(self) - position, None)
            return
        while position < len(self):
            window = self._window(position)
            rest = self._permute(window)[position - window.start :]
            if len(rest) < window.stop - window.start:
                places = {offset: place for place, offset in enumerate(sorted(rest))}
                rest = [places[offset] for offset in rest]
            yield Block(len(rest), rest)
            position = window.stop

    def read_runs(self, position: int = 0) -> Iterator[Run]:
        """The rows to read, each once, to yield the samples from ``position`` on."""
        for start, stop in self._unyielded(position):
            yield from self._rows(start, stop)

    def rows(self, position: int = 0) -> Iterator[int]:
        """The rows in the order in which they are yielded."""
        read = itertools.chain.from_iterable(itertools.starmap(range, self.read_runs(position)))
        for count, picks in self.blocks(position):
            inputs = list(itertools.islice(read, count))
            yield from inputs if picks is None else (inputs[pick] for pick in picks)

    def remaining(self, position: int) -> Iterator[Run]:
        """The positions in the order that are still to be yielded; without repeated rows."""
        for start, stop in self._unyielded(position):
            first = self._span.start + start
            last = min(self._span.start + stop, len(self._order))
            if first < last:
                yield Run(first, last)

    def _window(self, position: int) -> Run:
        size = self._window_rows
        start = self._phase + (position - self._phase) // size * size
        return Run(max(start, 0), min(start + size, len(self)))

    def _permute(self, window: Run) -> list[int]:
        return _permutation(window.stop - window.start, _ROWS, *self._key, window.start)

    def _unyielded(self, position: int) -> Iterator[Run]:
        """Ascending runs in ``range(len(self))``."""
        if self._window_rows > 1 and position < len(self):
            window = self._window(position)
            if position > window.start:
                rest = sorted(self._permute(window)[position - window.start :])
                for start, stop in _runs_of(rest):
                    yield Run(window.start + start, window.start + stop)
                position = window.stop
        if position < len(self):
            yield Run(position, len(self))

    def _rows(self, start: int, stop: int) -> Iterator[Run]:
        row_count = len(self._order)
        first, last = self._span.start + start, self._span.start + stop
        while first < last:
            begin = first % row_count
            count = min(last - first, row_count - begin)
            yield from self._order.runs(begin, begin + count)
            first += count


def order_epoch(
    row_offsets: Sequence[int], shuffle: Shuffle, stages: Sequence[Stage] = ()
) -> RowOrder:
    """The rows of an epoch; after ``stages`` those that nobody has yielded.

    Args:
        row_offsets: Of each shard its first row, then the number of rows of all.
    """
    shard_count = len(row_offsets) - 1
    shards: Iterable[int] = range(shard_count)
    if shuffle.shards:
        shards = _permutation(shard_count, _SHARDS, shuffle.seed, shuffle.epoch)
    order = RowOrder(Run(row_offsets[shard], row_offsets[shard + 1]) for shard in shards)
    for number, stage in enumerate(stages):
        order = _leave_out(order, shuffle, number, stage)
    return order


def _leave_out(order: RowOrder, shuffle: Shuffle, number: int, stage: Stage) -> RowOrder:
    """The rows of ``order`` that were not yielded in a stage."""

    def runs() -> Iterator[Run]:
        covered = 0
        for consumer, position in enumerate(stage.positions):
            span = stage.layout.span(len(order), consumer)
            covered = max(covered, span.stop)
            for kept in ConsumerPlan(order, span, shuffle, number).remaining(position):
                yield from order.runs(*kept)
        if covered < len(order):  # dropped, to make the ranks equal
            yield from order.runs(covered, len(order))

    return RowOrder(runs())


def positions_after(
    row_count: int, layout: Layout, batches_done: int, batch_size: int, drop_last: bool
) -> tuple[int, ...]:
    """Where the consumers are when each rank's DataLoader has given ``batches_done`` batches.

    It takes them from its workers in turn, and leaves out those that have ended.
    """
    positions = []
    for rank in range(layout.world_size):
        first = rank * layout.num_workers
        spans = [layout.span(row_count, first + worker) for worker in range(layout.num_workers)]
        lengths = [span.stop - span.start for span in spans]
        rounding = 0 if drop_last else batch_size - 1
        counts = [(length + rounding) // batch_size for length in lengths]
        done = min(batches_done, sum(counts))
        rounds = min(done // layout.num_workers, min(counts))
        taken = [rounds] * layout.num_workers
        done -= rounds * layout.num_workers
        while done > 0:
            for worker, count in enumerate(counts):
                if done > 0 and taken[worker] < count:
                    taken[worker] += 1
                    done -= 1
        if drop_last and batches_done > 0 and taken == counts:
            positions += lengths
        else:
            positions += [
                min(length, count * batch_size)
                for length, count in zip(lengths, taken, strict=True)
            ]
    return tuple(positions)


def _runs_of(ascending: list[int]) -> Iterator[Run]:
    start = stop = ascending[0]
    for value in ascending:
        if value != stop:
            yield Run(start, stop)
            start = value
        stop = value + 1
    yield Run(start, stop)


def _mix(*words: int) -> int:
    """64 bits that depend on all words (SplitMix64), the same on all machines and versions."""
    state = 0
    for word in words:
        state = (state + (word & _WORD) + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state


def _permutation(count: int, *key: int) -> list[int]:
    generator = torch.Generator().manual_seed(_mix(*key))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order

"""Which rows the consumers of a stream yield: partitions, orders, resuming; no I/O."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchnpy.data.stream_plan import (
    UNEVEN,
    ConsumerPlan,
    Layout,
    Shuffle,
    Stage,
    order_epoch,
    positions_after,
)

row_counts = st.lists(st.integers(0, 12), max_size=8)
shuffles = st.builds(
    Shuffle,
    seed=st.integers(-5, 2**70),
    epoch=st.integers(0, 3),
    shards=st.booleans(),
    window_rows=st.integers(0, 40),
)
layouts = st.builds(
    Layout,
    world_size=st.integers(1, 4),
    num_workers=st.integers(1, 4),
    uneven=st.sampled_from(UNEVEN),
)


def offsets(counts: list[int]) -> list[int]:
    return [0, *itertools.accumulate(counts)]


def make_plans(
    counts: list[int], shuffle: Shuffle, layout: Layout, stages: tuple[Stage, ...] = ()
) -> list[ConsumerPlan]:
    order = order_epoch(offsets(counts), shuffle, stages)
    return [
        ConsumerPlan(order, layout.span(len(order), consumer), shuffle, len(stages))
        for consumer in range(layout.consumer_count)
    ]


def yield_all(plans: list[ConsumerPlan]) -> list[int]:
    return [row for plan in plans for row in plan.rows()]


@given(row_counts, shuffles, st.integers(1, 4), st.integers(1, 4))
def test_consumers_partition_the_rows(
    counts: list[int], shuffle: Shuffle, world_size: int, num_workers: int
) -> None:
    plans = make_plans(counts, shuffle, Layout(world_size, num_workers, "exact"))
    assert sorted(yield_all(plans)) == list(range(sum(counts)))
    lengths = [len(list(plan.rows())) for plan in plans]
    assert lengths == [len(plan) for plan in plans]
    ranks = [
        sum(lengths[rank * num_workers : (rank + 1) * num_workers]) for rank in range(world_size)
    ]
    assert max(ranks) - min(ranks) <= 1


@given(row_counts, shuffles, layouts)
def test_ranks_are_equal_unless_exactness_is_wanted(
    counts: list[int], shuffle: Shuffle, layout: Layout
) -> None:
    plans = make_plans(counts, shuffle, layout)
    total, size = sum(counts), layout.world_size
    seen = Counter(yield_all(plans))
    workers = [
        tuple(len(plan) for plan in plans[rank * layout.num_workers :][: layout.num_workers])
        for rank in range(size)
    ]
    assert [sum(lengths) for lengths in workers] == [
        layout.rank_length(total, rank) for rank in range(size)
    ]
    if layout.uneven == "pad":
        assert set(seen) == set(range(total))
        assert seen.total() == -(-total // size) * size
        repeats = seen.total() - total
        assert max(seen.values(), default=0) <= 1 - (-repeats // max(total, 1))
        assert len(set(workers)) == 1, "ranks would have unequal batches"
    elif layout.uneven == "drop":
        assert seen.total() == len(seen) == total // size * size
        assert len(set(workers)) == 1, "ranks would have unequal batches"


@given(row_counts, shuffles, layouts, st.data())
def test_a_plan_begins_at_any_position(
    counts: list[int], shuffle: Shuffle, layout: Layout, data: st.DataObject
) -> None:
    consumer = data.draw(st.integers(0, layout.consumer_count - 1))
    plan = make_plans(counts, shuffle, layout)[consumer]
    whole = list(plan.rows())
    position = data.draw(st.integers(0, len(whole)))
    assert list(plan.rows(position)) == whole[position:]
    to_read = [row for run in plan.read_runs(position) for row in range(*run)]
    assert Counter(to_read) == Counter(whole[position:]), "reads what was yielded already"


@given(row_counts, shuffles, st.lists(layouts, min_size=2, max_size=4), st.data())
def test_each_row_comes_once_however_often_the_layout_changes(
    counts: list[int], shuffle: Shuffle, changes: list[Layout], data: st.DataObject
) -> None:
    seen: Counter[int] = Counter()
    stages: tuple[Stage, ...] = ()
    repeats = 0
    for layout in changes[:-1]:
        plans = make_plans(counts, shuffle, layout, stages)
        before = len(order_epoch(offsets(counts), shuffle, stages))
        positions = tuple(data.draw(st.integers(0, len(plan))) for plan in plans)
        for plan, position in zip(plans, positions, strict=True):
            seen.update(itertools.islice(plan.rows(), position))
        repeats += max(0, sum(map(len, plans)) - before)
        stages += (Stage(layout, positions),)
    last = Layout(changes[-1].world_size, changes[-1].num_workers, "exact")
    seen.update(yield_all(make_plans(counts, shuffle, last, stages)))
    assert set(seen) == set(range(sum(counts)))
    assert seen.total() - sum(counts) <= repeats
    if all(layout.uneven != "pad" for layout in changes[:-1]):
        assert seen.total() == sum(counts)


@given(row_counts, shuffles)
def test_nothing_is_shuffled_unless_asked(counts: list[int], shuffle: Shuffle) -> None:
    plain = Shuffle(shuffle.seed, shuffle.epoch, False, 0)
    assert yield_all(make_plans(counts, plain, Layout(1, 1, "exact"))) == list(range(sum(counts)))
    shards = Shuffle(shuffle.seed, shuffle.epoch, True, 0)
    (plan,) = make_plans(counts, shards, Layout(1, 1, "exact"))
    whole = {tuple(range(*span)) for span in itertools.pairwise(offsets(counts))} - {()}
    assert {tuple(range(*run)) for run in plan.read_runs()} == whole


@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 99))
def test_a_row_comes_at_most_a_window_early_or_late(
    count: int, window_rows: int, seed: int
) -> None:
    (plan,) = make_plans([count], Shuffle(seed, 0, False, window_rows), Layout(1, 1, "exact"))
    assert all(abs(place - row) < window_rows for place, row in enumerate(plan.rows()))


def test_seed_and_epoch_decide_the_order() -> None:
    def rows(seed: int, epoch: int, window_rows: int) -> list[int]:
        shuffle = Shuffle(seed, epoch, True, window_rows)
        return yield_all(make_plans([10] * 20, shuffle, Layout(1, 1, "exact")))

    for window_rows in (0, 30, 1000):
        orders = [tuple(rows(seed, epoch, window_rows)) for seed in range(4) for epoch in range(4)]
        assert len(set(orders)) == 16
        assert rows(2, 3, window_rows) == rows(2, 3, window_rows)


def test_a_window_that_holds_all_rows_shuffles_all_with_all() -> None:
    first = Counter(
        next(make_plans([20], Shuffle(seed, 0, False, 100), Layout(1, 1, "exact"))[0].rows())
        for seed in range(400)
    )
    assert set(first) == set(range(20))


def test_the_order_stays_the_same_in_later_versions() -> None:
    (plan,) = make_plans([5, 3, 4], Shuffle(7, 2, True, 6), Layout(1, 1, "exact"))
    assert list(plan.rows()) == [8, 5, 10, 6, 7, 9, 11, 3, 0, 1, 4, 2]


@given(
    st.integers(0, 60),
    layouts,
    st.integers(0, 40),
    st.integers(1, 7),
    st.booleans(),
)
def test_batches_are_taken_from_the_workers_in_turn(
    row_count: int, layout: Layout, batches_done: int, batch_size: int, drop_last: bool
) -> None:
    expected: list[int] = []
    for rank in range(layout.world_size):
        spans = [
            layout.span(row_count, rank * layout.num_workers + worker)
            for worker in range(layout.num_workers)
        ]
        left = [span.stop - span.start for span in spans]
        given = [0] * layout.num_workers
        alive = list(range(layout.num_workers))
        done = 0
        while alive and done < batches_done:
            for worker in list(alive):
                count = min(batch_size, left[worker])
                if count == 0 or (drop_last and count < batch_size):
                    alive.remove(worker)
                elif done < batches_done:
                    left[worker] -= count
                    given[worker] += count
                    done += 1
        expected += given
    found = positions_after(row_count, layout, batches_done, batch_size, drop_last)
    per_rank = layout.num_workers
    for first in range(0, len(expected), per_rank):
        ours, theirs = found[first : first + per_rank], expected[first : first + per_rank]
        lengths = tuple(
            span.stop - span.start
            for span in (layout.span(row_count, first + worker) for worker in range(per_rank))
        )
        ended = drop_last and batches_done > 0 and ours == lengths
        assert list(ours) == theirs or ended


def test_a_world_without_rows_has_nothing_to_repeat() -> None:
    with pytest.raises(StopIteration):
        next(make_plans([], Shuffle(0, 0, True, 5), Layout(3, 2, "pad"))[4].rows())

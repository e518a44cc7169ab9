"""NpyStream: the rows of shards, read ahead, divided over workers and ranks."""

from __future__ import annotations

import gc
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from servers.http import ObjectServer, cut, status
from servers.s3 import S3Server
from support import noise, npy, run_script, start_script
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader

import torchnpy as tnp
from torchnpy.data import NpyStream

# torch's, of so many workers on so few cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

COUNTS = [7, 0, 12, 1, 20, 5]
ARRAYS = [noise(count, 4, 6, seed=i) for i, count in enumerate(COUNTS)]
ROWS = np.concatenate(ARRAYS)


@pytest.fixture
def urls(server: ObjectServer) -> list[str]:
    return [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(ARRAYS)]


@pytest.fixture
def numbered(tmp_path: Path) -> list[str]:
    """Shards of 50 rows in all, that hold their own numbers."""
    paths, first = [], 0
    for i, count in enumerate([9, 14, 1, 0, 26]):
        paths.append(str(tmp_path / f"{i}.npy"))
        np.save(paths[-1], np.arange(first, first + count))
        first += count
    return paths


@pytest.fixture
def as_rank() -> Iterator[Callable[[int, int], None]]:
    """Makes this process a rank of a world."""

    def become(rank: int, world_size: int) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)

    yield become
    if dist.is_initialized():
        dist.destroy_process_group()


def stream_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "torchnpy-stream"]


def drain(loader: Any, batches: list[Any] | None = None) -> None:
    """When a loader raises, torch takes seconds to end workers that it collects as garbage."""
    iterator = iter(loader)
    try:
        (batches if batches is not None else []).extend(iterator)
    finally:
        getattr(iterator, "_shutdown_workers", int)()


def numbers(stream: object) -> list[int]:
    return [int(sample) for sample in stream]  # type: ignore[attr-defined]


def test_rows_come_in_the_order_of_the_shards(urls: list[str]) -> None:
    samples = list(NpyStream(urls))
    assert all(type(sample) is torch.Tensor for sample in samples)
    assert np.array_equal(torch.stack(samples), ROWS)


@pytest.mark.parametrize(
    "array",
    [
        noise(9, 3).astype(">i4"),
        noise(9, 3).astype("?"),
        np.asfortranarray(noise(9, 3, 2)),
        np.linspace(0, 1, 9) + 1j,
        np.zeros((9, 0, 4)),
        np.arange(9, dtype="f2"),
    ],
)
def test_rows_equal_numpys(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    for options in ({}, {"shuffle_rows": 4, "prefetch_nbytes": 1}):
        stream = NpyStream([str(tmp_path / "x.npy")] * 2, **options)
        samples = list(stream)
        if not options:
            for sample, expected in zip(samples, [*array, *array], strict=True):
                assert sample.shape == expected.shape
                assert np.array_equal(sample.numpy(), expected)
        else:
            found = sorted(sample.numpy().tobytes() for sample in samples)
            native = array.astype(array.dtype.newbyteorder("="))
            assert found == sorted(row.tobytes() for row in [*native, *native])


def test_records_are_dicts_of_rows(tmp_path: Path) -> None:
    records = np.zeros(5, [("a", "<f4"), ("b", "<i2", (2,))])
    records["a"], records["b"] = range(5), noise(5, 2)
    np.save(tmp_path / "x.npy", records)
    samples = list(NpyStream([tmp_path / "x.npy"]))
    assert [sample["a"].item() for sample in samples] == list(range(5))
    (batch,) = DataLoader(NpyStream([tmp_path / "x.npy"], shuffle_rows=3), 5)
    order = batch["a"].long()
    assert np.array_equal(batch["b"], records["b"][order])


def test_dtype_names_the_bits_and_a_transform_sees_a_row(tmp_path: Path) -> None:
    expected = torch.randn(6, 3).bfloat16()
    np.save(tmp_path / "x.npy", expected.view(torch.int16).numpy().view("V2"))
    stream = NpyStream([tmp_path / "x.npy"], dtype=torch.bfloat16, transform=torch.neg)
    assert torch.equal(torch.stack(list(stream)), -expected)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("options", [{}, {"shuffle": True, "shuffle_rows": 8}])
def test_a_loader_gives_each_row_once(
    numbered: list[str], workers: int, options: dict[str, int]
) -> None:
    loader = DataLoader(NpyStream(numbered, **options), 4, num_workers=workers)
    batches = list(loader)
    found = torch.cat(batches).tolist()
    assert sorted(found) == list(range(50))
    assert (found == list(range(50))) == (workers < 2 and not options)


@pytest.mark.parametrize("uneven", ["exact", "pad", "drop"])
def test_ranks_and_workers_divide_the_rows(
    numbered: list[str], as_rank: Callable[[int, int], None], uneven: str
) -> None:
    found, lengths = [], []
    stream = NpyStream(numbered, shuffle=True, shuffle_rows=5, uneven=uneven)  # type: ignore[arg-type]
    for rank in range(4):
        as_rank(rank, 4)
        mine = torch.cat(list(DataLoader(stream, 3, num_workers=rank % 2 * 2))).tolist()
        assert len(mine) == len(stream)
        found += mine
        lengths.append(len(mine))
    if uneven == "exact":
        assert sorted(found) == list(range(50))
        assert sorted(lengths) == [12, 12, 13, 13]
    elif uneven == "pad":
        assert set(found) == set(range(50))
        assert lengths == [13] * 4
    else:
        assert len(set(found)) == 48
        assert lengths == [12] * 4


def test_ranks_are_padded_unless_something_else_is_said(
    numbered: list[str], as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    stream = NpyStream(numbered)
    assert len(stream) == 50, "the environment alone is not torch.distributed"
    as_rank(1, 3)
    assert len(stream) == len(list(stream)) == 17


def test_a_spawned_worker_knows_the_rank_and_the_epoch_of_its_parent(
    numbered: list[str], as_rank: Callable[[int, int], None]
) -> None:
    as_rank(1, 2)
    stream = NpyStream(numbered, shuffle=True, client=tnp.Client(retries=4))
    loader = DataLoader(
        stream, 5, num_workers=1, multiprocessing_context="spawn", persistent_workers=True
    )
    for epoch in (3, 1):
        stream.set_epoch(epoch)
        assert torch.cat(list(loader)).tolist() == numbers(stream)


def test_persistent_workers_see_the_epoch(numbered: list[str]) -> None:
    stream = NpyStream(numbered, shuffle=True, shuffle_rows=20)
    loader = DataLoader(stream, 5, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 2, 0):
        stream.set_epoch(epoch)
        orders.append(tuple(torch.cat(list(loader)).tolist()))
        assert orders[-1] == tuple(numbers(stream))
    assert len(set(orders)) == 3
    assert orders[0] == orders[3]


def test_the_same_epoch_of_the_same_seed_has_the_same_order(numbered: list[str]) -> None:
    def order(**options: int) -> list[int]:
        return numbers(NpyStream(numbered, shuffle_rows=50, **options))

    assert order(seed=3) == order(seed=3) != order(seed=4)
    stream = NpyStream(numbered, shuffle=True, shuffle_rows=7)
    first = numbers(stream)
    assert numbers(stream) == first
    stream.set_epoch(1)
    assert numbers(stream) != first


def test_len_is_that_of_the_rank_and_no_loader_warns(numbered: list[str]) -> None:
    stream = NpyStream(numbered)
    loader = DataLoader(stream, 8)
    assert (len(stream), len(loader)) == (50, 7)
    assert len(list(loader)) == 7  # a warning would be an error


def test_headers_are_read_at_once_and_only_once(server: ObjectServer) -> None:
    server.hold_until(16)
    urls = [server.put(f"/{i}.npy", npy(np.arange(3))) for i in range(16)]
    stream = NpyStream(urls)
    assert server.requests == []
    assert len(stream) == 48
    assert server.max_concurrent == 16
    assert len(server.requests) == 16
    copy = pickle.loads(pickle.dumps(stream))
    for again in (stream, copy, NpyStream(urls)):
        before = len(server.requests)
        len(again)
        assert len(server.requests) == before + 16 * (again not in (stream, copy))


def test_later_workers_know_the_headers_that_earlier_ones_read(server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npy", npy(noise(10, 20, seed=i))) for i in range(4)]
    loader = DataLoader(NpyStream(urls), 10, num_workers=1)
    for requests in (8, 4):  # with those for headers, and without
        before = len(server.requests)
        assert sum(1 for _ in loader) == 4  # list() would ask for the length
        assert len(server.requests) - before == requests


def test_large_shards_are_read_in_pieces_no_further_than_the_limit(server: ObjectServer) -> None:
    array = noise(4000, 5000)
    url = server.put("/x.npy", npy(array))
    limit = 2 << 20
    stream = NpyStream([url], prefetch_nbytes=limit)
    len(stream)
    heads = 64 << 10  # which each piece begins with, to see the header
    before = server.sent_nbytes
    for number, row in enumerate(stream):
        if number == 0:
            time.sleep(0.5)  # would let it read on
        pieces = len(server.requests)
        assert server.sent_nbytes - before <= (number + 1) * 5000 + limit + heads * pieces
        assert number % 500 or np.array_equal(row, array[number])
    assert number == 3999
    assert max(len(r.range) for r in server.requests) > 0
    assert server.sent_nbytes - before <= array.nbytes + heads * pieces


def test_several_pieces_are_asked_for_at_once(server: ObjectServer) -> None:
    server.latency_s = 0.05
    url = server.put("/x.npy", npy(noise(1000, 2000)))
    assert sum(1 for _ in NpyStream([url])) == 1000
    assert server.max_concurrent >= 2


def test_a_row_that_is_larger_than_the_limit_is_read_alone(tmp_path: Path) -> None:
    array = noise(5, 1 << 20)
    np.save(tmp_path / "x.npy", array)
    for shuffle_rows in (0, 3):
        stream = NpyStream([tmp_path / "x.npy"], prefetch_nbytes=1000, shuffle_rows=shuffle_rows)
        assert sorted(row[0].item() for row in stream) == sorted(array[:, 0].tolist())


@pytest.mark.parametrize("shape", [(300, 100), (3, 300_000)])
def test_a_kept_sample_keeps_no_other(tmp_path: Path, shape: tuple[int, int]) -> None:
    np.save(tmp_path / "x.npy", noise(*shape))
    for shuffle_rows in (0, 2):
        for row in NpyStream([tmp_path / "x.npy"], shuffle_rows=shuffle_rows):
            assert row.untyped_storage().nbytes() <= row.nbytes + 64
    loader = DataLoader(NpyStream([tmp_path / "x.npy"]), batch_size=None, num_workers=1)
    row = next(iter(loader))
    assert row.untyped_storage().nbytes() <= row.nbytes + 4096


def test_nothing_is_started_before_the_first_sample_nor_left_behind(
    numbered: list[str], server: ObjectServer
) -> None:
    iterator = iter(NpyStream([server.url + "/missing.npy"]))
    assert server.requests == []
    assert stream_threads() == []
    with pytest.raises(FileNotFoundError, match=r"missing.npy"):
        next(iterator)
    stream = NpyStream(numbered, prefetch_nbytes=40)
    for end in ("closed", "dropped", "exhausted"):
        iterator = iter(stream)
        next(iterator)
        assert stream_threads()
        if end == "closed":
            iterator.close()  # type: ignore[attr-defined]
        elif end == "exhausted":
            list(iterator)
        else:
            del iterator
            gc.collect()
        assert stream_threads() == []


def test_a_stalled_read_does_not_keep_an_iterator_that_is_dropped(server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npy", npy(noise(100, 10_000, seed=i))) for i in range(2)]
    stream = NpyStream(urls, client=tnp.Client(stall_timeout_s=600))
    len(stream)
    server.always("/1.npy", cut(100, "stall"))
    iterator = iter(stream)
    next(iterator)
    assert server.stalled.wait(30)
    del iterator
    gc.collect()
    assert stream_threads() == []
    assert server.dropped.wait(30)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_shard_is_named_when_its_turn_comes(server: ObjectServer, workers: int) -> None:
    urls = [server.put(f"/{i}.npy", npy(noise(8, 20_000, seed=i))) for i in range(4)]
    stream = NpyStream(urls, prefetch_nbytes=10_000)
    len(stream)
    server.always("/2.npy", status(403))
    batches: list[torch.Tensor] = []
    with pytest.raises(PermissionError, match=r"/2.npy"):
        drain(DataLoader(stream, 4, num_workers=workers), batches)
    assert len(batches) == 4
    assert stream_threads() == []


def test_a_bad_header_is_an_error_at_the_first_sample(server: ObjectServer) -> None:
    good = server.put("/0.npy", npy(noise(3)))
    bad = server.put("/1.npy", b"broken")
    with pytest.raises(tnp.FormatError, match=r"/1.npy"):
        next(iter(NpyStream([good, bad])))
    with pytest.raises(tnp.FormatError, match=r"/1.npy"):
        drain(DataLoader(NpyStream([good, bad]), num_workers=1))
    scalar = server.put("/2.npy", npy(np.float32(2)))
    with pytest.raises(ValueError, match=r"/2.npy: expected an array with rows"):
        len(NpyStream([good, scalar]))


def test_a_shard_that_changed_since_its_header_was_read_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.npy" for i in range(2)]
    for path in paths:
        np.save(path, np.arange(5))
    stream = NpyStream(paths)
    assert len(stream) == 10
    np.save(paths[1], np.arange(4))
    with pytest.raises(tnp.FormatError, match=r"1.npy: expected 5 rows but found 4"):
        list(stream)


def test_no_shards_and_empty_ones_have_no_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((0, 3)))
    for urls in ([], [tmp_path / "x.npy"]):
        stream = NpyStream(urls, shuffle=True, shuffle_rows=4)
        assert len(stream) == 0
        assert list(stream) == []


def test_more_consumers_than_rows_get_nothing_or_one(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(2))
    loader = DataLoader(NpyStream([tmp_path / "x.npy"]), num_workers=3)
    assert sorted(torch.cat(list(loader)).tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uneven": "repeat"}, "uneven: expected one of 'exact', 'pad', 'drop' or None.*'repeat'"),
        ({"shuffle_rows": -1}, "shuffle_rows: expected at least 0 but found -1"),
        ({"prefetch_nbytes": 0}, "prefetch_nbytes: expected at least 1 but found 0"),
        ({"urls": "x.npy"}, "urls: expected a list of URLs but found one str"),
    ],
)
def test_wrong_arguments_are_value_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NpyStream(**{"urls": ["x.npy"], **options})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epoch"):
        NpyStream(["x.npy"]).set_epoch(-1)


def test_a_pickle_is_small_and_has_an_epoch_of_its_own(numbered: list[str]) -> None:
    stream = NpyStream(numbered, shuffle=True)
    stream.set_epoch(2)
    iterator = iter(stream)
    next(iterator)
    data = pickle.dumps(stream)
    assert len(data) < 20_000
    copy = pickle.loads(data)
    assert numbers(copy) == numbers(stream)
    copy.set_epoch(5)
    assert stream.epoch == 2


def test_from_prefix_takes_the_shards_in_order(s3_server: S3Server, s3_client: tnp.Client) -> None:
    s3_server.page_count = 4
    for i, array in enumerate(ARRAYS):
        s3_server.put_key(f"train/{i}.npy", npy(array))
    s3_server.put_key("train/README.txt", b"not an array")
    stream = NpyStream.from_prefix("s3://bucket/train/", client=s3_client)
    assert np.array_equal(torch.stack(list(stream)), ROWS)
    with pytest.raises(ValueError, match="s3://bucket/none/"):
        NpyStream.from_prefix("s3://bucket/none/", client=s3_client)


def test_ctrl_c_ends_the_wait_for_a_row(server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npy", npy(noise(10, 20_000, seed=i))) for i in range(2)]
    server.fail("/1.npy", None)  # the header
    server.always("/1.npy", cut(100, "stall"))
    code = """
        import sys, threading, torchnpy as tnp
        from torchnpy.data import NpyStream
        stream = NpyStream(sys.argv[1:], client=tnp.Client(stall_timeout_s=600))
        try:
            for row in stream:
                pass
        except KeyboardInterrupt:
            print("interrupted", [t.name for t in threading.enumerate()])
        """
    with start_script(code, *urls) as script:
        assert server.stalled.wait(60)
        script.send_signal(signal.SIGINT)
        assert script.finish(60) == (0, "interrupted ['MainThread']\n", "")


def test_a_program_ends_while_its_stream_reads(server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npy", npy(noise(10, 40_000, seed=i))) for i in range(2)]
    server.fail("/1.npy", None)  # the header
    server.always("/1.npy", cut(100, "stall"))
    code = """
        import sys, torchnpy as tnp
        from torchnpy.data import NpyStream
        iterator = iter(NpyStream(sys.argv[1:], client=tnp.Client(stall_timeout_s=600)))
        kept = next(iterator)
        sys.stdin.readline()
        print("ending")
        """
    with start_script(code, *urls) as script:
        assert server.stalled.wait(60)
        script.stdin.write("\n")
        assert script.finish(60) == (0, "ending\n", "")


def test_a_forked_child_goes_on_by_itself(numbered: list[str]) -> None:
    out = run_script(
        """
        import os, sys, numpy as np
        from torchnpy.data import NpyStream
        for shuffle_rows in (0, 8):
            stream = NpyStream(sys.argv[1:], prefetch_nbytes=40, shuffle_rows=shuffle_rows)
            expected = [int(row) for row in stream]
            iterator = iter(stream)
            first = [int(next(iterator)) for _ in range(21)]
            pid = os.fork()
            rest = [int(row) for row in iterator]
            assert first + rest == expected
            if pid == 0:
                sys.stdout.flush()
                os._exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        """,
        *numbered,
    )
    assert out == "7\n7\n"

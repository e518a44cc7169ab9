"""A batch is one tensor that the loads write into and the default collate hands over."""

from __future__ import annotations

import copy
import io
import os
import pickle
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import ObjectServer, cut
from support import as_list, can_unshare, name_in, noise, npy, npz, run_script, start_script
from torch.utils.data import DataLoader, Dataset, StackDataset, Subset, default_collate

import torchnpy as tnp
from torchnpy.data import NpyDataset, NpzDataset, collate, concat

COUNT = 7
SAMPLES = [noise(50, 400, seed=i) for i in range(COUNT)]
STACKED = torch.from_numpy(np.stack(SAMPLES))


@pytest.fixture
def urls(server: ObjectServer) -> list[str]:
    return [server.put(f"/{i}.npy", npy(sample)) for i, sample in enumerate(SAMPLES)]


def local(folder: Path, arrays: list[Any]) -> list[str]:
    for i, array in enumerate(arrays):
        np.save(folder / f"{i}.npy", array)
    return [str(folder / f"{i}.npy") for i in range(len(arrays))]


def mapping_of(tensor: torch.Tensor) -> str:
    """What the kernel calls the memory that a tensor lies in."""
    address = tensor.untyped_storage().data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, *_, name = line.split(maxsplit=5)
        begin, end = (int(bound, 16) for bound in bounds.split("-"))
        if begin <= address < end:
            return name
    return "no mapping"


def is_from_worker(tensor: torch.Tensor) -> bool:
    """Whether the worker's own memory is mapped here: then nothing was copied on the way."""
    return mapping_of(tensor).startswith("/memfd:torchnpy-batch")


def halve(x: torch.Tensor) -> torch.Tensor:
    return x // 2


def test_the_default_collate_hands_over_the_memory_that_was_loaded_into(urls: list[str]) -> None:
    rows = NpyDataset(urls).__getitems__(range(COUNT))
    batch = default_collate(rows)
    assert type(batch) is torch.Tensor
    assert torch.equal(batch, STACKED)
    assert batch.data_ptr() == rows[0].data_ptr()
    assert rows[3].data_ptr() == batch[3].data_ptr()


@pytest.mark.parametrize("labels", [None, list(range(COUNT)), name_in])
def test_a_batch_comes_from_a_worker_without_a_copy(urls: list[str], labels: Any) -> None:
    loader = DataLoader(NpyDataset(urls, labels=labels), 4, num_workers=1)
    batches = [batch if labels is None else batch[0] for batch in loader]
    assert all(is_from_worker(batch) for batch in batches)
    assert torch.equal(torch.cat(batches), STACKED)


@pytest.mark.parametrize("deflate", [False, True])
def test_members_come_from_a_worker_without_a_copy(server: ObjectServer, deflate: bool) -> None:
    archives = [
        server.put(f"/{i}.npz", npz(x=sample, y=np.float32(i), deflate=deflate))
        for i, sample in enumerate(SAMPLES)
    ]
    (batch,) = DataLoader(NpzDataset(archives), COUNT, num_workers=1)
    assert is_from_worker(batch["x"])
    assert is_from_worker(batch["y"])
    assert torch.equal(batch["x"], STACKED)
    assert batch["y"].tolist() == list(range(COUNT))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("nbytes", [100_000, 400_000])  # read at once; mapped, if by itself
def test_local_files_are_one_batch(tmp_path: Path, nbytes: int, workers: int) -> None:
    samples = [noise(nbytes, seed=i) for i in range(COUNT)]
    dataset = NpyDataset(local(tmp_path, samples))
    for batch in DataLoader(dataset, COUNT, num_workers=workers):
        assert np.array_equal(batch.numpy(), np.stack(samples))
        assert is_from_worker(batch) == (workers == 1)


def test_the_pages_of_a_batch_are_there_before_its_data(server: ObjectServer) -> None:
    sample = noise(1024, 4096)
    urls = [server.put(f"/{i}.npy", npy(sample)) for i in range(2)]
    for url in urls:
        server.fail(url.removeprefix(server.url), cut(1000, "stall"))
    client = tnp.Client(retries=2, stall_timeout_s=600)
    batches = iter(DataLoader(NpyDataset(urls, client=client), 2, num_workers=1))
    smaps = Path(f"/proc/{batches._workers[0].pid}/smaps")  # type: ignore[attr-defined]
    assert server.stalled.wait(60)
    give_up = time.monotonic() + 60
    touched_nbytes = 0
    while touched_nbytes < 2 * sample.nbytes:
        assert time.monotonic() < give_up, f"{touched_nbytes} bytes have pages"
        _, *batch_maps = smaps.read_text().split("/memfd:torchnpy-batch")
        touched_nbytes = sum(1024 * int(m.split("Rss:")[1].split()[0]) for m in batch_maps)
        time.sleep(0.02)
    server.release()
    assert np.array_equal(next(batches)[1], sample)


def test_a_plain_dataset_has_its_batches_elsewhere(urls: list[str]) -> None:
    (batch,) = DataLoader(NpyDataset(urls, transform=halve), COUNT, num_workers=1)
    assert not is_from_worker(batch)
    assert torch.equal(batch, STACKED // 2)


def test_a_batch_from_a_worker_is_written_and_outlives_it(urls: list[str]) -> None:
    first, second = DataLoader(NpyDataset(urls), 4, num_workers=1)
    first.zero_()
    assert torch.equal(second, STACKED[4:])
    assert not first.any()


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 1], [0, 0, 1], [2]])
def test_rows_that_are_not_the_batch_are_stacked(urls: list[str], order: list[int]) -> None:
    rows = NpyDataset(urls).__getitems__([0, 1, 2])
    batch = default_collate([rows[i] for i in order])
    assert torch.equal(batch, STACKED[order])
    assert batch.data_ptr() != rows[order[0]].data_ptr()


def test_rows_of_two_batches_are_stacked(urls: list[str]) -> None:
    dataset = NpyDataset(urls)
    first, second = dataset.__getitems__([0, 1]), dataset.__getitems__([2, 3])
    assert torch.equal(default_collate([first[0], second[1]]), STACKED[[0, 3]])


def test_what_is_computed_from_a_row_is_a_plain_tensor(urls: list[str]) -> None:
    row = NpyDataset(urls).__getitems__([0, 1])[1]
    assert isinstance(row, torch.Tensor)
    for result in (
        row + 1,
        row[3],
        row.float(),
        row.clone(),
        copy.copy(row[0]),
        torch.stack([row]),
    ):
        assert type(result) is torch.Tensor
    assert np.array_equal(row.numpy(), SAMPLES[1])


def test_copies_of_a_row_hold_the_row_alone(urls: list[str]) -> None:
    row = NpyDataset(urls).__getitems__(range(COUNT))[2]
    saved = io.BytesIO()
    torch.save(row, saved)
    assert saved.tell() < 2 * SAMPLES[2].nbytes
    pickled = pickle.dumps(row)
    assert len(pickled) < 2 * SAMPLES[2].nbytes
    for other in (pickle.loads(pickled), copy.deepcopy(row)):
        assert type(other) is torch.Tensor
        assert torch.equal(other, STACKED[2])
        assert other.data_ptr() != row.data_ptr()


def test_a_collate_function_of_ones_own_gets_a_list_of_tensors(urls: list[str]) -> None:
    (samples,) = DataLoader(NpyDataset(urls), COUNT, num_workers=1, collate_fn=as_list)
    assert isinstance(samples, list)
    assert torch.equal(torch.stack(samples), STACKED)


def test_one_sample_has_memory_of_its_own(urls: list[str]) -> None:
    sample = NpyDataset(urls)[3]
    assert type(sample) is torch.Tensor
    assert sample.untyped_storage().nbytes() == SAMPLES[3].nbytes


AGREEING = {
    "big-endian": [np.arange(6, dtype=">i4").reshape(2, 3) + i for i in range(3)],
    "one of another byte order": [
        np.arange(6, dtype=">f8"),
        np.arange(6, dtype="<f8"),
        np.arange(6, dtype=">f8") + 1,
    ],
    "bools as any byte": [
        np.array([0, 2, 255, 1], np.uint8).view(bool),
        np.array([1, 0, 0, 7], np.uint8).view(bool),
    ],
    "without axes": [np.float32(3), np.float32(4)],
    "without elements": [np.zeros((0, 3)), np.zeros((0, 3))],
    "times": [np.array(["2020-01-01"], "<M8[s]"), np.array(["2021-01-01"], "<M8[s]")],
    "one axis in Fortran order": [np.asfortranarray(np.arange(4.0)), np.arange(4.0) + 1],
    "complex, big-endian": [np.array([1 + 2j], ">c16"), np.array([3 - 1j], ">c16")],
}


@pytest.mark.parametrize("where", ["http", "local"])
@pytest.mark.parametrize("kind", AGREEING)
def test_samples_that_agree_once_they_are_native_are_one_batch(
    server: ObjectServer, tmp_path: Path, kind: str, where: str
) -> None:
    arrays = AGREEING[kind]
    urls = (
        local(tmp_path, arrays)
        if where == "local"
        else [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    )
    rows = NpyDataset(urls).__getitems__(range(len(urls)))
    batch = default_collate(rows)
    assert torch.equal(batch, torch.stack([tnp.load(url) for url in urls]))
    if batch.numel():
        assert batch.data_ptr() == rows[0].data_ptr()


DIFFERING = {
    "longer": [noise(4), noise(5)],
    "as long, of another shape": [noise(4, 6), noise(6, 4)],
    "as long, of another dtype": [np.arange(4, dtype="<i4"), np.arange(4, dtype="<f4")],
    "Fortran order": [noise(4, 6), np.asfortranarray(noise(4, 6))],
    "all Fortran order": [np.asfortranarray(noise(4, 6, seed=i)) for i in range(2)],
    "records": [np.array([(1, 2.5)], "i4,f8"), np.array([(3, 4.5)], "i4,f8")],
    "the last one, of many": [*(noise(300, seed=i) for i in range(9)), noise(301)],
}


@pytest.mark.parametrize("where", ["http", "local"])
@pytest.mark.parametrize("kind", DIFFERING)
def test_samples_that_differ_have_memory_of_their_own(
    server: ObjectServer, tmp_path: Path, kind: str, where: str
) -> None:
    arrays = DIFFERING[kind]
    urls = (
        local(tmp_path, arrays)
        if where == "local"
        else [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    )
    samples = NpyDataset(urls).__getitems__(range(len(urls)))
    for sample, url, array in zip(samples, urls, arrays, strict=True):
        expected = tnp.load(url)
        if isinstance(expected, dict):
            assert {name: field.tolist() for name, field in sample.items()} == {
                name: field.tolist() for name, field in expected.items()
            }
            continue
        assert type(sample) is torch.Tensor
        assert sample.dtype == expected.dtype
        assert torch.equal(sample, expected)
        assert sample.untyped_storage().nbytes() == array.nbytes


def test_members_are_batches_where_they_agree(server: ObjectServer) -> None:
    masks = [noise(3), noise(4), noise(5)]
    urls = [
        server.put(f"/{i}.npz", npz(image=SAMPLES[i], mask=mask)) for i, mask in enumerate(masks)
    ]
    samples = NpzDataset(urls).__getitems__(range(3))
    images = default_collate([sample["image"] for sample in samples])
    assert torch.equal(images, STACKED[:3])
    assert images.data_ptr() == samples[0]["image"].data_ptr()
    for sample, mask in zip(samples, masks, strict=True):
        assert np.array_equal(sample["mask"].numpy(), mask)
        assert sample["mask"].untyped_storage().nbytes() < 64 + 256  # with its header, at most


def test_archives_with_other_members_are_read_each_for_itself(server: ObjectServer) -> None:
    urls = [
        server.put("/a.npz", npz(x=SAMPLES[0], y=SAMPLES[1])),
        server.put("/b.npz", npz(x=SAMPLES[2])),
    ]
    first, second = NpzDataset(urls).__getitems__([0, 1])
    assert list(first) == ["x", "y"]
    assert list(second) == ["x"]
    assert torch.equal(first["x"], STACKED[0])
    assert torch.equal(first["y"], STACKED[1])
    assert torch.equal(second["x"], STACKED[2])


@pytest.mark.parametrize("others", [[np.arange(3.0), np.arange(3.0)], [np.arange(3), np.arange(2)]])
def test_two_keys_of_one_member_are_two_arrays(server: ObjectServer, others: list[Any]) -> None:
    urls = [server.put(f"/{i}.npz", npz(x=array)) for i, array in enumerate(others)]
    samples = NpzDataset(urls, ["x", "x.npy"]).__getitems__([0, 1])
    samples[0]["x"].fill_(9)
    for sample, array in zip(samples, others, strict=True):
        assert np.array_equal(sample["x.npy"].numpy(), array)


def test_subsets_and_stacks_keep_the_batch(urls: list[str]) -> None:
    subset = Subset(NpyDataset(urls), [5, 2, 3])
    (batch,) = DataLoader(subset, 3, num_workers=1)
    assert is_from_worker(batch)
    assert torch.equal(batch, STACKED[[5, 2, 3]])
    stack: Dataset[Any] = StackDataset(NpyDataset(urls), NpyDataset(urls[::-1]))
    (pair,) = DataLoader(stack, COUNT, num_workers=1)
    assert all(is_from_worker(batch) for batch in pair)
    assert torch.equal(pair[1], STACKED.flip(0))


class TestConcat:
    def test_a_batch_over_datasets_is_one_fetch_into_one_tensor(
        self, server: ObjectServer, urls: list[str]
    ) -> None:
        both = concat([NpyDataset(urls[:3]), NpyDataset(urls[3:])])
        assert len(both) == COUNT
        server.hold_until(COUNT)  # answers nothing before all are asked for
        (batch,) = DataLoader(both, COUNT)
        assert torch.equal(batch, STACKED)
        (batch,) = DataLoader(both, COUNT, num_workers=1)
        assert is_from_worker(batch)
        assert torch.equal(batch, STACKED)

    def test_each_dataset_has_labels_and_a_transform_of_its_own(self, urls: list[str]) -> None:
        both = concat(
            [
                NpyDataset(urls[:3], labels=[0, 1, 2]),
                NpyDataset(urls[3:], labels=[3, 4, 5, 6], transform=halve),
            ]
        )
        samples = both.__getitems__([5, 0, -1, 2])
        assert [label for _, label in samples] == [5, 0, 6, 2]
        for (array, _), expected in zip(
            samples, [STACKED[5] // 2, STACKED[0], STACKED[6] // 2, STACKED[2]], strict=True
        ):
            assert torch.equal(array, expected)
        assert torch.equal(both[-1][0], STACKED[6] // 2)

    def test_datasets_of_other_kinds_give_their_parts_in_order(self, urls: list[str]) -> None:
        plain = [torch.full((50, 400), 1), torch.full((50, 400), 2)]
        mixed = concat([plain, NpyDataset(urls), NpyDataset(urls, dtype=torch.uint8)])  # type: ignore[list-item]
        samples = mixed.__getitems__([1, 3, 9, 0, 10])
        expected = [plain[1], STACKED[1], STACKED[0], plain[0], STACKED[1]]
        assert all(torch.equal(a, b) for a, b in zip(samples, expected, strict=True))

    @pytest.mark.parametrize("index", [COUNT, -COUNT - 1])
    def test_an_index_outside_is_an_index_error(self, urls: list[str], index: int) -> None:
        both = concat([NpyDataset(urls[:3]), NpyDataset(urls[3:])])
        with pytest.raises(IndexError, match=f"expected an index below 7 but found {index}"):
            both[index]
        with pytest.raises(IndexError, match=f"expected an index below 7 but found {index}"):
            both.__getitems__([0, index])

    def test_nothing_to_concatenate_is_a_value_error(self) -> None:
        with pytest.raises(ValueError, match="datasets: expected at least one but found none"):
            concat([])

    def test_an_iterable_dataset_is_a_value_error(self, urls: list[str]) -> None:
        class Stream(torch.utils.data.IterableDataset[Any]):
            def __iter__(self) -> Any:
                return iter(())

        with pytest.raises(
            ValueError, match=r"datasets\[1\]: expected a map-style .* found Stream"
        ):
            concat([NpyDataset(urls), Stream()])


def test_no_descriptor_left_is_an_error_with_a_remedy() -> None:
    code = textwrap.dedent("""
        import os, resource
        from torchnpy._ops import _C
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used - 1, used + 100))
        try:
            _C.allocate_shared(1000)
        except MemoryError as error:
            print(error)
    """)
    assert run_script(code) == (
        "expected 1000 bytes of shared memory for a batch but memfd_create failed: Too many open "
        "files; a smaller batch_size, prefetch_factor or num_workers takes less memory and fewer "
        "open files (ulimit -n)\n"
    )


# 1 MiB of it, in a mount namespace of its own; samples of 4 MB in all.
LITTLE_DEV_SHM = """
import ctypes, subprocess, sys
CLONE_NEWNS = 0x00020000
assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"], check=True)
from torch.utils.data import DataLoader
from torchnpy.data import NpyDataset

(batch,) = DataLoader(NpyDataset(sys.argv[1:]), 4, num_workers=1)
print(batch[:, 0].tolist())
try:
    list(DataLoader(NpyDataset(sys.argv[1:], transform=lambda x: x), 4, num_workers=1))
except RuntimeError as error:
    print(str(error).splitlines()[-1].partition(" for file")[0])
    error.__traceback__ = None
"""


@pytest.mark.skipif(not can_unshare("-m"), reason="needs root, for a /dev/shm of its own")
def test_batches_need_no_dev_shm_and_copies_that_do_not_fit_are_an_error_with_a_remedy(
    tmp_path: Path,
) -> None:
    urls = local(tmp_path, [np.full(1_000_000, i, np.uint8) for i in range(4)])
    with start_script(LITTLE_DEV_SHM, *urls) as script:
        status, out, err = script.finish()
    assert (status, out) == (
        0,
        "[0, 1, 2, 3]\nRuntimeError: unable to allocate shared memory(shm)\n",
    )
    assert err.startswith("/dev/shm: expected room for a batch of 4000000 bytes but found ")
    assert err.count("\n") == 1


def test_little_room_in_dev_shm_is_announced_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=4096))
    monkeypatch.setattr(collate, "get_worker_info", lambda: object())
    monkeypatch.setattr(collate, "_has_warned", False)
    samples = [(torch.zeros(1000), {"a": torch.zeros(100), "b": 3}), (torch.zeros(1000), {})]
    collate.warn_of_little_shared_memory(samples[1:])
    assert not caplog.records
    collate.warn_of_little_shared_memory(samples)
    collate.warn_of_little_shared_memory(samples)
    (record,) = caplog.records
    assert record.getMessage() == (
        "/dev/shm: expected room for a batch of 8400 bytes but found 4096; make it larger (docker "
        "run --shm-size, in Kubernetes an emptyDir of medium Memory), or use a smaller batch_size "
        "or prefetch_factor or fewer workers"
    )


def test_a_sample_that_could_not_lie_there_once_for_each_still_loads(tmp_path: Path) -> None:
    urls = local(tmp_path, [noise(30 << 20), *(noise(10, seed=i) for i in range(20))])
    # Twenty-one of the first would take 630 MiB; the address space ends before.
    script = """
        import resource, sys
        from torchnpy.data import NpyDataset
        dataset = NpyDataset(sys.argv[1:])
        dataset.__getitems__([1, 2])
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
        print([len(sample) for sample in dataset.__getitems__(range(len(dataset)))][:3])
    """
    assert run_script(script, *urls) == "[31457280, 10, 10]\n"

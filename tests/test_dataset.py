"""NpyDataset: samples, batches, labels; alone and under DataLoader."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from servers.http import ObjectServer, status
from servers.s3 import S3Server
from support import as_list, name_in, noise, npy
from torch.utils.data import DataLoader, Subset, random_split

import torchnpy as tnp
from torchnpy.data import NpyDataset

COUNT = 12
SAMPLES = [noise(3, 20, 30, seed=i) for i in range(COUNT)]
STACKED = torch.from_numpy(np.stack(SAMPLES))


@pytest.fixture
def urls(server: ObjectServer) -> list[str]:
    return [server.put(f"/train/{i:02}.npy", npy(sample)) for i, sample in enumerate(SAMPLES)]


def test_items_are_tensors_in_the_order_of_the_urls(urls: list[str]) -> None:
    dataset = NpyDataset(urls)
    assert len(dataset) == COUNT
    assert torch.equal(dataset[3], STACKED[3])
    assert torch.equal(dataset[-1], STACKED[-1])
    assert type(dataset[3]) is torch.Tensor


@pytest.mark.parametrize("index", [COUNT, -COUNT - 1])
def test_an_index_outside_is_an_index_error(urls: list[str], index: int) -> None:
    with pytest.raises(IndexError):
        NpyDataset(urls)[index]
    with pytest.raises(IndexError):
        NpyDataset(urls).__getitems__([0, index])


def test_iteration_ends(urls: list[str]) -> None:
    assert len(list(NpyDataset(urls))) == COUNT


def test_a_batch_is_asked_for_at_once(server: ObjectServer, urls: list[str]) -> None:
    server.hold_until(8)
    samples = NpyDataset(urls).__getitems__([7, 0, 1, 2, 3, 4, 5, 6])
    assert server.max_concurrent == 8
    assert len(samples) == 8
    assert torch.equal(samples[0], STACKED[7])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_batches_equal_numpys_stacking(urls: list[str], workers: int, batch_size: int) -> None:
    loader = DataLoader(NpyDataset(urls), batch_size, num_workers=workers)
    batches = list(loader)
    assert all(type(batch) is torch.Tensor for batch in batches)
    assert [len(batch) for batch in batches] == [
        min(batch_size, COUNT - i) for i in range(0, COUNT, batch_size)
    ]
    assert torch.equal(torch.cat(batches), STACKED)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_epoch_and_shuffling_give_every_sample(urls: list[str], workers: int) -> None:
    loader = DataLoader(
        NpyDataset(urls, labels=list(range(COUNT))),
        4,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    for _ in range(2):
        seen = []
        for batch, labels in loader:
            assert torch.equal(batch, STACKED[labels])
            seen += labels.tolist()
        assert sorted(seen) == list(range(COUNT))


def test_a_batch_may_be_written_to_and_kept(urls: list[str]) -> None:
    first, second = DataLoader(NpyDataset(urls), 6)
    first.zero_()
    assert torch.equal(second, STACKED[6:])


def test_samples_without_collating_are_independent_tensors(urls: list[str]) -> None:
    for sample, expected in zip(
        DataLoader(NpyDataset(urls), batch_size=None), STACKED, strict=True
    ):
        assert torch.equal(sample, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_may_be_a_sequence(urls: list[str], workers: int) -> None:
    labels = [10 * i for i in range(COUNT)]
    dataset = NpyDataset(urls, labels=labels)
    array, label = dataset[2]
    assert torch.equal(array, STACKED[2])
    assert int(label) == 20
    batches = list(DataLoader(dataset, 5, num_workers=workers))
    assert torch.equal(torch.cat([batch for batch, _ in batches]), STACKED)
    assert torch.cat([numbers for _, numbers in batches]).tolist() == labels


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_may_be_the_url_of_an_array(
    server: ObjectServer, urls: list[str], workers: int
) -> None:
    labels = noise(COUNT, 4)
    dataset = NpyDataset(urls, labels=server.put("/labels.npy", npy(labels)))
    assert torch.equal(dataset[-1][1], torch.from_numpy(labels[-1]))
    batches = list(DataLoader(dataset, 5, num_workers=workers))
    assert torch.equal(torch.cat([rows for _, rows in batches]), torch.from_numpy(labels))
    if workers == 0:
        assert len(server.requests_for("/labels.npy")) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_may_be_a_function_of_the_url(urls: list[str], workers: int) -> None:
    dataset = NpyDataset(urls, labels=name_in)
    assert dataset[5][1] == "05.npy"
    _, names = next(iter(DataLoader(dataset, 3, num_workers=workers)))
    assert list(names) == ["00.npy", "01.npy", "02.npy"]


def test_too_few_labels_are_a_value_error(server: ObjectServer, urls: list[str]) -> None:
    with pytest.raises(ValueError, match=r"labels.*12|12.*labels"):
        NpyDataset(urls, labels=[1, 2])
    few = server.put("/labels.npy", npy(np.zeros(5)))
    with pytest.raises(ValueError, match="labels"):
        NpyDataset(urls, labels=few)[0]


def halve(x: torch.Tensor) -> torch.Tensor:
    assert type(x) is torch.Tensor
    return x.float() / 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_sees_plain_tensors(urls: list[str], workers: int) -> None:
    dataset = NpyDataset(urls, transform=halve)
    assert torch.equal(dataset[1], STACKED[1] / 2)
    batches = list(DataLoader(dataset, 5, num_workers=workers))
    assert torch.equal(torch.cat(batches), STACKED / 2)


def test_dtype_names_the_bits(server: ObjectServer) -> None:
    expected = torch.randn(4, 5).bfloat16()
    rows = [row.view(torch.int16).numpy().view("V2") for row in expected]
    urls = [server.put(f"/{i}.npy", npy(row)) for i, row in enumerate(rows)]
    dataset = NpyDataset(urls, dtype=torch.bfloat16)
    assert torch.equal(dataset[0], expected[0])
    (batch,) = DataLoader(dataset, 4)
    assert torch.equal(batch, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_ragged_samples_come_as_they_are(server: ObjectServer, workers: int) -> None:
    arrays = [np.arange(i, dtype=np.float32) for i in range(6)]
    dataset = NpyDataset([server.put(f"/{i}.npy", npy(a)) for i, a in enumerate(arrays)])
    (samples,) = DataLoader(dataset, 6, num_workers=workers, collate_fn=as_list)
    assert [sample.tolist() for sample in samples] == [a.tolist() for a in arrays]
    with pytest.raises(RuntimeError, match="size"):
        next(iter(DataLoader(dataset, 6)))


def test_mixed_dtypes_and_orders_come_as_they_are(server: ObjectServer) -> None:
    arrays = [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        np.arange(6, dtype=">i4").reshape(2, 3),
    ]
    dataset = NpyDataset([server.put(f"/{i}.npy", npy(a)) for i, a in enumerate(arrays)])
    samples = dataset.__getitems__([0, 1, 2, 3])
    assert [sample.dtype for sample in samples] == [
        torch.int32,
        torch.int64,
        torch.int32,
        torch.int32,
    ]
    for sample in samples:
        assert sample.tolist() == [[0, 1, 2], [3, 4, 5]]
    (batch,) = DataLoader(Subset(dataset, [0, 2, 3]), 3)
    assert batch.tolist() == [[[0, 1, 2], [3, 4, 5]]] * 3


def test_records_are_dicts_of_batches(server: ObjectServer) -> None:
    record = np.zeros((), [("a", "<f4"), ("b", "<i2", (2,))])
    record["b"] = 7
    dataset = NpyDataset([server.put(f"/{i}.npy", npy(record)) for i in range(3)])
    (batch,) = DataLoader(dataset, 3)
    assert batch["a"].shape == (3,)
    assert batch["b"].tolist() == [[7, 7]] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_subsets_fetch_their_batches_at_once(
    server: ObjectServer, urls: list[str], workers: int
) -> None:
    parts = random_split(NpyDataset(urls), [8, 4], torch.Generator().manual_seed(0))
    server.hold_until(4)
    (batch,) = DataLoader(parts[1], 4, num_workers=workers)
    assert torch.equal(batch, STACKED[list(parts[1].indices)])
    assert server.max_concurrent == 4


def test_a_bad_object_is_named(server: ObjectServer, urls: list[str]) -> None:
    server.put("/train/03.npy", b"broken")
    server.always("/train/04.npy", status(404))
    dataset = NpyDataset(urls)
    with pytest.raises(tnp.FormatError, match=r"/train/03.npy"):
        dataset[3]
    with pytest.raises(FileNotFoundError, match=r"/train/04.npy"):
        dataset.__getitems__([4, 5])


def test_a_pickle_is_small_and_loads_the_same(urls: list[str]) -> None:
    dataset = NpyDataset(urls, labels=list(range(COUNT)), client=tnp.Client(retries=4))
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == COUNT
    assert torch.equal(copy[3][0], STACKED[3])
    many = NpyDataset([f"s3://bucket/train/{i:06}.npy" for i in range(10_000)])
    assert len(pickle.dumps(many)) < 10_000 * 50


def test_a_pickle_holds_no_resolved_credentials(s3_server: S3Server, s3_client: tnp.Client) -> None:
    url = s3_server.put_key("x.npy", npy(SAMPLES[0]))
    dataset = NpyDataset([url], client=s3_client)
    dataset[0]
    assert s3_server.keys["AKIDEXAMPLE"].secret.encode() not in pickle.dumps(dataset)
    assert s3_server.keys["AKIDEXAMPLE"].secret not in repr(dataset) + repr(s3_client)


def test_from_prefix_takes_the_arrays_in_order(s3_server: S3Server, s3_client: tnp.Client) -> None:
    s3_server.page_count = 5
    for i, sample in enumerate(SAMPLES):
        s3_server.put_key(f"train/{i:02}.npy", npy(sample))
    s3_server.put_key("train/README.txt", b"not an array")
    s3_server.put_key("test/00.npy", npy(SAMPLES[0]))
    dataset = NpyDataset.from_prefix("s3://bucket/train/", client=s3_client)
    assert len(dataset) == COUNT
    batches = list(DataLoader(dataset, 4, num_workers=2))
    assert torch.equal(torch.cat(batches), STACKED)


def test_from_prefix_takes_labels_and_a_transform(
    s3_server: S3Server, s3_client: tnp.Client
) -> None:
    for i, sample in enumerate(SAMPLES):
        s3_server.put_key(f"train/{i:02}.npy", npy(sample))
    labels = s3_server.put_key("labels.npy", npy(np.arange(COUNT)))
    dataset = NpyDataset.from_prefix(
        "s3://bucket/train/", labels=labels, transform=halve, client=s3_client
    )
    array, label = dataset[7]
    assert torch.equal(array, STACKED[7] / 2)
    assert int(label) == 7


def test_a_prefix_that_holds_nothing_says_so(s3_client: tnp.Client) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match="s3://bucket/none/"):
        NpyDataset.from_prefix("s3://bucket/none/", client=s3_client)


def test_local_files_are_a_dataset_too(tmp_path: Path) -> None:
    for i, sample in enumerate(SAMPLES):
        np.save(tmp_path / f"{i}.npy", sample)
    paths = [str(tmp_path / f"{i}.npy") for i in range(COUNT)]
    (batch,) = DataLoader(NpyDataset(paths), COUNT, num_workers=1)
    assert torch.equal(batch, STACKED)


def test_large_samples_survive_the_way_out_of_a_worker(server: ObjectServer) -> None:
    arrays = [noise(300, 1000, seed=i) for i in range(4)]
    urls = [server.put(f"/{i}.npy", npy(a)) for i, a in enumerate(arrays)]
    kept = list(DataLoader(NpyDataset(urls), 2, num_workers=2))
    assert torch.equal(torch.cat(kept), torch.from_numpy(np.stack(arrays)))


def test_a_batch_hands_one_storage_to_the_parent(urls: list[str]) -> None:
    (batch,) = DataLoader(NpyDataset(urls), COUNT, num_workers=1)
    assert batch.untyped_storage().nbytes() <= STACKED.nbytes + 4096
    assert batch.is_shared()

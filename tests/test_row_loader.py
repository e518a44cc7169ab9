"""NpyRowDataset among others: in other processes, from stores, under DataLoader."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import ObjectServer
from servers.s3 import S3Server
from support import noise, npy
from torch.utils.data import DataLoader, Subset, default_collate

import torchnpy as tnp
from torchnpy.data import NpyRowDataset, concat

ARRAY = noise(200, 3, 7)
LABELS = np.arange(200)


def as_numpy(samples: list[torch.Tensor]) -> np.ndarray:
    return np.stack([sample.numpy() for sample in samples])


def double(sample: Any) -> Any:
    return sample * 2


@pytest.fixture
def url(server: ObjectServer) -> str:
    return server.put("/x.npy", npy(ARRAY))


def test_a_pickle_is_small_and_knows_the_headers(server: ObjectServer, url: str) -> None:
    y = server.put("/y.npy", npy(ARRAY))
    dataset = NpyRowDataset({"x": url, "y": [y]}, client=tnp.Client(retries=4))
    dataset[0]
    data = pickle.dumps(dataset)
    assert len(data) < 2500
    copy = pickle.loads(data)
    server.requests.clear()
    assert len(copy) == 200
    assert not server.requests
    np.testing.assert_array_equal(copy[7]["y"].numpy(), ARRAY[7])
    assert len(server.requests) == 2


@pytest.mark.parametrize("cache", [False, True])
def test_rows_come_from_s3(
    s3_server: S3Server, s3_client: tnp.Client, tmp_path: Path, cache: bool
) -> None:
    for i in range(3):
        s3_server.put_key(f"train/{i}.npy", npy(noise(500, 100, seed=i)))
    s3_server.put_key("train/README.txt", b"not an array")
    client = s3_client
    if cache:
        kept = tnp.Cache(ram_nbytes=1 << 20, dir=tmp_path, disk_nbytes=1 << 24, fresh_s=60)
        client = tnp.Client(endpoint=s3_server.url, cache=kept)
    whole = np.concatenate([noise(500, 100, seed=i) for i in range(3)])
    indices = np.random.default_rng(0).integers(0, 1500, 64)
    dataset = NpyRowDataset.from_prefix("s3://bucket/train/", client=client)
    for _ in range(2):
        np.testing.assert_array_equal(as_numpy(dataset.__getitems__(indices)), whole[indices])
        dataset = pickle.loads(pickle.dumps(dataset))
    assert s3_server.keys["AKIDEXAMPLE"].secret.encode() not in pickle.dumps(dataset)
    with pytest.raises(ValueError, match="s3://bucket/none/"):
        NpyRowDataset.from_prefix("s3://bucket/none/", client=client)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_loader_gives_every_row_once(
    server: ObjectServer, url: str, workers: int
) -> None:
    dataset = NpyRowDataset({"x": url, "y": server.put("/y.npy", npy(LABELS))})
    loader = DataLoader(
        dataset, 32, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    for _ in range(2):
        batches = list(loader)
        assert [len(batch["y"]) for batch in batches] == [32] * 6 + [8]
        assert all(type(batch["x"]) is torch.Tensor for batch in batches)
        seen = torch.cat([batch["y"] for batch in batches])
        assert sorted(seen.tolist()) == LABELS.tolist()
        rows = torch.cat([batch["x"] for batch in batches])
        np.testing.assert_array_equal(rows.numpy(), ARRAY[seen.numpy()])


def test_rows_collate_to_their_batch_without_a_copy(url: str) -> None:
    rows = NpyRowDataset(url).__getitems__([5, 100, 5])
    batch = default_collate(rows)
    assert type(batch) is torch.Tensor
    assert batch.data_ptr() == rows[0].data_ptr()
    np.testing.assert_array_equal(batch.numpy(), ARRAY[[5, 100, 5]])


def test_a_batch_of_a_worker_is_one_shared_storage_a_column(server: ObjectServer, url: str) -> None:
    dataset = NpyRowDataset({"x": url, "y": server.put("/y.npy", npy(LABELS.astype(">i8")))})
    (batch,) = DataLoader(dataset, 200, num_workers=1)
    assert batch["x"].is_shared()
    assert batch["x"].untyped_storage().nbytes() == ARRAY.nbytes
    np.testing.assert_array_equal(batch["x"].numpy(), ARRAY)
    assert batch["y"].tolist() == LABELS.tolist()


def test_forked_workers_use_what_the_parent_knows(server: ObjectServer, url: str) -> None:
    dataset = NpyRowDataset(url)
    dataset[0]
    server.requests.clear()
    batches = list(DataLoader(dataset, 50, num_workers=1, multiprocessing_context="fork"))
    np.testing.assert_array_equal(torch.cat(batches).numpy(), ARRAY)
    assert len(server.requests) == 4


def test_a_transform_sees_tensors_of_its_own(url: str) -> None:
    kept = []

    def keep(sample: torch.Tensor) -> torch.Tensor:
        kept.append(sample)
        return sample + 1

    (batch,) = DataLoader(Subset(NpyRowDataset(url, transform=keep), [5, 9]), 2)
    np.testing.assert_array_equal(batch.numpy(), ARRAY[[5, 9]] + 1)
    assert all(type(sample) is torch.Tensor for sample in kept)
    assert all(sample.untyped_storage().nbytes() == 21 for sample in kept)
    assert torch.equal(NpyRowDataset(url, transform=double)[5], torch.from_numpy(ARRAY[5] * 2))


def test_row_datasets_are_concatenated_without_losing_their_batches(
    server: ObjectServer, url: str
) -> None:
    other = server.put("/y.npy", npy(ARRAY[:50] + 1))
    both = concat([NpyRowDataset(url), NpyRowDataset(other)])
    indices = [3, 249, 200, 199, 4]
    (batch,) = DataLoader(Subset(both, indices), 5)
    np.testing.assert_array_equal(batch.numpy(), np.concatenate([ARRAY, ARRAY[:50] + 1])[indices])

"""What is kept of a sample stays valid, and keeps no more than it must."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from owners import overwrite_free_memory
from servers.http import ObjectServer
from support import noise, npy, npz
from torch.utils.data import DataLoader

from torchnpy.data import NpyDataset, NpzDataset

COUNT = 6
SAMPLES = [noise(40, 1000, seed=i) for i in range(COUNT)]
NBYTES = SAMPLES[0].nbytes


def put(server: ObjectServer, kind: str) -> list[str]:
    if kind == "npy":
        return [server.put(f"/{i}.npy", npy(sample)) for i, sample in enumerate(SAMPLES)]
    return [
        server.put(f"/{i}.npz", npz(x=sample, deflate=kind == "deflated"))
        for i, sample in enumerate(SAMPLES)
    ]


class Keep:
    """A transform that keeps a view of each sample."""

    def __init__(self) -> None:
        self.views: list[torch.Tensor] = []

    def __call__(self, sample: Any) -> Any:
        self.views.append((sample["x"] if isinstance(sample, dict) else sample)[7])
        return sample


@pytest.mark.parametrize("kind", ["npy", "stored", "deflated"])
def test_a_view_that_a_transform_keeps_keeps_its_sample_alone(
    server: ObjectServer, kind: str
) -> None:
    keep = Keep()
    urls = put(server, kind)
    dataset = (NpyDataset if kind == "npy" else NpzDataset)(urls, transform=keep)
    for batch in DataLoader(dataset, 4):
        del batch
    del dataset
    gc.collect()
    overwrite_free_memory(NBYTES)
    for view, expected in zip(keep.views, SAMPLES, strict=True):
        assert np.array_equal(view.numpy(), expected[7])
        # The member's own header lies in front of a stored array.
        assert view.untyped_storage().nbytes() <= NBYTES + 256


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_view_of_a_local_sample_outlives_file_and_dataset(tmp_path: Path, kind: str) -> None:
    paths = [tmp_path / f"{i}.{kind}" for i in range(2)]
    large = [noise(400, 1000, seed=i) for i in range(2)]  # mapped
    for path, sample in zip(paths, large, strict=True):
        path.write_bytes(npy(sample) if kind == "npy" else npz(x=sample))
    keep = Keep()
    dataset = (NpyDataset if kind == "npy" else NpzDataset)(paths, transform=keep)
    list(DataLoader(dataset, 2))
    for path in paths:
        path.unlink()
    del dataset
    gc.collect()
    overwrite_free_memory(large[0].nbytes)
    for view, expected in zip(keep.views, large, strict=True):
        assert np.array_equal(view.numpy(), expected[7])


@pytest.mark.parametrize("kind", ["npy", "stored", "deflated"])
def test_a_view_of_a_row_keeps_the_batch(server: ObjectServer, kind: str) -> None:
    dataset = (NpyDataset if kind == "npy" else NpzDataset)(put(server, kind))
    rows = [
        row["x"] if isinstance(row, dict) else row for row in dataset.__getitems__(range(COUNT))
    ]
    view = rows[3][7]
    del rows, dataset
    gc.collect()
    overwrite_free_memory(COUNT * NBYTES)
    assert np.array_equal(view.numpy(), SAMPLES[3][7])
    assert view.untyped_storage().nbytes() == COUNT * NBYTES


def test_a_view_of_a_batch_from_a_worker_outlives_the_worker(server: ObjectServer) -> None:
    views = [batch[1, 7] for batch in DataLoader(NpyDataset(put(server, "npy")), 2, num_workers=1)]
    gc.collect()
    overwrite_free_memory(2 * NBYTES)
    for view, expected in zip(views, SAMPLES[1::2], strict=True):
        assert np.array_equal(view.numpy(), expected[7])


def test_the_last_row_may_die_on_another_thread(server: ObjectServer) -> None:
    rows = NpyDataset(put(server, "npy")).__getitems__(range(COUNT))
    thread = threading.Thread(target=rows.clear)
    thread.start()
    thread.join()
    assert rows == []

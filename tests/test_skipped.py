"""on_error="skip": what cannot be loaded is logged, counted and left out, up to a limit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import ObjectServer, damage, status
from support import error_of, noise, npy, npz
from torch.utils.data import DataLoader

import torchnpy as tnp
from torchnpy.data import NpyDataset, NpzDataset, concat

COUNT = 8
BAD = 5
SAMPLES = [noise(20, 30, seed=i) for i in range(COUNT)]
STACKED = torch.from_numpy(np.stack(SAMPLES))
GOOD = [i for i in range(COUNT) if i != BAD]


@pytest.fixture
def urls(server: ObjectServer) -> list[str]:
    """One of them is truncated."""
    contents = [npy(sample) for sample in SAMPLES]
    contents[BAD] = contents[BAD][:-1]
    return [server.put(f"/{i}.npy", content) for i, content in enumerate(contents)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_object_is_left_out_and_its_label_too(urls: list[str], workers: int) -> None:
    dataset = NpyDataset(urls, labels=list(range(COUNT)), on_error="skip")
    batches = list(DataLoader(dataset, 4, num_workers=workers))
    assert [len(labels) for _, labels in batches] == [4, 3]
    assert torch.cat([labels for _, labels in batches]).tolist() == GOOD
    assert torch.equal(torch.cat([batch for batch, _ in batches]), STACKED[GOOD])
    assert dataset.skipped == [urls[BAD]]


def test_a_batch_without_the_bad_one_is_still_one_tensor(urls: list[str]) -> None:
    rows = NpyDataset(urls, on_error="skip").__getitems__(range(COUNT))
    batch = torch.utils.data.default_collate(rows)
    assert torch.equal(batch, STACKED[GOOD])
    assert batch.data_ptr() == rows[0].data_ptr()


def test_skipping_is_logged_with_the_reason(
    urls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="torchnpy"):
        NpyDataset(urls, on_error="skip").__getitems__(range(COUNT))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"skipped a sample: {urls[BAD]}: expected 600 bytes of data (uint8, shape (20, 30)) but "
        "found 599; the file is truncated"
    )


def test_epochs_count_an_object_once(urls: list[str]) -> None:
    dataset = NpyDataset(urls, on_error="skip", max_skipped=1)
    for _ in range(3):
        assert sum(len(batch) for batch in DataLoader(dataset, 4)) == COUNT - 1
    assert dataset.skipped == [urls[BAD]]


def test_more_than_the_limit_raises_the_last_reason(server: ObjectServer, urls: list[str]) -> None:
    server.put("/0.npy", b"no array")
    dataset = NpyDataset(urls, on_error="skip", max_skipped=1)
    with pytest.raises(tnp.FormatError) as caught:
        list(DataLoader(dataset, 4))
    assert str(caught.value) == (
        f"{urls[BAD]}: expected 600 bytes of data (uint8, shape (20, 30)) but found 599; the file "
        "is truncated; 2 samples were skipped, more than max_skipped=1 allows"
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_the_limit(server: ObjectServer, urls: list[str], method: str) -> None:
    server.put("/0.npy", b"no array")  # another worker's batch
    dataset = NpyDataset(urls, on_error="skip", max_skipped=1)
    loader = DataLoader(dataset, 4, num_workers=2, multiprocessing_context=method)
    assert "2 samples were skipped, more than max_skipped=1" in error_of(loader, tnp.FormatError)
    assert dataset.skipped == [urls[0], urls[BAD]]


def test_a_batch_of_nothing_but_bad_objects_raises(urls: list[str]) -> None:
    dataset = NpyDataset(urls, on_error="skip")
    with pytest.raises(
        tnp.FormatError, match=r"/5\.npy: .*; all 2 samples of the batch were skipped"
    ):
        dataset.__getitems__([BAD, BAD])


def test_a_single_sample_raises(urls: list[str]) -> None:
    dataset = NpyDataset(urls, on_error="skip")
    with pytest.raises(tnp.FormatError, match=r"/5\.npy: expected 600 bytes"):
        dataset[BAD]
    assert dataset.skipped == []


def test_a_missing_object_is_skipped(server: ObjectServer, tmp_path: Path) -> None:
    np.save(tmp_path / "here.npy", SAMPLES[0])
    missing = [server.url + "/missing.npy", str(tmp_path / "missing.npy")]
    dataset = NpyDataset([*missing, str(tmp_path / "here.npy")], on_error="skip")
    (batch,) = DataLoader(dataset, 3)
    assert torch.equal(batch, STACKED[:1])
    assert dataset.skipped == missing


def test_an_object_that_the_server_cannot_give_is_skipped(
    server: ObjectServer, urls: list[str]
) -> None:
    server.always("/0.npy", status(403))
    dataset = NpyDataset(urls[:3], on_error="skip")
    assert len(dataset.__getitems__([0, 1, 2])) == 2


def test_archives_are_skipped_too(server: ObjectServer) -> None:
    urls = [
        server.put("/0.npz", npz(x=SAMPLES[0])),
        server.put("/1.npz", npz(y=SAMPLES[1])),  # lacks the member
        server.put("/2.npz", npz(x=SAMPLES[2])),
        server.put("/3.npz", b"no archive"),
        server.put("/4.npz", npz(x=SAMPLES[4])),
    ]
    server.always("/4.npz", damage(200))
    dataset = NpzDataset(urls, ["x"], on_error="skip")
    (batch,) = DataLoader(dataset, 5)
    assert torch.equal(batch["x"], STACKED[[0, 2]])
    assert dataset.skipped == [urls[1], urls[3], urls[4]]


def test_a_transforms_own_error_is_raised(urls: list[str]) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise tnp.FormatError("mine")

    with pytest.raises(tnp.FormatError, match=r"^mine$"):
        NpyDataset(urls, transform=fail, on_error="skip").__getitems__([0])


def test_a_wrong_dtype_argument_is_raised(urls: list[str]) -> None:
    dataset = NpyDataset(urls, dtype=torch.float32, on_error="skip")
    with pytest.raises(ValueError, match="dtype= does not cast"):
        dataset.__getitems__([0, 1])


def test_datasets_side_by_side_skip_each_for_itself(urls: list[str]) -> None:
    strict, lenient = NpyDataset(urls[:3]), NpyDataset(urls[3:], on_error="skip")
    both = concat([strict, lenient])
    assert torch.equal(torch.stack(both.__getitems__(range(COUNT))), STACKED[GOOD])
    assert lenient.skipped == [urls[BAD]]
    with pytest.raises(tnp.FormatError, match=r"/5\.npy: "):
        concat([NpyDataset(urls), NpyDataset(urls, on_error="skip")]).__getitems__([BAD, COUNT])


def test_without_skipping_the_first_failure_ends_the_batch(urls: list[str]) -> None:
    with pytest.raises(tnp.FormatError, match=r"/5\.npy: "):
        list(DataLoader(NpyDataset(urls), 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, 'on_error: expected "raise" or "skip" but found \'ignore\''),
        ({"max_skipped": 3}, 'max_skipped: expected on_error="skip" with it but found 3 alone'),
        (
            {"on_error": "skip", "max_skipped": -1},
            "max_skipped: expected 0 or more but found -1",
        ),
    ],
)
def test_wrong_options_are_value_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        NpyDataset(["a.npy"], **options)
    assert str(caught.value) == message

"""A dataset of one ``.npy`` a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.data.collate import rows_of
from torchnpy.data.samples import Labels, OnError, Reader, SampleDataset
from torchnpy.sources import Array, Url


@dataclass(frozen=True)
class ArrayReader(Reader):
    """Reads ``.npy``; together as rows of one tensor where dtypes and shapes agree."""

    dtype: torch.dtype | None

    def _read(
        self, client: _C.Client, urls: list[bytes], options: _C.BatchOptions
    ) -> tuple[list[Any], _C.Failures]:
        found, failures = _C.load_batch(client, urls, self.dtype, options)
        return rows_of(found) if isinstance(found, torch.Tensor) else found, failures


class NpyDataset(SampleDataset):
    """Arrays by URL, one ``.npy`` a sample, for a DataLoader.

    A batch is fetched concurrently: DataLoader asks for it at once. Arrays of one dtype and shape
    are written into the rows of one tensor as they arrive, which a DataLoader with its own collate
    hands over as the batch; from a worker in shared memory, so nothing is copied. What differs
    collates as always, and so does what a transform returns. Nothing is opened before the first
    sample is asked for, so the dataset forks, spawns and pickles small.

    Args:
        urls: One a sample; anything that load() takes by name.
        labels: One a sample in a sequence; or the URL of an array with one row a sample, loaded at
            first use; or a function of a sample's URL. Samples are then ``(array, label)``.
        transform: Applied to each array.
        dtype: See load_npy().
        on_error: "skip" logs what cannot be loaded and leaves it out of its batch, which is then
            smaller; ``skipped`` lists it. Not so for single samples (``dataset[i]``, which is how
            ConcatDataset and ``batch_size=None`` ask), and not for what a transform raises.
        max_skipped: When more different samples are skipped, in all workers together, the error
            is raised. Default: one in a hundred, at least ten.
        client: Default: the default client; a dataset that is pickled takes along its options.

    Raises:
        ValueError: There are not as many labels as samples; on_error or max_skipped is wrong.
    """

    _suffix = ".npy"

    def __init__(
        self,
        urls: Iterable[Url],
        *,
        labels: Labels | None = None,
        transform: Callable[[Array], Any] | None = None,
        dtype: torch.dtype | None = None,
        on_error: OnError = "raise",
        max_skipped: int | None = None,
        client: Client | None = None,
    ) -> None:
        super().__init__(
            urls,
            labels=labels,
            transform=transform,
            on_error=on_error,
            max_skipped=max_skipped,
            reader=ArrayReader(client, dtype),
        )

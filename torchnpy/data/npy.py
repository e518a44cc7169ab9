"""A dataset of one ``.npy`` a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from torchnpy.client import Client
from torchnpy.data.samples import Labels, SampleDataset
from torchnpy.io import load_many
from torchnpy.sources import Array, Url


class NpyDataset(SampleDataset):
    """Arrays by URL, one ``.npy`` a sample, for a DataLoader.

    A batch is fetched concurrently: DataLoader asks for it at once. Nothing is opened before the
    first sample is asked for, so the dataset forks, spawns and pickles small.

    Args:
        urls: One a sample; anything that load() takes by name.
        labels: One a sample in a sequence; or the URL of an array with one row a sample, loaded at
            first use; or a function of a sample's URL. Samples are then ``(array, label)``.
        transform: Applied to each array.
        dtype: See load_npy().
        client: Default: the default client; a dataset that is pickled takes along its options.

    Raises:
        ValueError: There are not as many labels as samples.
    """

    _suffix = ".npy"

    def __init__(
        self,
        urls: Iterable[Url],
        *,
        labels: Labels | None = None,
        transform: Callable[[Array], Any] | None = None,
        dtype: torch.dtype | None = None,
        client: Client | None = None,
    ) -> None:
        super().__init__(urls, labels=labels, transform=transform, client=client)
        self._dtype = dtype

    def _read(self, urls: list[str]) -> Sequence[Array]:
        return load_many(urls, dtype=self._dtype, client=self._client)

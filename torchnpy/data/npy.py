"""A dataset of one ``.npy`` a sample."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset

from torchnpy.client import Client, default_client
from torchnpy.io import Array, load, load_many

Labels: TypeAlias = Sequence[Any] | torch.Tensor | str | os.PathLike[str] | Callable[[str], Any]


class NpyDataset(Dataset[Any]):
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

    def __init__(
        self,
        urls: Sequence[str],
        *,
        labels: Labels | None = None,
        transform: Callable[[Array], Any] | None = None,
        dtype: torch.dtype | None = None,
        client: Client | None = None,
    ) -> None:
        self._urls = list(urls)
        if isinstance(labels, os.PathLike):
            labels = os.fspath(labels)
        self._labels = labels
        self._transform = transform
        self._dtype = dtype
        self._client = client
        if labels is not None and not isinstance(labels, str) and not callable(labels):
            self._check_label_count(len(labels))

    @classmethod
    def from_prefix(
        cls, prefix: str, *, suffix: str = ".npy", client: Client | None = None, **options: Any
    ) -> NpyDataset:
        """The objects below ``s3://bucket/prefix`` that end in ``suffix``, sorted by URL.

        Args:
            options: As the constructor takes them.

        Raises:
            ValueError: There is none.
            UnsupportedError, TransportError: See Client.list().
        """
        found = (client or default_client()).list(prefix, suffix=suffix)
        urls = sorted(entry.url for entry in found)
        if not urls:
            raise ValueError(
                f"expected objects below {prefix} that end in {suffix!r} but found none"
            )
        return cls(urls, client=client, **options)

    @property
    def urls(self) -> Sequence[str]:
        return self._urls

    def __len__(self) -> int:
        return len(self._urls)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples at ``indices``, fetched concurrently."""
        positions = [self._position(index) for index in indices]
        arrays = load_many(
            [self._urls[position] for position in positions],
            dtype=self._dtype,
            client=self._client,
        )
        return [
            self._make_sample(position, array)
            for position, array in zip(positions, arrays, strict=True)
        ]

    def _position(self, index: int) -> int:
        position = operator.index(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"expected an index below {len(self)} but found {index}")
        return position

    def _make_sample(self, position: int, array: Array) -> Any:
        sample = array if self._transform is None else self._transform(array)
        if self._labels is None:
            return sample
        return sample, self._label(position)

    def _label(self, position: int) -> Any:
        labels = self._labels
        if isinstance(labels, str):
            self._labels = labels = self._load_labels(labels)
        if callable(labels) and not isinstance(labels, torch.Tensor):
            return labels(self._urls[position])
        assert labels is not None
        return labels[position]

    def _load_labels(self, url: str) -> torch.Tensor:
        labels = load(url, client=self._client)
        if isinstance(labels, dict) or labels.dim() == 0:
            raise ValueError("labels: expected an array with one row a sample but found shape ()")
        self._check_label_count(len(labels))
        return labels

    def _check_label_count(self, count: int) -> None:
        if count != len(self._urls):
            raise ValueError(f"labels: expected {len(self._urls)}, one a sample, but found {count}")

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no other way to learn what the default client was.
        return {**self.__dict__, "_client": self._client or default_client()}

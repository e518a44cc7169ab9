"""What the datasets of one object a sample share: URLs, labels, a transform, pickling."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset

from torchnpy.client import Client, default_client
from torchnpy.data.listing import FromUrls
from torchnpy.data.urls import UrlList
from torchnpy.io import load
from torchnpy.sources import Url

Labels: TypeAlias = Sequence[Any] | torch.Tensor | str | os.PathLike[str] | Callable[[str], Any]


class SampleDataset(FromUrls, Dataset[Any], ABC):
    """One object a sample; a subclass says how a batch of objects is read.

    Nothing is opened before the first sample is asked for, so the dataset forks, spawns and
    pickles small.

    Args:
        urls: One a sample.
        labels: One a sample in a sequence; or the URL of an array with one row a sample, loaded at
            first use; or a function of a sample's URL. Samples are then ``(data, label)``.
        transform: Applied to what was read of each object.
        client: Default: the default client; a dataset that is pickled takes along its options.

    Raises:
        ValueError: There are not as many labels as samples.
    """

    def __init__(
        self,
        urls: Iterable[Url],
        *,
        labels: Labels | None,
        transform: Callable[[Any], Any] | None,
        client: Client | None,
    ) -> None:
        self._urls = UrlList(urls)
        if isinstance(labels, os.PathLike):
            labels = os.fspath(labels)
        self._labels = labels
        self._transform = transform
        self._client = client
        if labels is not None and not isinstance(labels, str) and not callable(labels):
            self._check_label_count(len(labels))

    @abstractmethod
    def _read(self, urls: list[str]) -> Sequence[Any]:
        """What is at the URLs, read concurrently, before the transform."""

    @property
    def urls(self) -> UrlList:
        return self._urls

    def __len__(self) -> int:
        return len(self._urls)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples at ``indices``, fetched concurrently."""
        positions = [self._position(index) for index in indices]
        found = self._read([self._urls[position] for position in positions])
        return [
            self._make_sample(position, data)
            for position, data in zip(positions, found, strict=True)
        ]

    def _position(self, index: int) -> int:
        position = operator.index(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"expected an index below {len(self)} but found {index}")
        return position

    def _make_sample(self, position: int, data: Any) -> Any:
        sample = data if self._transform is None else self._transform(data)
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
        if not isinstance(labels, torch.Tensor) or labels.dim() == 0:
            found = "shape ()" if isinstance(labels, torch.Tensor) else f"a {type(labels).__name__}"
            raise ValueError(f"labels: expected an array with one row a sample but found {found}")
        self._check_label_count(len(labels))
        return labels

    def _check_label_count(self, count: int) -> None:
        if count != len(self._urls):
            raise ValueError(f"labels: expected {len(self._urls)}, one a sample, but found {count}")

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no other way to learn what the default client was.
        return {**self.__dict__, "_client": self._client or default_client()}

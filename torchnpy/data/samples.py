"""What the datasets of one object a sample share: URLs, labels, a transform, pickling."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, TypeAlias

import torch
from torch.utils.data import Dataset, get_worker_info

from torchnpy._ops import _C
from torchnpy.client import Client, default_client
from torchnpy.data.collate import warn_of_little_shared_memory
from torchnpy.data.listing import FromUrls
from torchnpy.data.skipped import Skipped, refuse_empty_batch
from torchnpy.data.urls import UrlList
from torchnpy.io import load
from torchnpy.sources import Url, native

Labels: TypeAlias = Sequence[Any] | torch.Tensor | str | os.PathLike[str] | Callable[[str], Any]
OnError: TypeAlias = Literal["raise", "skip"]


@dataclass(frozen=True)
class Reader(ABC):
    """How objects are read, many at once. What equal readers read may go into one batch."""

    client: Client | None

    def read(
        self, urls: list[bytes], *, together: bool, keep_going: bool
    ) -> tuple[list[Any], _C.Failures]:
        """What is at the URLs, read concurrently, but for the failed ones; and their errors.

        Args:
            urls: As UrlList.encoded() gives them.
            together: Read into rows of one batch where that is possible; in a worker into memory
                that its parent can map.
            keep_going: An object that cannot be read does not end the others.
        """
        options = _C.BatchOptions(
            together=together, shared=get_worker_info() is not None, keep_going=keep_going
        )
        return self._read(native(self.client), urls, options)

    @abstractmethod
    def _read(
        self, client: _C.Client, urls: list[bytes], options: _C.BatchOptions
    ) -> tuple[list[Any], _C.Failures]: ...

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no other way to learn what the default client was.
        return {**self.__dict__, "client": self.client or default_client()}


class SampleDataset(FromUrls, Dataset[Any], ABC):
    """One object a sample; a subclass says how objects are read.

    Nothing is opened before the first sample is asked for, so the dataset forks, spawns and
    pickles small.

    Args:
        urls: One a sample.
        labels: One a sample in a sequence; or the URL of an array with one row a sample, loaded at
            first use; or a function of a sample's URL. Samples are then ``(data, label)``.
        transform: Applied to what was read of each object.
        on_error: "skip" leaves out of its batch what cannot be loaded.
        max_skipped: So many different samples may be skipped. Default: one in a hundred, at least
            ten.

    Raises:
        ValueError: There are not as many labels as samples; on_error or max_skipped is wrong.
    """

    def __init__(
        self,
        urls: Iterable[Url],
        *,
        labels: Labels | None,
        transform: Callable[[Any], Any] | None,
        on_error: OnError,
        max_skipped: int | None,
        reader: Reader,
    ) -> None:
        self._urls = UrlList(urls)
        if isinstance(labels, os.PathLike):
            labels = os.fspath(labels)
        self._labels = labels
        self._transform = transform
        self._reader = reader
        self._skipped = _make_skipped(on_error, max_skipped, len(self._urls))
        if labels is not None and not isinstance(labels, str) and not callable(labels):
            self._check_label_count(len(labels))

    @property
    def urls(self) -> UrlList:
        return self._urls

    @property
    def skipped(self) -> list[str]:
        """URLs that ``on_error="skip"`` left out so far, here and in workers, in their order."""
        if self._skipped is None:
            return []
        return [self._urls[position] for position in self._skipped.positions()]

    def __len__(self) -> int:
        return len(self._urls)

    def __getitem__(self, index: int) -> Any:
        """One sample, in memory of its own. Raises also with ``on_error="skip"``."""
        position = resolve_index(index, len(self))
        urls = self._urls.encoded((position,))
        (data,), _ = self._reader.read(urls, together=False, keep_going=False)
        return self._make_sample(position, data)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples of a batch, fetched concurrently, in one tensor where they agree."""
        places = [(self, resolve_index(index, len(self))) for index in indices]
        samples = [sample for _, sample in read_samples(places)]
        warn_of_little_shared_memory(samples)
        return samples

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
        labels = load(url, client=self._reader.client)
        if not isinstance(labels, torch.Tensor) or labels.dim() == 0:
            found = "shape ()" if isinstance(labels, torch.Tensor) else f"a {type(labels).__name__}"
            raise ValueError(f"labels: expected an array with one row a sample but found {found}")
        self._check_label_count(len(labels))
        return labels

    def _check_label_count(self, count: int) -> None:
        if count != len(self._urls):
            raise ValueError(f"labels: expected {len(self._urls)}, one a sample, but found {count}")


def resolve_index(index: int, count: int) -> int:
    """The position among ``count`` that an index, which may be negative, stands for.

    Raises:
        IndexError: It lies outside.
    """
    position = operator.index(index)
    if position < 0:
        position += count
    if not 0 <= position < count:
        raise IndexError(f"expected an index below {count} but found {index}")
    return position


def read_samples(places: Sequence[tuple[SampleDataset, int]]) -> list[tuple[int, Any]]:
    """The samples at positions of datasets with equal readers, fetched concurrently.

    Returns:
        Each with its index in ``places``, in their order; skipped ones are missing.

    Raises:
        As the reader does.
    """
    if not places:
        return []
    urls: list[bytes] = []
    for dataset, run in groupby(places, key=lambda place: place[0]):
        urls += dataset._urls.encoded([position for _, position in run])
    found, failures = places[0][0]._reader.read(
        urls,
        # A transform may keep what it sees, and must not keep the batch.
        together=all(dataset._transform is None for dataset, _ in places),
        keep_going=any(dataset._skipped is not None for dataset, _ in places),
    )
    for index, error in failures:
        dataset, position = places[index]
        if dataset._skipped is None:
            raise error
        dataset._skipped.add(position, error)
    if failures and not found:
        refuse_empty_batch(failures[0][1], len(places))
    failed = {index for index, _ in failures}
    loaded = [index for index in range(len(places)) if index not in failed]
    return [
        (index, places[index][0]._make_sample(places[index][1], data))
        for index, data in zip(loaded, found, strict=True)
    ]


def _make_skipped(on_error: OnError, max_skipped: int | None, count: int) -> Skipped | None:
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error: expected "raise" or "skip" but found {on_error!r}')
    if on_error == "raise":
        if max_skipped is not None:
            raise ValueError(
                f'max_skipped: expected on_error="skip" with it but found {max_skipped!r} alone'
            )
        return None
    limit = max(10, count // 100) if max_skipped is None else operator.index(max_skipped)
    if limit < 0:
        raise ValueError(f"max_skipped: expected 0 or more but found {limit}")
    return Skipped(count, limit)

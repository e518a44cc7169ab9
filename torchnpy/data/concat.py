"""Data sets one after another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, IterableDataset

from torchnpy.data.samples import SampleDataset, read_samples, resolve_index


def concat(datasets: Iterable[Dataset[Any]]) -> ConcatDataset[Any]:
    """Map-style datasets one after another: torch's ConcatDataset, but batches stay batches.

    torch's asks for one sample at a time. This one fetches what a batch wants of NpyDatasets with
    the same options, whatever their labels and transforms, concurrently and into one tensor where
    the samples agree; of NpzDatasets likewise. Of others, each gives its part of the batch at once
    if it can.

    Raises:
        ValueError: There is no dataset, or one of them is iterable-style.
    """
    listed = list(datasets)
    if not listed:
        raise ValueError("datasets: expected at least one but found none")
    for index, dataset in enumerate(listed):
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"datasets[{index}]: expected a map-style dataset with a length but found "
                f"{type(dataset).__name__}"
            )
    return _Concat(listed)


class _Concat(ConcatDataset[Any]):
    def __getitem__(self, index: int) -> Any:
        dataset, position = self._place(index)
        return dataset[position]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        # What is read at once, and where in the batch it goes.
        parts: dict[Any, tuple[list[tuple[Any, int]], list[int]]] = {}
        for order, index in enumerate(indices):
            dataset, position = self._place(index)
            key = dataset._reader if isinstance(dataset, SampleDataset) else id(dataset)
            places, orders = parts.setdefault(key, ([], []))
            places.append((dataset, position))
            orders.append(order)
        found: list[tuple[int, Any]] = []
        for places, orders in parts.values():
            found += [(orders[index], sample) for index, sample in _read(places)]
        return [sample for _, sample in sorted(found, key=lambda item: item[0])]

    def _place(self, index: int) -> tuple[Any, int]:
        position = resolve_index(index, len(self))
        number = bisect_right(self.cumulative_sizes, position)
        before = self.cumulative_sizes[number - 1] if number else 0
        return self.datasets[number], position - before


def _read(places: list[tuple[Any, int]]) -> Iterable[tuple[int, Any]]:
    """The samples and their indices in ``places``; skipped ones are missing."""
    dataset = places[0][0]
    if isinstance(dataset, SampleDataset):
        return read_samples(places)
    positions = [position for _, position in places]
    if not callable(getattr(dataset, "__getitems__", None)):
        return enumerate([dataset[position] for position in positions])
    samples = dataset.__getitems__(positions)
    if len(samples) != len(positions):
        raise ValueError(
            f"expected {len(positions)} samples of {type(dataset).__name__} but found "
            f"{len(samples)}"
        )
    return enumerate(samples)

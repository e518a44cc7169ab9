"""Samples that lie side by side in one batch, and how the default collate takes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, SupportsIndex

import torch
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map


class BatchRow(torch.Tensor):
    """A sample that is a row of a batch, and shares its memory.

    The rows of a batch, all and in order, collate to the batch itself, without a copy. What is
    computed from a row is a plain tensor; a copy or a pickle holds the row alone.
    """

    _batch: torch.Tensor
    _index: int

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return copy.deepcopy(self.as_subclass(torch.Tensor), memo)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self.clone().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def rows_of(batch: torch.Tensor) -> list[torch.Tensor]:
    """The samples of ``batch``, one a row, which the default collate makes ``batch`` again."""
    rows: list[torch.Tensor] = []
    for index, view in enumerate(batch.unbind()):
        row = view.as_subclass(BatchRow)
        row._batch = batch
        row._index = index
        rows.append(row)
    return rows


def plain(sample: torch.Tensor) -> torch.Tensor:
    """The sample as a tensor that is no BatchRow."""
    return sample.as_subclass(torch.Tensor) if isinstance(sample, BatchRow) else sample


def _collate_rows(
    samples: Sequence[torch.Tensor], *, collate_fn_map: dict[Any, Callable[..., Any]] | None = None
) -> Any:
    batch = getattr(samples[0], "_batch", None)
    is_all = isinstance(batch, torch.Tensor) and len(samples) == len(batch)
    if is_all and all(
        type(sample) is BatchRow and sample._batch is batch and sample._index == index
        for index, sample in enumerate(samples)
    ):
        return batch
    tensors = [plain(sample) for sample in samples]
    return collate_tensor_fn(tensors, collate_fn_map=collate_fn_map)


default_collate_fn_map[BatchRow] = _collate_rows
# From a worker a row goes as other tensors do: its memory is shared.
ForkingPickler.register(
    BatchRow,
    lambda row: reduce_tensor(row.as_subclass(torch.Tensor)),  # type: ignore[no-untyped-call]
)

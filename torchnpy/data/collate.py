"""Samples that lie side by side in one batch, and how the default collate takes them."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, SupportsIndex

import torch
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data import get_worker_info
from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map

from torchnpy._ops import _C

_logger = logging.getLogger("torchnpy")
_has_warned = False  # in this process


class BatchRow(torch.Tensor):
    """A sample that is a row of a batch, and shares its memory.

    The rows of a batch, all and in order, collate to the batch itself, without a copy. What is
    computed from a row is a plain tensor; a copy or a pickle holds the row alone.
    """

    _batch: torch.Tensor  # of the first row alone: enough to know all of them by

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return copy.deepcopy(self.as_subclass(torch.Tensor), memo)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self.clone().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def rows_of(batch: torch.Tensor) -> list[torch.Tensor]:
    """The samples of ``batch``, one a row, which the default collate makes ``batch`` again."""
    rows = _C.split_rows(batch, BatchRow)
    if rows:
        rows[0]._batch = batch
    return list(rows)


def _collate_rows(
    samples: Sequence[torch.Tensor], *, collate_fn_map: dict[Any, Callable[..., Any]] | None = None
) -> Any:
    batch = getattr(samples[0], "_batch", None)
    if batch is not None and _C.are_rows(batch, samples, BatchRow):
        return batch
    tensors = [
        sample.as_subclass(torch.Tensor) if isinstance(sample, BatchRow) else sample
        for sample in samples
    ]
    return collate_tensor_fn(tensors, collate_fn_map=collate_fn_map)


default_collate_fn_map[BatchRow] = _collate_rows
# From a worker a row goes as other tensors do: its memory is shared.
ForkingPickler.register(
    BatchRow,
    lambda row: reduce_tensor(row.as_subclass(torch.Tensor)),  # type: ignore[no-untyped-call]
)


def warn_of_little_shared_memory(samples: Sequence[Any]) -> None:
    """Says in a worker, once, what helps if the default collate finds too little of /dev/shm."""
    global _has_warned
    if _has_warned or get_worker_info() is None:
        return
    wanted = sum(map(_nbytes_to_copy, samples))
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return
    free = status.f_bavail * status.f_frsize
    if wanted > free:
        _has_warned = True
        _logger.warning(
            "/dev/shm: expected room for a batch of %d bytes but found %d; make it larger "
            "(docker run --shm-size, in Kubernetes an emptyDir of medium Memory), or use a smaller "
            "batch_size or prefetch_factor or fewer workers",
            wanted,
            free,
        )


def _nbytes_to_copy(sample: Any) -> int:
    """Bytes of its tensors, but for rows of a batch."""
    if isinstance(sample, torch.Tensor):
        return 0 if isinstance(sample, BatchRow) else sample.nbytes
    if isinstance(sample, dict):
        return sum(map(_nbytes_to_copy, sample.values()))
    if isinstance(sample, tuple | list):
        return sum(map(_nbytes_to_copy, sample))
    return 0

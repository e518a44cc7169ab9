"""Objects that could not be loaded and were left out."""

from __future__ import annotations

import logging

import torch

from torchnpy._ops import _C

_logger = logging.getLogger("torchnpy")


class Skipped:
    """Which of ``count`` samples were skipped: known to a loader's parent and all its workers.

    Args:
        count: Samples.
        limit: So many different ones may be skipped.
    """

    def __init__(self, count: int, limit: int) -> None:
        self._limit = limit
        # One byte a sample, in memory that workers share whether they are forked or spawned. Each
        # writes nothing but ones, so no lock is needed.
        self._marks: torch.Tensor = _C.allocate_shared(count)

    def positions(self) -> list[int]:
        return [position for position, mark in enumerate(self._marks.tolist()) if mark]

    def add(self, position: int, error: Exception) -> None:
        """Raises ``error`` when too many samples were skipped."""
        self._marks[position] = 1
        count = _C.count_nonzero(self._marks)
        if count > self._limit:
            raise _extend(
                error, f"{count} samples were skipped, more than max_skipped={self._limit} allows"
            ) from error
        _logger.warning("skipped a sample: %s", error)


def refuse_empty_batch(error: Exception, count: int) -> None:
    """Raises ``error`` of one of ``count`` samples, all of which were skipped."""
    raise _extend(error, f"all {count} samples of the batch were skipped") from error


def _extend(error: Exception, words: str) -> Exception:
    # The classes that are skipped are made from one text.
    return type(error)(f"{error.args[0]}; {words}")

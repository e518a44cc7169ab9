"""What the processes of a stream share: the epoch, who has resumed, and the shards' headers."""

from __future__ import annotations

from array import array
from itertools import accumulate
from typing import Any

import torch

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.data.stream_reader import Shard
from torchnpy.data.urls import UrlList
from torchnpy.sources import native

# Workers of one DataLoader.
MAX_WORKERS = 1024

_HEADERS_AT_ONCE = 1024
_EPOCH, _TICKET, _WORKERS_BEGUN, _TICKET_NUMBERS, _FIRST_SLOT = range(5)


class Board:
    """In shared memory, so that workers that live through several epochs see what the parent
    writes, and later workers what earlier ones found out. Words are written whole, each by one
    process or the same by all.

    A dataset that is pickled into a worker shares its board; other copies get one of their own.
    """

    def __init__(self, shard_count: int) -> None:
        self._words = _allocate(_FIRST_SLOT + MAX_WORKERS)
        # Of each shard: rows + 1, or 0 while they are not known; twice the bytes of a row, and one
        # more when it can only be read whole.
        self._headers = _allocate(2 * shard_count).view(shard_count, 2)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._words = _share(state["_words"])
        self._headers = _share(state["_headers"])

    @property
    def epoch(self) -> int:
        return int(self._words[_EPOCH])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._words[_EPOCH] = epoch

    @property
    def has_workers(self) -> bool:
        """Whether workers have begun this epoch."""
        return bool(self._words[_WORKERS_BEGUN])

    @has_workers.setter
    def has_workers(self, begun: bool) -> None:
        self._words[_WORKERS_BEGUN] = begun

    @property
    def ticket(self) -> int:
        """Number of the state that the parent has loaded for the next iteration; 0: none."""
        return int(self._words[_TICKET])

    def issue_ticket(self) -> int:
        self._words[_TICKET_NUMBERS] += 1
        self._words[_TICKET] = self._words[_TICKET_NUMBERS]
        return self.ticket

    def withdraw_ticket(self) -> None:
        self._words[_TICKET] = 0

    def use_ticket(self, worker: int) -> bool:
        """True the first time that a worker of this number, below MAX_WORKERS, asks with this
        ticket."""
        slot = _FIRST_SLOT + worker
        if self._words[slot] == self._words[_TICKET]:
            return False
        self._words[slot] = self._words[_TICKET]
        return True

    def read_headers(
        self, urls: UrlList, client: Client | None, *, share: int = 0, share_count: int = 1
    ) -> None:
        """Finds out the headers that nobody has yet; begins with this process's share of them, so
        that others that do the same meanwhile read others.

        Raises:
            ValueError: A shard has the shape (), and so no rows.
            TransportError, FormatError: See header().
        """
        starts = range(0, len(urls), _HEADERS_AT_ONCE)
        first = len(starts) * share // share_count
        for start in [*starts[first:], *starts[:first]]:
            known = self._headers[start : start + _HEADERS_AT_ONCE, 0].tolist()
            missing = [start + place for place, count in enumerate(known) if count == 0]
            if missing:
                names = urls.encoded(missing)
                found = _C.headers(native(client), names)
                for shard, name, (_, _, shape, fortran_order, _, nbytes, _, _) in zip(
                    missing, names, found, strict=True
                ):
                    if not shape:
                        raise ValueError(
                            f"{_C.display_name(name)}: expected an array with rows but found one "
                            "of shape ()"
                        )
                    row_nbytes = nbytes // shape[0] if shape[0] else 0
                    is_whole = fortran_order and len(shape) > 1
                    self._headers[shard, 1] = 2 * row_nbytes + is_whole
                    self._headers[shard, 0] = shape[0] + 1

    def row_offsets(self) -> array[int]:
        """Of each shard the number of its first row, then that of all rows."""
        counts = array("q", self._headers[:, 0].tolist())
        return array("q", accumulate((count - 1 for count in counts), initial=0))

    def find(self, shard: int) -> Shard:
        count, code = self._headers[shard].tolist()
        return Shard(count - 1, code // 2, bool(code % 2))


def _allocate(word_count: int) -> torch.Tensor:
    """Zeros, int64, in shared memory."""
    return _C.allocate_shared(8 * word_count).view(torch.int64)


def _share(words: torch.Tensor) -> torch.Tensor:
    if words.is_shared():  # type: ignore[no-untyped-call]
        return words
    return _allocate(words.numel()).view(words.shape).copy_(words)

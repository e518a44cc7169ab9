"""A dataset of one ``.npz`` a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.data.collate import rows_of
from torchnpy.data.samples import Labels, OnError, Reader, SampleDataset
from torchnpy.npz import check_names
from torchnpy.sources import Array, Url


@dataclass(frozen=True)
class ArchiveReader(Reader):
    """Reads members of ``.npz``; together each member as rows of one tensor where they agree."""

    members: tuple[str, ...] | None
    verify: bool

    def _read(
        self, client: _C.Client, urls: list[bytes], options: _C.BatchOptions
    ) -> tuple[list[Any], _C.Failures]:
        keys = None if self.members is None else check_names(self.members)
        found, failures = _C.load_npz_batch(client, urls, keys, self.verify, options)
        if isinstance(found, list):
            return found, failures
        columns = {
            key: rows_of(column) if isinstance(column, torch.Tensor) else column
            for key, column in found.items()
        }
        samples = zip(*columns.values(), strict=True)
        return [dict(zip(columns, sample, strict=True)) for sample in samples], failures


class NpzDataset(SampleDataset):
    """Archives by URL, one ``.npz`` a sample, for a DataLoader. A sample is a dict of arrays.

    A batch is fetched and inflated concurrently: DataLoader asks for it at once. Of a remote
    archive only the members asked for are fetched, besides its last 64 KiB, which hold the
    directory. An archive without one of them is a KeyError that names both. Members that agree in
    dtype and shape go into the rows of one tensor, as the arrays of NpyDataset do. Nothing is
    opened before the first sample is asked for, so the dataset forks, spawns and pickles small.

    Args:
        urls: One a sample; anything that open_npz() takes by name.
        members: Names of the members to load, ``"x"`` or ``"x.npy"``; a sample has them as its
            keys, in this order. Default: all, in each archive's order.
        labels: One a sample in a sequence; or the URL of an array with one row a sample, loaded at
            first use; or a function of a sample's URL. Samples are then ``(dict, label)``.
        transform: Applied to each dict.
        verify: False does not check the members' CRC-32.
        on_error: "skip" logs what cannot be loaded and leaves it out of its batch, which is then
            smaller; ``skipped`` lists it. Not so for single samples (``dataset[i]``, which is how
            ConcatDataset and ``batch_size=None`` ask), and not for what a transform raises.
        max_skipped: When more different samples are skipped, in all workers together, the error
            is raised. Default: one in a hundred, at least ten.
        client: Default: the default client; a dataset that is pickled takes along its options.

    Raises:
        ValueError: There are not as many labels as samples; on_error or max_skipped is wrong;
            ``members`` is one string, is empty, or names a member twice.
    """

    _suffix = ".npz"

    def __init__(
        self,
        urls: Iterable[Url],
        members: Sequence[str] | None = None,
        *,
        labels: Labels | None = None,
        transform: Callable[[dict[str, Array]], Any] | None = None,
        verify: bool = True,
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
            reader=ArchiveReader(
                client, None if members is None else _check_members(members), verify
            ),
        )


def _check_members(members: Sequence[str]) -> tuple[str, ...]:
    if isinstance(members, str):
        raise ValueError(
            f"members: expected a sequence of names but found a string; write [{members!r}]"
        )
    names = list(members)
    if not names:
        raise ValueError("members: expected names but found none; None takes all members")
    for position, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"members: expected names, which are strings, but found {name!r}")
        if name in names[:position]:
            raise ValueError(f"members: expected each name once but found {name!r} twice")
    return tuple(names)

"""A dataset of one ``.npz`` a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torchnpy.client import Client
from torchnpy.data.samples import Labels, SampleDataset
from torchnpy.npz import read_many
from torchnpy.sources import Array, Url


class NpzDataset(SampleDataset):
    """Archives by URL, one ``.npz`` a sample, for a DataLoader. A sample is a dict of arrays.

    A batch is fetched and inflated concurrently: DataLoader asks for it at once. Of a remote
    archive only the members asked for are fetched, besides its last 64 KiB, which hold the
    directory. An archive without one of them is a KeyError that names both. Nothing is opened
    before the first sample is asked for, so the dataset forks, spawns and pickles small.

    Args:
        urls: One a sample; anything that open_npz() takes by name.
        members: Names of the members to load, ``"x"`` or ``"x.npy"``; a sample has them as its
            keys, in this order. Default: all, in each archive's order.
        labels: One a sample in a sequence; or the URL of an array with one row a sample, loaded at
            first use; or a function of a sample's URL. Samples are then ``(dict, label)``.
        transform: Applied to each dict.
        verify: False does not check the members' CRC-32.
        client: Default: the default client; a dataset that is pickled takes along its options.

    Raises:
        ValueError: There are not as many labels as samples; ``members`` is one string, is empty,
            or names a member twice.
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
        client: Client | None = None,
    ) -> None:
        super().__init__(urls, labels=labels, transform=transform, client=client)
        self._members = None if members is None else _check_members(members)
        self._verify = verify

    def _read(self, urls: list[str]) -> Sequence[dict[str, Array]]:
        return read_many(urls, self._members, verify=self._verify, client=self._client)


def _check_members(members: Sequence[str]) -> list[str]:
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
    return names

"""Many URLs in little memory, which workers share."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, overload

import torch

from torchnpy._ops import _C
from torchnpy.sources import Url, decode, encode

_REPR_COUNT = 3
_ITERATION_COUNT = 1024


class UrlList(Sequence[str]):
    """An immutable list of URLs and paths, in two tensors: their bytes, and where each begins.

    A million str would be copied to each spawned worker through a pipe, and page by page into each
    forked one, because reading an object counts a reference. Of this list forks copy nothing,
    spawned workers get a handle of shared memory, and it takes the URLs' bytes and 8 each.

    Args:
        urls: str or path-like objects. A path comes back as a str.

    Raises:
        ValueError: One of them is neither, or is empty; the message names its position. Or ``urls``
            is one URL.
    """

    __slots__ = ("_blob", "_offsets")
    _blob: torch.Tensor
    _offsets: torch.Tensor

    def __init__(self, urls: Iterable[Url]) -> None:
        if isinstance(urls, str | bytes | os.PathLike):
            raise ValueError(
                f"urls: expected a list of URLs but found one {type(urls).__name__}; write [url]"
            )
        if isinstance(urls, UrlList):
            self._blob, self._offsets = urls._blob, urls._offsets
        else:
            self._blob, self._offsets = _C.pack_texts(iter(urls), _encode_item)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the list takes."""
        return int(self._blob.nbytes + self._offsets.nbytes)

    def encoded(self, positions: Iterable[int]) -> list[bytes]:
        """The URLs at ``positions``, none of them negative, as the library's native part takes
        them: see torchnpy.sources.encode().

        Raises:
            ValueError: A position is outside of the list.
        """
        return _C.slice_texts(self._blob, self._offsets, positions)

    def __len__(self) -> int:
        return int(self._offsets.numel()) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> UrlList: ...
    def __getitem__(self, index: int | slice) -> str | UrlList:
        if isinstance(index, slice):
            return UrlList(self._iterate(range(*index.indices(len(self)))))
        position = operator.index(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"expected an index below {len(self)} but found {index}")
        return decode(self.encoded((position,))[0])

    def __iter__(self) -> Iterator[str]:
        return self._iterate(range(len(self)))

    def _iterate(self, positions: range) -> Iterator[str]:
        for begin in range(0, len(positions), _ITERATION_COUNT):
            yield from map(decode, self.encoded(positions[begin : begin + _ITERATION_COUNT]))

    def __eq__(self, other: object) -> bool:
        """With another list or tuple of URLs, too."""
        if not isinstance(other, UrlList | list | tuple):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as list

    def __repr__(self) -> str:
        names = [_C.display_name(url) for url in self.encoded(range(min(_REPR_COUNT, len(self))))]
        shown = ", ".join(map(repr, names)) + (", ..." if len(self) > _REPR_COUNT else "")
        return f"UrlList([{shown}], count={len(self)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._blob, self._offsets)


def _encode_item(position: int, url: Any) -> bytes:
    found = type(url).__name__
    if isinstance(url, str | os.PathLike):
        name = os.fspath(url)
        try:
            if isinstance(name, str) and name:
                return encode(name)
            found = "an empty string" if isinstance(name, str) else f"{found} of bytes"
        except UnicodeEncodeError as error:
            found = f"the code point U+{ord(name[error.start]):04X}, which has no encoding"
    raise ValueError(
        f"urls[{position}]: expected a URL or a path (str or os.PathLike) but found {found}"
    )


def _restore(blob: torch.Tensor, offsets: torch.Tensor) -> UrlList:
    urls = UrlList.__new__(UrlList)
    urls._blob, urls._offsets = blob, offsets
    return urls


def _reduce_for_worker(urls: UrlList) -> tuple[Any, ...]:
    # Not in /dev/shm, where torch would put them: containers have 64 MiB there.
    urls._blob, urls._offsets = _shared(urls._blob), _shared(urls._offsets)
    return urls.__reduce__()


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.numel() or tensor.is_shared():  # type: ignore[no-untyped-call]
        return tensor
    return _C.allocate_shared(tensor.nbytes).view(tensor.dtype).copy_(tensor)


ForkingPickler.register(UrlList, _reduce_for_worker)

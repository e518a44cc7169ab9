"""Arrays as text: the last axis on a line."""

from __future__ import annotations

from typing import BinaryIO

import torch

from torchnpy.client import Client
from torchnpy.sources import Array
from torchnpy.text import savetxt


def write_text(
    target: str | BinaryIO,
    array: Array,
    *,
    delimiter: str,
    fmt: str | None = None,
    client: Client | None = None,
) -> None:
    """As torchnpy.savetxt(), of any number of axes; by default with all digits that tell the
    number from its neighbours."""
    if isinstance(array, dict):
        formats: str | list[str] = [fmt or _format_of(field) for field in array.values()]
    else:
        formats = fmt or _format_of(array)
        if array.dim() not in (1, 2):
            array = array.reshape(-1, array.shape[-1] if array.dim() else 1)
    savetxt(target, array, formats, delimiter, encoding="utf-8", client=client)


def _format_of(array: torch.Tensor) -> str:
    if not (array.dtype.is_floating_point or array.dtype.is_complex):
        return "%d"
    return "%.17g" if array.dtype in (torch.float64, torch.complex128) else "%.9g"

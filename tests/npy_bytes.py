"""Bytes of NPY files, good and bad, and what of them torchnpy judges unlike numpy."""

import ast
import io
import re
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.lib import format as npy_format

Version = tuple[int, int]


def header_text(
    descr: str = "'<f4'", *, fortran_order: str = "False", shape: str = "(2, 3)"
) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran_order}, 'shape': {shape}, }}"


def npy_bytes(
    header: str | bytes,
    data: bytes = b"",
    *,
    version: Version = (1, 0),
    header_nbytes: int | None = None,
) -> bytes:
    """A file with this header as it stands; `header_nbytes` overrides its declared length."""
    if isinstance(header, str):
        header = header.encode("utf-8" if version[0] == 3 else "latin-1")
    declared = len(header) if header_nbytes is None else header_nbytes
    length = struct.pack("<H" if version[0] == 1 else "<I", declared)
    return b"\x93NUMPY" + bytes(version) + length + header + data


def saved(array: np.ndarray, version: Version | None = None) -> bytes:
    """What numpy writes."""
    file = io.BytesIO()
    npy_format.write_array(file, array, version=version)
    return file.getvalue()


def loaded_by_numpy(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data))


def is_judged_unlike_numpy(header: str) -> bool:
    """True for a header in which docs/format.md lists a difference from numpy."""
    text = re.sub(r"(?<=[0-9a-fA-F])((?:\s|\\\n)*L\b)+", " ", header).strip(" \t")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes, and of calls that want a comma
        try:
            tree = ast.parse(text, mode="eval").body
            value = ast.literal_eval(tree)
        except (SyntaxError, ValueError, TypeError, RecursionError):
            return False
    assert isinstance(tree, ast.Dict)
    if (
        len(tree.keys) > len(value)
        or "\\N" in header
        or re.search(r"\\[uU]0*[dD][89a-fA-F]", header)
    ):
        return True
    if any(isinstance(dimension, bool) for dimension in value["shape"]):
        return True
    return _is_odd_descr(value["descr"]) or any(_is_odd(part) for part in _parts(value["descr"]))


def _parts(value: object) -> Iterator[object]:
    yield value
    if isinstance(value, tuple | list):
        for item in value:
            yield from _parts(item)


def _is_odd(part: object) -> bool:
    if isinstance(part, str):
        is_type_number = len(part.lstrip("<>|=")) == 1 and part[-1] < " "
        has_divisor = part.lstrip("<>|=")[:1] in ("M", "m", "d", "t") and "/" in part
        is_many_formats = "," in part or re.match(r"[<>|=]?\s*[\d(]", part) is not None
        return is_type_number or has_divisor or is_many_formats
    return part is None or isinstance(part, bytes | set | dict | float | complex)


def _is_odd_descr(descr: object) -> bool:
    """Strings, or nothing, where a field or a shape belongs; empty sub-arrays in sub-arrays."""
    if isinstance(descr, tuple):
        if len(descr) < 2:
            return False
        is_nested = isinstance(descr[0], tuple)
        return not isinstance(descr[1], int | tuple | list) or is_nested or _is_odd_descr(descr[0])
    if isinstance(descr, list):
        return any(_is_odd_field(field) for field in descr)
    return False


def _is_odd_field(field: object) -> bool:
    if not isinstance(field, tuple | list):
        return True
    return _is_odd_descr(tuple(field[1:])) or (len(field) > 1 and _is_odd_descr(field[1]))

"""`dtype=` says what the bits of void items are; it never casts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import npy

import torchnpy as tnp


def test_void_bytes_as_bool_are_normalised() -> None:
    data = npy(np.array([2, 0, 255], np.uint8).view("V1"))
    loaded = tnp.load_npy(data, dtype=torch.bool)
    assert isinstance(loaded, torch.Tensor)
    assert loaded.view(torch.uint8).tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8, torch.bits8])
def test_a_dtype_of_more_than_bits_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="expected a dtype of plain numbers"):
        tnp.load_npy(npy(np.zeros(3, "V1")), dtype=dtype)


def test_a_nested_name_that_comes_twice_is_refused() -> None:
    array = np.zeros(2, [("a", [("b", "<f4")]), ("a.b", "<f4")])
    with pytest.raises(tnp.UnsupportedError, match=r"'a\.b' twice"):
        tnp.load_npy(npy(array))


def test_a_header_of_bytes_that_are_not_contiguous_is_refused() -> None:
    data = memoryview(npy(np.zeros(3)))
    with pytest.raises(BufferError):
        tnp.header(data[::-1])


def test_a_header_of_a_tensor_of_bytes() -> None:
    data = torch.frombuffer(bytearray(npy(np.zeros((3, 4)))), dtype=torch.uint8)
    assert tnp.header(data).shape == (3, 4)

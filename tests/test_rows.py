"""Rows of a remote array: the right ones, and only their bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from servers.http import ObjectServer
from support import noise, npy

import torchnpy as tnp

ARRAY = noise(50, 3, 7)
SLICES = [
    (0, 50),
    (0, 1),
    (10, 20),
    (49, 50),
    (-3, -1),
    (-1, 50),
    (40, 99),
    (99, 120),
    (-99, 2),
    (7, 7),
]
SLICES += [(20, 10), (-60, -55)]


@pytest.mark.parametrize(("start", "stop"), SLICES)
@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f4", "<c16"])
def test_rows_equal_numpys_slice(
    server: ObjectServer, tmp_path: Path, start: int, stop: int, dtype: str
) -> None:
    array = ARRAY.astype(dtype)
    np.save(tmp_path / "x.npy", array)
    url = server.put("/x.npy", npy(array))
    for source in (url, str(tmp_path / "x.npy"), npy(array)):
        np.testing.assert_array_equal(tnp.load_rows(source, start, stop).numpy(), array[start:stop])
    np.testing.assert_array_equal(
        torch.ops.npy.load_rows(url, start, stop).numpy(), array[start:stop]
    )


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 10), (0, 3000), (1500, 1501), (2000, 2600), (3999, 4000), (5, 5)]
)
def test_only_the_bytes_of_the_rows_are_fetched(
    server: ObjectServer, start: int, stop: int
) -> None:
    array = noise(4000, 1000)
    url = server.put("/x.npy", npy(array))
    rows = tnp.load_rows(url, start, stop)
    np.testing.assert_array_equal(rows.numpy(), array[start:stop])
    assert server.sent_nbytes <= (stop - start) * 1000 * 1.05 + 65536


def test_rows_of_a_record_array_are_a_dict(server: ObjectServer) -> None:
    array = np.zeros(20, [("a", "<f4"), ("b", "<i2", (2,))])
    array["a"] = np.arange(20)
    rows = tnp.load_rows(server.put("/x.npy", npy(array)), 5, 8)
    assert isinstance(rows, dict)
    assert rows["a"].tolist() == [5, 6, 7]
    assert rows["b"].shape == (3, 2)


def test_fortran_order_says_to_load_the_whole(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.asfortranarray(noise(30, 40))))
    for call in (tnp.load_rows, torch.ops.npy.load_rows):
        with pytest.raises(tnp.UnsupportedError, match=r"(?i)fortran.*load"):
            call(url, 0, 1)


def test_one_dimension_in_fortran_order_has_rows(server: ObjectServer) -> None:
    data = npy(np.arange(10)).replace(b"False", b"True ")
    assert tnp.load_rows(server.put("/x.npy", data), 2, 4).tolist() == [2, 3]


def test_a_scalar_has_no_rows(server: ObjectServer) -> None:
    with pytest.raises(ValueError, match=r"0-d|dimension|scalar|shape"):
        tnp.load_rows(server.put("/x.npy", npy(np.float64(1))), 0, 1)


def test_rows_of_an_empty_array_are_empty(server: ObjectServer) -> None:
    assert tnp.load_rows(server.put("/x.npy", npy(np.zeros((0, 3)))), 0, 5).shape == (0, 3)
    assert tnp.load_rows(server.put("/y.npy", npy(np.zeros((4, 0)))), 1, 3).shape == (2, 0)


def test_dtype_names_the_bits_of_rows(server: ObjectServer) -> None:
    array = np.arange(6, dtype=np.int16).view("V2")
    rows = tnp.load_rows(server.put("/x.npy", npy(array)), 2, 4, dtype=torch.bfloat16)
    assert rows.dtype == torch.bfloat16
    assert rows.view(torch.int16).tolist() == [2, 3]


def test_rows_that_a_truncated_object_lacks_are_a_format_error(server: ObjectServer) -> None:
    body = npy(noise(4000, 1000))
    url = server.put("/x.npy", body[:2_000_000])
    with pytest.raises(tnp.FormatError, match=r"/x.npy"):
        tnp.load_rows(url, 3000, 3001)


def test_rows_are_large_and_come_in_parts(server: ObjectServer) -> None:
    array = noise(4000, 1000)
    url = server.put("/x.npy", npy(array))
    rows = tnp.load_rows(url, 100, 3900, client=tnp.Client(part_nbytes=500_000))
    np.testing.assert_array_equal(rows.numpy(), array[100:3900])
    assert len(server.requests) >= 7

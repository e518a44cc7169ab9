"""The corpus: each way in which an NPY file can be odd or wrong, with what comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from npy_bytes import header_text, npy_bytes, saved

import torchnpy

SAVE_AGAIN = "the header is not as NumPy writes it; save the array again"
NO_DTYPE = "save the array with a dtype that NumPy has"
DIMENSION = "expected a dimension from 0 to 9223372036854775807 but found"
KEYS = "expected the keys 'descr', 'fortran_order' and 'shape', once each, but found"
TOO_LONG = "NumPy does not read it either: save the array with fewer or shorter field names"

SIX = np.arange(6, dtype="<f4").reshape(2, 3)
DATA = SIX.tobytes()
TENSOR = torch.arange(6, dtype=torch.float32).reshape(2, 3)
RECORDS = np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "<i2"), ("b", "<f8")])
HALVES = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
HALVES_DATA = HALVES.view(torch.uint8).numpy().tobytes()


def with_header(header: str, data: bytes = DATA, **kwargs: Any) -> bytes:
    return npy_bytes(header, data, **kwargs)


def with_shape(shape: str, data: bytes = DATA, **kwargs: Any) -> bytes:
    return npy_bytes(header_text(shape=shape), data, **kwargs)


def with_descr(descr: str, data: bytes = bytes(64), **kwargs: Any) -> bytes:
    return npy_bytes(header_text(descr, shape="(2,)"), data, **kwargs)


def padded(nbytes: int) -> str:
    return header_text().ljust(nbytes)


@dataclass(frozen=True)
class Bad:
    id: str
    data: bytes
    message: str
    error: type[Exception] = torchnpy.FormatError


@dataclass(frozen=True)
class Good:
    id: str
    data: bytes
    value: torch.Tensor | Mapping[str, torch.Tensor] = field(default_factory=lambda: TENSOR)
    kwargs: Mapping[str, Any] = field(default_factory=dict)


BAD = [
    Bad(
        "1-empty",
        b"",
        "expected 10 bytes of magic, version and header length but found 0; the file is truncated",
    ),
    Bad(
        "2-magic-only",
        b"\x93NUMPY",
        "expected 10 bytes of magic, version and header length but found 6; the file is truncated",
    ),
    Bad(
        "2-half-of-the-length",
        b"\x93NUMPY\x02\x00\x10\x00",
        "expected 12 bytes of magic, version and header length but found 10; the file is truncated",
    ),
    Bad(
        "3-bad-magic",
        b"\x93NUMPX" + bytes(60),
        "expected the magic `\\x93NUMPY` but found `\\x93NUMPX` at byte 0; this is not an NPY file",
    ),
    Bad(
        "3-archive",
        b"PK\x03\x04" + bytes(60),
        "expected the magic `\\x93NUMPY` but found `PK\\x03\\x04\\x00\\x00` at byte 0; "
        "this is an archive: open it with open_npz()",
    ),
    Bad(
        "4-version-1.1",
        with_header(header_text(), version=(1, 1)),
        "expected version 1.0, 2.0 or 3.0 but found 1.1 at byte 6; save the array again with NumPy",
    ),
    Bad(
        "5-version-4.0",
        with_header(header_text(), version=(4, 0)),
        "expected version 1.0, 2.0 or 3.0 but found 4.0 at byte 6; save the array again with NumPy",
    ),
    Bad(
        "6-no-header",
        npy_bytes(""),
        f"expected a dict but found the end of the header at byte 10; {SAVE_AGAIN}",
    ),
    Bad(
        "7-header-past-the-end",
        npy_bytes(header_text(), header_nbytes=9000),
        "expected 9010 bytes up to the end of the header but found 69; the file is truncated",
    ),
    Bad(
        "9-header-of-4-GiB",
        npy_bytes(header_text(), version=(2, 0), header_nbytes=0xFFFFFFFF),
        "expected a header of at most 10000 bytes but found 4294967295 at byte 8; " + TOO_LONG,
    ),
    Bad(
        "10-header-of-10001",
        npy_bytes(padded(10001), DATA),
        "expected a header of at most 10000 bytes but found 10001 at byte 8; " + TOO_LONG,
    ),
    Bad(
        "10-header-of-10001-characters",
        npy_bytes(padded(10000) + "é", DATA, version=(3, 0)),
        "expected a header of at most 10000 characters but found 10001 at byte 12; " + TOO_LONG,
    ),
    Bad(
        "10-header-of-40001",
        npy_bytes(padded(40001), DATA, version=(3, 0)),
        "expected a header of at most 40000 bytes but found 40001 at byte 8; " + TOO_LONG,
    ),
    Bad(
        "17-duplicate-key",
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'shape': (6,)}"),
        f"{KEYS} a second `'shape'` at byte 68; {SAVE_AGAIN}",
    ),
    Bad(
        "18-extra-key",
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'x': 1}"),
        f"{KEYS} `'x'` at byte 68; {SAVE_AGAIN}",
    ),
    Bad(
        "19-missing-key",
        with_header("{'descr': '<f4', 'shape': (2, 3)}"),
        f"{KEYS} no 'fortran_order' in the dict at byte 10; {SAVE_AGAIN}",
    ),
    Bad(
        "20-garbage-after-the-dict",
        with_header(header_text() + " x = 1"),
        f"expected the end of the header but found `x` at byte 70; {SAVE_AGAIN}",
    ),
    Bad(
        "21-nul",
        with_header(header_text() + "\0"),
        f"expected text but found `\\x00` at byte 69; {SAVE_AGAIN}",
    ),
    Bad(
        "22-dict-cut-short",
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3"),
        f"expected `,` or `)` but found the end of the header at byte 65; {SAVE_AGAIN}",
    ),
    Bad(
        "22-string-cut-short",
        with_header("{'descr': '<f4"),
        f"expected `'` to end the string `'<f4` but found the end of the header at byte 24; "
        f"{SAVE_AGAIN}",
    ),
    Bad(
        "24-long-in-version-3",
        with_shape("(2L, 3L)", version=(3, 0)),
        f"expected an integer but found `2L` at byte 63; {SAVE_AGAIN}",
    ),
    Bad(
        "26-leading-zero",
        with_shape("(02, 3)"),
        f"expected an integer but found `02` at byte 61; {SAVE_AGAIN}",
    ),
    Bad(
        "27-float-dimension",
        with_shape("(2, 3.0)"),
        f"expected an integer but found `3.0` at byte 64; {SAVE_AGAIN}",
    ),
    Bad(
        "28-true-as-a-dimension",
        with_shape("(True, 6)"),
        f"{DIMENSION} `True` at byte 61; {SAVE_AGAIN}",
    ),
    Bad(
        "29-shape-without-comma",
        with_shape("(12)"),
        f"expected a shape: a tuple but found `12` at byte 61; {SAVE_AGAIN}",
    ),
    Bad(
        "29-list-as-the-shape",
        with_shape("[2, 3]"),
        f"expected a shape: a tuple but found `[2, 3]` at byte 60; {SAVE_AGAIN}",
    ),
    Bad(
        "30-np.int64",
        with_shape("(np.int64(2), 3)"),
        "expected a string, an integer, True, False, None, a tuple or a list but found "
        f"`np.int64` at byte 61; {SAVE_AGAIN}",
    ),
    Bad("31-negative", with_shape("(-2,)"), f"{DIMENSION} `-2` at byte 61; {SAVE_AGAIN}"),
    Bad("32-two-negatives", with_shape("(-2, -3)"), f"{DIMENSION} `-2` at byte 61; {SAVE_AGAIN}"),
    Bad(
        "33-2^64",
        with_shape("(18446744073709551616,)"),
        f"{DIMENSION} `18446744073709551616` at byte 61; {SAVE_AGAIN}",
    ),
    Bad(
        "34-product-wraps-to-12",
        with_shape("(4, 4611686018427387907)"),
        "expected a shape of at most 9223372036854775807 bytes of float32 but found "
        f"`(4, 4611686018427387907)` at byte 60; {SAVE_AGAIN}",
    ),
    Bad(
        "35-65536^4",
        with_shape("(65536, 65536, 65536, 65536)"),
        "expected a shape of at most 9223372036854775807 bytes of float32 but found "
        f"`(65536, 65536, 65536, 65536)` at byte 60; {SAVE_AGAIN}",
    ),
    Bad(
        "36-zero-and-2^62",
        with_shape("(0, 4611686018427387904)"),
        "expected a shape of at most 9223372036854775807 bytes of float32 but found "
        f"`(0, 4611686018427387904)` at byte 60; {SAVE_AGAIN}",
    ),
    Bad(
        "37-65-dimensions",
        with_shape("(" + "1, " * 65 + ")"),
        "expected at most 64 dimensions but found 65 at byte 60; save the array with fewer",
    ),
    Bad(
        "38-TiB-shape-over-48-bytes",
        with_shape("(274877906944,)", bytes(48)),
        "expected 1099511627776 bytes of data (float32, shape (274877906944,)) but found 48; "
        "the file is truncated",
    ),
    Bad(
        "39-one-byte-short",
        npy_bytes(header_text(), DATA[:-1]),
        "expected 24 bytes of data (float32, shape (2, 3)) but found 23; the file is truncated",
    ),
    Bad(
        "45-objects",
        npy_bytes(header_text("'|O'"), b"\x80\x04."),
        "expected a dtype that torch has but found object; it is a pickle, which can run code "
        "when it is read, and is never loaded: save the values with a numeric dtype",
        torchnpy.UnsupportedError,
    ),
    Bad(
        "45-objects-in-a-record",
        with_descr("[('a', '<f4'), ('b', [('c', 'O')])]"),
        "expected a dtype that torch has but found object in the field 'b.c'; it is a pickle, "
        "which can run code when it is read, and is never loaded: save the values with a numeric "
        "dtype",
        torchnpy.UnsupportedError,
    ),
    Bad(
        "45-text",
        saved(np.array(["ab", "c"])),
        "expected a dtype that torch has but found str64; torch has no text: save numbers, or "
        "take the raw bytes as uint8 from the header's data_offset on",
        torchnpy.UnsupportedError,
    ),
    Bad(
        "45-long-double",
        with_descr("'<f16'"),
        "expected a dtype that torch has but found float128; torch has no long double: save it "
        "as float64 or complex128",
        torchnpy.UnsupportedError,
    ),
    Bad(
        "48-V2",
        with_descr("'<V2'", HALVES_DATA),
        "expected a dtype that torch has but found void16; the file cannot name these bits: "
        "pass dtype= to say what they are",
        torchnpy.UnsupportedError,
    ),
    Bad(
        "50-deep-nesting",
        with_descr("(" * 5000),
        f"expected at most 200 nested brackets but found one more at byte 219; {SAVE_AGAIN}",
    ),
    Bad(
        "51-invalid-utf-8",
        npy_bytes(header_text().encode() + b"#\xff", DATA, version=(3, 0)),
        f"expected UTF-8 but found `\\xff` at byte 72; {SAVE_AGAIN}",
    ),
    Bad(
        "unknown-dtype",
        with_descr("'<f3'"),
        f"expected a dtype but found `'<f3'` at byte 20; {NO_DTYPE}",
    ),
    Bad(
        "fortran-order-is-a-number",
        with_header(header_text(fortran_order="0")),
        f"expected True or False but found `0` at byte 44; {SAVE_AGAIN}",
    ),
    Bad(
        "the-same-field-twice",
        with_descr("[('a', '<f4'), ('a', '<f4')]"),
        f"expected each name and title of a field once but found `'a'` at byte 36; {SAVE_AGAIN}",
    ),
    Bad(
        "records-of-2-GiB",
        with_descr("[('a', 'V2147483647'), ('b', 'i1')]"),
        "expected an element of at most 2147483647 bytes but found `('b', 'i1')` at byte 43; "
        f"{SAVE_AGAIN}",
    ),
]

GOOD = [
    Good("8-header-of-182", npy_bytes(padded(182), DATA)),
    Good("8-header-of-246", npy_bytes(padded(246), DATA)),
    Good("10-header-of-10000", npy_bytes(padded(10000), DATA)),
    Good("10-header-of-10000-characters", npy_bytes(padded(9998) + "#é", DATA, version=(3, 0))),
    Good("11-no-newline", npy_bytes(header_text(), DATA)),
    Good("12-data-not-aligned", npy_bytes(padded(119) + "\n", DATA)),
    Good("12-data-at-an-odd-byte", npy_bytes(padded(120) + "\n", DATA)),
    Good("13-double-quotes", with_header(header_text().replace("'", '"'))),
    Good("14-space-before-colon", with_header(header_text().replace(":", " :"))),
    Good("15-keys-reordered", with_header("{'shape':(2,3),'fortran_order':False,'descr':'<f4'}")),
    Good("16-comment", with_header("{'descr': '<f4', # 'shape': (9,)\n" + header_text()[17:])),
    Good("23-long-in-version-1", with_shape("(2L, 3L)")),
    Good("23-long-in-version-2", with_shape("(2L, 3 L)", version=(2, 0))),
    Good("25-hex-dimension", with_shape("(0x2, 0b11)")),
    Good("40-trailing-bytes", npy_bytes(header_text(), DATA + b"more")),
    Good("41-zero-d", saved(np.array(3.5)), torch.tensor(3.5, dtype=torch.float64)),
    Good("42-empty-shape", saved(np.zeros((0, 3), "<i8")), torch.zeros((0, 3), dtype=torch.int64)),
    Good("43-fortran", saved(np.asfortranarray(SIX))),
    Good("44-big-endian", saved(SIX.astype(">f4"))),
    Good(
        "46-records",
        saved(RECORDS),
        {
            "a": torch.tensor([1, 3], dtype=torch.int16),
            "b": torch.tensor([2.5, 4.5], dtype=torch.float64),
        },
    ),
    Good(
        "46-padding-titles-subarrays-nested",
        npy_bytes(
            header_text(
                "[(('title', 'a'), '|u1'), ('', '|V1'), ('b', [('c', '>i2', (2,))])]", shape="(1,)"
            ),
            bytes([7, 0, 0, 1, 0, 2]),
        ),
        {
            "a": torch.tensor([7], dtype=torch.uint8),
            "b.c": torch.tensor([[1, 2]], dtype=torch.int16),
        },
    ),
    Good(
        "47-key-inside-a-field-name",
        npy_bytes(header_text("[(\"'shape': (9,)\", '<i2')]", shape="(1,)"), b"\x05\x00"),
        {"'shape': (9,)": torch.tensor([5], dtype=torch.int16)},
    ),
    Good(
        "48-V2-with-dtype",
        with_descr("'<V2'", HALVES_DATA),
        HALVES,
        {"dtype": torch.bfloat16},
    ),
    Good("48-bfloat16-by-name", with_descr("'bfloat16'", HALVES_DATA), HALVES),
    Good(
        "48-f1-is-float8_e5m2",
        with_descr("'<f1'", b"\x3c\x40"),
        torch.tensor([1.0, 2.0]).to(torch.float8_e5m2),
    ),
    Good(
        "49-datetime",
        saved(np.array(["1970-01-01T00:00:01", "NaT"], dtype="<M8[ns]")),
        torch.tensor([10**9, -(2**63)]),
    ),
    Good("bool-bytes-above-1", with_descr("'|b1'", b"\x00\x02"), torch.tensor([False, True])),
]


def assert_same(found: object, expected: object) -> None:
    if isinstance(expected, Mapping):
        assert isinstance(found, dict)
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert_same(found[name], tensor)
        return
    assert isinstance(found, torch.Tensor)
    assert isinstance(expected, torch.Tensor)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    # By bits: float8 has no equality, and a NaN is equal to itself here.
    assert found.contiguous().reshape(-1).view(torch.uint8).tolist() == (
        expected.contiguous().reshape(-1).view(torch.uint8).tolist()
    )


@pytest.mark.parametrize("row", BAD, ids=lambda row: row.id)
def test_bad_file_is_refused_with_this_message(row: Bad) -> None:
    with pytest.raises((torchnpy.FormatError, torchnpy.UnsupportedError)) as caught:
        torchnpy.load_npy(row.data)
    assert str(caught.value) == f"<bytes>: {row.message}"
    assert type(caught.value) is row.error


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.id)
def test_odd_file_is_read(row: Good) -> None:
    assert_same(torchnpy.load_npy(row.data, **row.kwargs), row.value)


@pytest.mark.parametrize("nbytes", range(119, 127))
def test_data_at_any_offset_gives_an_aligned_tensor(nbytes: int) -> None:
    tensor = torchnpy.load_npy(npy_bytes(padded(nbytes), DATA))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.data_ptr() % tensor.element_size() == 0
    assert torch.equal(tensor, TENSOR)


def test_fortran_order_becomes_strides() -> None:
    tensor = torchnpy.load_npy(saved(np.asfortranarray(SIX)))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.stride() == (1, 2)


@pytest.mark.parametrize("nbytes", range(len(saved(RECORDS))))
def test_file_cut_anywhere_is_refused(nbytes: int) -> None:
    with pytest.raises(torchnpy.FormatError, match="the file is truncated"):
        torchnpy.load_npy(saved(RECORDS)[:nbytes])


def test_op_that_returns_one_tensor_refuses_records() -> None:
    data = torch.frombuffer(bytearray(saved(RECORDS)), dtype=torch.uint8)
    with pytest.raises(torchnpy.UnsupportedError):
        torch.ops.npy.decode(data)

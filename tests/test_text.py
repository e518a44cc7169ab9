"""Text: numpy's own writer and reader are the oracle, and what they refuse is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from servers.http import ObjectServer, status
from servers.s3 import S3Server
from support import run_script
from torch._subclasses.fake_tensor import FakeTensorMode

import torchnpy as tnp

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

REALS = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"]
FORMATS = [
    *("%.18e", "%e", "%.0e", "%+.3e", "%E", "%.17g", "%g", "%G", "%.0g", "%f", "%.0f", "%F"),
    *(
        "%10.5f",
        "%-12.3e|",
        "%015.4f",
        "% .2f",
        "%+ g",
        "%lg",
        "%s",
        "%12s",
        "%-7s|",
        "%.3s",
        "%05s",
    ),
]
# What Python formats itself: see docs/text.md.
FALLBACKS = ["%r", "%a", "%#.3g", "%#.0f", "%.120f", "%1200.3e"]
INTEGER_FORMATS = ["%d", "%i", "%u", "%5d", "%-5d|", "%05d", "%+d", "% d", "%ld"]
INTEGER_FALLBACKS = ["%x", "%#X", "%o", "%.5d", "%r"]


def written(save: Callable[..., None], array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    save(file, array, **options)
    return file.getvalue()


def check_written(array: np.ndarray, tensor: Any = None, **options: Any) -> None:
    expected = written(np.savetxt, array, **options)
    assert written(tnp.savetxt, array, **options) == expected
    if tensor is None and array.dtype.names is None:
        tensor = torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))
    assert written(tnp.savetxt, tensor, **options) == expected


def loaded_by_numpy(source: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of overflow; of no rows
        return np.loadtxt(source, **options)


def check_loaded(text: str, **options: Any) -> Any:
    """Read alike, bit for bit, from a string, bytes and lines."""
    expected = loaded_by_numpy(io.StringIO(text), **options)
    sources = [io.StringIO(text), text.encode(), text.splitlines(True)]
    for source in sources[: 3 if text.isascii() and "\r" not in text else 2]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = tnp.loadtxt(source, **options)
        check_same(found, expected)
    return found


def check_same(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    elif expected.dtype.names is not None:
        for name in expected.dtype.names:
            check_same(found[name], expected[name])
    else:
        assert tuple(found.shape) == expected.shape
        native = expected.astype(expected.dtype.newbyteorder("="))
        assert found.numpy().dtype == native.dtype
        assert np.ascontiguousarray(found.numpy()).tobytes() == native.tobytes()


@st.composite
def tables(draw: st.DrawFn, dtypes: list[str] = REALS) -> np.ndarray:
    """Any bits, in any layout."""
    dtype = np.dtype(draw(st.sampled_from(["<", ">"])) + draw(st.sampled_from(dtypes)))
    shape = draw(npst.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=4))
    size = int(np.prod(shape)) * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=size, max_size=size)))
    array = np.ndarray(shape, dtype, bytes(b & 1 for b in data) if dtype.kind == "b" else data)
    layout = draw(st.sampled_from("CFN"))
    return array[..., ::-1] if layout == "N" else np.array(array, order=layout)


@relaxed
@given(tables(), st.sampled_from(FORMATS), st.sampled_from([" ", ",", "; ", ""]))
def test_numbers_are_written_as_numpy_writes_them(
    array: np.ndarray, fmt: str, delimiter: str
) -> None:
    check_written(array, fmt=fmt, delimiter=delimiter)


@relaxed
@given(tables(["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"]), st.data())
def test_integers_are_written_as_numpy_writes_them(array: np.ndarray, data: st.DataObject) -> None:
    formats = INTEGER_FORMATS if array.dtype.kind == "b" else INTEGER_FORMATS + INTEGER_FALLBACKS
    fmt = data.draw(st.sampled_from(formats))
    expected = written(np.savetxt, array, fmt=fmt)
    assert written(tnp.savetxt, array, fmt=fmt) == expected
    if fmt != "%r":  # of a tensor: Python's numbers
        check_written(array, fmt=fmt)


@relaxed
@given(tables(["f4", "f8"]), st.sampled_from(FALLBACKS))
def test_what_python_formats_is_written_as_numpy_writes_it(array: np.ndarray, fmt: str) -> None:
    assert written(tnp.savetxt, array, fmt=fmt) == written(np.savetxt, array, fmt=fmt)


@relaxed
@given(tables(["f4", "f8"]).filter(lambda array: bool(np.isfinite(array).all())))
def test_floats_are_cut_to_integers(array: np.ndarray) -> None:
    check_written(array, fmt="%d")


@relaxed
@given(tables(["c8", "c16"]), st.sampled_from(["%.18e", "%g", "%.3f", "%s", "%+.2e"]))
def test_complex_numbers_are_written_as_numpy_writes_them(array: np.ndarray, fmt: str) -> None:
    check_written(array, fmt=fmt, delimiter=",")


def test_every_half_is_written_as_numpy_writes_it() -> None:
    check_written(np.arange(65536, dtype=np.uint16).view(np.float16), fmt="%s")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_numbers_around_each_power_of_ten_are_written_as_numpy_writes_them(dtype: str) -> None:
    exponents = np.arange(-45, 38) if dtype == "f4" else np.arange(-323, 308)
    powers = np.array([float(f"1e{e}") for e in exponents]).astype(dtype)
    around = np.stack([np.nextafter(powers, 0), powers, np.nextafter(powers, np.inf), 9.5 * powers])
    for fmt in ("%s", "%g", "%.18e"):
        check_written(around.astype(dtype), fmt=fmt)


ROWS = np.array([[1.5, -2, 3], [0, 1e300, -1e-300]])


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (ROWS, {"fmt": ["%d", "%.3f", "%s"], "delimiter": ";"}),
        (ROWS[:, :2], {"fmt": "%d, %.4f", "delimiter": "ignored"}),
        (ROWS, {"fmt": "a %6.2f b %g c %s d"}),
        (ROWS, {"fmt": ["%.1f%%"] * 3}),
        (ROWS, {"newline": "\r\n"}),
        (ROWS, {"newline": "%\n"}),
        (ROWS, {"header": "one\ntwo", "footer": "three\nfour", "comments": "// "}),
        (ROWS, {"header": "only", "newline": "\r\n"}),
        (ROWS.astype(complex), {"fmt": " %.4e %+.4ej %.4e %+.4ej %.4e %+.4ej"}),
        (ROWS.astype(complex), {"fmt": ["%.3e + %.3ej", "(%.15e%+.15ej)", "%g%+gj"]}),
        (np.array([1 - 2j, -0.0 - 0j, complex(np.nan, -np.inf)]), {}),
        (np.arange(5), {"fmt": "%d"}),
        (np.empty((0, 3)), {"header": "none"}),
        (np.empty((2, 0)), {}),
        (np.array([2**63 - 1, -(2**63), 2**53 + 1]), {}),
        (np.array([2**64 - 1], "u8"), {"fmt": "%.18e"}),
        (np.array([True, False]), {"fmt": "%s"}),
        (np.array([(1, 2.5), (3, 4.5)], [("a", "i4"), ("b", "f8")]), {"fmt": "%d %.1f"}),
        (np.array([(1, 2.5), (3, 4.5)], [("a", ">i4"), ("b", "f8")]), {"fmt": ["%d", "%g"]}),
        (np.array(["ab", "c"]), {"fmt": "%4s"}),
        (np.array([(1, "x")], [("a", "i4"), ("b", "U3")]), {"fmt": "%d %s"}),
        (np.array([1, 2], np.longdouble), {}),
        (np.array([1 + 2j], np.clongdouble), {"fmt": "%g"}),
        (np.frombuffer(b"\1\2", np.uint8), {"fmt": "%d"}),
        (np.arange(20000.0).reshape(2, -1), {}),
    ],
)
def test_options_give_numpys_bytes(array: np.ndarray, options: dict[str, Any]) -> None:
    assert written(tnp.savetxt, array, **options) == written(np.savetxt, array, **options)


def test_lists_dicts_and_tensors_of_all_kinds_are_written(tmp_path: Path) -> None:
    x, y = np.arange(3.0), np.arange(3)
    expected = written(np.savetxt, (x, y))
    assert written(tnp.savetxt, (x, y)) == expected
    assert written(tnp.savetxt, [[0.0, 1, 2], [0, 1, 2]]) == expected
    assert written(tnp.savetxt, [torch.arange(3.0), torch.arange(3)]) == expected
    fields = {"x": torch.arange(3.0), "y": torch.arange(3)}
    assert written(tnp.savetxt, fields, fmt="%g %d") == b"0 0\n1 1\n2 2\n"
    assert written(tnp.savetxt, torch.ones(2, requires_grad=True), fmt="%g") == b"1\n1\n"
    assert written(tnp.savetxt, torch.tensor([1.5], dtype=torch.bfloat16), fmt="%s") == b"1.5\n"
    truths = torch.tensor([0, 1, 255], dtype=torch.uint8).view(torch.bool)
    assert written(tnp.savetxt, truths, fmt="%d") == written(np.savetxt, truths.numpy(), fmt="%d")
    conjugate = torch.tensor([1 + 2j]).conj()
    assert written(tnp.savetxt, conjugate, fmt="%g") == b" (1-2j)\n"
    assert written(tnp.savetxt, conjugate.imag, fmt="%g") == b"-2\n"
    expanded = torch.tensor([[1.0]]).expand(2, 3)
    assert written(tnp.savetxt, expanded, fmt="%g") == b"1 1 1\n1 1 1\n"


def test_tensors_without_memory_are_refused() -> None:
    with FakeTensorMode():
        fake = torch.ones(2)
    freed = torch.ones(2)
    freed.untyped_storage().resize_(0)
    for tensor in (fake, freed):
        with pytest.raises(tnp.UnsupportedError, match="without memory of its own"):
            tnp.savetxt(io.BytesIO(), tensor)


@pytest.mark.parametrize("taken", [-1, 1 << 30])
def test_files_that_cannot_count_are_refused(taken: int) -> None:
    class Miscounting:
        def write(self, data: bytes) -> int:
            if isinstance(data, str):
                raise TypeError
            return taken

    with pytest.raises(OSError, match=rf"expected write\(\) to take 1 to .* but it says {taken}"):
        tnp.savetxt(Miscounting(), [1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("array", "options", "kind", "message"),
    [
        (torch.zeros(()), {}, ValueError, "X: expected an array of 1 or 2 dimensions but found 0"),
        (np.zeros((1, 1, 1)), {}, ValueError, "1 or 2 dimensions but found 3"),
        (ROWS, {"fmt": 99}, ValueError, "fmt: expected a format or a list of them but found 99"),
        (ROWS, {"fmt": ["%d"]}, ValueError, "fmt: expected 3 formats, one a column"),
        (ROWS, {"fmt": "%d %d"}, ValueError, "fmt: expected 1 or 3 % formats but found 2"),
        (ROWS.astype(complex), {"fmt": "%d %d"}, ValueError, "expected 1 or 6 % formats"),
        (ROWS, {"fmt": "%x"}, TypeError, "fmt: expected formats that fit the columns"),
        (ROWS, {"fmt": ["%d", "%d", ""]}, TypeError, "fmt: expected formats that fit the columns"),
        (np.array(["a"]), {}, TypeError, "fmt: expected formats that fit the columns"),
        (ROWS, {"fmt": "%q"}, ValueError, "fmt: expected formats that fit the columns"),
        ({"a": [1, 2]}, {}, TypeError, "X: expected a dict of tensors but found one of list"),
        (torch.ones(2, device="meta"), {}, tnp.UnsupportedError, "on the meta device"),
        ({"a": torch.ones(2, 2)}, {}, ValueError, "X: expected fields of one dimension"),
        ({"a": torch.ones(2), "b": torch.ones(3)}, {}, ValueError, "X: expected fields of one"),
        (torch.ones(2).to_sparse(), {}, tnp.UnsupportedError, "call .to_dense()"),
        (
            torch.tensor([[1.0, torch.nan]]),
            {"fmt": "%d"},
            ValueError,
            "expected finite numbers for the format %d but found nan in row 0, column 1",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(
    array: Any, options: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(kind) as caught:
        tnp.savetxt(path, array, **options)
    assert message in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_target_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="fname: expected a URL, a path or an open file but"):
        tnp.savetxt(3, ROWS)  # type: ignore[arg-type]


def test_open_files_get_what_they_take(tmp_path: Path) -> None:
    expected = written(np.savetxt, ROWS, header="é")
    assert (
        written(tnp.savetxt, ROWS, header="é") == expected == written(np.savetxt, ROWS, header="é")
    )
    text = io.StringIO()
    tnp.savetxt(text, ROWS, header="é")
    assert text.getvalue().encode("latin-1") == expected
    with open(tmp_path / "x", "wb", buffering=0) as raw:
        tnp.savetxt(raw, ROWS, header="é", encoding="utf-8")
    assert (tmp_path / "x").read_bytes() == expected.decode("latin-1").encode()


@pytest.mark.parametrize("encoding", [None, "latin-1", "utf-8", "utf-16", "cp1252"])
def test_files_have_the_encoding_that_was_asked_for(tmp_path: Path, encoding: str | None) -> None:
    ours, theirs = tmp_path / "ours.txt", tmp_path / "theirs.txt"
    options: Any = {"header": "é", "footer": "ü", "encoding": encoding}
    tnp.savetxt(ours, ROWS, **options)
    np.savetxt(theirs, ROWS, **options)
    assert ours.read_bytes() == theirs.read_bytes()
    check_same(tnp.loadtxt(ours, encoding=encoding), ROWS)


# Reading.


@relaxed
@given(
    st.lists(st.lists(st.floats(width=64), min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from(["%.18e", "%.17g", "%r", "%.40f", "%.3g", "+%.20e"]),
    st.sampled_from(["f8", "f4", "f2", "c16", "c8"]),
)
def test_what_numpy_writes_is_read_bit_for_bit(
    rows: list[list[float]], fmt: str, dtype: str
) -> None:
    lines = (" ".join(fmt % (abs(v) if fmt[0] == "+" else v) for v in row) for row in rows)
    check_loaded("\n".join(lines), dtype=dtype)


@relaxed
@given(tables(["f2", "f4", "f8", "c8", "c16"]))
def test_what_is_saved_is_loaded_bit_for_bit(array: np.ndarray) -> None:
    if array.size == 0:
        return
    text = written(tnp.savetxt, array).decode()
    native = array.dtype.newbyteorder("=")
    found = check_loaded(text, dtype=native, ndmin=array.ndim)
    np.testing.assert_array_equal(found.numpy(), array)


digits = st.text("0123456789", min_size=1, max_size=40)
numbers = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "+", "-"]),
    st.one_of(digits, st.builds("{}.{}".format, digits, digits), st.just(".5"), st.just("5.")),
    st.sampled_from(["", "e", "E"]),
    st.one_of(st.just(""), st.integers(-400, 400).map(str)),
)


@relaxed
@given(st.one_of(numbers, st.text("0123456789.eE+-naifty_xj() \t\u00a0\u3000", max_size=12)))
@example("1e-320")
@example("4.9406564584124654e-324")
@example("2.4703282292062327e-324")
@example("2.4703282292062328e-324")
@example("1.7976931348623158e308")
@example("1.7976931348623159e308")
@example("1e999999999999999999999")
@example("-1e-999999999999999999999")
@example("0e999999999999999999999")
@example("9007199254740993")
@example("9007199254740992.99999999999999999999999999999999999999999999999999999999999999999999")
@example("1" + "0" * 400)
@example("0." + "0" * 400 + "1")
@example("3.4028235677973366e38")
@example("7.006492321624085e-46")
@example("+-1")
@example("-+1")
@example("nan(1)")
@example("-nan")
@example("(1j)")
@example("1+")
def test_a_field_means_what_it_means_to_numpy(text: str) -> None:
    for dtype in ("f8", "f4", "i8", "u8", "i1", "b1", "c16"):
        try:
            loaded_by_numpy([text], dtype=dtype, delimiter=",", comments=None, ndmin=2)
        except ValueError:
            with pytest.raises(tnp.FormatError):
                tnp.loadtxt([text], dtype=dtype, delimiter=",", comments=None, ndmin=2)
        else:
            check_loaded(text, dtype=dtype, delimiter=",", comments=None, ndmin=2)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_integers_are_read_to_their_limits_and_no_further(dtype: str) -> None:
    limits = np.iinfo(dtype)
    check_loaded(f"{limits.min} {limits.max} +1 -0"[: None if limits.min else -3], dtype=dtype)
    for beyond in (limits.min - 1, limits.max + 1, 10 * limits.max):
        name = np.dtype(dtype).name
        article = "an" if name[0] == "i" else "a"
        message = f'expected {article} {name} in its range but found "{beyond}" at line 1, column 1'
        with pytest.raises(tnp.FormatError, match=message.replace("+", r"\+")):
            tnp.loadtxt([str(beyond)], dtype=dtype)


RECORD = [("a", "i4"), ("b", "f4", (2,)), ("c", [("x", "u1"), ("y", ">f8")])]
TEXT = "1 2 3\n4 5 6\n"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (TEXT, {}),
        (TEXT, {"dtype": "i4"}),
        (TEXT, {"dtype": None}),
        (TEXT, {"dtype": complex}),
        (TEXT, {"dtype": bool}),
        (TEXT, {"dtype": ">f4"}),
        (TEXT, {"dtype": np.float16}),
        (TEXT, {"usecols": 1}),
        (TEXT, {"usecols": -1}),
        (TEXT, {"usecols": (2, 0, 0)}),
        (TEXT, {"usecols": np.array([0, 1])}),
        (TEXT, {"usecols": []}),
        (TEXT, {"unpack": True}),
        (TEXT, {"unpack": True, "usecols": (0, -1)}),
        (TEXT, {"skiprows": 1}),
        (TEXT, {"skiprows": 1, "ndmin": 2}),
        (TEXT, {"skiprows": 5}),
        (TEXT, {"max_rows": 1}),
        (TEXT, {"max_rows": 1, "ndmin": 2, "unpack": True}),
        (TEXT, {"max_rows": 0}),
        (TEXT, {"max_rows": 100}),
        ("# a\n\n1 2 # b\n   \n#\n3 4\n\n5 6", {"max_rows": 2}),
        ("# a\n\n1 2 # b\n   \n#\n3 4\n\n5 6", {"skiprows": 3}),
        ("a\nb # c\n1 2", {"skiprows": 2}),
        ("1", {}),
        ("1", {"ndmin": 1}),
        ("1", {"ndmin": 2}),
        ("1 2 3", {"ndmin": 1}),
        ("1 2 3", {"ndmin": 2}),
        ("1\n2\n3", {"ndmin": 1}),
        ("1\n2\n3", {"ndmin": 2}),
        ("1\n2\n3", {"ndmin": 2, "unpack": True}),
        ("", {}),
        ("", {"ndmin": 2}),
        ("", {"usecols": (0, 1), "ndmin": 2}),
        ("# nothing\n\n", {"dtype": "i8"}),
        ("1,2,3", {"delimiter": ","}),
        ("1, 2 ,\t3 ", {"delimiter": ","}),
        ("1;2#3", {"delimiter": ";"}),
        ("1\t2", {"delimiter": "\t"}),
        ("1 2", {"delimiter": " "}),
        ("1,2", {"delimiter": b","}),
        ("1¦2", {"delimiter": "¦"}),
        ("1€2\n3€4 % a", {"delimiter": "€", "comments": "%"}),
        ("1 2 ¦ a\n", {"comments": "¦"}),
        ("1 2 # 3", {"comments": None, "usecols": 0}),
        ("1 2 // 3 / 4\n% 5\n6 7", {"comments": ["//", "%"]}),
        ("1 2 // 3 / 4\n6 7", {"comments": "//"}),
        ("1 2 % 3", {"comments": b"%"}),
        ("1 2", {"comments": []}),
        ("1\u00a02\u30003\u20284\x1f5\x856\x0b7", {}),
        (" \u00a01 2\u3000 \n", {}),
        ('"1" "2"', {"quotechar": '"'}),
        ('"1","2"\n3,"4"', {"quotechar": '"', "delimiter": ","}),
        ('"1"5,2', {"quotechar": '"', "delimiter": ","}),
        ('"1\n" 2', {"quotechar": '"', "delimiter": " "}),
        ("'1',' 2 '", {"quotechar": "'", "delimiter": ","}),
        ("1 2\n\n3 4", {"dtype": [("a", "i4"), ("b", "f8")]}),
        ("1 2", {"dtype": [("a", "i4"), ("b", "f8")]}),
        ("1 2", {"dtype": [("a", "i4"), ("b", "f8")], "ndmin": 1}),
        ("1 2", {"dtype": [("a", "i4"), ("b", "f8")], "ndmin": 2}),
        ("1 2\n3 4", {"dtype": "i4,f8", "unpack": True}),
        ("1 2 9\n3 4 9", {"dtype": "i4,f8", "usecols": (1, 0)}),
        ("1 2", {"dtype": np.dtype([("a", "u1"), ("b", "f8")], align=True)}),
        ("1 2", {"converters": {0: lambda text: 5}}),
        ("1 2", {"converters": {-1: lambda text: "7"}}),
        ("1 2", {"converters": lambda text: float(text) + 1}),
        ("1_000 2", {"converters": float}),
        ("1,,3", {"converters": lambda text: float(text or -1), "delimiter": ","}),
        ("1 x 3", {"converters": {2: float}, "usecols": (0, 2)}),
        ("1 x 3", {"converters": {1: lambda text: 5}, "usecols": (1, 0)}),
        ("a 2", {"converters": {0: ord}, "dtype": [("a", "u1"), ("b", "f8")]}),
        ("0xDE 0x10", {"converters": lambda text: int(text, 16), "dtype": "i8"}),
        ("a b", {"converters": lambda text: text == "a", "dtype": bool}),
        ("1 2", {"converters": lambda text: complex(text) * 1j, "dtype": complex}),
        ("1 2", {"converters": lambda text: text + b"0", "encoding": "bytes"}),
        ("1 2", {"converters": {}}),
    ],
)
def test_options_mean_what_they_mean_to_numpy(text: str, options: dict[str, Any]) -> None:
    check_loaded(text, **options)


def test_nested_records_have_a_tensor_for_each_field() -> None:
    found = check_loaded("1 2 3 4 5\n6 7 8 9 10", dtype=[*RECORD[:2], ("x", "u1"), ("y", "f8")])
    nested = tnp.loadtxt(["1 2 3 4 5", "6 7 8 9 10"], dtype=RECORD)
    assert list(nested) == ["a", "b", "c.x", "c.y"]
    assert nested["c.y"].tolist() == found["y"].tolist() == [5, 10]
    assert nested["b"].tolist() == [[2, 3], [7, 8]]


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.complex32, "bfloat16", torch.half]
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_dtypes_of_torch_are_read(dtype: Any) -> None:
    found = tnp.loadtxt(["1 2.5"], dtype=dtype)
    assert found.tolist() == [1, 2.5]
    assert found.dtype == (getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def test_names_of_dtypes_are_numpys() -> None:
    assert tnp.loadtxt(["1"], dtype="float").dtype == torch.float64
    assert tnp.loadtxt(["1"], dtype="int").dtype == torch.int64
    assert tnp.loadtxt(["1"], dtype="float32").dtype == torch.float32


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_line_ends_are_read(tmp_path: Path, end: str) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(f"# a{end}1 2{end}{end}3 4{end}".encode())
    for options in ({}, {"skiprows": 1}, {"max_rows": 1}):
        check_same(tnp.loadtxt(path, **options), loaded_by_numpy(path, **options))
    assert tnp.loadtxt(path.read_bytes()).tolist() == [[1, 2], [3, 4]]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("1,2\n", encoding="utf-8-sig")
    assert tnp.loadtxt(path, delimiter=",").tolist() == [1, 2]
    path.write_text("1,2\n", encoding="utf-16")
    assert tnp.loadtxt(path, delimiter=",", encoding="utf-16").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("1 2\n3\n", {}, "expected 2 columns but found 1 at line 2; choose columns"),
        ("# a\n\n1 2 3\n1 2 3 4", {}, "expected 3 columns but found 4 at line 4"),
        ("1 2\n3 abc", {}, 'expected a float64 but found "abc" at line 2, column 2'),
        ("x\n\n1 abc", {"skiprows": 1}, 'expected a float64 but found "abc" at line 3, column 2'),
        ("1,,2", {"delimiter": ","}, 'expected a float64 but found "" at line 1, column 2'),
        ("1.0", {"dtype": int}, 'expected an int64 but found "1.0" at line 1, column 1'),
        ("-1", {"dtype": "u1"}, 'expected a uint8 in its range but found "-1" at line 1'),
        ("True", {"dtype": bool}, 'expected a bool but found "True" at line 1, column 1'),
        ("1+2", {"dtype": complex}, 'expected a complex128 but found "1+2" at line 1, column 1'),
        ("1\x1b[2J", {}, r'but found "1\x1b[2J" at line 1'),
        ("1 2", {"usecols": 2}, "expected a column 2 (usecols) but found 2 columns at line 1"),
        ("1 2", {"usecols": -3}, "expected a column -3 (usecols) but found 2 columns at line 1"),
        ("1", {"dtype": "i4,i4"}, "expected 2 columns but found 1 at line 1"),
        (
            "1 z",
            {"converters": {1: float}},
            'the converter takes but found "z" at line 1, column 2',
        ),
        ("1 z", {"converters": {1: str}}, 'expected a float64 but found "z" at line 1, column 2'),
        ('"1\n2\n" x', {"quotechar": '"', "usecols": 1}, 'found "x" at line 1, column 2'),
        ('"1\n2\n" 1\ny y', {"quotechar": '"', "usecols": 1}, 'found "y" at line 4, column 2'),
    ],
)
def test_an_error_says_what_and_where(
    text: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.txt"
    path.write_text(text)
    with pytest.raises(tnp.FormatError) as caught:
        tnp.loadtxt(path, **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"delimiter": ";;"},
            TypeError,
            "delimiter: expected one character or None but found ';;'",
        ),
        ({"delimiter": ""}, TypeError, "delimiter: expected one character"),
        ({"delimiter": "\n"}, ValueError, "delimiter: expected no line end"),
        ({"quotechar": "''"}, TypeError, "quotechar: expected one character"),
        ({"quotechar": "\r"}, ValueError, "quotechar: expected no line end"),
        ({"quotechar": " "}, ValueError, "quotechar: expected no blank"),
        ({"quotechar": ",", "delimiter": ","}, ValueError, "quotechar: expected not the delimiter"),
        ({"comments": ""}, ValueError, "comments: expected None for no comments"),
        ({"comments": " "}, ValueError, "comments: expected no blank"),
        ({"comments": "\n"}, ValueError, "comments: expected no line end"),
        ({"comments": ",", "delimiter": ","}, ValueError, "comments: expected not the delimiter"),
        ({"comments": "'", "quotechar": "'"}, ValueError, "comments: expected not the quotechar"),
        ({"skiprows": -1}, ValueError, "skiprows: expected no negative number but found -1"),
        ({"skiprows": 1.5}, TypeError, "skiprows: expected an integer but found 1.5"),
        ({"max_rows": -1}, ValueError, "max_rows: expected no negative number but found -1"),
        ({"ndmin": 3}, ValueError, "ndmin: expected 0, 1 or 2 but found 3"),
        ({"usecols": 1.5}, TypeError, "usecols: expected integers but found 1.5"),
        ({"usecols": "a"}, TypeError, "usecols: expected integers but found 'a'"),
        ({"usecols": 0, "dtype": "i4,i4"}, ValueError, "usecols: expected one column for each of"),
        ({"converters": 3}, TypeError, "converters: expected a function or a dict but found 3"),
        ({"converters": {0: 3}}, TypeError, "converters: expected a function but found 3"),
        (
            {"converters": {"a": int}},
            TypeError,
            "converters: expected columns as keys but found {'a'",
        ),
        (
            {"converters": {3: int}},
            ValueError,
            "converters: expected columns from -2 to 1 but found 3",
        ),
        ({"dtype": "S3"}, tnp.UnsupportedError, "dtype: expected numbers, which tensors hold"),
        ({"dtype": object}, tnp.UnsupportedError, "but found object"),
        ({"dtype": "M8[s]"}, tnp.UnsupportedError, "but found datetime64[s]"),
        ({"dtype": np.longdouble}, tnp.UnsupportedError, "but found float128"),
        ({"dtype": "(2,)f4"}, tnp.UnsupportedError, "but found void64"),
    ],
)
def test_wrong_parameters_are_refused(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        tnp.loadtxt(["1 2"], **options)
    assert message in str(caught.value)


def test_wrong_sources_are_refused() -> None:
    with pytest.raises(TypeError, match="expected a URL, a path, an open file, bytes or lines"):
        tnp.loadtxt(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lines of text, str or bytes, but found int"):
        tnp.loadtxt([1])  # type: ignore[list-item]
    with pytest.raises(tnp.FormatError, match="<lines>: expected one line but found a line end in"):
        tnp.loadtxt(["1 2\n3 4"])
    with pytest.raises(FileNotFoundError):
        tnp.loadtxt("/nowhere/x.txt")


def test_text_without_rows_warns(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.touch()
    with pytest.warns(UserWarning, match=f'input contained no data: "{path}"') as caught:
        assert tnp.loadtxt(path).shape == (0,)
    assert caught[0].filename == __file__


def test_lines_come_from_generators_and_open_files() -> None:
    assert tnp.loadtxt(f"{i} {2 * i}" for i in range(3)).tolist() == [[0, 0], [1, 2], [2, 4]]
    assert tnp.loadtxt(b"%d" % i for i in range(3)).tolist() == [0, 1, 2]
    assert tnp.loadtxt(memoryview(b"1 2")).tolist() == [1, 2]
    assert tnp.loadtxt(np.frombuffer(b"1 2", np.uint8)).tolist() == [1, 2]
    assert tnp.loadtxt(np.array(["1 2", "3 4"])).tolist() == [[1, 2], [3, 4]]
    assert tnp.loadtxt(np.array([b"1", b"2"])).tolist() == [1, 2]
    assert tnp.loadtxt(torch.tensor(list(b"1 2"), dtype=torch.uint8)).tolist() == [1, 2]
    assert tnp.loadtxt(io.BytesIO(b"1\xa02")).tolist() == [1, 2]


@pytest.mark.parametrize("kind", [io.StringIO, lambda text: io.BytesIO(text.encode())])
def test_blocks_of_an_open_file_are_read_one_after_the_other(kind: Any) -> None:
    file = kind("# a\n1 2\n\n3 4\n5 6\n7 8\nend")
    assert tnp.loadtxt(file, max_rows=2).tolist() == [[1, 2], [3, 4]]
    assert tnp.loadtxt(file, skiprows=1, max_rows=1).tolist() == [7, 8]
    assert file.read() in ("end", b"end")
    file = kind("# a\n# b\n\n1\n\n2\n3\n4")
    assert tnp.loadtxt(file, skiprows=2, max_rows=2).tolist() == [1, 2]
    assert tnp.loadtxt(file).tolist() == [3, 4]


def test_a_generator_is_not_asked_for_more_lines_than_are_wanted() -> None:
    lines = (str(i) for i in itertools.count())
    assert tnp.loadtxt(lines, max_rows=3).tolist() == [0, 1, 2]
    assert next(lines) == "3"


@pytest.mark.parametrize("piece", [1, 2, 3, 7])
def test_text_may_be_cut_anywhere(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '\ufeff# é\r\n1€"2\r\n"€3\r\r\n4€5€6 # €\n7€8€"9"'
    monkeypatch.setattr("torchnpy.text_source.PIECE_NBYTES", piece)
    options: Any = {"delimiter": "€", "quotechar": '"', "encoding": "utf-8"}
    found = tnp.loadtxt(io.BytesIO(text.encode()), **options)
    assert found.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_many_pieces_make_one_table(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((30000, 5))
    tnp.savetxt(tmp_path / "x.txt", array)
    check_same(tnp.loadtxt(tmp_path / "x.txt"), array)
    with open(tmp_path / "x.txt") as file:
        check_same(tnp.loadtxt(file), array)
    with open(tmp_path / "x.txt") as file:
        check_same(tnp.loadtxt(file, max_rows=20000), array[:20000])


# Compressed, and far away.


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".lzma"])
def test_compressed_files_are_numpys_both_ways(suffix: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((2000, 5))
    ours, theirs = tmp_path / f"ours.txt{suffix}", tmp_path / f"theirs.txt{suffix}"
    tnp.savetxt(ours, array)
    np.savetxt(theirs, array)
    check_same(torch.from_numpy(np.loadtxt(ours)), array)
    check_same(tnp.loadtxt(theirs), array)
    assert ours.stat().st_size < 1.05 * theirs.stat().st_size
    with {".gz": gzip.open, ".bz2": bz2.open}.get(suffix, lzma.open)(ours) as file:
        assert file.read() == written(np.savetxt, array)
    tnp.savetxt(ours, array, encoding="utf-16")
    check_same(tnp.loadtxt(ours, encoding="utf-16"), array)


def gzipped(text: bytes) -> bytes:
    return gzip.compress(text, mtime=0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (gzipped(b"1 2\n") + gzipped(b"3 4\n"), [[1, 2], [3, 4]]),
        (gzipped(b"1 ") + gzipped(b"") + gzipped(b"2\n") + bytes(100), [1, 2]),
        (
            gzipped(b"1 2\n")[:3]
            + b"\x08"
            + gzipped(b"1 2\n")[4:10]
            + b"name\0"
            + gzipped(b"1 2\n")[10:],
            [1, 2],
        ),
    ],
)
def test_members_of_gzip_are_read_one_after_the_other(
    data: bytes, expected: Any, tmp_path: Path
) -> None:
    (tmp_path / "x.gz").write_bytes(data)
    assert tnp.loadtxt(tmp_path / "x.gz").tolist() == expected


WHOLE = gzipped(b"1 2\n" * 1000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WHOLE[:-1], "expected the end of the gzip data but found none up to byte"),
        (WHOLE[:5], "the data is truncated"),
        (
            WHOLE[:-8] + bytes(8),
            "expected gzip data but found a broken stream (incorrect data check)",
        ),
        (WHOLE[:-4] + bytes(4), "a broken stream (incorrect length check)"),
        (WHOLE + b"garbage", "a broken stream (incorrect header check)"),
        (b"1 2\n", "a broken stream (incorrect header check) at byte"),
        (WHOLE[:12] + b"\xff" * 20 + WHOLE[32:], "expected gzip data but found a broken stream"),
        (gzipped(b"1 x"), 'expected a float64 but found "x" at line 1, column 2'),
    ],
)
def test_broken_gzip_is_refused_with_the_files_name(
    data: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.txt.gz"
    path.write_bytes(data)
    with pytest.raises(tnp.FormatError) as caught:
        tnp.loadtxt(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ".lzma"])
def test_other_broken_data_is_refused_with_the_files_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    compress = bz2.compress if suffix == ".bz2" else lzma.compress
    for data in (b"1 2\n", compress(b"1 2\n")[:-1]):
        path.write_bytes(data)
        with pytest.raises(tnp.FormatError, match=f"expected {suffix} data but found it broken"):
            tnp.loadtxt(path)


def bomb(nbytes: int) -> bytes:
    """Of comments, a thousandth of their size."""
    return gzipped(b"# a\n" * (1 << 20)) * (nbytes >> 22)


def test_a_bomb_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(bomb(64 << 20) + gzipped(b"1 2\n"))
    out = run_script(
        """
        import resource, sys
        import torchnpy

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        before = peak()
        assert torchnpy.loadtxt(sys.argv[1]).tolist() == [1, 2]
        print((peak() - before) >> 10)
        """,
        path,
    )
    assert int(out) < 32  # MiB


def test_a_long_text_can_be_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(bomb(4 << 30))

    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(Alarm):
            tnp.loadtxt(path)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_other_threads_run_while_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(bomb(64 << 20) + gzipped(b"1 2\n"))
    thread = threading.Thread(target=tnp.loadtxt, args=[path])
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 5


def test_servers_are_read(server: ObjectServer) -> None:
    url = server.put("/x.txt", b"1 2\n3 4\n")
    assert tnp.loadtxt(f"{url}?token=secret").tolist() == [[1, 2], [3, 4]]
    assert tnp.loadtxt(server.put("/x.txt.gz", gzipped(b"5 6"))).tolist() == [5, 6]
    with pytest.raises(tnp.FormatError) as caught:
        tnp.loadtxt(server.put("/bad.txt", b"1 x") + "?token=secret")
    assert str(caught.value).startswith(f"{server.url}/bad.txt: expected a float64")
    server.always("/x.txt", status(404))
    with pytest.raises(FileNotFoundError):
        tnp.loadtxt(url)


def test_s3_is_read(s3_server: S3Server, s3_client: tnp.Client) -> None:
    url = s3_server.put_key("a/x.txt", b"1 2\n3 4\n")
    assert tnp.loadtxt(url, client=s3_client).tolist() == [[1, 2], [3, 4]]
    url = s3_server.put_key("a/x.txt.bz2", bz2.compress(b"5 6"))
    assert tnp.loadtxt(url, client=s3_client).tolist() == [5, 6]


def test_s3_is_written(s3_server: S3Server, s3_client: tnp.Client) -> None:
    url = s3_server.put_key("a/x.txt", b"")
    tnp.savetxt(url, ROWS, client=s3_client)
    assert s3_server.buckets["bucket"].objects["a/x.txt"] == written(np.savetxt, ROWS)
    tnp.savetxt(f"{url}.gz", ROWS, client=s3_client)
    check_same(tnp.loadtxt(f"{url}.gz", client=s3_client), ROWS)
    with pytest.raises(TypeError, match="fmt: expected formats that fit the columns"):
        tnp.savetxt(url, [["a"]], client=s3_client)
    assert s3_server.buckets["bucket"].objects["a/x.txt"] == written(np.savetxt, ROWS)


def test_http_is_written(server: ObjectServer) -> None:
    tnp.savetxt(f"{server.url}/x.txt", ROWS)
    assert server.objects["/x.txt"] == written(np.savetxt, ROWS)


def test_a_file_url_is_read_and_written(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/x.txt"
    tnp.savetxt(url, ROWS)
    assert (tmp_path / "x.txt").read_bytes() == written(np.savetxt, ROWS)
    check_same(tnp.loadtxt(url), ROWS)

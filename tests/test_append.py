"""NpyAppendArray and its functions: npy-append-array's behaviour, and what it lacks."""

from __future__ import annotations

import gc
import io
import itertools
import os
import re
import resource
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import npy, run_fresh, run_script, start_script

import torchnpy as tnp
from torchnpy import _C, NpyAppendArray


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "x.npy")


def rows(first: int, count: int, width: int = 4) -> np.ndarray:
    return np.arange(first * width, (first + count) * width, dtype=np.int64).reshape(count, width)


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def tight_npy(array: np.ndarray) -> bytes:
    """With a header as short as it can be, which has no room for its count."""
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}\n"
    length = len(text).to_bytes(2, "little")
    return b"\x93NUMPY\x01\x00" + length + text.encode() + array.tobytes()


# What npy-append-array's README shows and its own tests check.


def test_arrays_are_appended_one_after_the_other(path: str) -> None:
    with NpyAppendArray(path, delete_if_exists=True) as appender:
        appender.append(np.array([[1, 2], [3, 4]]))
        appender.append(np.array([[1, 2], [3, 4], [5, 6]]))
    data = np.load(path, mmap_mode="r")
    assert data.tolist() == [[1, 2], [3, 4], [1, 2], [3, 4], [5, 6]]
    assert data.dtype == np.int64


@pytest.mark.parametrize(
    ("saved_first", "rewrite", "delete", "first_fortran", "then_fortran"),
    list(itertools.product(*[[False, True]] * 5)),
)
def test_each_order_is_appended_to_each_by_threads(
    path: str,
    saved_first: bool,
    rewrite: bool,
    delete: bool,
    first_fortran: bool,
    then_fortran: bool,
) -> None:
    first = np.arange(24).reshape((2, 3, 4), order="F" if first_fortran else "C")
    shape = (2, 3, 5) if first_fortran else (5, 3, 4)
    then = np.arange(24, 24 + np.prod(shape)).reshape(shape, order="F" if then_fortran else "C")
    if saved_first:
        np.save(path, first)
    with NpyAppendArray(path, delete_if_exists=delete, rewrite_header_on_append=rewrite) as into:
        if delete or not saved_first:
            into.append(first)
        threads = [threading.Thread(target=into.append, args=[then]) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert into.fortran_order == first_fortran
    expected = np.concatenate([first, *[then] * 10], axis=-1 if first_fortran else 0)
    assert np.array_equal(np.load(path), expected)
    assert torch.equal(tnp.load(path), torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_header_without_room_gets_it(path: str, fortran: bool, inplace: bool) -> None:
    array = np.arange(27 * 11 * 13, dtype=np.uint64)
    array = array.reshape((27, 11, -1) if fortran else (-1, 11, 27), order="F" if fortran else "C")
    record = np.dtype([("_" * (24 + fortran), np.uint64)])
    np.save(path, array.astype(record))
    saved = Path(path).read_bytes()
    header, data = saved[: len(saved) - array.nbytes], saved[len(saved) - array.nbytes :]
    spare = len(header) - 127
    header = header.replace(b" " * spare + b"\n", b"\n").replace(b"'_", b"'_" + b"_" * spare)
    Path(path).write_bytes(header + data)
    assert not tnp.is_appendable(path)
    with pytest.raises(ValueError, match=r"no room|found none; call ensure_appendable\(\) first"):
        NpyAppendArray(path)
    assert tnp.ensure_appendable(path, inplace=inplace) is True
    assert tnp.is_appendable(path)
    assert not tnp.needs_recovery(path)
    assert np.array_equal(np.load(path).astype(np.uint64), array)
    assert tnp.ensure_appendable(path, inplace=inplace) is True


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("zerofill", [False, True])
def test_the_rows_of_a_file_that_was_cut_are_recovered(
    path: str, fortran: bool, zerofill: bool
) -> None:
    array = np.arange(1, 12 * 11 * 21 + 1, dtype=np.uint64)
    array = array.reshape((12, 11, -1) if fortran else (-1, 11, 12), order="F" if fortran else "C")
    np.save(path, array)
    kept = array.size // 2
    os.truncate(path, os.path.getsize(path) - array.nbytes + kept * 8)
    assert tnp.needs_recovery(path)
    with pytest.raises(ValueError, match=r"call recover\(\) first"):
        NpyAppendArray(path)
    assert tnp.recover(path, zerofill) is True
    found = np.load(path)
    assert found.flags.f_contiguous == fortran
    flat = found.flatten(order="F" if fortran else "C")
    per_row = 11 * 12
    assert flat.size == (kept // per_row + zerofill) * per_row
    whole = min(kept, flat.size)
    assert np.array_equal(flat[:whole], np.arange(1, whole + 1))
    assert not flat[whole:].any()
    assert tnp.recover(path, zerofill) is True


def test_a_log_is_recovered_though_its_header_was_never_written(path: str) -> None:
    run_script(
        """
        import os, sys
        import numpy as np
        import torchnpy as tnp
        log = tnp.NpyAppendArray(sys.argv[1], rewrite_header_on_append=False)
        for i in range(100):
            log.append(np.full((1, 3), i))
        os._exit(0)
        """,
        path,
    )
    assert np.load(path).shape == (0, 3)
    assert tnp.needs_recovery(path)
    with pytest.raises(ValueError, match=r"found 2400; call recover\(\) first"):
        NpyAppendArray(path)
    tnp.recover(path)
    assert np.array_equal(np.load(path), np.repeat(np.arange(100), 3).reshape(100, 3))
    with NpyAppendArray(path) as log:
        log.append(np.zeros((1, 3), np.int64))
    assert np.load(path).shape == (101, 3)


def test_the_header_may_wait_until_it_is_asked_for(path: str) -> None:
    with NpyAppendArray(path, rewrite_header_on_append=False) as appender:
        appender.append(rows(0, 5))
        assert np.load(path).shape == (0, 4)
        appender.update_header()
        assert np.load(path).shape == (5, 4)
        appender.append(rows(5, 5))
        assert appender.shape == (10, 4)
    assert np.array_equal(np.load(path), rows(0, 10))


def test_the_attributes_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    appender = NpyAppendArray(path)
    assert appender.filename is path
    assert not path.exists()
    for name in ("shape", "dtype", "fortran_order", "torch_dtype"):
        assert not hasattr(appender, name)
    with pytest.raises(AttributeError, match="there is no shape before the first append"):
        _ = appender.shape
    appender.append(rows(0, 3).astype(np.float32))
    assert appender.shape == (3, 4)
    assert appender.dtype == np.float32
    assert isinstance(appender.dtype, np.dtype)
    assert appender.torch_dtype == torch.float32
    assert appender.fortran_order is False
    assert repr(appender) == f"<torchnpy.NpyAppendArray '{path}' <f4 (3, 4)>"
    appender.close()
    assert appender.shape == (3, 4)


def test_rows_are_cast_to_the_files_dtype(path: str) -> None:
    with NpyAppendArray(path) as appender:
        appender.append(np.zeros((1, 2), np.int16))
        appender.append(np.array([[1.9, -2.9]]))
        appender.append(torch.tensor([[3.9, 70000.0]]))
        appender.append(np.array([[5, 6]], ">i8"))
    assert np.load(path)[[0, 1, 3]].tolist() == [[0, 0], [1, -2], [5, 6]]
    assert np.load(path).dtype == np.int16


# What is added.


def test_tensors_are_appended(path: str) -> None:
    with NpyAppendArray(path) as appender:
        for i in range(0, 30, 3):
            appender.append(torch.from_numpy(rows(i, 3)))
        appender.append(torch.from_numpy(rows(30, 8))[::2])
        appender.append(torch.from_numpy(rows(0, 4)).t())
        appender.append(torch.ones(1, 4, dtype=torch.int64, requires_grad=False))
        appender.append(torch.ones(1, 4, requires_grad=True))
    expected = [rows(0, 30), rows(30, 8)[::2], rows(0, 4).T, np.ones((2, 4), np.int64)]
    assert np.array_equal(np.load(path), np.concatenate(expected))


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
@pytest.mark.parametrize("fortran", [False, True])
def test_a_list_of_rows_is_appended_as_a_whole(
    path: str, kind: Callable[[Any], Any], fortran: bool
) -> None:
    array = rows(0, 6)
    if fortran:
        np.save(path, np.asfortranarray(array.T))
    with NpyAppendArray(path) as appender:
        appender.append([kind(row) for row in rows(6, 500)])
        appender.append(())
        with pytest.raises(ValueError, match="expected an array of shape"):
            appender.append([kind(rows(0, 1)[0]), kind(np.zeros(3, np.int64))])
    found = np.load(path)
    expected = np.concatenate([array, rows(6, 500)]).T if fortran else rows(6, 500)
    assert np.array_equal(found, expected)


def test_rows_of_no_axis_make_a_list_of_numbers(path: str) -> None:
    with NpyAppendArray(path) as appender:
        appender.append([np.float64(1.5), torch.tensor(2.5)])
        appender.append(torch.tensor([3.5]))
    assert np.load(path).tolist() == [1.5, 2.5, 3.5]


NUMPY_ARRAYS = [
    np.array(["a", "bcd"]),
    np.array([b"a", b"bcd"]),
    np.array([(1, 2.5), (3, 4.5)], [("a", "<i4"), ("b", "<f8")]),
    np.array(["2026-01-01", "NaT"], "M8[D]"),
    np.array([1.5, 2.5], ">f4"),
    np.array([1.5, 2.5], np.longdouble),
    np.array([1 + 2j, 3], np.complex64),
    np.array([True, False]),
    np.array([b"ab", b"cd"], "V2"),
    np.zeros((2, 0, 3)),
]


@pytest.mark.parametrize("array", NUMPY_ARRAYS, ids=lambda array: str(array.dtype))
def test_any_dtype_of_numpys_is_appended(path: str, array: np.ndarray) -> None:
    for _ in range(2):
        with NpyAppendArray(path) as appender:
            for _ in range(3):
                appender.append(array)
            assert appender.dtype == array.dtype
    assert np.array_equal(np.load(path), np.concatenate([array] * 6), equal_nan=False) or (
        array.dtype.kind == "M"
    )
    assert np.load(path).tobytes() == array.tobytes() * 6


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bool,
        torch.uint16,
        torch.complex128,
        torch.bfloat16,
        torch.float8_e5m2,
        torch.float8_e4m3fn,
    ],
)
def test_every_tensor_dtype_comes_back(path: str, dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0.0, 1.0, 2.0]]).to(dtype)
    for _ in range(2):
        with NpyAppendArray(path) as appender:
            for _ in range(2):
                appender.append(tensor)
    found = tnp.load(path, dtype=dtype)
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), tensor.repeat(4, 1).view(torch.uint8))


def test_tensors_are_appended_to_big_endian_files(path: str) -> None:
    np.save(path, np.array([[1.5, 2.5]], ">f4"))
    with NpyAppendArray(path) as appender:
        appender.append(torch.tensor([[3.5, 4.5]]))
        appender.append(torch.tensor([[5, 6]]).t().reshape(1, 2))
    assert np.load(path).tolist() == [[1.5, 2.5], [3.5, 4.5], [5, 6]]
    assert np.load(path).dtype == ">f4"


def test_bfloat16_of_ml_dtypes_is_appended_to_what_torch_wrote(path: str) -> None:
    with NpyAppendArray(path) as appender:
        appender.append(torch.tensor([1.5], dtype=torch.bfloat16))
        appender.append(np.array([2.5], ml_dtypes.bfloat16).view("V2"))
    assert tnp.load(path, dtype=torch.bfloat16).tolist() == [1.5, 2.5]


CASTABLE = [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8]
CASTABLE += [torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64]
CASTABLE += [torch.complex64, torch.complex128]


def test_casts_are_those_of_numpy() -> None:
    def numpy_dtype(dtype: torch.dtype) -> np.dtype:
        return np.dtype(str(dtype).removeprefix("torch."))

    for source, target in itertools.product(CASTABLE, CASTABLE):
        for casting in ("no", "equiv", "safe", "same_kind", "unsafe"):
            expected = np.can_cast(numpy_dtype(source), numpy_dtype(target), casting)
            found = _C.can_cast(source, target, getattr(_C.Casting, casting))
            assert found == expected, (source, target, casting)


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_a_lossy_cast_is_refused_unless_it_is_allowed(
    path: str, kind: Callable[[Any], Any]
) -> None:
    with NpyAppendArray(path, casting="same_kind") as appender:
        appender.append(kind(rows(0, 1)))
        with pytest.raises(TypeError) as error:
            appender.append(kind(rows(0, 1) + 0.5))
        assert str(error.value).startswith(f"{path}: expected rows of int64 but found ")
        assert str(error.value).endswith(
            'cast them, or pass casting="unsafe" to lose what does not fit'
        )
        appender.append(kind(rows(1, 1).astype(np.int8)))
    assert np.array_equal(np.load(path), rows(0, 2))
    with NpyAppendArray(path) as appender:
        appender.append(kind(rows(2, 1) + 0.5))
    assert np.array_equal(np.load(path), rows(0, 3))


def test_a_tensor_cannot_be_text(path: str) -> None:
    np.save(path, np.array(["a", "b"]))
    with NpyAppendArray(path) as appender, pytest.raises(TypeError) as error:
        appender.append(torch.zeros(1))
    assert str(error.value) == (
        f"{path}: expected rows of str32 but found Float; no tensor has this dtype: append numpy "
        "arrays"
    )


# Every error says what was expected.


def test_append_after_close_is_refused(path: str) -> None:
    appender = NpyAppendArray(path)
    appender.append(rows(0, 2))
    appender.close()
    appender.close()
    expected = f"{path}: expected an open file but found a closed one; open it again"
    for call in (lambda: appender.append(rows(0, 1)), appender.update_header):
        with pytest.raises(ValueError, match=exactly(expected)):
            call()
    assert np.array_equal(np.load(path), rows(0, 2))


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (np.float64(1), ValueError, "expected an array with an axis that grows but found shape ()"),
        (torch.tensor(1), ValueError, "expected an array with an axis that grows but found shape"),
        (3.5, ValueError, "expected a tensor, a numpy array or a list of them but found float"),
        ([[1, 2]], ValueError, "expected a tensor, a numpy array or a list of them but found list"),
        (None, ValueError, "but found NoneType; convert it with torch.tensor()"),
        (np.array([None]), tnp.UnsupportedError, "it would be saved as a pickle"),
        (np.ma.zeros((1, 4)), tnp.UnsupportedError, "masked"),
        (torch.zeros(1, 4).to_sparse(), tnp.UnsupportedError, "sparse"),
        (torch.zeros(1, 4, device="meta"), tnp.UnsupportedError, "meta"),
    ],
)
@pytest.mark.parametrize("has_rows", [False, True])
def test_what_is_no_array_of_rows_is_refused(
    path: str, wrong: Any, kind: type[Exception], message: str, has_rows: bool
) -> None:
    with NpyAppendArray(path) as appender:
        if has_rows:
            appender.append(rows(0, 1))
        with pytest.raises(kind) as error:
            appender.append(wrong)
        assert message in str(error.value)
        assert str(error.value).startswith(path)
    assert os.path.exists(path) == has_rows
    if has_rows:
        assert np.array_equal(np.load(path), rows(0, 1))


@pytest.mark.parametrize("shape", [(2, 5), (4,), (2, 4, 1), (0, 5)])
def test_another_shape_is_refused(path: str, shape: tuple[int, ...]) -> None:
    with NpyAppendArray(path) as appender:
        appender.append(rows(0, 3))
        for array in (np.zeros(shape, np.int64), torch.zeros(shape, dtype=torch.int64)):
            expected = (
                f"{path}: expected an array of shape (3, 4), of which only the first axis may "
                f"differ, but found {shape}"
            )
            with pytest.raises(ValueError, match=exactly(expected)):
                appender.append(array)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fsync": "often"}, "fsync: expected one of never, header, always but found 'often'"),
        ({"header_every": 0}, "header_every: expected 1 or more but found 0"),
        ({"header_every": 1.5}, "header_every: expected 1 or more but found 1.5"),
        ({"casting": "any"}, "casting: expected one of no, equiv, safe, same_kind, unsafe but"),
    ],
)
def test_a_wrong_argument_is_named(path: str, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NpyAppendArray(path, **arguments)


def test_objects_of_a_server_cannot_grow() -> None:
    for call in (NpyAppendArray, tnp.recover, tnp.is_appendable, tnp.ensure_appendable):
        with pytest.raises(
            ValueError, match="expected a local file but found an object of a server"
        ):
            call("s3://bucket/x.npy")


def test_a_file_url_is_a_path(path: str) -> None:
    with NpyAppendArray(f"file://{path}") as appender:
        appender.append(rows(0, 1))
    assert np.load(path).shape == (1, 4)


HEADERS = {
    "0-d": (npy(np.float64(3)), False, False),
    "no_row": (npy(np.zeros((3, 0))), True, False),
    "truncated": (npy(rows(0, 3))[:-1], True, True),
    "longer": (npy(rows(0, 3)) + b"x", True, True),
    "fortran": (npy(np.asfortranarray(rows(0, 3))), True, False),
    "tight": (tight_npy(rows(0, 3)), False, False),
}


@pytest.mark.parametrize("name", HEADERS)
def test_files_are_told_apart(path: str, name: str) -> None:
    content, appendable, broken = HEADERS[name]
    Path(path).write_bytes(content)
    assert tnp.is_appendable(path) == appendable
    assert tnp.needs_recovery(path) == broken


def test_objects_never_need_recovery(path: str) -> None:
    np.save(path, np.array([None, {}], object), allow_pickle=True)
    assert not tnp.needs_recovery(path)
    with pytest.raises(tnp.UnsupportedError, match="found objects, which are pickles"):
        NpyAppendArray(path)


def test_version_2_is_kept(path: str) -> None:
    with open(path, "wb") as file:
        np.lib.format.write_array(file, rows(0, 2), version=(2, 0))
    assert tnp.is_appendable(path)
    with NpyAppendArray(path) as appender:
        appender.append(rows(2, 1))
    assert Path(path).read_bytes()[6:8] == b"\x02\x00"
    assert np.array_equal(np.load(path), rows(0, 3))


def test_an_empty_file_is_no_array(path: str) -> None:
    Path(path).touch()
    for call in (NpyAppendArray, tnp.is_appendable, tnp.needs_recovery, tnp.recover):
        with pytest.raises(tnp.FormatError, match="the file is truncated"):
            call(path)
    with NpyAppendArray(path, delete_if_exists=True) as appender:
        appender.append(rows(0, 1))
    assert np.load(path).shape == (1, 4)


def test_rows_of_no_elements_are_counted_and_recovered(path: str) -> None:
    np.save(path, np.zeros((3, 0)))
    with NpyAppendArray(path) as appender:
        appender.append(np.zeros((2, 0)))
    assert np.load(path).shape == (5, 0)
    with open(path, "ab") as file:
        file.write(b"junk")
    tnp.recover(path, zerofill_incomplete=True)
    assert np.load(path).shape == (5, 0)


# Locks, processes, threads.


def test_a_second_writer_is_refused_at_once(path: str) -> None:
    with NpyAppendArray(path) as appender:
        appender.append(rows(0, 1))
        for second in (NpyAppendArray, lambda p: NpyAppendArray(p, True), tnp.recover):
            with pytest.raises(tnp.LockError) as error:
                second(path)
            assert str(error.value) == (
                f"{path}: expected a file that nobody else appends to but found it locked by "
                "another writer; close that one first"
            )
        out = run_script(
            """
            import sys
            import torchnpy as tnp
            try:
                tnp.NpyAppendArray(sys.argv[1])
            except tnp.LockError as error:
                print(error)
            """,
            path,
        )
        assert out.strip() == str(error.value)
        appender.append(rows(1, 1))
    with NpyAppendArray(path) as second_writer:
        second_writer.append(rows(2, 1))
    assert np.array_equal(np.load(path), rows(0, 3))


def test_a_forked_child_cannot_append(path: str) -> None:
    out = run_script(
        """
        import os, sys
        import numpy as np
        import torchnpy as tnp
        with tnp.NpyAppendArray(sys.argv[1], rewrite_header_on_append=False) as appender:
            appender.append(np.zeros((2, 4), "i8"))
            if os.fork() == 0:
                try:
                    appender.append(np.ones((2, 4), "i8"))
                except tnp.LockError as error:
                    print(error, flush=True)
                appender.close()
                del appender
                os._exit(0)
            os.wait()
            appender.append(np.ones((1, 4), "i8"))
        """,
        path,
    )
    assert "found a child that it forked; append in one process" in out
    assert np.load(path)[:, 0].tolist() == [0, 0, 1]


def test_threads_lose_and_tear_no_row(path: str) -> None:
    count = 10_000

    def work(number: int) -> None:
        row = np.empty((1, 4), np.int64)
        for i in range(count):
            row[:] = number, i, number ^ i, -i
            appender.append(row)

    with NpyAppendArray(path) as appender:
        threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = np.load(path)
    assert found.shape == (8 * count, 4)
    assert np.array_equal(found[:, 2], found[:, 0] ^ found[:, 1])
    assert np.array_equal(found[:, 3], -found[:, 1])
    for number in range(8):
        assert np.array_equal(found[found[:, 0] == number, 1], np.arange(count))


@pytest.mark.parametrize("dtype", ["f8", "i2"])  # as the file is, and to be cast
def test_a_process_ends_while_its_threads_append(path: str, dtype: str) -> None:
    np.save(path, np.zeros((0, 4)))
    for _ in range(3):
        run_script(
            """
            import sys, threading
            import numpy as np
            import torchnpy as tnp
            appender = tnp.NpyAppendArray(sys.argv[1])
            rows = np.zeros((1, 4), sys.argv[2])
            started = threading.Barrier(9)

            def write():
                appended = 0
                while True:
                    appender.append(rows)
                    appended += 1
                    if appended == 100:
                        started.wait()

            for _ in range(8):
                threading.Thread(target=write, daemon=True).start()
            started.wait()
            """,
            path,
            dtype,
        )
    assert len(np.load(path)) >= 3 * 8 * 100


def test_at_the_end_of_the_process_one_that_fails_leaves_no_other_open(tmp_path: Path) -> None:
    run_script(
        """
        import os, sys
        import numpy as np
        import torchnpy as tnp
        from torchnpy.append import _close_all

        appenders = [
            tnp.NpyAppendArray(f"{sys.argv[1]}/{i}", rewrite_header_on_append=False)
            for i in range(8)
        ]
        for i, appender in enumerate(appenders):
            appender.append(np.ones(3))
            if i % 2:
                os.truncate(appender.filename, 100)
        try:
            _close_all()
        except tnp.TransportError:
            os._exit(0)
        os._exit(1)
        """,
        tmp_path,
    )
    assert [len(np.load(tmp_path / f"{i}")) for i in range(0, 8, 2)] == [3] * 4


def test_records_that_differ_in_their_padding_alone_are_cast(path: str) -> None:
    """The format of their buffers is the same."""
    padded = np.dtype({"names": ["x"], "formats": ["u1"], "itemsize": 4})
    with NpyAppendArray(path) as appender:
        for _ in range(2):
            appender.append(np.ones(3, padded))
        appender.append(np.full(3, 2, [("x", "u1")]))
    assert np.load(path)["x"].tolist() == [1] * 6 + [2] * 3


def test_an_object_that_is_dropped_closes_the_file(path: str) -> None:
    appender = NpyAppendArray(path, rewrite_header_on_append=False)
    appender.append(rows(0, 3))
    cycle = [appender]
    cycle.append(cycle)  # type: ignore[arg-type]
    gone = weakref.ref(appender)
    del appender, cycle
    gc.collect()
    assert gone() is None
    assert np.load(path).shape == (3, 4)
    NpyAppendArray(path).close()


def test_a_process_that_ends_counts_its_rows(path: str) -> None:
    run_script(
        """
        import sys
        import numpy as np
        import torchnpy as tnp
        appender = tnp.NpyAppendArray(sys.argv[1], header_every=100)
        appender.append(np.zeros((7, 4)))
        sys.appender = appender  # outlives its module
        """,
        path,
    )
    assert np.load(path).shape == (7, 4)


READER = """
    import sys
    import numpy as np
    import torchnpy as tnp
    path, count = sys.argv[1], int(sys.argv[2])
    loads = [
        np.load,
        lambda path: np.load(path, mmap_mode="r"),
        tnp.load,
        lambda path: tnp.load(path, mmap=False),
        lambda path: tnp.load_rows(path, 0, None),
    ]
    print("ready", flush=True)
    last, reads = 0, 0
    while last < count:
        array = loads[reads % len(loads)](path)
        assert len(array) >= last, (len(array), last)  # a torn count is smaller
        last = len(array)
        if last:
            assert (array[last - 1] == last - 1).all()
        reads += 1
    print(reads)
"""


def test_a_reader_sees_whole_rows_at_any_moment(path: str) -> None:
    """Ours and numpy's, files that are read and mapped, counts of one digit to five."""
    array = np.repeat(np.arange(20_000), 4).reshape(-1, 4)
    with NpyAppendArray(path) as appender:
        appender.append(array[:0])
        with start_script(READER, path, len(array)) as reader:
            assert reader.stdout.readline() == "ready\n"
            for i in range(len(array)):
                appender.append(array[i : i + 1])
            status, out, err = reader.finish()
    assert (status, err) == (0, "")
    assert int(out) > 1


def test_a_killed_writer_leaves_a_whole_number_of_rows(path: str) -> None:
    """500 times, at random moments: numpy loads the file, and appending goes on."""
    run_script(
        """
        import os, random, signal, sys, time
        import numpy as np
        import torchnpy as tnp

        path = sys.argv[1]
        random.seed(3)
        count = 0

        def write(ready):
            appender = tnp.NpyAppendArray(path)
            os.write(ready, b"x")
            first = count
            while True:
                rows = random.randrange(1, 50)
                appender.append(np.repeat(np.arange(first, first + rows), 5).reshape(rows, 5))
                first += rows

        for round in range(500):
            ours, theirs = os.pipe()
            pid = os.fork()
            if pid == 0:
                write(theirs)
            os.read(ours, 1)
            time.sleep(random.random() * 0.001)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(ours)
            os.close(theirs)
            if not os.path.exists(path):
                continue  # before the first append
            array = np.load(path, mmap_mode="r")
            assert len(array) >= count
            assert (array == np.arange(len(array))[:, None]).all()
            count = len(array)
            if count > 20_000:
                os.unlink(path)
                count = 0
        """,
        path,
    )


def test_ctrl_c_ends_an_append_and_keeps_the_rows(path: str) -> None:
    with start_script(
        """
        import os, signal, sys, threading
        import numpy as np
        import torchnpy as tnp
        chunk = np.zeros((1, 64 << 20), "u1")
        large = np.broadcast_to(chunk, (256, 64 << 20))  # 16 GiB
        appender = tnp.NpyAppendArray(sys.argv[1])
        appender.append(chunk)
        try:
            threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
            appender.append(large)
        except KeyboardInterrupt:
            print("interrupted", appender.shape)
        appender.append(chunk)
        appender.close()
        """,
        path,
    ) as script:
        status, out, err = script.finish()
    assert (status, out, err) == (0, "interrupted (1, 67108864)\n", "")
    assert np.load(path, mmap_mode="r").shape == (2, 64 << 20)
    os.unlink(path)


def test_a_signal_handler_inside_an_append_cannot_call_it(path: str) -> None:
    out = run_script(
        """
        import signal, sys
        import numpy as np
        import torchnpy as tnp
        chunk = np.zeros((1, 64 << 20), "u1")
        appender = tnp.NpyAppendArray(sys.argv[1])
        appender.append(chunk)
        signal.signal(signal.SIGALRM, lambda *_: appender.close())
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            appender.append(np.broadcast_to(chunk, (256, 64 << 20)))  # 16 GiB
        except ValueError as error:
            print(error)
        appender.append(chunk)
        appender.close()
        """,
        path,
    )
    assert out == (
        f"{path}: expected a call after append() has returned but found one by a signal handler "
        "inside it; raise an exception there, or set a flag\n"
    )
    assert np.load(path, mmap_mode="r").shape == (2, 64 << 20)
    os.unlink(path)


def test_a_full_disk_leaves_the_rows_that_were_there(path: str) -> None:
    with NpyAppendArray(path) as appender:
        appender.append(rows(0, 10))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(tnp.TransportError) as error:
                appender.append(rows(10, 100))
            appender.append(rows(10, 1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(error.value) == (
            f"{path}: expected to append 3200 bytes at byte 448 but 552 were written: File too "
            "large; the file keeps its 10 rows"
        )
        assert np.array_equal(np.load(path), rows(0, 11))
        appender.append(rows(11, 100))
    assert np.array_equal(np.load(path), rows(0, 111))


def test_a_file_that_may_not_be_written_says_so(path: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot create: No such file or directory"):
        NpyAppendArray(tmp_path / "no" / "x.npy").append(rows(0, 1))
    with pytest.raises(tnp.TransportError, match="Is a directory"):
        NpyAppendArray(tmp_path)


@pytest.mark.parametrize("fsync", ["never", "header", "always"])
@pytest.mark.parametrize("header_every", [1, 3])
def test_every_way_to_sync_writes_the_same(path: str, fsync: Any, header_every: int) -> None:
    with NpyAppendArray(path, fsync=fsync, header_every=header_every) as appender:
        for i in range(4):
            appender.append(rows(i, 1))
    assert np.array_equal(np.load(path), rows(0, 4))


def test_tensors_need_no_numpy(path: str) -> None:
    run_fresh(
        """
        import sys, warnings
        warnings.filterwarnings("ignore", "Failed to initialize NumPy")
        sys.modules["numpy"] = None
        import torch, torchnpy as tnp
        with tnp.NpyAppendArray(sys.argv[1]) as appender:
            appender.append(torch.zeros(2, 3))
            appender.append([torch.zeros(3)])
            assert appender.dtype == torch.float32
        """,
        path,
    )
    assert np.load(path).shape == (3, 3)


# The op.


def test_the_op_appends_and_closes(path: str) -> None:
    for i in range(3):
        torch.ops.npy.append(path, torch.from_numpy(rows(i, 1)))
    torch.ops.npy.append(path, torch.full((1, 4), 7, dtype=torch.int8))
    assert np.array_equal(np.load(path), np.concatenate([rows(0, 3), np.full((1, 4), 7)]))
    with pytest.raises(TypeError, match=r"expected rows of int64 but found Float"):
        torch.ops.npy.append(path, torch.zeros(1, 4))
    with NpyAppendArray(path), pytest.raises(tnp.LockError):
        torch.ops.npy.append(path, torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected a local file"):
        torch.ops.npy.append("s3://bucket/x.npy", torch.zeros(1))


def test_opcheck_passes_for_the_op(path: str) -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.npy.append.default, (path, torch.zeros(1, 2)), test_utils=checks
    )


def test_a_scripted_model_appends_each_time(path: str, tmp_path: Path) -> None:
    class Log(torch.nn.Module):
        def forward(self, path: str, x: torch.Tensor) -> torch.Tensor:
            torch.ops.npy.append(path, x)
            torch.ops.npy.append(path, x)
            return x + 1

    saved = tmp_path / "log.pt"
    torch.jit.freeze(torch.jit.script(Log().eval())).save(saved)
    loaded = torch.jit.load(saved)
    for _ in range(4):
        loaded(path, torch.ones(1, 3))
    assert torch.equal(tnp.load(path), torch.ones(8, 3))


def test_a_file_is_read_while_it_is_appended_to(path: str) -> None:
    with NpyAppendArray(path) as appender:
        for i in range(20):
            appender.append(rows(i, 1))
            assert torch.equal(tnp.load(path), torch.from_numpy(rows(0, i + 1)))
            assert tnp.header(path).shape == (i + 1, 4)
            assert np.array_equal(np.load(io.BytesIO(Path(path).read_bytes())), rows(0, i + 1))


shapes = st.lists(st.integers(0, 4), min_size=0, max_size=3).map(tuple)
dtypes = st.sampled_from(["<f4", ">i8", "<u2", "|b1", "<c16", "<U3", "|S5", "M8[us]", "<f2"])


@settings(max_examples=60, deadline=None)
@given(shapes, dtypes, st.booleans(), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3))))
def test_whatever_is_appended_is_what_numpy_concatenates(
    tmp_path_factory: pytest.TempPathFactory,
    others: tuple[int, ...],
    dtype: str,
    fortran: bool,
    parts: list[tuple[int, int]],
) -> None:
    def make(count: int, rest: tuple[int, ...], seed: int) -> np.ndarray:
        values = np.random.default_rng(seed).integers(0, 2, (count, *rest)).astype(dtype)
        return np.moveaxis(values, 0, axis)

    path = tmp_path_factory.mktemp("grow") / "x.npy"
    axis = len(others) if fortran else 0
    first = make(2, others, 99)
    np.save(path, first)
    arrays = [first]
    appender = NpyAppendArray(path)
    axis = first.ndim - 1 if appender.fortran_order else 0
    rest = first.shape[:axis] + first.shape[axis + 1 :]
    for count, way in parts:
        array = make(count, rest, way)
        arrays.append(array)
        if way == 0:
            appender.append(array)
        elif way == 1:
            appender.append(np.asfortranarray(array)[::-1][::-1])
        elif way == 2:
            appender.append(list(np.moveaxis(array, axis, 0)))
        else:
            appender.close()
            appender = NpyAppendArray(path, header_every=2)
            appender.append(array.astype(array.dtype.newbyteorder()))
    appender.close()
    expected = np.concatenate(arrays, axis=axis)
    found = np.load(path)
    assert found.dtype == first.dtype
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)
    assert not tnp.needs_recovery(path)
    assert tnp.is_appendable(path)

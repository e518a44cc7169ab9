"""torchnpy.save: byte for byte what numpy writes, of every array that numpy or torch has."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from support import npy, run_script
from test_npy_properties import arrays, records

import torchnpy as tnp

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def saved(array: Any) -> bytes:
    """What torchnpy writes."""
    file = io.BytesIO()
    tnp.save(file, array)
    return file.getvalue()


DTYPES = {
    torch.bool: "?",
    torch.int8: "i1",
    torch.uint8: "u1",
    torch.int16: "i2",
    torch.int32: "i4",
    torch.int64: "i8",
    torch.uint16: "u2",
    torch.uint32: "u4",
    torch.uint64: "u8",
    torch.float16: "f2",
    torch.float32: "f4",
    torch.float64: "f8",
    torch.complex64: "c8",
    torch.complex128: "c16",
}
SHAPES = [(), (0,), (1,), (7,), (3, 4), (0, 5), (5, 0), (1, 3, 1), (2, 3, 4), (2, 1, 3, 2, 2)]
# Views of one array: what a tensor of the same memory and numpy's own array look like.
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "C order": lambda a: a,
    "Fortran order": lambda a: a.T,
    "every second": lambda a: a[..., ::2],
    "not the first": lambda a: a[1:],
    "other axes": lambda a: a.swapaxes(0, -1),
    "one of the last axis": lambda a: a[..., 0],
}


@pytest.mark.filterwarnings("ignore:.*`x.T`", "ignore:Tensor.T is deprecated")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_are_saved_as_numpy_saves_their_arrays(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        nbytes = int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize
        array = np.frombuffer(bytes(i % 2 for i in range(nbytes)), DTYPES[dtype]).reshape(shape)
        tensor = torch.from_numpy(array.copy())
        for layout, view in LAYOUTS.items():
            if layout in ("C order", "Fortran order") or (shape and 0 not in shape):
                viewed = view(array)
                assert saved(view(tensor)) == npy(viewed), (shape, layout)
                assert saved(viewed) == npy(viewed), (shape, layout)


def test_broadcast_tensors_are_saved_as_what_they_show() -> None:
    tensor = torch.arange(3.0)[:, None].expand(2, 3, 5)
    assert saved(tensor) == npy(np.broadcast_to(np.arange(3, dtype="f4")[:, None], (2, 3, 5)))


def test_large_transposes_are_saved_whole(tmp_path: Path) -> None:
    tensor = torch.randint(0, 1 << 30, (700, 3, 900), dtype=torch.int32)
    for view in (tensor.permute(2, 0, 1), tensor[1:, :, 1:].permute(2, 1, 0), tensor[::3]):
        tnp.save(tmp_path / "x", view)
        assert (tmp_path / "x.npy").read_bytes() == npy(view.numpy())


NUMPY_ARRAYS = {
    "text": np.array(["h\u00e9", "\u4e2d\u6587", ""]),
    "bytes": np.array([b"a", b"bcd"]),
    "empty text": np.array("", dtype="U0"),
    "big endian": np.arange(5, dtype=">f8"),
    "big endian text": np.array(["ab"]).astype(">U2"),
    "datetimes": np.array(["2020-02-29", "NaT"], "M8[D]"),
    "durations": np.array([1, 2], "m8[25us]"),
    "long double": np.arange(3, dtype=np.longdouble),
    "void": np.zeros(3, "V5"),
    "backwards": np.arange(24).reshape(2, 3, 4)[::-1, :, ::-2],
    "a scalar": np.float32(3),
    "a zero of no size": np.zeros((3, 0, 2), "c8"),
    "a record": np.zeros((), [("a", "f4"), ("b", "S3")]),
    "records": np.zeros((2, 3), [("a", "f4"), ("b", ">i8", (2, 2)), ("c", [("d", "M8[s]")])]),
    "padded records": np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "names that Python escapes": np.zeros(2, [('it\'s "x"\n\\', "i1"), ("\u00e9", "i2")]),
    "titles": np.zeros(2, [(("title", "a"), "f4")]),
    "Fortran records": np.asfortranarray(np.zeros((2, 3), [("a", "f4"), ("b", "i2")])),
    "a recarray": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
}


@pytest.mark.parametrize("name", NUMPY_ARRAYS)
def test_numpys_arrays_are_saved_as_numpy_saves_them(name: str) -> None:
    assert saved(NUMPY_ARRAYS[name]) == npy(NUMPY_ARRAYS[name])


def test_read_only_arrays_are_saved() -> None:
    array = np.arange(6)
    array.flags.writeable = False
    assert saved(array) == npy(array)


@pytest.mark.parametrize("value", [3, 2.5, True, 1j, "text", [1, 2.0], [[1], [2]], (), range(3)])
def test_what_numpy_makes_an_array_of_is_saved_as_that(value: Any) -> None:
    assert saved(value) == npy(value)


@pytest.mark.filterwarnings("ignore:Stored array in format")
def test_long_and_foreign_names_make_later_versions() -> None:
    many = np.dtype([(f"field {i:05}", "f4") for i in range(4000)])
    for dtype, version in ((many, 2), (np.dtype([("\u4e2d", "f4")]), 3)):
        array = np.zeros(2, dtype)
        assert saved(array) == npy(array)
        assert saved(array)[6] == version


def test_dtype_metadata_is_dropped_with_numpys_warning() -> None:
    array = np.zeros(2, np.dtype("f4", metadata={"unit": "m"}))
    with pytest.warns(UserWarning, match="metadata on a dtype is not saved"):
        assert saved(array) == npy(np.zeros(2, "f4"))


@relaxed
@given(arrays())
def test_saved_by_us_is_read_by_numpy_and_the_other_way_round(array: np.ndarray) -> None:
    assert saved(array) == npy(array)
    assert np.load(io.BytesIO(saved(array))).tobytes() == array.tobytes()
    loaded = tnp.load_npy(npy(array))
    assert isinstance(loaded, torch.Tensor)
    native = array.astype(array.dtype.newbyteorder("="))
    if native.dtype.kind in "mM":
        native = native.view("i8")
    if native.dtype.kind == "b":
        native = native.view("u1") != 0  # bytes that no bool has
    assert saved(loaded)[128:] == npy(native)[128:]
    again = tnp.load_npy(saved(loaded))
    assert isinstance(again, torch.Tensor)
    assert again.shape == loaded.shape
    assert again.stride() == loaded.stride()
    assert again.numpy().tobytes() == loaded.numpy().tobytes()


@relaxed
@given(st.data())
def test_records_are_saved_as_numpy_saves_them(data: st.DataObject) -> None:
    dtype = data.draw(records())
    shape = data.draw(npst.array_shapes(min_dims=0, max_dims=2, max_side=3))
    array = np.zeros(shape, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the version
        assert saved(array) == npy(array)
        assert np.array_equal(np.load(io.BytesIO(saved(array))), array)


def test_a_small_float_that_a_header_names_may_be_a_field() -> None:
    loaded = tnp.load_npy(saved({"a": torch.ones(2).to(torch.float8_e5m2)}))
    assert isinstance(loaded, dict)
    assert loaded["a"].dtype == torch.float8_e5m2


FLOATS = {
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
    torch.float8_e8m0fnu: ml_dtypes.float8_e8m0fnu,
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_small_floats_are_saved_as_with_ml_dtypes(dtype: torch.dtype) -> None:
    values = [0.5, 1.0, 2.0, 4.0]
    tensor = torch.tensor(values).to(dtype)
    assert saved(tensor) == npy(np.array(values, FLOATS[dtype]))
    assert saved(np.array(values, FLOATS[dtype])) == saved(tensor)
    loaded = tnp.load_npy(saved(tensor), dtype=dtype)
    assert isinstance(loaded, torch.Tensor)
    assert torch.equal(loaded.float(), tensor.float())


def test_what_torch_does_when_it_reads_is_done() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert saved(tensor.conj()) == npy(np.array([1 - 2j, 3 + 4j], "c8"))
    assert saved(tensor.conj().imag) == npy(np.array([-2, 4], "f4"))


def test_gradients_are_no_hindrance() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    assert saved(weight) == saved(weight * 1) == npy(np.ones((2, 3), "f4"))
    with torch.inference_mode():
        assert saved(torch.ones(2, 3)) == saved(weight)


def test_a_subclass_with_memory_is_saved() -> None:
    class Image(torch.Tensor):
        pass

    assert saved(torch.ones(2).as_subclass(Image)) == npy(np.ones(2, "f4"))


DICTS: dict[str, dict[str, torch.Tensor]] = {
    "columns": {"a": torch.arange(3), "b": torch.rand(3).double(), "c d'": torch.ones(3) > 0},
    "sub-arrays": {"a": torch.rand(4, 2), "b": torch.rand(4, 2, 3), "c": torch.rand(4, 2)},
    "one record": {"a": torch.tensor(1), "b": torch.rand(2, 2)},
    "nothing": {"a": torch.zeros(0, 2), "b": torch.zeros(0)},
    "one field": {"a": torch.rand(2, 3).T},
}


@pytest.mark.parametrize("name", DICTS)
def test_a_dict_of_tensors_is_a_structured_array(name: str) -> None:
    fields = DICTS[name]
    array = np.load(io.BytesIO(saved(fields)))
    assert array.dtype.names == tuple(fields)
    loaded = tnp.load_npy(saved(fields))
    assert isinstance(loaded, dict)
    assert list(loaded) == list(fields)
    for key, field in fields.items():
        assert np.array_equal(array[key], field.numpy())
        assert torch.equal(loaded[key], field)
    assert saved(fields) == npy(array)


def test_what_load_gives_of_records_is_saved_again() -> None:
    array = np.zeros((2, 3), [("a", "f4"), ("b", "i8", (2,)), ("c", [("d", "u2")])], order="F")
    array["a"] = np.arange(6).reshape(2, 3)
    loaded = tnp.load_npy(npy(array))
    again = tnp.load_npy(saved(loaded))
    assert isinstance(loaded, dict)
    assert isinstance(again, dict)
    assert list(again) == ["a", "b", "c.d"]
    assert all(torch.equal(again[name], loaded[name]) for name in loaded)


X = torch.rand(2, 3)
PLAIN = "expected a tensor that is a plain array but found "
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "sparse": (
        lambda: X.to_sparse(),
        PLAIN + "a sparse tensor; call .to_dense(), or save its indices and values with savez()",
    ),
    "sparse rows": (lambda: X.to_sparse_csr(), PLAIN + "a sparse tensor; call .to_dense(), or"),
    "quantized": (
        lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
        PLAIN + "a quantized tensor (QInt8); call .dequantize(), or save .int_repr() and the scale "
        "and zero point with savez()",
    ),
    "meta": (
        lambda: X.to("meta"),
        PLAIN + "a tensor on the meta device; it has no data: make it on the CPU",
    ),
    "nested": (
        lambda: torch.nested.nested_tensor([X, X]),
        PLAIN + "a nested tensor; call .to_padded_tensor(0), or save the tensors of .unbind() with "
        "savez()",
    ),
    "oneDNN": (lambda: X.to_mkldnn(), PLAIN + "a tensor in oneDNN's layout; call .to_dense()"),
    "complex32": (
        lambda: torch.zeros(2, dtype=torch.complex32),
        PLAIN + "dtype ComplexHalf, which numpy lacks; call .to(torch.complex64), or "
        "torch.view_as_real() for its parts",
    ),
    "float4": (
        lambda: torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        PLAIN + "dtype Float4_e2m1fn_x2, which numpy lacks; save its bits: call .view(torch.uint8)",
    ),
    "objects": (
        lambda: np.array([None, 1]),
        "expected numbers, or text of a fixed size, but found dtype('O'); it would be saved as a "
        "pickle, which can run code when it is read: docs/pickle.md shows what to do instead",
    ),
    "objects in records": (
        lambda: np.zeros(2, [("a", "f4"), ("b", [("c", "O")])]),
        "expected numbers, or text of a fixed size, but found dtype([('a', '<f4'), ('b', [('c', "
        "'O')])]); it would be saved as a pickle",
    ),
    "numpy's strings": (
        lambda: np.array(["a"], np.dtypes.StringDType()),
        "expected numbers, or text of a fixed size, but found StringDType(); it would be saved as",
    ),
    "masked": (
        lambda: np.ma.array([1, 2], mask=[0, 1]),
        "expected a plain array but found a masked one; call .filled(), or save .data and .mask "
        "with savez()",
    ),
    "bfloat16 in a dict": (
        lambda: {"a": X, "b": X.bfloat16()},
        f"field 'b': {PLAIN}dtype BFloat16 in a dict, where the file cannot name it; save it as an "
        "array of its own, or its bits: call .view(torch.int16), of 8 bits .view(torch.uint8)",
    ),
    "sparse in a dict": (lambda: {"a": X.to_sparse()}, f"field 'a': {PLAIN}a sparse tensor; "),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_array_is_refused_with_advice(tmp_path: Path, name: str) -> None:
    make, message = REFUSED[name]
    array = make()
    with pytest.raises(tnp.UnsupportedError) as refused:
        tnp.save(tmp_path / "x.npy", array)
    assert str(refused.value).startswith(f"{tmp_path}/x.npy: {message}")
    with pytest.raises(tnp.UnsupportedError) as refused:
        tnp.savez(tmp_path / "x.npz", good=X, bad=array)
    assert str(refused.value).startswith(f"{tmp_path}/x.npz[bad]: {message}")
    with pytest.raises(tnp.UnsupportedError) as refused:
        tnp.save(io.BytesIO(), array)
    assert str(refused.value).startswith(f"<stream>: {message}")
    assert list(tmp_path.iterdir()) == []


def test_a_fake_tensor_has_nothing_to_save() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = mode.from_tensor(X)
    with pytest.raises(tnp.UnsupportedError, match=r"has no data|without memory of its own"):
        tnp.save(io.BytesIO(), fake)


BAD_DICTS: list[tuple[dict[Any, Any], type[Exception], str]] = [
    ({}, ValueError, "expected a dict of tensors but found an empty one; a record has fields"),
    ({1: X}, TypeError, "expected a field's name, a str, but found 1"),
    ({"": X}, TypeError, "expected a field's name, a str, but found ''"),
    (
        {"a": [1]},
        TypeError,
        "expected a tensor as field 'a' but found list; save what is no structured array with "
        "savez(target, **arrays)",
    ),
]


@pytest.mark.parametrize(("fields", "kind", "message"), BAD_DICTS)
def test_a_dict_that_is_no_record_is_refused(
    fields: dict[Any, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as refused:
        tnp.save(io.BytesIO(), fields)
    assert str(refused.value) == f"<stream>: {message}"


def test_non_contiguous_arrays_are_saved_without_a_copy(tmp_path: Path) -> None:
    peak = run_script(
        """
        import sys, threading
        import torch, torchnpy as tnp

        def peak():
            status = open("/proc/self/status").read()
            return int(status.split("VmHWM:")[1].split()[0]) << 10

        tensor = torch.rand(32 << 20)[::2]
        tnp.save(sys.argv[1], tensor[:1000])
        before = peak()
        tnp.save(sys.argv[1], tensor)
        print(peak() - before)
        """,
        tmp_path / "x.npy",
    )
    assert int(peak) < 16 << 20  # of 64 MiB
    assert (tmp_path / "x.npy").stat().st_size == 128 + (64 << 20)


def test_numpy_is_not_imported_for_tensors(tmp_path: Path) -> None:
    imported = run_script(
        """
        import sys
        import torch
        for name in [name for name in sys.modules if name.split(".")[0] == "numpy"]:
            del sys.modules[name]
        import torchnpy as tnp
        tnp.save(sys.argv[1], torch.ones(3))
        tnp.savez(sys.argv[1], torch.ones(3))
        print("numpy" in sys.modules)
        """,
        tmp_path / "x",
    )
    assert imported == "False\n"


def test_saved_by_us_is_mapped_by_us(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    tensor = torch.rand(300, 1000)
    tnp.save(path, tensor)
    loaded = tnp.load(path)
    assert isinstance(loaded, torch.Tensor)
    assert torch.equal(loaded, tensor)
    addresses = [
        tuple(int(part, 16) for part in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path))
    ]
    assert any(begin < loaded.data_ptr() < end for begin, end in addresses)
    assert loaded.data_ptr() % 64 == 0


def test_an_array_is_saved_over_the_file_that_it_is_mapped_from(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    tnp.save(path, torch.ones(300_000))
    loaded = tnp.load(path)
    assert isinstance(loaded, torch.Tensor)
    tnp.save(path, loaded[::2])
    assert loaded.sum() == 300_000
    assert torch.equal(tnp.load(path), torch.ones(150_000))

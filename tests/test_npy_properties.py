"""numpy is the oracle: what it writes comes back equal, what it refuses is refused."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from npy_bytes import (
    Version,
    header_text,
    is_judged_unlike_numpy,
    loaded_by_numpy,
    npy_bytes,
    saved,
)

import torchnpy

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SIZED = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "b1"]
UNITS = ["Y", "M", "W", "D", "h", "m", "s", "25s", "ms", "us", "ns", "ps", "fs", "as"]
VERSIONS: list[Version] = [(1, 0), (2, 0), (3, 0)]

scalars = st.one_of(
    st.builds("{}{}".format, st.sampled_from("<>"), st.sampled_from(SIZED)),
    st.builds(
        "{}{}8[{}]".format, st.sampled_from("<>"), st.sampled_from("mM"), st.sampled_from(UNITS)
    ),
).map(np.dtype)
shapes = npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn, dtypes: st.SearchStrategy[np.dtype] = scalars) -> np.ndarray:
    """Any bits: NaN payloads, NaT and infinities included."""
    dtype, shape = draw(dtypes), draw(shapes)
    size = int(np.prod(shape)) * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=size, max_size=size)))
    array = np.ndarray(shape, dtype, data)
    layout = draw(st.sampled_from("CFN"))
    if layout == "N":  # neither order: numpy writes a copy in C order
        return array[..., ::-1] if array.ndim else array
    return np.array(array, order=layout, copy=True)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def records(draw: st.DrawFn) -> np.dtype:
    fields = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    formats = [np.dtype((draw(scalars), draw(npst.array_shapes(max_dims=2)))) for _ in fields]
    if draw(st.booleans()):
        return np.dtype({"names": fields, "formats": formats})
    return np.dtype({"names": fields, "formats": formats, "offsets": _offsets(formats)})


def _offsets(formats: list[np.dtype]) -> list[int]:
    """With padding between the fields."""
    offsets, offset = [], 1
    for dtype in formats:
        offsets.append(offset)
        offset += dtype.itemsize + 3
    return offsets


def bits(array: np.ndarray) -> bytes:
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    # Any bool byte but 0 is a True, which torch wants as 1.
    return (native.view("u1") != 0).tobytes() if array.dtype.kind == "b" else native.tobytes()


def assert_same(tensor: object, array: np.ndarray) -> None:
    assert isinstance(tensor, torch.Tensor)
    is_time = array.dtype.kind in "mM"
    expected = torch.int64 if is_time else _torch_dtype(array.dtype)
    assert tensor.dtype == expected
    assert tensor.shape == array.shape
    flat = tensor.contiguous().reshape(-1)
    assert bytes(flat.view(torch.uint8).tolist()) == bits(array)


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    named: torch.dtype = getattr(torch, dtype.name)
    return named


@relaxed
@given(array=arrays(), version=st.sampled_from(VERSIONS))
def test_array_that_numpy_writes_comes_back_equal(array: np.ndarray, version: Version) -> None:
    assert_same(torchnpy.load_npy(saved(array, version)), array)


@relaxed
@given(array=arrays(records()))
def test_records_that_numpy_writes_come_back_equal(array: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy announces versions 2.0 and 3.0
        data = saved(array)
    loaded = torchnpy.load_npy(data)
    assert isinstance(loaded, dict)
    assert array.dtype.names is not None
    assert list(loaded) == list(array.dtype.names)
    for name, tensor in loaded.items():
        assert_same(tensor, array[name])


SEEDS = [
    header_text(),
    header_text(shape="()") + "      \n",
    header_text("'>i2'", fortran_order="True", shape="(2L,)"),
    header_text("[('a', '<f4'), (('t','b'), '|i1', (2,)), ('', '|V3')]", shape="(2,)"),
    header_text("[('p', [('x', '<f8'), ('y', '<u8')]), ('q', ('<i2', (2, 1)))]", shape="(1,)"),
    header_text("'<M8[25s]'", shape="(0, 3)"),
    header_text("[('\\u00e9\\n', 'complex64'), ('\\x41', 'V4')]", shape="(-0, 00)"),
    '{"shape":(0x2,1_0),"descr":u"<u1" # comment\n,"fortran_order":(True)}\n',
    "{'descr':'''<f4''',r'fortran_order':\\\nFalse,'sha' 'pe':((2),+1),}\n\n",
    header_text("('|S5', (1,))", shape="(0b1,)"),
]
# No `/`: numpy dies of SIGFPE on `M8[s/0]`.
PIECES = [
    *"'\",()[]{}: \n\\#0127Lx_-+ur<|>=fibcOSUVMmh.\té",
    *["'''", "True", "None", "'a'", "\\x41", "\\u0041", "(1,)", "M8", "[s]", "ns", " L", "99999"],
]


@st.composite
def mutated_headers(draw: st.DrawFn) -> str:
    header = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(st.integers(0, len(header)))
        end = min(len(header), begin + draw(st.integers(0, 3)))
        header = header[:begin] + draw(st.sampled_from(["", *PIECES])) + header[end:]
    return header


def is_read_by_us_alone(header: str) -> bool:
    """Dtypes that numpy does not have, and slips of Python's tokenizer; docs/format.md."""
    is_extra_dtype = re.search(r"['\"][<>|=]?(f\s*\+?0*12?|c\s*\+?0*2?4)['\"]", header)
    is_slip = re.search(r"\n[ \t\f]+\Z", header) or "\r" in header
    return is_extra_dtype is not None or bool(is_slip)


def is_refused_by_numpy(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded_by_numpy(data)
        except Exception as error:  # whatever Python's parser raises
            # What numpy can read but we may not load: not a matter of the header.
            return "allow_pickle" not in str(error)
    return False


def refusal(data: bytes) -> torchnpy.FormatError | None:
    try:
        torchnpy.load_npy(data)
    except torchnpy.FormatError as error:
        return error
    except torchnpy.UnsupportedError:
        return None
    return None


@settings(relaxed, max_examples=1000)
@given(header=mutated_headers(), version=st.sampled_from(VERSIONS))
@example(header=header_text(shape="(2 L\\\n L,)"), version=(1, 0))
@example(header="\n \f" + header_text(), version=(3, 0))
@example(header="(" + header_text() + ")", version=(2, 0))
@example(header=header_text() + "\n\\\n\n", version=(3, 0))
@example(header=header_text("('<f4', (2,))", shape="(0,)"), version=(1, 0))
@example(header=header_text(shape="(" * 150 + "2," + ")" * 150), version=(1, 0))
def test_header_is_read_exactly_when_numpy_reads_it(header: str, version: Version) -> None:
    data = npy_bytes(header, bytes(2048), version=version)
    error = refusal(data)
    if (error is not None) == is_refused_by_numpy(data):
        return
    if error is None:
        assert is_read_by_us_alone(header)
    else:
        assert is_judged_unlike_numpy(header), error


FILES = [
    saved(np.arange(6, dtype="<f4").reshape(2, 3)),
    saved(np.zeros((2, 2), [("a", "<i2"), ("b", ">f8", (2,))])),
    npy_bytes(header_text("[('€', 'M8[ns]')]", shape="(2,)"), bytes(16), version=(3, 0)),
]


@settings(relaxed, max_examples=1000)
@given(
    data=st.sampled_from(FILES),
    edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
    nbytes=st.integers(0, 250),
)
def test_random_bytes_give_a_value_or_an_error(
    data: bytes, edits: list[tuple[int, int]], nbytes: int
) -> None:
    mutated = bytearray(data)
    for place, byte in edits:
        mutated[place % len(mutated)] = byte
    refusal(bytes(mutated[: max(nbytes, 1)]) if nbytes < 200 else bytes(mutated))


@pytest.mark.parametrize("descr", ["'f4,i4'", "'2f4'", "('<f4', '<i4')", "{('a', '<f4')}"])
def test_what_no_writer_writes_is_refused_although_numpy_reads_it(descr: str) -> None:
    header = header_text(descr, shape="(0,)")
    assert is_judged_unlike_numpy(header)
    assert refusal(npy_bytes(header)) is not None


def test_each_dtype_order_layout_and_version_comes_back_equal() -> None:
    for code in SIZED:
        for order in "<>":
            for layout in ("C", "F"):
                source: Any = np.arange(24).reshape(2, 3, 4)
                array = np.asarray(source, dtype=order + code, order=layout)  # type: ignore[call-overload]
                for version in VERSIONS:
                    assert_same(torchnpy.load_npy(saved(array, version)), array)

"""Archives that we write: numpy, zipfile, unzip and 7-Zip read them, and we map them."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers.http import ObjectServer
from servers.s3 import S3Server
from support import Pipe, noise, run_script
from test_npy_properties import SIZED, arrays, assert_same, relaxed
from test_npz_lifetimes import maps_of

import torchnpy as tnp

MIB = 1 << 20

Savez = Callable[..., None]
LEVELS = [1, 2, 6, 9]


def savers() -> list[Any]:
    compressed = [partial(tnp.savez_compressed, level=level) for level in LEVELS]
    ids = ["stored", *(f"level {level}" for level in LEVELS)]
    return [
        pytest.param(saver, id=name)
        for saver, name in zip([tnp.savez, *compressed], ids, strict=True)
    ]


def tokens(nbytes: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 50_257, nbytes // 8)


def saved(savez: Savez, /, *args: Any, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    savez(buffer, *args, **arrays)
    return buffer.getvalue()


# Small ones, large ones that need several blocks and a descriptor, and what lies apart in memory.
MIXED: dict[str, np.ndarray] = {
    "small": np.arange(10.0),
    "empty": np.zeros((0, 3), "i4"),
    "scalar": np.array(7),
    "sub/tokens": tokens(9 * MIB),
    "noise": noise(3 * MIB),
    "zeros": np.zeros((1000, 1000)),
    "ümläut 日本": np.arange(20, dtype="i2").reshape(4, 5)[:, ::2],
    "fortran": np.asfortranarray(noise(30, 50)),
    "apart": noise(3000, 3000)[::-1, ::2].T,
    "large apart": noise(5000, 4000)[:, ::2],
}


def assert_holds(archive: Any, expected: dict[str, np.ndarray] = MIXED) -> None:
    assert sorted(archive.files) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(archive[name], array)
        assert archive[name].dtype == array.dtype


@pytest.fixture(params=savers(), scope="module")
def path(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("savez")
    request.param(folder / "x.npz", **MIXED)
    yield folder / "x.npz"
    shutil.rmtree(folder)


def test_numpy_and_we_read_all_back(path: Path) -> None:
    with np.load(path) as archive:
        assert_holds(archive)
    for loaded in (tnp.load(path), tnp.load_npz(path.read_bytes())):
        assert loaded.files == list(MIXED)
        for name, tensor in loaded.read().items():
            np.testing.assert_array_equal(tensor.numpy(), MIXED[name])


@pytest.mark.parametrize("command", ["unzip -tq", "7z t", "zip -T"])
def test_archivers_find_no_fault(path: Path, command: str) -> None:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run([*command.split(), path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("warning|error(?!s detected)", done.stdout + done.stderr, re.IGNORECASE)


def test_zipfile_finds_no_fault(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{name}.npy" for name in MIXED]
        for info in archive.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr == 0o600 << 16
            assert info.create_system == 3


def test_stored_members_have_their_sizes_where_readers_of_streams_look(tmp_path: Path) -> None:
    tnp.savez(tmp_path / "x.npz", **MIXED)
    data = (tmp_path / "x.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        for info in archive.infolist():
            header = data[info.header_offset :][:26]
            assert int.from_bytes(header[14:18], "little") == info.CRC
            assert int.from_bytes(header[18:22], "little") == info.file_size
            assert info.flag_bits & 8 == 0


@pytest.mark.parametrize("savez", savers())
@pytest.mark.parametrize("byteorder", "<>")
def test_each_dtype_is_read_back(savez: Savez, byteorder: str) -> None:
    kinds = [*SIZED, "M8[ns]", "m8[D]", "U3", "S5", "V7"]
    named = {kind: np.zeros((2, 3), byteorder + kind) for kind in kinds}
    for kind, array in named.items():
        array.view("u1")[...] = noise(*array.view("u1").shape) & (1 if kind == "b1" else 0x3F)
    if byteorder == ">":
        named["U3"] = np.array(["añ", "日本語"], ">U3")
    else:
        named["U3"] = np.array(["añ", "日本語"], "<U3")
    named["record"] = np.zeros(4, [("a", byteorder + "f4"), ("b", "u1", (2,))])
    with np.load(io.BytesIO(saved(savez, **named))) as archive:
        assert_holds(archive, named)


def test_each_dtype_of_torch_is_read_back() -> None:
    dtypes = [torch.bool, torch.uint16, torch.float16, torch.complex64, torch.int64]
    for dtype in dtypes:
        tensor = torch.arange(12).reshape(3, 4).to(dtype)
        for array in (tensor, tensor.T, tensor[:, ::2], tensor[0, 0]):
            data = saved(tnp.savez_compressed, x=array)
            assert torch.equal(tnp.load_npz(data)["x"], array)
            np.testing.assert_array_equal(np.load(io.BytesIO(data))["x"], array.numpy())
    tensor = torch.randn(5, 3).to(torch.bfloat16)
    loaded = tnp.load_npz(saved(tnp.savez, x=tensor)).read(dtype=torch.bfloat16)["x"]
    assert torch.equal(loaded, tensor)


# Not "target", "args" and "file", which are parameters, nor what makes no member.
names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
)
odd_names = st.sampled_from(["a", "a.npy", "a.npy.npy", "./a", "../a", "a/b", "/a", "A", " ", "é"])
archives = st.dictionaries(
    st.one_of(names, odd_names).filter(lambda name: name != "level"), arrays(), max_size=6
)


@settings(relaxed, max_examples=150)
@given(named=archives, level=st.sampled_from([0, None, 1, 5]))
@example(named={}, level=None)
@example(named={"a": np.zeros(1), "a.npy": np.ones(2)}, level=0)
@example(named={"target": np.zeros(1), "self": np.ones(2)}, level=None)
def test_numpy_reads_what_we_write(named: dict[str, np.ndarray], level: int | None) -> None:
    data = saved(tnp.savez_compressed, level=level, **named)
    with np.load(io.BytesIO(data)) as archive:
        assert len(archive.files) == len(named)
        for name, array in named.items():
            read = archive[name + ".npy"]
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert read.tobytes() == array.tobytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
    loaded = tnp.load_npz(data)
    assert len(loaded) == len(named)
    for name, array in named.items():
        assert_same(loaded[name + ".npy"], array)


def test_a_stored_archive_is_mapped_without_a_copy(tmp_path: Path) -> None:
    named = {f"m{'x' * i}": noise(i, 1000) for i in range(100)}
    named["apart"] = noise(1000, 1000)[::3, ::2]
    tnp.savez(tmp_path / "x.npz", **named)
    for tensors in (tnp.load(tmp_path / "x.npz").read(), dict(tnp.load(tmp_path / "x.npz"))):
        for name, array in named.items():
            tensor = tensors[name]
            np.testing.assert_array_equal(tensor.numpy(), array)
            assert tensor.data_ptr() % 64 == 0
            mapped = any(tensor.data_ptr() in pages for pages in maps_of(tmp_path / "x.npz"))
            assert mapped or not tensor.numel()


@pytest.mark.parametrize("savez", savers()[:4])
def test_any_number_of_threads_writes_the_same_bytes(savez: Savez) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = saved(savez, **MIXED)
        torch.set_num_threads(8)
        assert saved(savez, **MIXED) == alone
    finally:
        torch.set_num_threads(threads)


def test_level_0_is_stored_and_higher_levels_are_smaller() -> None:
    array = tokens(MIB)
    sizes = [len(saved(tnp.savez_compressed, level=level, x=array)) for level in (0, 2, 9)]
    assert saved(tnp.savez_compressed, level=0, x=array) == saved(tnp.savez, x=array)
    assert sizes == sorted(sizes, reverse=True)
    assert len(saved(tnp.savez_compressed, x=array)) == sizes[1]


def test_default_level_is_nearly_as_small_as_numpys() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=tokens(MIB))
    assert len(saved(tnp.savez_compressed, x=tokens(MIB))) <= 1.02 * len(buffer.getvalue())


def test_noise_hardly_grows() -> None:
    for level in range(1, 10):
        size = len(saved(tnp.savez_compressed, level=level, x=noise(MIB)))
        assert size <= MIB + MIB // 10_000 + 500


def test_more_members_than_16_bits_count(tmp_path: Path) -> None:
    count = 65_536
    path = tmp_path / "x.npz"
    tnp.savez(path, **dict.fromkeys(map(str, range(count)), torch.arange(2)))
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == count
        assert len(archive.read("65535.npy")) == 144
    assert len(tnp.load(path)) == count
    done = subprocess.run(["unzip", "-tq", path], capture_output=True, text=True)
    assert done.stdout.startswith("No errors"), done.stdout


def test_more_than_4_gib_in_a_member_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    count = (4 << 30) + 5
    # Zeros that take no memory, and none in the file to speak of.
    tnp.savez_compressed(path, large=np.zeros(count, "u1"), behind=np.arange(5))
    assert path.stat().st_size < 20 * MIB
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("large.npy").file_size == count + 128
        with archive.open("large.npy") as member:
            assert np.lib.format.read_magic(member) == (1, 0)
            assert np.lib.format.read_array_header_1_0(member)[0] == (count,)
    loaded = tnp.load(path)
    assert loaded.header("large").shape == (count,)
    assert loaded["behind"].tolist() == [0, 1, 2, 3, 4]
    # Of those that read the descriptor.
    done = subprocess.run(["unzip", "-tq", path, "behind.npy"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_an_archive_goes_into_what_cannot_seek() -> None:
    pipe = Pipe()
    tnp.savez_compressed(pipe, **MIXED)
    assert bytes(pipe.data) == saved(tnp.savez_compressed, **MIXED)


def test_an_archive_goes_to_a_store_while_it_is_made(
    s3_server: S3Server, credentials: None
) -> None:
    tnp.set_default_client(tnp.Client(endpoint=s3_server.url))
    large = {**MIXED, "more noise": noise(24 * MIB, seed=1)}
    for savez in (tnp.savez, tnp.savez_compressed):
        savez("s3://bucket/x.npz", **large)
        assert s3_server.buckets["bucket"].objects["x.npz"] == saved(savez, **large)


def test_an_archive_is_put_by_http(server: ObjectServer) -> None:
    for savez in (tnp.savez, tnp.savez_compressed):
        savez(server.url + "/x.npz", **MIXED)
        assert server.objects["/x.npz"] == saved(savez, **MIXED)


def test_arrays_without_a_name_are_called_as_numpy_does() -> None:
    for savez in (tnp.savez, tnp.savez_compressed):
        data = saved(savez, np.zeros(1), [1, 2], x=torch.ones(3))
        # numpy writes those with a name first, too.
        assert tnp.load_npz(data).files == ["x", "arr_0", "arr_1"]
        expected = r"^Cannot use un-named variables and keyword arr_0$"
        with pytest.raises(ValueError, match=expected):
            saved(savez, np.zeros(1), arr_0=np.zeros(1))


def test_level_that_is_an_array_is_a_member() -> None:
    data = saved(tnp.savez_compressed, level=np.arange(3), x=np.zeros(1))
    assert tnp.load_npz(data)["level"].tolist() == [0, 1, 2]
    data = saved(tnp.savez_compressed, level=True, x=np.zeros(1))
    assert tnp.load_npz(data)["level"].item() is True


@pytest.mark.parametrize("save", [tnp.savez, tnp.savez_compressed])
def test_numpys_option_of_pickles_is_no_member(save: Savez) -> None:
    for allow_pickle in (False, True):
        data = saved(save, np.zeros(1), allow_pickle=allow_pickle)
        assert tnp.load_npz(data).files == ["arr_0"]
    data = saved(save, allow_pickle=np.arange(3))
    assert tnp.load_npz(data)["allow_pickle"].tolist() == [0, 1, 2]
    with pytest.raises(tnp.UnsupportedError):
        saved(save, np.array([{}]), allow_pickle=True)


def test_a_level_out_of_range_is_refused() -> None:
    for level in (-1, 10):
        expected = rf"level: expected 0 to 9 but found {level}; the default is 2"
        with pytest.raises(ValueError, match=expected):
            saved(tnp.savez_compressed, x=np.zeros(1), level=level)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "expected a name that is not empty but found ``; give the array another"),
        ("a\0b", r"expected a name without NUL but found `a\x00b`; give the array another"),
        ("n" * 65_532, "expected a name of at most 65531 bytes but found one of 65532; shorten n"),
    ],
)
def test_a_name_that_no_archive_can_have_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(ValueError, match=f"x.npz: {re.escape(message)}"):
        tnp.savez(path, **{name: np.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_it_at_once_and_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    tnp.savez(path, x=np.arange(3))
    out = run_script(
        """
        import os, signal, sys, threading, numpy, torchnpy as tnp
        array = numpy.tile(numpy.random.default_rng(0).integers(0, 50_257, 1_000_000), 20)
        try:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            tnp.savez_compressed(sys.argv[1], array, level=9)
        except KeyboardInterrupt:
            print("interrupted")
        """,
        path,
    )
    assert out == "interrupted\n"
    assert tnp.load(path)["x"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]

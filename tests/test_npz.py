"""Archives as mappings: keys, members of every kind, and every way to open one."""

from __future__ import annotations

import io
import mmap
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import noise, npy, npz, zipped

import torchnpy as tnp

X = np.arange(12, dtype=np.float32).reshape(3, 4)
Y = np.arange(5)
RECORD = np.zeros(3, [("a", "<f4"), ("b", ">i2", (2,))])
RECORD["b"][:, 1] = [7, 8, 9]
OBJECT = np.array([{}, None], object)
BFLOAT16 = torch.tensor([1.0, -2.5, 3e20], dtype=torch.bfloat16)
VOID = BFLOAT16.view(torch.int16).numpy().view("V2")

both = pytest.mark.parametrize("deflate", [False, True], ids=["stored", "deflated"])


def equal(array: Any, expected: np.ndarray) -> bool:
    return (
        isinstance(array, torch.Tensor)
        and array.shape == expected.shape
        and np.array_equal(array.numpy(), expected)
    )


def opened(deflate: bool = False, **arrays: Any) -> tnp.NpzFile:
    return tnp.load_npz(npz(deflate=deflate, **arrays))


@both
def test_an_archive_is_a_mapping_in_the_archives_order(deflate: bool) -> None:
    archive = opened(deflate, zebra=X, apple=Y)
    assert isinstance(archive, Mapping)
    assert archive.files == list(archive) == list(archive.keys()) == ["zebra", "apple"]
    assert len(archive) == 2
    assert [tuple(array.shape) for array in archive.values()] == [(3, 4), (5,)]
    assert equal(dict(archive.items())["apple"], Y)
    assert equal(archive.get("zebra"), X)
    assert archive.get("nothing") is None


def test_arrays_without_names_are_numbered() -> None:
    archive = tnp.load_npz(npz(X, Y))
    assert archive.files == ["arr_0", "arr_1"]
    assert equal(archive["arr_1"], Y)


@both
def test_both_spellings_of_a_key_find_the_member(deflate: bool) -> None:
    archive = opened(deflate, x=X)
    assert equal(archive["x"], X)
    assert equal(archive["x.npy"], X)
    assert "x" in archive
    assert "x.npy" in archive
    assert archive.files == ["x"]


def test_a_key_with_and_one_without_npy_are_two_members() -> None:
    archive = tnp.load_npz(zipped({"a": npy(X), "a.npy": npy(Y), "b.npy": npy(X)}))
    assert archive.files == ["a", "a.npy", "b"]
    assert equal(archive["a"], X)
    assert equal(archive["a.npy"], Y)
    assert {key: tuple(array.shape) for key, array in archive.items()} == {
        "a": (3, 4),
        "a.npy": (5,),
        "b": (3, 4),
    }


def test_npy_may_be_a_part_of_a_key() -> None:
    archive = tnp.load_npz(zipped({"a.npy.npy": npy(X), ".npy": npy(Y)}))
    assert archive.files == ["a.npy", ""]
    assert equal(archive["a.npy"], X)
    assert equal(archive[""], Y)


@pytest.mark.parametrize("key", ["ü/日本.x", "../up", "/etc/passwd", "a b\n", "C:\\x", "%41"])
def test_a_key_is_a_name_and_never_a_path(key: str) -> None:
    archive = tnp.load_npz(zipped({f"{key}.npy": npy(X)}))
    assert archive.files == [key]
    assert equal(archive[key], X)


@pytest.mark.parametrize("key", ["z", "x.npy.npy", "X", "", "x ", "x\0"])
def test_a_missing_member_is_a_key_error_that_names_archive_and_members(
    tmp_path: Path, key: str
) -> None:
    (tmp_path / "some.npz").write_bytes(npz(x=X, second=Y))
    archive = tnp.open_npz(tmp_path / "some.npz")
    assert key not in archive
    for ask in (archive.__getitem__, archive.header, lambda name: archive.read(["x", name])):
        with pytest.raises(KeyError) as caught:
            ask(key)
        assert "some.npz" in str(caught.value)
        assert re.search(r"\bx\b.*\bsecond\b", str(caught.value)), str(caught.value)


def test_a_key_error_names_only_the_first_of_many_members() -> None:
    archive = opened(**{f"member_{i}": Y for i in range(2000)})
    with pytest.raises(KeyError, match="member_1") as caught:
        archive["missing"]
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("key", [1, None, b"x", ("x",)])
def test_a_key_that_is_no_text_is_not_in_the_archive(key: Any) -> None:
    archive = opened(x=X)
    assert key not in archive
    with pytest.raises((KeyError, TypeError)):
        archive[key]


@both
def test_read_gives_all_members_in_the_archives_order(deflate: bool) -> None:
    arrays = {f"a{i}": noise(40, 50 + i, seed=i) for i in range(30)}
    loaded = opened(deflate, **arrays).read()
    assert list(loaded) == list(arrays)
    assert all(equal(loaded[name], array) for name, array in arrays.items())


@both
def test_read_gives_the_members_asked_for_under_the_keys_asked_for(deflate: bool) -> None:
    archive = opened(deflate, x=X, y=Y, z=X + 1)
    loaded = archive.read(["z", "x.npy"])
    assert list(loaded) == ["z", "x.npy"]
    assert equal(loaded["z"], X + 1)
    assert equal(loaded["x.npy"], X)
    assert archive.read([]) == {}
    assert list(archive.read(iter(("y",)))) == ["y"]


def test_read_takes_a_key_twice() -> None:
    loaded = opened(x=X).read(["x", "x", "x.npy"])
    assert list(loaded) == ["x", "x.npy"]
    assert equal(loaded["x"], X)
    assert equal(loaded["x.npy"], X)


def test_read_does_not_take_a_text_for_a_list_of_keys() -> None:
    """ "xy" would be the keys x and y."""
    with pytest.raises((TypeError, ValueError), match="names"):
        opened(x=X, y=Y).read("xy")


HEADERS = {
    "float": (X, "<f4", torch.float32),
    "big-endian": (X.astype(">f8"), ">f8", torch.float64),
    "scalar": (np.int16(3), "<i2", torch.int16),
    "empty": (np.zeros((0, 3)), "<f8", torch.float64),
    "fortran": (np.asfortranarray(noise(3, 4)), "|u1", torch.uint8),
    "text": (np.array(["abc"]), "<U3", None),
    "object": (OBJECT, "|O", None),
    "long": (noise(700, 1000), "|u1", torch.uint8),
}


@both
@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_is_that_of_the_array(deflate: bool, kind: str) -> None:
    array, descr, dtype = HEADERS[kind]
    header = opened(deflate, other=Y, x=array).header("x")
    assert isinstance(header, tnp.NpyHeader)
    assert (header.descr, header.dtype) == (descr, dtype)
    assert header.shape == np.shape(array)
    assert header.fortran_order == (kind == "fortran")
    assert header.data_offset == 128
    if kind not in ("object", "text"):
        assert header.nbytes == np.asarray(array).nbytes


@both
def test_a_header_of_a_record_has_its_fields(deflate: bool) -> None:
    header = opened(deflate, x=RECORD).header("x.npy")
    assert list(header.dtype) == ["a", "b"]
    assert header.shape == (3,)


@both
def test_a_long_header_is_read_whole(deflate: bool) -> None:
    fields = [(f"field_{i:04}", "<f4") for i in range(300)]
    array = np.zeros(2, fields)
    assert len(npy(array)) - array.nbytes > 5000
    assert len(opened(deflate, x=array).header("x").dtype) == 300


def test_a_header_is_read_without_the_data_being_right() -> None:
    data = bytearray(zipped({"x.npy": npy(X)}))
    data[data.index(npy(X)) + 130] ^= 1
    archive = tnp.load_npz(data)
    assert archive.header("x").shape == (3, 4)
    with pytest.raises(tnp.FormatError, match="CRC-32"):
        archive["x"]


def test_the_header_of_what_is_no_array_is_a_format_error() -> None:
    archive = tnp.load_npz(zipped({"notes.txt": b"plain text", "empty": b""}))
    for name in archive:
        with pytest.raises(tnp.FormatError, match=re.escape(f"[{name}]")):
            archive.header(name)


def test_a_closed_archive_is_a_value_error_and_its_arrays_live_on() -> None:
    with opened(x=X, y=Y) as archive:
        x = archive["x"]
        assert isinstance(archive, tnp.NpzFile)
    asks: list[Callable[[], object]] = [
        lambda: archive["x"],
        lambda: archive["missing"],
        lambda: archive.read(),
        lambda: archive.read([]),
        lambda: archive.header("x"),
        lambda: list(archive.items()),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match="closed"):
            ask()
    assert equal(x, X)
    archive.close()
    assert "closed" in repr(archive)


def test_an_archive_that_an_error_leaves_is_closed() -> None:
    archive = opened(x=X)
    with pytest.raises(ZeroDivisionError), archive:
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="closed"):
        archive["x"]


@both
def test_a_repr_shows_names_dtypes_and_shapes(tmp_path: Path, deflate: bool) -> None:
    path = tmp_path / "some.npz"
    path.write_bytes(npz(deflate=deflate, weights=X, steps=Y, scalar=np.bool_(True)))
    text = repr(tnp.open_npz(path))
    assert "NpzFile" in text
    assert "some.npz" in text
    for name, dtype, shape in [
        ("weights", "float32", "(3, 4)"),
        ("steps", "int64", "(5,)"),
        ("scalar", "bool", "()"),
    ]:
        assert re.search(rf"{name}\W.*{dtype}.*{re.escape(shape)}", text, re.DOTALL), text


def test_a_repr_of_many_members_is_short_and_says_how_many() -> None:
    text = repr(opened(**{f"member_{i}": Y for i in range(3000)}))
    assert "member_0" in text
    assert re.search(r"3000|29\d\d", text)
    assert len(text) < 3000


def test_a_repr_never_fails() -> None:
    members = {"text.npy": npy(np.array(["a"])), "notes.txt": b"notes", "bad.npy": b"no array"}
    for data in (npz(o=OBJECT), zipped(members), zipped({})):
        archive = tnp.load_npz(data)
        assert all(name in repr(archive) for name in archive)


@both
def test_a_member_that_is_no_array_is_its_bytes(deflate: bool) -> None:
    members = {"notes.txt": b"plain text", "sub/": b"", "empty": b"", "x.npy": npy(X)}
    archive = tnp.load_npz(zipped(members, deflate=deflate))
    assert archive.files == ["notes.txt", "sub/", "empty", "x"]
    for name, expected in list(members.items())[:3]:
        array = archive[name]
        assert isinstance(array, torch.Tensor)
        assert array.dtype == torch.uint8
        assert bytes(array.tolist()) == expected


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMP", npy(X)[1:]])
@both
def test_a_member_named_npy_that_is_none_is_a_format_error(content: bytes, deflate: bool) -> None:
    archive = tnp.load_npz(zipped({"bad.npy": content, "x.npy": npy(X)}, deflate=deflate))
    for ask in (archive.__getitem__, archive.header, lambda name: archive.read(["x", name])):
        with pytest.raises(tnp.FormatError, match=r"<bytes>\[bad\.npy\]: expected .* but found"):
            ask("bad")
    assert equal(archive["x"], X)


@both
def test_a_member_with_the_magic_is_an_array_whatever_its_name(deflate: bool) -> None:
    archive = tnp.load_npz(zipped({"x.bin": npy(X), "y": npy(Y)}, deflate=deflate))
    assert equal(archive["x.bin"], X)
    assert equal(archive["y"], Y)
    assert archive.header("x.bin").descr == "<f4"


@both
def test_a_broken_array_is_named_with_its_member(deflate: bool) -> None:
    archive = tnp.load_npz(zipped({"x.npy": npy(X)[:-1], "y.npy": npy(Y)}, deflate=deflate))
    with pytest.raises(tnp.FormatError, match=r"<bytes>\[x\.npy\]: .*48.*47"):
        archive["x"]
    assert equal(archive["y"], Y)


@both
def test_bytes_after_an_array_are_ignored(deflate: bool) -> None:
    archive = tnp.load_npz(zipped({"x.npy": npy(X) + b"more"}, deflate=deflate))
    assert equal(archive["x"], X)
    assert equal(archive.read()["x"], X)


@both
def test_a_structured_member_is_a_dict(deflate: bool) -> None:
    archive = opened(deflate, r=RECORD, x=X)
    for record in (archive["r"], archive.read()["r"]):
        assert isinstance(record, dict)
        assert list(record) == ["a", "b"]
        assert equal(record["b"], RECORD["b"].astype("<i2"))


@both
def test_an_object_member_is_refused_only_when_it_is_asked_for(deflate: bool) -> None:
    archive = opened(deflate, x=X, o=OBJECT)
    assert archive.files == ["x", "o"]
    assert equal(archive["x"], X)
    assert equal(archive.read(["x"])["x"], X)
    for ask in (lambda: archive["o"], archive.read):
        with pytest.raises(tnp.UnsupportedError, match=r"<bytes>\[o\.npy\].*object"):
            ask()


@both
def test_dtype_names_the_bits_of_void_members_alone(deflate: bool) -> None:
    archive = opened(deflate, v=VOID, x=X, bytes=np.zeros(2, np.uint16))
    with pytest.raises(tnp.UnsupportedError, match=r"\[v\.npy\].*dtype="):
        archive["v"]
    loaded = archive.read(dtype=torch.bfloat16)
    assert torch.equal(loaded["v"], BFLOAT16)
    assert equal(loaded["x"], X)
    assert loaded["bytes"].dtype == torch.uint16


@both
def test_dtype_of_another_size_is_a_value_error(deflate: bool) -> None:
    archive = opened(deflate, v=VOID, x=X)
    with pytest.raises(ValueError, match="bytes"):
        archive.read(["v"], dtype=torch.float32)
    assert equal(archive.read(["x"], dtype=torch.float64)["x"], X)


def test_of_members_with_one_name_the_last_wins() -> None:
    data = zipped([("x.npy", npy(X)), ("y.npy", npy(Y)), ("x.npy", npy(X + 1))])
    archive = tnp.load_npz(data)
    assert sorted(archive.files) == ["x", "y"]
    assert len(archive) == 2
    assert equal(archive["x"], X + 1)


def test_an_empty_archive_is_an_empty_mapping() -> None:
    for data in (zipped({}), npz(), zipped({}, comment=b"nothing")):
        archive = tnp.load_npz(data)
        assert (len(archive), archive.files, archive.read(), dict(archive)) == (0, [], {}, {})


OWNERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "tensor": lambda data: torch.frombuffer(bytearray(data), dtype=torch.uint8),
    "numpy": lambda data: np.frombuffer(data, np.uint8),
}


@both
@pytest.mark.parametrize("kind", OWNERS)
@pytest.mark.parametrize("open_", [tnp.load_npz, tnp.open_npz, tnp.load])
def test_bytes_of_any_kind_are_an_archive(open_: Any, kind: str, deflate: bool) -> None:
    archive = open_(OWNERS[kind](npz(deflate=deflate, x=X, y=Y)))
    assert isinstance(archive, tnp.NpzFile)
    assert archive.name == "<bytes>"
    assert archive.files == ["x", "y"]
    assert equal(archive["x"], X)


def test_an_mmap_is_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(npz(x=X))
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for open_ in (tnp.load_npz, tnp.open_npz, tnp.load):
        assert equal(open_(mapping)["x"], X)


def uri(path: Path) -> str:
    return path.as_uri()


@pytest.mark.parametrize("spell", [str, Path, uri])
@pytest.mark.parametrize("open_", [tnp.open_npz, tnp.load])
@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x", "a b=%41+ü#?.npz"])
def test_an_archive_is_told_by_its_content(
    tmp_path: Path, name: str, open_: Any, spell: Callable[[Path], Any]
) -> None:
    for nbytes in (10, 200_000):  # less and more than is read of one end
        path = tmp_path / name
        path.write_bytes(npz(x=noise(nbytes), y=Y))
        archive = open_(spell(path))
        assert isinstance(archive, tnp.NpzFile)
        assert equal(archive["x"], noise(nbytes))
        assert name in archive.name or "%" in archive.name


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x"])
def test_an_array_is_told_by_its_content(tmp_path: Path, name: str) -> None:
    for nbytes in (10, 200_000, 1_000_000):
        path = tmp_path / name
        path.write_bytes(npy(noise(nbytes)))
        assert equal(tnp.load(path), noise(nbytes))
        assert equal(tnp.load(path, mmap=False), noise(nbytes))


def test_what_is_neither_says_so(tmp_path: Path) -> None:
    for name in ("x.npz", "x.npy"):
        path = tmp_path / name
        for content in (b"", b"PK", b"neither" * 100_000):
            path.write_bytes(content)
            with pytest.raises(tnp.FormatError, match=re.escape(name)):
                tnp.load(path)
            with pytest.raises(tnp.FormatError, match=rf"{re.escape(name)}.*ZIP"):
                tnp.open_npz(path)


def test_open_npz_of_an_array_says_that_it_is_no_archive() -> None:
    with pytest.raises(tnp.FormatError, match=r"<bytes>: expected .*ZIP"):
        tnp.load_npz(npy(X))


@both
@pytest.mark.parametrize("open_", [tnp.open_npz, tnp.load])
@pytest.mark.parametrize("kind", ["file", "unbuffered file", "BytesIO"])
def test_an_open_file_is_an_archive(tmp_path: Path, kind: str, open_: Any, deflate: bool) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(npz(deflate=deflate, x=X, y=Y))
    buffering = 0 if kind == "unbuffered file" else -1
    file: Any = io.BytesIO(path.read_bytes()) if kind == "BytesIO" else path.open("rb", buffering)
    with file:
        archive = open_(file)
        x = archive["x"]
    assert equal(x, X)


def test_an_array_and_then_an_archive_load_from_one_open_file() -> None:
    """A file is read from its position; an archive reaches to the end of the file."""
    file = io.BytesIO(b"first" + npy(Y) + npz(x=X))
    assert file.read(5) == b"first"
    assert equal(tnp.load(file), Y)
    archive = tnp.load(file)
    assert isinstance(archive, tnp.NpzFile)
    assert equal(archive["x"], X)
    assert file.read() == b""


def test_a_pipe_is_an_archive() -> None:
    receive, send = os.pipe()
    with os.fdopen(send, "wb") as writer:
        writer.write(npz(x=X))
    with os.fdopen(receive, "rb") as reader:
        assert equal(tnp.load(reader)["x"], X)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    for open_ in (tnp.open_npz, tnp.load):
        with pytest.raises(FileNotFoundError, match=r"no/such\.npz"):
            open_(tmp_path / "no/such.npz")


@both
@pytest.mark.parametrize("source", ["bytes", "file"])
def test_verify_decides_whether_the_checksum_counts(
    tmp_path: Path, deflate: bool, source: str
) -> None:
    data = bytearray(npz(deflate=deflate, x=X, y=Y))
    right = struct.pack("<I", zlib.crc32(npy(X)))
    entry = data.index(b"PK\x01\x02")
    assert data[entry + 16 : entry + 20] == right
    data[entry + 16] ^= 0xFF
    wrong = int.from_bytes(data[entry + 16 : entry + 20], "little")
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    subject: Any = path if source == "file" else bytes(data)
    where = re.escape(f"{path}[x.npy]" if source == "file" else "<bytes>[x.npy]")
    archive = tnp.load(subject)
    for ask in (lambda: archive["x"], archive.read, lambda: archive["x"]):
        message = rf"{where}: expected CRC-32 0x{wrong:08x} but found 0x{zlib.crc32(npy(X)):08x}"
        with pytest.raises(tnp.FormatError, match=message):
            ask()
    assert equal(archive["y"], Y)
    for open_ in (tnp.load, tnp.open_npz):
        unverified = open_(subject, verify=False)
        assert equal(unverified["x"], X)
        assert equal(unverified.read()["x"], X)


def test_limits_have_defaults_and_are_frozen() -> None:
    assert tnp.NpzLimits(500_000, 64 << 30, 1032) == tnp.NpzLimits() == tnp.DEFAULT_LIMITS
    with pytest.raises(AttributeError):
        tnp.DEFAULT_LIMITS.members = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ["members", "total_nbytes", "expansion"])
@pytest.mark.parametrize("value", [-1, 1 << 64, 1.5, "many", None])
def test_a_limit_that_is_none_names_itself(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name) as caught:
        tnp.NpzLimits(**{name: value})
    assert str(value) in str(caught.value)


OPENERS: list[Callable[..., tnp.NpzFile]] = [tnp.load_npz, tnp.open_npz, tnp.load]


@pytest.mark.parametrize("open_", OPENERS)
def test_too_many_members_are_refused_on_opening(open_: Callable[..., tnp.NpzFile]) -> None:
    data = npz(X, X, X)
    assert len(open_(data, limits=tnp.NpzLimits(members=3))) == 3
    with pytest.raises(tnp.FormatError, match=r"<bytes>: .*\b2 members.*\b3\b") as caught:
        open_(data, limits=tnp.NpzLimits(members=2))
    assert "limit" in str(caught.value)


@pytest.mark.parametrize("open_", OPENERS)
def test_too_many_inflated_bytes_are_refused_on_opening(
    open_: Callable[..., tnp.NpzFile],
) -> None:
    data = npz(deflate=True, x=X, y=Y)
    total = len(npy(X)) + len(npy(Y))
    assert len(open_(data, limits=tnp.NpzLimits(total_nbytes=total))) == 2
    with pytest.raises(tnp.FormatError, match=rf"<bytes>: .*\b{total - 1}\b") as caught:
        open_(data, limits=tnp.NpzLimits(total_nbytes=total - 1))
    assert "limit" in str(caught.value)


def test_stored_members_do_not_count_as_inflated() -> None:
    data = npz(x=X, y=Y)
    archive = tnp.load_npz(data, limits=tnp.NpzLimits(total_nbytes=1, expansion=1))
    assert equal(archive["x"], X)


@pytest.mark.parametrize("open_", OPENERS)
def test_too_much_expansion_is_refused_when_the_member_is_asked_for(
    open_: Callable[..., tnp.NpzFile],
) -> None:
    data = npz(deflate=True, zeros=np.zeros(100_000), noise=noise(10_000))
    archive = open_(data, limits=tnp.NpzLimits(expansion=10))
    assert equal(archive["noise"], noise(10_000))
    for ask in (lambda: archive["zeros"], archive.read):
        with pytest.raises(tnp.FormatError, match=r"<bytes>\[zeros\.npy\].*\b10\b") as caught:
            ask()
        assert "limit" in str(caught.value)
    assert equal(open_(data)["zeros"], np.zeros(100_000))


@pytest.mark.parametrize("name", ["\udc80", 5, b"a", None])
def test_what_is_no_name_is_a_key_error_and_is_not_in_the_archive(name: Any) -> None:
    archive = tnp.load_npz(npz(a=np.arange(3)))
    assert name not in archive
    for call in (archive.__getitem__, archive.header, lambda one: archive.read([one])):
        with pytest.raises(KeyError, match="expected the name of a member but found"):
            call(name)


@pytest.mark.parametrize("limits", [{}, (1, 2, 3), 5])
def test_what_are_no_limits_are_a_type_error(limits: Any) -> None:
    for call in (tnp.load_npz, tnp.open_npz, tnp.load):
        with pytest.raises(TypeError, match="limits: expected NpzLimits or None but found"):
            call(npz(a=np.arange(3)), limits=limits)


def test_names_in_messages_are_short_and_hold_no_control_characters() -> None:
    name = "\x1b[31m\n\x9b" + "x" * 60_000
    archive = tnp.load_npz(zipped({f"{name}.npy": b"no array"}))
    assert archive.files == [name]
    for call in (lambda: archive[name], lambda: archive["absent"]):
        with pytest.raises((tnp.FormatError, KeyError)) as caught:
            call()
        assert len(str(caught.value)) < 400
        assert r"\x1b[31m\x0a\x9b" in str(caught.value).replace("\\\\", "\\")
    assert len(repr(archive)) < 400
    assert "\x1b" not in repr(archive)

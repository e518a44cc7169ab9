"""numpy is the oracle: what it archives comes back equal; what is damaged is never wrong data."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from support import Pipe, noise, npy, npz, zipped
from test_npy_properties import arrays, assert_same, relaxed

import torchnpy as tnp

# Files are written over and over in one temporary directory.
with_files = settings(relaxed, suppress_health_check=list(HealthCheck))

# Not NUL, which zipfile cuts off, nor "file" and "allow_pickle", which are np.savez()'s own.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
odd_names = st.sampled_from(["a", "a.npy", "a.npy.npy", "./a", "../a", "a/b", "/a", "A", " ", "é"])
names = st.one_of(texts, odd_names).filter(lambda name: name not in ("file", "allow_pickle"))
archives = st.dictionaries(names, arrays(), max_size=6)


@with_files
@given(arrays_by_name=archives, deflate=st.booleans())
@example(arrays_by_name={}, deflate=True)
@example(arrays_by_name={"a": np.zeros(1), "a.npy": np.ones(2)}, deflate=False)
@example(arrays_by_name={"x": np.zeros((3, 0, 2), ">c16")}, deflate=True)
def test_archive_that_numpy_writes_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    arrays_by_name: dict[str, np.ndarray],
    deflate: bool,
) -> None:
    data = npz(deflate=deflate, **arrays_by_name)
    path = tmp_path_factory.getbasetemp() / "property.npz"
    path.write_bytes(data)
    for archive in (tnp.load_npz(data), tnp.open_npz(path), tnp.load_npz(data, copy=True)):
        assert len(archive) == len(arrays_by_name)
        for loaded in (dict(archive), archive.read()):
            assert list(loaded) == archive.files
            for (name, array), tensor in zip(arrays_by_name.items(), loaded.values(), strict=True):
                assert_same(tensor, array)
                assert_same(archive[name + ".npy"], array)
        for name, array in arrays_by_name.items():
            header = archive.header(name + ".npy")
            assert header.shape == array.shape
            assert header.nbytes == array.nbytes


@relaxed
@given(
    contents=st.dictionaries(texts.filter(bool), st.binary(max_size=300), max_size=5),
    deflate=st.booleans(),
    comment=st.binary(max_size=300),
    prefix=st.binary(max_size=300),
)
def test_any_archive_gives_what_zipfile_gives(
    contents: dict[str, bytes], deflate: bool, comment: bytes, prefix: bytes
) -> None:
    assume(not any(data.startswith(b"\x93NUMPY") for data in contents.values()))
    assume(not any(name.endswith(".npy") for name in contents))
    # An archive without members is one only when nothing precedes it: docs/format.md.
    assume(contents or not prefix)
    data = prefix + zipped(contents, deflate=deflate, comment=comment)
    try:
        oracle = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        # zipfile takes an end record inside the comment for the archive's own.
        assume(False)
    assume(sorted(oracle.namelist()) == sorted(contents))
    archive = tnp.load_npz(data)
    assert archive.files == oracle.namelist()
    for name in oracle.namelist():
        tensor = archive[name]
        assert isinstance(tensor, torch.Tensor)
        assert bytes(tensor.tolist()) == oracle.read(name) == contents[name]


NUMBERS = np.arange(6, dtype="<f4").reshape(2, 3)
RECORD = np.zeros(2, [("f", "<f4"), ("g", ">i2", (2,))])
# Names that one changed byte does not make equal: of equal names the last would hide the others.
MEMBERS = {
    "first.npy": npy(NUMBERS),
    "second.npy": npy(RECORD),
    "text": b"The quick brown fox jumps over the lazy dog. " * 4,
    "é/c.npy": npy(noise(20).astype(">i8")),
}


def streamed(deflate: bool) -> bytes:
    """Written to what cannot seek: sizes follow the data."""

    pipe = Pipe()
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(pipe, "w", method) as archive:
        for name, data in MEMBERS.items():
            archive.writestr(name, data)
    return bytes(pipe.data)


def zip64() -> bytes:
    """All of ZIP64, as if sizes and numbers needed it."""
    with mock.patch("zipfile.ZIP64_LIMIT", 10), mock.patch("zipfile.ZIP_FILECOUNT_LIMIT", 1):
        return zipped(MEMBERS, deflate=True)


ARCHIVES = {
    "numpy": npz(first=NUMBERS, second=RECORD),
    "numpy, deflated": npz(deflate=True, first=NUMBERS, second=RECORD),
    "zipfile": zipped(MEMBERS, comment=b"a comment"),
    "zipfile, deflated": zipped(MEMBERS, deflate=True),
    "zipfile, aligned": zipped(MEMBERS, alignment=64),
    "zipfile, streamed": streamed(deflate=False),
    "zipfile, streamed and deflated": streamed(deflate=True),
    "ZIP64": zip64(),
    "prefixed": b"#!/bin/sh\nexit\n" + zipped(MEMBERS),
    "empty": zipped({}),
}
Contents = dict[str, bytes]


def contents_of(loaded: dict[str, tnp.Array]) -> Contents:
    """Each tensor as its dtype, shape and bytes, under the path of keys that leads to it."""
    found: Contents = {}
    for key, array in loaded.items():
        fields = array.items() if isinstance(array, dict) else [("", array)]
        for field, tensor in fields:
            flat = tensor.contiguous().reshape(-1).view(torch.uint8)
            what = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
            found[f"{key}\0{field}"] = what + bytes(flat.tolist())
    return found


RIGHT = {kind: contents_of(tnp.load_npz(data).read()) for kind, data in ARCHIVES.items()}
REFUSALS = (tnp.FormatError, tnp.UnsupportedError)


def check_damaged(kind: str, data: bytes) -> None:
    """All is right, or something is refused. Only names may change unseen."""
    try:
        archive = tnp.load_npz(data)
    except REFUSALS:
        return
    repr(archive)
    found: Contents = {}
    refused = 0
    for key in archive.files:
        try:
            found |= contents_of({key: archive[key]})
        except REFUSALS:
            refused += 1
            continue
        with contextlib.suppress(*REFUSALS):
            archive.header(key)
    right = RIGHT[kind]
    for path, value in found.items():
        assert right.get(path, value) == value, f"wrong data under the right name {path!r}"
        assert value in right.values() or is_renamed(value), f"wrong data: {path!r}"
    if not refused:
        assert len(found) == len(right), "members are missing"
        assert contents_of(archive.read()) == found


def is_renamed(value: bytes) -> bool:
    """The bytes of a member whose name does not end in .npy any more, or does not begin so."""
    return value.partition(b") ")[2] in MEMBERS.values()


kinds = st.sampled_from(list(ARCHIVES))


@settings(relaxed, max_examples=1500)
@given(kind=kinds, place=st.integers(0, 1 << 30), byte=st.integers(1, 255))
def test_a_changed_byte_is_harmless_or_an_error(kind: str, place: int, byte: int) -> None:
    data = bytearray(ARCHIVES[kind])
    data[place % len(data)] ^= byte
    check_damaged(kind, bytes(data))


@pytest.mark.parametrize("kind", ["numpy", "zipfile, streamed and deflated"])
@pytest.mark.parametrize("bits", [0x01, 0x80, 0xFF])
def test_each_changed_byte_is_harmless_or_an_error(kind: str, bits: int) -> None:
    for place in range(len(ARCHIVES[kind])):
        data = bytearray(ARCHIVES[kind])
        data[place] ^= bits
        check_damaged(kind, bytes(data))


@pytest.mark.parametrize("kind", ARCHIVES)
def test_each_truncation_is_harmless_or_an_error(kind: str) -> None:
    for nbytes in range(len(ARCHIVES[kind])):
        check_damaged(kind, ARCHIVES[kind][:nbytes])


@settings(relaxed, max_examples=1000)
@given(
    kind=kinds,
    begin=st.integers(0, 1 << 30),
    nbytes=st.integers(0, 300),
    at=st.integers(0, 1 << 30),
)
def test_a_duplicated_slice_is_harmless_or_an_error(
    kind: str, begin: int, nbytes: int, at: int
) -> None:
    data = ARCHIVES[kind]
    begin, at = begin % len(data), at % (len(data) + 1)
    check_damaged(kind, data[:at] + data[begin : begin + nbytes] + data[at:])


@settings(relaxed, max_examples=1000)
@given(kind=kinds, begin=st.integers(0, 1 << 30), nbytes=st.integers(1, 300))
def test_a_removed_slice_is_harmless_or_an_error(kind: str, begin: int, nbytes: int) -> None:
    data = ARCHIVES[kind]
    begin %= len(data)
    check_damaged(kind, data[:begin] + data[begin + nbytes :])


@settings(relaxed, max_examples=1000)
@given(
    kind=kinds,
    edits=st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from([0, 1, 2, 4]), st.integers(0, 2**64 - 1)),
        min_size=1,
        max_size=3,
    ),
)
def test_changed_fields_of_the_directory_are_harmless_or_an_error(
    kind: str, edits: list[tuple[int, int, int]]
) -> None:
    """Numbers of any width, where the directory and the end record are."""
    data = bytearray(ARCHIVES[kind])
    for from_end, nbytes, value in edits:
        at = max(0, len(data) - 1 - from_end)
        field = value.to_bytes(8, "little")[: nbytes or 8]
        data[at : at + len(field)] = field
    check_damaged(kind, bytes(data))


@settings(with_files, max_examples=200)
@given(kind=kinds, place=st.integers(0, 1 << 30), byte=st.integers(1, 255))
def test_a_file_and_bytes_are_judged_alike(
    tmp_path_factory: pytest.TempPathFactory, kind: str, place: int, byte: int
) -> None:
    data = bytearray(ARCHIVES[kind])
    data[place % len(data)] ^= byte
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(data)
    assert judgement(path) == judgement(bytes(data))


def judgement(source: Path | bytes) -> list[object]:
    """What each key gives, or how it fails."""
    try:
        archive = tnp.open_npz(source)
    except REFUSALS as error:
        return [_without_name(error, source)]
    found: list[object] = []
    for key in archive.files:
        try:
            found.append(contents_of({key: archive[key]}))
        except REFUSALS as error:
            found.append(_without_name(error, source))
    return found


def _without_name(error: Exception, source: Path | bytes) -> str:
    name = str(source) if isinstance(source, Path) else "<bytes>"
    return f"{type(error).__name__} {str(error).replace(name, '')}"

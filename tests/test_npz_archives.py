"""Archives as the programs of this world write them, and one that is larger than 4 GiB."""

from __future__ import annotations

import io
import mmap
import os
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from servers.http import Answer, ObjectServer, Request, parse_range
from support import Pipe, noise, npy, npz, run_script, zipped
from zip_bytes import Member, end64_bytes, stored

import torchnpy as tnp

ARRAYS = {"a": noise(100, 100), "sub/b": np.arange(10_000.0), "ümläut 日本": np.int16(5)}
NUMBERS = np.arange(100_000, dtype="<i4")


def assert_holds(archive: tnp.NpzFile, arrays: dict[str, np.ndarray] = ARRAYS) -> None:
    assert sorted(archive.files) == sorted(arrays)
    loaded = archive.read()
    for name, array in arrays.items():
        for tensor in (loaded[name], archive[name]):
            assert isinstance(tensor, torch.Tensor)
            np.testing.assert_array_equal(tensor.numpy(), array)


def assert_read_from_bytes_and_file(path: Path, arrays: dict[str, np.ndarray] = ARRAYS) -> None:
    assert_holds(tnp.load(path), arrays)
    assert_holds(tnp.load_npz(path.read_bytes()), arrays)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The arrays as files."""
    folder = tmp_path / "files"
    for name, array in ARRAYS.items():
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    return folder


def run(*command: object, cwd: Path, locale: str = "C", stdin: bytes = b"") -> None:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": locale}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, input=stdin, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def as_zip_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In the C locale `zip` writes UTF-8 and does not say so: the format then means code page
    437, and numpy takes it for that too."""
    return {name.encode().decode("cp437"): array for name, array in arrays.items()}


ZIP = {
    "stored": ["-0"],
    "deflated": [],
    "best": ["-9"],
    "without extra fields": ["-X"],
    "without directories": ["-D"],
    "descriptors": ["-fd"],
    "ZIP64": ["-fz"],
}


@pytest.mark.parametrize("options", ZIP.values(), ids=list(ZIP))
def test_zip_writes_what_is_read(folder: Path, options: list[str]) -> None:
    run("zip", "-q", "-r", *options, "../x.npz", ".", cwd=folder)
    path = folder.parent / "x.npz"
    arrays = as_zip_names(ARRAYS)
    if "-D" not in options:
        arrays["sub/"] = np.zeros(0, np.uint8)
    assert_read_from_bytes_and_file(path, arrays)


# Not -fz, which gives an archive here that even `unzip` refuses, nor -0, which zip refuses.
@pytest.mark.parametrize("options", [[], ["-1"], ["-fd"]])
def test_zip_in_a_pipeline_writes_what_is_read(tmp_path: Path, options: list[str]) -> None:
    """`zip - -`: neither its input nor its output can seek; the member is named "-"."""
    writer = subprocess.run(
        ["zip", "-q", *options, "-", "-"], input=npy(NUMBERS), stdout=subprocess.PIPE, check=True
    )
    path = tmp_path / "x.npz"
    path.write_bytes(writer.stdout)
    assert_read_from_bytes_and_file(path, {"-": NUMBERS})


def test_an_archive_that_zip_has_updated_is_read(folder: Path) -> None:
    run("zip", "-q", "-r", "-D", "../x.npz", ".", cwd=folder)
    np.save(folder / "a.npy", NUMBERS)
    run("zip", "-q", "../x.npz", "a.npy", cwd=folder)
    run("zip", "-q", "-d", "../x.npz", "sub/b.npy", cwd=folder)
    run("zip", "-q", "-z", "../x.npz", cwd=folder, stdin=b"a comment\n")
    arrays = as_zip_names({"a": NUMBERS, "ümläut 日本": ARRAYS["ümläut 日本"]})
    assert_read_from_bytes_and_file(folder.parent / "x.npz", arrays)


@pytest.mark.parametrize("adjusted", [True, False])
def test_a_self_extractor_is_read(folder: Path, adjusted: bool) -> None:
    """Before and after `zip -A`, which adds the length of the prefix to all offsets."""
    run("zip", "-q", "-r", "-D", "../plain.zip", ".", cwd=folder)
    path = folder.parent / "x.npz"
    path.write_bytes(b"#!/bin/sh\nexit 1\n" * 1000 + (folder.parent / "plain.zip").read_bytes())
    if adjusted:
        run("zip", "-q", "-A", path, cwd=folder)
    assert_read_from_bytes_and_file(path, as_zip_names(ARRAYS))


def test_the_unicode_path_of_zip_names_the_member() -> None:
    """The extra field 0x7075 of Info-ZIP, whose checksum says which name it belongs to."""
    for checked, name in [(b"?.npy", "ü"), (b"other", "?")]:
        info = zipfile.ZipInfo("?.npy")
        unicode_path = struct.pack("<BI", 1, zlib.crc32(checked)) + "ü.npy".encode()
        info.extra = struct.pack("<HH", 0x7075, len(unicode_path)) + unicode_path
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(info, npy(NUMBERS))
        assert_holds(tnp.load_npz(buffer.getvalue()), {name: NUMBERS})


SEVEN_ZIP = {
    "stored": ["-mx=0"],
    "deflated": ["-mm=Deflate", "-mx=5"],
    "ultra": ["-mm=Deflate", "-mx=9"],
    "UTF-8 names": ["-mcu=on"],
}


@pytest.mark.parametrize("options", SEVEN_ZIP.values(), ids=list(SEVEN_ZIP))
def test_7zip_writes_what_is_read(folder: Path, options: list[str]) -> None:
    path = folder.parent / "x.npz"
    run("7z", "a", "-tzip", *options, path, ".", cwd=folder, locale="C.UTF-8")
    assert_read_from_bytes_and_file(path, ARRAYS | {"sub/": np.zeros(0, np.uint8)})


@pytest.mark.parametrize(
    ("options", "what"), [(["-mm=LZMA"], "method 14"), (["-psecret"], "encrypt")]
)
def test_what_7zip_can_and_we_cannot_is_refused_by_name(
    folder: Path, options: list[str], what: str
) -> None:
    path = folder.parent / "x.npz"
    run("7z", "a", "-tzip", *options, path, "sub/b.npy", cwd=folder)
    archive = tnp.load(path)
    assert archive.files == ["sub/b"]
    with pytest.raises(tnp.UnsupportedError, match=rf"x\.npz\[sub/b\.npy\].*{what}"):
        archive["sub/b"]


@pytest.mark.parametrize("deflate", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("zip64", [False, True], ids=["descriptor of 16", "descriptor of 24"])
def test_zipfile_on_a_stream_writes_what_is_read(
    tmp_path: Path, deflate: bool, zip64: bool
) -> None:
    pipe = Pipe()
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(pipe, "w", method) as archive:
        for name, array in ARRAYS.items():
            with archive.open(f"{name}.npy", "w", force_zip64=zip64) as file:
                file.write(npy(array))
    assert struct.unpack_from("<I", pipe.data, 18)[0] in (0, 0xFFFFFFFF)  # no size, or ZIP64's
    path = tmp_path / "x.npz"
    path.write_bytes(pipe.data)
    assert_read_from_bytes_and_file(path)


@pytest.mark.parametrize("deflate", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("is_zip64", [False, True], ids=["small", "as if it were huge"])
def test_a_directory_of_zip64_is_read(tmp_path: Path, deflate: bool, is_zip64: bool) -> None:
    limit = 0 if is_zip64 else zipfile.ZIP64_LIMIT
    with mock.patch("zipfile.ZIP64_LIMIT", limit), mock.patch("zipfile.ZIP_FILECOUNT_LIMIT", 1):
        data = zipped({f"{k}.npy": npy(a) for k, a in ARRAYS.items()}, deflate=deflate)
    assert b"PK\x06\x06" in data
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    assert_read_from_bytes_and_file(path)


def rewritten(data: bytes, form: str) -> bytes:
    """The local headers as numpy leaves them under a version of Python. All have ZIP64's extra
    field with both sizes, as np.savez() opens members with force_zip64. Up to Python 3.10 the
    32-bit sizes beside it are the real ones and the version is 2.0; since a release of 3.11 they
    are all ones and the version is 4.5."""
    out = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            at = info.header_offset
            name_nbytes, extra_nbytes = struct.unpack_from("<HH", out, at + 26)
            extra = at + 30 + name_nbytes
            assert struct.unpack_from("<HH", out, extra) == (1, 16)
            assert extra_nbytes == 20
            sizes = info.compress_size, info.file_size
            struct.pack_into("<QQ", out, extra + 4, sizes[1], sizes[0])
            struct.pack_into("<H", out, at + 4, 20 if form == "real sizes" else 45)
            if form == "real sizes":
                struct.pack_into("<II", out, at + 18, *sizes)
            else:
                struct.pack_into("<II", out, at + 18, 0xFFFFFFFF, 0xFFFFFFFF)
    return bytes(out)


@pytest.mark.parametrize("deflate", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("form", ["real sizes", "all ones"])
def test_numpy_under_any_python_writes_what_is_read(
    tmp_path: Path, form: str, deflate: bool
) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(rewritten(npz(deflate=deflate, **ARRAYS), form))
    assert np.load(path)["a"].shape == (100, 100)
    assert_read_from_bytes_and_file(path)


def test_the_two_forms_differ() -> None:
    """Else the test above tests one thing twice."""
    data = npz(**ARRAYS)
    assert rewritten(data, "real sizes") != rewritten(data, "all ones")
    assert data in (rewritten(data, "real sizes"), rewritten(data, "all ones"))


@pytest.mark.parametrize("nbytes", [1, 2, 3, 4, 5, 6, 7, 21, 22, 23, 100, 65535])
def test_comments_of_any_length_are_passed_over(tmp_path: Path, nbytes: int) -> None:
    path = tmp_path / "x.npz"
    comment = (b"PK\x05\x06 is no end record " * 4000)[:nbytes]
    path.write_bytes(zipped({f"{k}.npy": npy(a) for k, a in ARRAYS.items()}, comment=comment))
    assert_read_from_bytes_and_file(path)


def test_bytes_before_and_after_an_archive_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for before, after in [(b"x", b""), (bytes(100_001), b""), (b"", b"junk"), (b"PK", b"PK")]:
        path.write_bytes(before + npz(**ARRAYS) + after)
        assert_read_from_bytes_and_file(path)


def test_two_archives_in_a_row_are_the_last_one() -> None:
    archive = tnp.load_npz(npz(x=NUMBERS) + npz(**ARRAYS))
    assert_holds(archive)


GIB = 1 << 30
HUGE_NBYTES = 4 * GIB + 12_345


def write_sparse(path: Path, members: list[tuple[Member, int, bytes]]) -> None:
    """Stored members, whose data is a front, so many zeros (holes of the file) and a back."""
    with path.open("wb") as file:
        directory = b""
        for member, hole_nbytes, back in members:
            directory += member.central_bytes(file.tell())
            file.write(member.local_bytes())
            file.seek(hole_nbytes, os.SEEK_CUR)
            file.write(back)
        offset = file.tell()
        file.write(directory + end64_bytes(len(members), len(directory), offset))


SMALL = noise(1000, seed=5)
BACK = noise(1000, seed=6).tobytes()


@pytest.fixture(scope="module")
def huge_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A member over 4 GiB, uint8, zeros but for its last 1000 bytes; small ones on both sides."""
    path = tmp_path_factory.mktemp("huge") / "huge.npz"
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({HUGE_NBYTES},), }}"
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"
    # Nobody asks for its checksum, which takes seconds to find out.
    nbytes = len(header) + HUGE_NBYTES
    huge = stored(header, "huge.npy", nbytes=nbytes, compressed_nbytes=nbytes, crc32=0)
    before, after = (stored(npy(SMALL), f"{name}.npy") for name in ("before", "after"))
    hole_nbytes = HUGE_NBYTES - len(BACK)
    write_sparse(path, [(before, 0, b""), (huge, hole_nbytes, BACK), (after, 0, b"")])
    assert path.stat().st_size > HUGE_NBYTES
    assert path.stat().st_blocks * 512 < 1 << 20
    yield path
    path.unlink()


def test_zipfile_reads_the_huge_archive_too(huge_file: Path) -> None:
    """It is written by hand: this shows that it is right."""
    with zipfile.ZipFile(huge_file) as archive:
        assert archive.namelist() == ["before.npy", "huge.npy", "after.npy"]
        assert archive.getinfo("huge.npy").file_size == HUGE_NBYTES + 128
        assert archive.read("after.npy") == npy(SMALL)


def test_an_archive_over_4_gib_is_read_locally_without_reading_it_all(huge_file: Path) -> None:
    archive = tnp.load(huge_file)
    assert archive.files == ["before", "huge", "after"]
    for name in ("after", "before"):
        assert torch.equal(archive[name], torch.from_numpy(SMALL))
    header = archive.header("huge")
    assert (header.shape, header.nbytes) == ((HUGE_NBYTES,), HUGE_NBYTES)
    assert header.dtype == torch.uint8


def test_a_member_over_4_gib_is_a_view_of_the_mapped_file(huge_file: Path) -> None:
    out = run_script(
        """
        import resource, sys, torchnpy as tnp
        archive = tnp.load(sys.argv[1], verify=False)
        huge = archive["huge"]
        print(tuple(huge.shape), int(huge[:1000].sum()), bytes(huge[-1000:].tolist()).hex())
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 20, "a GiB is in memory"
        """,
        huge_file,
    )
    assert out == f"({HUGE_NBYTES},) 0 {BACK.hex()}\n"


def test_rows_of_a_member_over_4_gib_are_right_everywhere(huge_file: Path) -> None:
    huge = tnp.load(huge_file, verify=False).read(["huge"])["huge"]
    for offset in (0, 2 * GIB - 1, 4 * GIB - 1, HUGE_NBYTES - 1001):
        assert int(huge[offset]) == 0
    assert bytes(huge[HUGE_NBYTES - 1000 :].tolist()) == BACK


class FileServer(ObjectServer):
    """Serves a file by ranges, of which it reads no more than it sends."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        super().__init__()

    def answer(self, request: Request) -> Answer:
        span = parse_range(request.range, len(self.mapping)) if request.range else None
        if span is None:
            return Answer(400, {}, b"only ranges are served")
        start, stop = span
        content_range = f"bytes {start}-{stop - 1}/{len(self.mapping)}"
        headers = {"ETag": '"huge"', "Content-Range": content_range}
        return Answer(206, headers, self.mapping[start:stop])


def test_an_archive_over_4_gib_is_read_by_range(huge_file: Path) -> None:
    with FileServer(huge_file) as server:
        archive = tnp.open_npz(f"{server.url}/huge.npz")
        assert archive.files == ["before", "huge", "after"]
        for name in ("after", "before"):
            assert torch.equal(archive[name], torch.from_numpy(SMALL))
        assert archive.header("huge").shape == (HUGE_NBYTES,)
        both = tnp.load(f"{server.url}/huge.npz").read(["before", "after"])
        assert torch.equal(both["before"], both["after"])
        assert server.sent_nbytes < 1 << 20

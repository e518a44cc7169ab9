"""Arrays in local files: paths, mapping, open files, and what can be wrong with them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import noise, npy, run_script

import torchnpy as tnp

SMALL = noise(10, 10)
LARGE = noise(1000, 1000)


@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("spell", [str, Path, Path.as_uri], ids=["str", "Path", "url"])
def test_a_file_is_loaded_by_any_name(
    tmp_path: Path, array: np.ndarray, mmap: bool, spell: Callable[[Path], Any]
) -> None:
    path = tmp_path / "a b=%41+ü#?.npy"
    np.save(path, array)
    assert torch.equal(tnp.load(spell(path), mmap=mmap), torch.from_numpy(array))


def test_bytes_are_data() -> None:
    assert torch.equal(tnp.load(npy(SMALL)), torch.from_numpy(SMALL))


def test_relative_names_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", SMALL)
    assert torch.equal(tnp.load("x.npy"), torch.from_numpy(SMALL))
    assert torch.equal(torch.ops.npy.load("./x.npy"), torch.from_numpy(SMALL))


def test_a_large_file_is_mapped_unless_told_not_to(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, LARGE)

    def maps() -> int:
        return Path("/proc/self/maps").read_text().count(str(path))

    read = tnp.load(path, mmap=False)
    assert maps() == 0
    mapped = tnp.load(path)
    assert maps() > 0
    assert torch.equal(read, mapped)


def test_a_file_read_into_memory_may_be_truncated_later(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, LARGE)
    tensor = tnp.load(path, mmap=False)
    os.truncate(path, 0)
    assert torch.equal(tensor, torch.from_numpy(LARGE))


ARRAYS = [
    np.arange(10, dtype=np.float32),
    np.float64(3.5),
    np.zeros((0, 4)),
    LARGE,
    np.arange(5, dtype=">i8"),
    np.asfortranarray(noise(3, 4)),
]


@pytest.mark.parametrize("kind", ["file", "unbuffered file", "BytesIO"])
def test_consecutive_arrays_of_an_open_file_load_one_by_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"first" + b"".join(map(npy, ARRAYS)) + b"rest")
    buffering = 0 if kind == "unbuffered file" else -1
    file: Any = io.BytesIO(path.read_bytes()) if kind == "BytesIO" else path.open("rb", buffering)
    with file:
        assert file.read(5) == b"first"
        for array in ARRAYS:
            loaded = tnp.load(file)
            np.testing.assert_array_equal(loaded.numpy(), array)
        assert file.read() == b"rest"


def test_a_stream_that_cannot_seek_loads_and_is_left_after_the_array() -> None:
    receive, send = os.pipe()
    with os.fdopen(send, "wb") as writer:
        writer.write(npy(SMALL) + npy(SMALL + 1) + b"rest")
    with os.fdopen(receive, "rb") as reader:
        assert torch.equal(tnp.load(reader), torch.from_numpy(SMALL))
        assert torch.equal(tnp.load(reader), torch.from_numpy(SMALL + 1))
        assert reader.read() == b"rest"


def test_an_open_file_that_ends_early_is_a_format_error() -> None:
    for nbytes in (0, 5, 60, len(npy(SMALL)) - 1):
        with pytest.raises(tnp.FormatError):
            tnp.load(io.BytesIO(npy(SMALL)[:nbytes]))


def test_a_text_file_is_refused() -> None:
    with pytest.raises((TypeError, ValueError)):
        tnp.load(io.StringIO("x"))  # type: ignore[arg-type]


CALLS = [tnp.load, torch.ops.npy.load, tnp.header, lambda path: tnp.load_rows(path, 0, 1)]


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_file_is_not_found(tmp_path: Path, call: Callable[[str], Any]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no/such.npy") as caught:
        call(str(tmp_path / "no/such.npy"))
    assert isinstance(caught.value, tnp.TransportError)


def test_a_directory_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(tnp.TransportError, match=r"(?i)directory"):
        tnp.load(tmp_path)


def test_a_file_without_permission_is_denied(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, SMALL)
    path.chmod(0)
    tmp_path.chmod(0o755)
    out = run_script(
        """
        import os, sys, torchnpy as tnp
        if os.getuid() == 0:
            os.seteuid(65534)  # root may read anything
        try:
            tnp.load(sys.argv[1])
        except PermissionError as error:
            print(isinstance(error, tnp.TransportError), sys.argv[1] in str(error))
        """,
        path,
    )
    assert out == "True True\n"


@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("mmap", [True, False])
def test_a_truncated_file_is_a_format_error_that_names_it(
    tmp_path: Path, array: np.ndarray, mmap: bool
) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(npy(array)[:-1])
    with pytest.raises(tnp.FormatError, match=r"x.npy.*expected.*found"):
        tnp.load(path, mmap=mmap)


def test_an_empty_file_is_a_format_error(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"")
    with pytest.raises(tnp.FormatError, match=r"x.npy"):
        tnp.load(path)


def test_trailing_bytes_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(npy(LARGE) + b"trailing")
    assert torch.equal(tnp.load(path), torch.from_numpy(LARGE))


def count_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_many_small_files_leave_no_descriptor_or_map_open(tmp_path: Path) -> None:
    for i in range(50):
        np.save(tmp_path / f"{i}.npy", SMALL)
    before = count_open()
    tensors = [tnp.load(tmp_path / f"{i}.npy") for i in range(50)]
    assert count_open() == before
    assert Path("/proc/self/maps").read_text().count(str(tmp_path)) == 0
    assert len(tensors) == 50


def test_a_pathname_with_a_nul_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"null|NUL|nul"):
        tnp.load("a\0b.npy")


def test_a_header_is_read_without_the_data(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.asfortranarray(noise(3, 4)).astype("<f8"))
    header = tnp.header(path)
    assert (header.descr, header.dtype, tuple(header.shape)) == ("<f8", torch.float64, (3, 4))
    assert header.fortran_order
    assert header.nbytes == 96

"""What archives share lives as long as its last view, whatever becomes of the archive."""

from __future__ import annotations

import gc
import os
import struct
import textwrap
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from owners import EXITS, OWNERS, Owner, address, mapped, overwrite_free_memory
from support import noise, npy, npz, run_script, zipped

import torchnpy as tnp

A, B = noise(100, 1000, seed=1), noise(50, 100, seed=2).astype("<f4")
MEMBERS = {"a.npy": npy(A), "b.npy": npy(B)}
ALIGNED = zipped(MEMBERS, alignment=64)
DEFLATED = zipped(MEMBERS, deflate=True)
EXPECTED_A, EXPECTED_B = torch.from_numpy(A), torch.from_numpy(B)


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """Large enough to be mapped."""
    path = tmp_path / "large.npz"
    path.write_bytes(zipped({**MEMBERS, "a.npy": npy(noise(1000, 1000))}, alignment=64))
    return path


def is_within(tensor: torch.Tensor, owner: Any, nbytes: int = len(ALIGNED)) -> bool:
    return address(owner) <= tensor.data_ptr() < address(owner) + nbytes


@pytest.mark.parametrize("kind", OWNERS)
def test_aligned_stored_members_are_views(kind: str) -> None:
    owner = OWNERS[kind](ALIGNED)
    archive = tnp.load_npz(owner)
    for name, data, expected in [("a", MEMBERS["a.npy"], A), ("b", MEMBERS["b.npy"], B)]:
        offset = ALIGNED.index(data) + 128
        for tensor in (archive[name], archive.read()[name]):
            assert torch.equal(tensor, torch.from_numpy(expected))
            assert tensor.data_ptr() == address(owner) + offset


@pytest.mark.parametrize("kind", OWNERS)
def test_deflated_members_share_nothing(kind: str) -> None:
    owner = OWNERS[kind](DEFLATED)
    archive = tnp.load_npz(owner)
    first, second = archive["a"], archive["a"]
    assert not is_within(first, owner, len(DEFLATED))
    first.zero_()
    assert torch.equal(second, EXPECTED_A)
    assert torch.equal(archive["a"], EXPECTED_A)


@pytest.mark.parametrize("shift", [1, 2, 3, 4, 5, 8])
def test_an_unaligned_member_is_copied_to_where_it_is_aligned(shift: int) -> None:
    array = np.arange(1000, dtype="<i8")
    owner = bytearray(bytes(shift) + zipped({"x.npy": npy(array)}, alignment=64))
    tensor = tnp.load_npz(memoryview(owner)[shift:])["x"]
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.data_ptr() % 8 == 0
    offset = owner.index(npy(array)) + 128
    assert is_within(tensor, owner, len(owner)) == ((address(owner) + offset) % 8 == 0)


def test_bytes_have_no_alignment_and_are_always_shared() -> None:
    owner = bytearray(b"x" + zipped({"x.npy": npy(A), "text": b"some text"}))
    archive = tnp.load_npz(memoryview(owner)[1:])
    assert is_within(archive["x"], owner, len(owner))
    assert is_within(archive["text"], owner, len(owner))
    owner[owner.index(b"some text")] = ord("S")
    assert bytes(archive["text"].tolist()) == b"Some text"


@pytest.mark.parametrize("kind", OWNERS)
def test_the_source_lives_until_the_last_view_dies(kind: str) -> None:
    archive = tnp.load_npz(OWNERS[kind](ALIGNED))
    row, transposed = archive["a"][3], archive["b"].T
    archive.close()
    del archive
    overwrite_free_memory(len(ALIGNED))
    assert torch.equal(row, EXPECTED_A[3])
    assert torch.equal(transposed, EXPECTED_B.T)


@pytest.mark.parametrize("end", ["close", "del"])
def test_an_archive_that_is_gone_holds_nothing(end: str) -> None:
    owner = Owner(ALIGNED)
    death = weakref.ref(owner)
    archive = tnp.load_npz(owner)
    copies = [archive["a"].clone()]
    del owner
    gc.collect()
    assert death() is not None
    if end == "close":
        archive.close()
    else:
        del archive
    gc.collect()
    assert death() is None
    assert torch.equal(copies[0], EXPECTED_A)


def test_members_share_one_owner() -> None:
    owner = Owner(ALIGNED)
    death = weakref.ref(owner)
    with tnp.load_npz(owner) as archive:
        views = archive.read()
    del owner, archive
    del views["a"]
    overwrite_free_memory(len(ALIGNED))
    assert death() is not None
    assert torch.equal(views["b"], EXPECTED_B)
    views.clear()
    gc.collect()
    assert death() is None


def test_the_fields_of_a_record_keep_the_source() -> None:
    array = np.zeros(1000, [("a", "<f4"), ("b", "<i4")])
    array["b"] = np.arange(1000)
    owner = Owner(zipped({"r.npy": npy(array)}, alignment=64))
    death = weakref.ref(owner)
    b = tnp.load_npz(owner)["r"]["b"]
    assert is_within(b, owner, len(owner))
    del owner
    overwrite_free_memory(len(ALIGNED))
    assert torch.equal(b, torch.arange(1000, dtype=torch.int32))
    del b
    gc.collect()
    assert death() is None


def test_a_bytearray_cannot_be_resized_while_archive_or_view_lives() -> None:
    data = bytearray(ALIGNED)
    archive = tnp.load_npz(data)
    with pytest.raises(BufferError):
        data.append(0)
    view = archive["a"][1]
    archive.close()
    with pytest.raises(BufferError):
        data.append(0)
    del view
    data.append(0)


def test_a_bytearray_is_free_again_when_opening_failed() -> None:
    data = bytearray(ALIGNED[:-30])
    with pytest.raises(tnp.FormatError):
        tnp.load_npz(data)
    data.append(0)


def test_an_mmap_cannot_be_closed_while_a_view_lives() -> None:
    owner = mapped(ALIGNED)
    tensor = tnp.load_npz(owner)["b"]
    with pytest.raises(BufferError):
        owner.close()
    del tensor
    gc.collect()
    owner.close()


@pytest.mark.parametrize("kind", OWNERS)
@pytest.mark.parametrize("data", [ALIGNED, DEFLATED], ids=["stored", "deflated"])
def test_a_copy_shares_nothing(kind: str, data: bytes) -> None:
    owner = OWNERS[kind](data)
    with tnp.load_npz(owner, copy=True) as archive:
        tensors = archive.read()
        first = archive["a"]
    assert not any(is_within(tensor, owner, len(data)) for tensor in (*tensors.values(), first))
    if isinstance(owner, bytearray):
        owner.append(0)
    first.zero_()
    assert torch.equal(tensors["a"], EXPECTED_A)
    assert torch.equal(tensors["b"], EXPECTED_B)


def test_a_view_is_shared_both_ways() -> None:
    data = bytearray(ALIGNED)
    archive = tnp.load_npz(data)
    tensor, again = archive["a"], archive["a"]
    tensor[0, 0] ^= 77
    assert data[data.index(npy(A)[:128]) + 128] == tensor[0, 0]
    assert torch.equal(tensor, again)


def test_a_member_is_verified_once_and_may_change_afterwards() -> None:
    """What the program itself writes to a view is not taken for corruption."""
    archive = tnp.load_npz(bytearray(ALIGNED))
    archive["a"].zero_()
    assert torch.equal(archive["a"], torch.zeros_like(EXPECTED_A))


def test_an_empty_member_holds_nothing() -> None:
    owner = bytearray(zipped({"x.npy": npy(np.zeros((0, 3))), "y": b""}))
    with tnp.load_npz(owner) as archive:
        x, y = archive["x"], archive["y"]
    owner.append(0)
    assert x.shape == (0, 3)
    assert y.shape == (0,)


def test_a_tensor_that_an_archive_reads_cannot_be_resized() -> None:
    data = torch.frombuffer(bytearray(ALIGNED), dtype=torch.uint8).clone()
    archive = tnp.load_npz(data)
    view = archive["a"]
    with pytest.raises(RuntimeError, match="not resizable"):
        data.resize_(10 * len(ALIGNED))
    assert torch.equal(view, EXPECTED_A)


def maps_of(path: Path) -> list[range]:
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    return [range(*(int(end, 16) for end in line.split(" ")[0].split("-"))) for line in lines]


def test_stored_members_of_a_mapped_file_are_views_of_it(large_file: Path) -> None:
    archive = tnp.load(large_file)
    for tensor in (archive["a"], archive.read()["a"]):
        assert any(tensor.data_ptr() in pages for pages in maps_of(large_file))
        assert torch.equal(tensor, torch.from_numpy(noise(1000, 1000)))


def test_a_mapped_member_outlives_archive_and_file(large_file: Path) -> None:
    row = tnp.load(large_file)["a"][500]
    large_file.unlink()
    overwrite_free_memory(len(ALIGNED))
    assert torch.equal(row, torch.from_numpy(noise(1000, 1000)[500]))


def test_a_write_to_a_mapped_member_never_reaches_the_file(large_file: Path) -> None:
    before = large_file.read_bytes()
    first, second = tnp.load(large_file)["a"], tnp.load(large_file)["a"]
    first.zero_()
    assert large_file.read_bytes() == before
    assert torch.equal(second, torch.from_numpy(noise(1000, 1000)))


def test_a_file_is_unmapped_with_archive_and_last_view(large_file: Path) -> None:
    archive = tnp.load(large_file)
    row = archive["a"][3]
    archive.close()
    gc.collect()
    assert maps_of(large_file)
    del row
    gc.collect()
    assert not maps_of(large_file)


def test_a_member_read_without_mapping_survives_a_truncated_file(large_file: Path) -> None:
    tensor = tnp.load(large_file, mmap=False)["a"]
    assert not maps_of(large_file)
    large_file.write_bytes(b"")
    assert torch.equal(tensor, torch.from_numpy(noise(1000, 1000)))


@pytest.fixture(params=["stored", "deflated", "stored file", "deflated file"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tnp.NpzFile]:
    """Eight members of unequal size."""
    arrays = {f"m{i}": noise(300 * i + 1, 100, seed=i) for i in range(8)}
    data = npz(deflate="deflated" in request.param, **arrays)
    if "file" in request.param:
        (tmp_path / "x.npz").write_bytes(data)
        with tnp.load(tmp_path / "x.npz") as archive:
            yield archive
    else:
        with tnp.load_npz(data) as archive:
            yield archive


def member(number: int) -> torch.Tensor:
    return torch.from_numpy(noise(300 * number + 1, 100, seed=number))


@pytest.mark.parametrize("spread", [1, 8], ids=["one member", "all members"])
def test_sixteen_threads_read_at_once(shared: tnp.NpzFile, spread: int) -> None:
    barrier = threading.Barrier(16)
    expected = [member(i) for i in range(8)]

    def work(seed: int) -> bool:
        barrier.wait()
        numbers = [(seed + i) % spread for i in range(16)]
        ones = all(torch.equal(shared[f"m{n}"], expected[n]) for n in numbers)
        many = shared.read([f"m{n}" for n in numbers])
        return ones and all(torch.equal(many[f"m{n}"], expected[n]) for n in numbers)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


def test_closing_while_others_read_gives_values_or_a_value_error(shared: tnp.NpzFile) -> None:
    barrier = threading.Barrier(9)
    expected = [member(i) for i in range(8)]

    def work(number: int) -> bool:
        barrier.wait()
        while True:
            try:
                if not torch.equal(shared.read()[f"m{number}"], expected[number]):
                    return False
            except ValueError as error:
                return "closed" in str(error)

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(work, number) for number in range(8)]
        barrier.wait()
        shared.close()
        assert all(result.result() for result in results)


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="a fork inherits AddressSanitizer's own locks, held by the parent's threads",
)
@pytest.mark.parametrize("deflate", [False, True], ids=["stored", "deflated"])
def test_a_child_forked_while_threads_read_reads_too(tmp_path: Path, deflate: bool) -> None:
    arrays = {f"m{i}": noise(1000, 100, seed=i) for i in range(8)}
    (tmp_path / "x.npz").write_bytes(npz(deflate=deflate, **arrays))
    out = run_script(
        """
        import os, sys, threading, numpy as np, torchnpy as tnp
        archive = tnp.load(sys.argv[1])
        expected = {name: array.numpy().copy() for name, array in archive.items()}
        stop, reads = threading.Event(), [0] * 4

        # By numpy: the threads of torch's comparison do not survive a fork.
        def is_expected(loaded):
            return all(np.array_equal(loaded[name], x) for name, x in expected.items())

        def work(n):
            while not stop.is_set():
                loaded = archive.read()
                assert is_expected(loaded)
                reads[n] += 1

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for i in range(15):
            child = os.fork()
            if child == 0:
                # The archive that the parent opened, and one of its own.
                for used in (archive, tnp.load(sys.argv[1])):
                    loaded = used.read()
                    if not is_expected(loaded):
                        os._exit(1)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        print(min(reads) > 0)
        """,
        tmp_path / "x.npz",
    )
    assert out == "True\n"


SOURCES = {
    "bytes": "tensor = tnp.load_npz(bytearray(open(sys.argv[1], 'rb').read()))['a'].view(-1)",
    "a file": "tensor = tnp.load(sys.argv[1])['a'].view(-1)",
    "an open archive": "archive = tnp.load(sys.argv[1]); tensor = archive['a'].view(-1)",
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("holder", EXITS)
def test_views_may_die_when_the_interpreter_exits(
    large_file: Path, source: str, holder: str
) -> None:
    prelude = f"import sys, torch, torchnpy as tnp\n{SOURCES[source]}\n"
    run_script(f"{prelude}{textwrap.dedent(EXITS[holder])}\ndel tensor", large_file)


def test_an_exit_while_daemon_threads_read_is_clean(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(npz(deflate=True, a=noise(1000, 1000), b=noise(10, 10)))
    for _ in range(4):
        run_script(
            """
            import sys, threading, time, torchnpy as tnp
            archive = tnp.load(sys.argv[1])
            begun, kept = threading.Semaphore(0), []

            def work():
                while True:
                    begun.release()
                    # Kept: torch itself aborts when such a thread drops a tensor at the end.
                    kept.append(archive.read())

            for _ in range(4):
                threading.Thread(target=work, daemon=True).start()
            for _ in range(12):
                begun.acquire()
            """,
            tmp_path / "x.npz",
        )


def test_a_member_read_at_exit_is_right(large_file: Path) -> None:
    out = run_script(
        """
        import atexit, sys, torchnpy as tnp
        archive = tnp.load(sys.argv[1])
        atexit.register(lambda: print(tuple(archive["b"].shape)))
        """,
        large_file,
    )
    assert out == "(50, 100)\n"


def test_a_changed_source_is_never_read_out_of_bounds() -> None:
    """The bytes of a bytearray may change after opening: offsets are checked when used."""
    data = bytearray(zipped({"x.npy": npy(A)}))
    archive = tnp.load_npz(data)
    struct.pack_into("<HH", data, 26, 65535, 65535)  # lengths in the local header
    with pytest.raises(tnp.FormatError, match=r"<bytes>\[x\.npy\]"):
        archive["x"]

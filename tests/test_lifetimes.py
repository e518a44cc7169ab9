"""Memory that is shared lives as long as its last view, and no longer; wherever that view dies."""

from __future__ import annotations

import gc
import textwrap
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from owners import EXITS, OWNERS, Owner, address, mapped, overwrite_free_memory
from support import noise, npy, run_script

import torchnpy as tnp

ARRAY = noise(100, 1000)
EXPECTED = torch.from_numpy(ARRAY)
NBYTES = len(npy(ARRAY))


@pytest.mark.parametrize("kind", OWNERS)
def test_a_view_shares_its_owners_memory(kind: str) -> None:
    owner = OWNERS[kind](npy(ARRAY))
    tensor = tnp.load_npy(owner)
    assert torch.equal(tensor, EXPECTED)
    assert tensor.data_ptr() == address(owner) + 128


@pytest.mark.parametrize("kind", OWNERS)
def test_the_owner_lives_until_the_last_view_dies(kind: str) -> None:
    tensor = tnp.load_npy(OWNERS[kind](npy(ARRAY)))
    views = [tensor[3:5], tensor.view(torch.int8)[7], tensor.T]
    del tensor
    overwrite_free_memory(NBYTES)
    assert torch.equal(views[0], EXPECTED[3:5])
    assert torch.equal(views[2], EXPECTED.T)


@pytest.mark.parametrize("where", ["here", "another thread", "a cycle"])
def test_the_owner_dies_with_its_last_view(where: str) -> None:
    owner = Owner(npy(ARRAY))
    death = weakref.ref(owner)
    held = [tnp.load_npy(owner)[1:]]
    del owner
    gc.collect()
    assert death() is not None
    if where == "another thread":
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
    elif where == "a cycle":
        held.append(held)  # type: ignore[arg-type]
        del held
    else:
        held.clear()
    gc.collect()
    assert death() is None


def test_the_fields_of_a_record_share_one_owner() -> None:
    array = np.zeros(1000, [("a", "<f4"), ("b", "<i4")])
    array["b"] = np.arange(1000)
    owner = Owner(npy(array))
    death = weakref.ref(owner)
    fields = tnp.load_npy(owner)
    assert isinstance(fields, dict)
    b = fields["b"]
    del owner, fields
    overwrite_free_memory(NBYTES)
    assert torch.equal(b, torch.arange(1000, dtype=torch.int32))
    assert death() is not None
    del b
    gc.collect()
    assert death() is None


def test_a_bytearray_cannot_be_resized_while_a_tensor_lives() -> None:
    data = bytearray(npy(ARRAY))
    view = tnp.load_npy(data)[1]
    with pytest.raises(BufferError):
        data.append(0)
    del view
    data.append(0)


def test_a_bytearray_is_free_again_after_a_load_that_failed() -> None:
    data = bytearray(npy(ARRAY)[:-1])
    with pytest.raises(tnp.FormatError):
        tnp.load_npy(data)
    data.append(0)
    tnp.load_npy(data)


def test_an_mmap_cannot_be_closed_while_a_tensor_lives() -> None:
    owner = mapped(npy(ARRAY))
    tensor = tnp.load_npy(owner)
    with pytest.raises(BufferError):
        owner.close()
    del tensor
    owner.close()


def test_a_bytearray_is_shared_both_ways() -> None:
    data = bytearray(npy(ARRAY))
    tensor = tnp.load_npy(data)
    tensor[0, 0] = 77
    assert data[128] == 77
    data[129] = 78
    assert tensor[0, 1] == 78


def test_bytes_are_shared_and_copy_keeps_them_unchanged() -> None:
    data = npy(ARRAY)
    tnp.load_npy(data, copy=True).zero_()
    assert data == npy(ARRAY)
    tnp.load_npy(data)[0, 0] = 99  # the caller's own choice
    assert data[128] == 99


@pytest.mark.parametrize("kind", OWNERS)
def test_a_copy_lets_the_owner_go(kind: str) -> None:
    owner = OWNERS[kind](npy(ARRAY))
    tensor = tnp.load_npy(owner, copy=True)
    assert not address(owner) <= tensor.data_ptr() < address(owner) + NBYTES
    if isinstance(owner, bytearray):
        owner.append(0)
    assert torch.equal(tensor, EXPECTED)


@pytest.mark.parametrize("dtype", ["<i2", "<f4", "<f8", "<c16"])
@pytest.mark.parametrize("shift", [1, 2, 4])
def test_unaligned_data_is_copied_to_where_it_is_aligned(dtype: str, shift: int) -> None:
    array = np.arange(100).astype(dtype)
    owner = bytearray(b"\0" * shift + npy(array))
    tensor = tnp.load_npy(memoryview(owner)[shift:])
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.data_ptr() % min(array.itemsize, 8) == 0


def test_byte_swapped_data_is_copied() -> None:
    owner = bytearray(npy(np.arange(100, dtype=">i4")))
    tensor = tnp.load_npy(owner)
    tensor.zero_()
    owner.append(0)
    assert torch.equal(tnp.load_npy(owner), torch.arange(100, dtype=torch.int32))


def test_wild_bools_are_copied_and_become_true() -> None:
    data = bytearray(npy(np.array([False, True, True])))
    data[-1] = 2
    tensor = tnp.load_npy(data)
    assert tensor.tolist() == [False, True, True]
    assert tensor.view(torch.uint8).tolist() == [0, 1, 1]
    assert data[-1] == 2


def test_an_empty_array_holds_nothing() -> None:
    owner = bytearray(npy(np.zeros((0, 3), np.float32)))
    tensor = tnp.load_npy(owner)
    assert tensor.shape == (0, 3)
    owner.append(0)


def void_file(array: np.ndarray, descr: str) -> bytes:
    return npy(array.view(f"V{array.itemsize}")).replace(b"|V", descr.encode())


def test_dtype_names_the_bits_that_a_file_cannot() -> None:
    expected = torch.tensor([1.0, -2.5, 3e20], dtype=torch.bfloat16)
    data = npy(expected.view(torch.int16).numpy().view("V2"))
    with pytest.raises(tnp.UnsupportedError, match="dtype="):
        tnp.load_npy(data)
    assert torch.equal(tnp.load_npy(data, dtype=torch.bfloat16), expected)
    assert tnp.load_npy(data, dtype=torch.float16).dtype == torch.float16


def test_dtype_reinterprets_one_byte_too() -> None:
    expected = torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn)
    data = npy(expected.view(torch.uint8).numpy().view("V1"))
    loaded = tnp.load_npy(data, dtype=torch.float8_e4m3fn)
    assert torch.equal(loaded.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.zeros(3, "V2"), torch.float32),
        (np.zeros(3, "V1"), torch.bfloat16),
        (np.zeros(3, "<f4"), torch.float64),
        (np.zeros(3, "<i8"), torch.float32),
    ],
)
def test_dtype_of_another_size_is_a_value_error(array: np.ndarray, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"bytes|itemsize|size"):
        tnp.load_npy(npy(array), dtype=dtype)


def test_nothing_is_ever_cast() -> None:
    data = npy(np.array([1.5, -2.25], "<f4"))
    assert torch.equal(tnp.load_npy(data, dtype=torch.float32), torch.tensor([1.5, -2.25]))
    try:
        bits = tnp.load_npy(data, dtype=torch.int32)
    except ValueError:
        return
    assert torch.equal(bits, torch.tensor([1.5, -2.25]).view(torch.int32))


@pytest.mark.parametrize("wrong", [None, 3, "x.npy", ["a"], object()])
def test_what_holds_no_bytes_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError):
        tnp.load_npy(wrong)


def test_bytes_that_are_not_contiguous_are_refused() -> None:
    doubled = np.repeat(np.frombuffer(npy(ARRAY), np.uint8), 2)
    with pytest.raises((BufferError, ValueError, TypeError)):
        tnp.load_npy(doubled[::2])


def test_threads_may_load_and_drop_views_of_one_owner_at_once() -> None:
    owner = Owner(npy(ARRAY))

    def work(seed: int) -> bool:
        rows = [tnp.load_npy(owner)[row] for row in range(seed % 50, 60)]
        return all(torch.equal(a, EXPECTED[row]) for row, a in enumerate(rows, seed % 50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    gc.collect()
    owner.append(0)


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    path = tmp_path / "large.npy"
    np.save(path, noise(1000, 1000))
    return path


def test_a_mapped_tensor_outlives_everything(large_file: Path) -> None:
    row = tnp.load(large_file)[500]
    large_file.unlink()
    overwrite_free_memory(NBYTES)
    assert torch.equal(row, torch.from_numpy(noise(1000, 1000)[500]))


def test_a_write_through_a_mapped_tensor_never_reaches_the_file(large_file: Path) -> None:
    before = large_file.read_bytes()
    first, second = tnp.load(large_file), tnp.load(large_file)
    first.zero_()
    assert large_file.read_bytes() == before
    assert torch.equal(second, torch.from_numpy(noise(1000, 1000)))


def test_mapping_is_dropped_with_the_last_view(large_file: Path) -> None:
    def maps() -> int:
        return Path("/proc/self/maps").read_text().count(str(large_file))

    tensor = tnp.load(large_file)
    row = tensor[3]
    assert maps() > 0
    del tensor
    assert maps() > 0
    del row
    gc.collect()
    assert maps() == 0


SOURCES = {
    "bytes": "tensor = tnp.load_npy(bytearray(open(sys.argv[1], 'rb').read())).view(-1)",
    "a file": "tensor = tnp.load(sys.argv[1]).view(-1)",
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("holder", EXITS)
def test_views_may_die_when_the_interpreter_exits(
    large_file: Path, source: str, holder: str
) -> None:
    code = textwrap.dedent(EXITS[holder])
    prelude = f"import sys, torch, torchnpy as tnp\n{SOURCES[source]}\n"
    run_script(f"{prelude}{code}\ndel tensor", large_file)


def test_deaths_without_the_gil_are_made_up_for() -> None:
    """Views that die on torch's own threads free their owners, at the latest at the next load."""
    out = run_script(
        """
        import gc, sys, time, warnings, weakref, numpy as np, torch, torchnpy as tnp
        from support import npy
        warnings.simplefilter("ignore")

        class Owner(bytearray):
            pass

        @torch.jit.script
        def child(x: torch.Tensor) -> int:
            return x.sum().item()

        @torch.jit.script
        def parent(x: torch.Tensor):
            y = torch.jit.fork(child, x)
            return y

        deaths, futures = [], []
        for i in range(100):
            owner = Owner(npy(np.full(10_000, i, np.uint8)))
            deaths.append(weakref.ref(owner))
            futures.append(parent(tnp.load_npy(owner)))
            del owner
        # torch.jit.wait() keeps the GIL, which torch's own threads need to drop a tensor.
        while not all(future.done() for future in futures):
            time.sleep(0.01)
        assert [torch.jit.wait(f) for f in futures] == [i * 10_000 for i in range(100)]
        del futures
        for _ in range(100):
            gc.collect()
            tnp.load_npy(npy(np.zeros(1)))
            alive = sum(death() is not None for death in deaths)
            if not alive:
                break
            time.sleep(0.05)
        print(alive)
        """
    )
    assert out == "0\n"


def test_a_tensor_that_is_viewed_cannot_be_resized() -> None:
    data = torch.frombuffer(bytearray(npy(ARRAY)), dtype=torch.uint8).clone()
    view = tnp.load_npy(data)
    with pytest.raises(RuntimeError, match="not resizable"):
        data.resize_(10 * NBYTES)
    assert torch.equal(view, EXPECTED)


def test_a_copy_leaves_its_tensor_resizable() -> None:
    data = torch.frombuffer(bytearray(npy(ARRAY)), dtype=torch.uint8).clone()
    copy = tnp.load_npy(data, copy=True)
    data.resize_(10 * NBYTES)
    assert torch.equal(copy, EXPECTED)

"""NpyRowDataset: the right rows of one array or many, in few requests, or an error."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers.http import ObjectServer
from support import noise, npy
from torch.utils.data import DataLoader, Subset

import torchnpy as tnp
from torchnpy.data import NpyRowDataset, UrlList

ARRAY = noise(200, 3, 7)
LABELS = np.arange(200)
DTYPES = ["u1", "?", "<i2", ">i4", "<f4", ">f8", "<c16", "<f2", ">u2"]


def as_numpy(samples: list[torch.Tensor]) -> np.ndarray:
    return np.stack([sample.numpy() for sample in samples])


def draw(array: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """The oracle: in the machine's byte order, as tensors are."""
    return array[np.asarray(indices, np.int64)].astype(array.dtype.newbyteorder("="))


@pytest.fixture
def url(server: ObjectServer) -> str:
    return server.put("/x.npy", npy(ARRAY))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_rows_equal_numpys_fancy_indexing(
    server: ObjectServer, tmp_path: Path, data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(sum))
    row_shape = data.draw(st.lists(st.integers(0, 70), max_size=2))
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    remote = data.draw(st.booleans())
    arrays = [
        noise(count, *row_shape, dtype.itemsize, seed=i).view(dtype)[..., 0]
        if dtype.kind not in "?b"
        else noise(count, *row_shape, seed=i) % 2 == 0
        for i, count in enumerate(counts)
    ]
    urls = []
    for i, array in enumerate(arrays):
        if remote:
            urls.append(server.put(f"/{i}.npy", npy(array)))
        else:
            np.save(tmp_path / f"{i}.npy", array)
            urls.append(str(tmp_path / f"{i}.npy"))
    whole = np.concatenate([array.astype(dtype.newbyteorder("=")) for array in arrays])
    dataset = NpyRowDataset(urls)
    assert len(dataset) == len(whole)
    indices = data.draw(st.lists(st.integers(-len(whole), len(whole) - 1), min_size=1, max_size=50))
    found = as_numpy(dataset.__getitems__(indices))
    assert found.dtype == whole.dtype
    assert found.shape == whole[indices].shape
    assert found.tobytes() == whole[indices].tobytes()  # NaNs, too


@pytest.mark.parametrize("row_nbytes", [8, 1000, 50_000])
def test_rows_of_a_large_local_file(tmp_path: Path, row_nbytes: int) -> None:
    array = noise(4_000_000 // row_nbytes, row_nbytes)
    np.save(tmp_path / "x.npy", array)
    dataset = NpyRowDataset(tmp_path / "x.npy")
    random = np.random.default_rng(0)
    for indices in (random.integers(0, len(array), 64), np.arange(50), np.arange(3, 70, 2)):
        indices = np.minimum(indices, len(array) - 1)
        np.testing.assert_array_equal(as_numpy(dataset.__getitems__(indices)), array[indices])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_gives_numpys_rows(server: ObjectServer, dtype: str) -> None:
    array = noise(50, 6).astype(dtype)
    dataset = NpyRowDataset(server.put("/x.npy", npy(array)))
    indices = [4, -1, 30, 4]
    np.testing.assert_array_equal(as_numpy(dataset.__getitems__(indices)), draw(array, indices))


def test_bools_other_than_one_are_true(server: ObjectServer) -> None:
    array = np.frombuffer(bytes(range(8)), np.bool_)
    dataset = NpyRowDataset(server.put("/x.npy", npy(array)))
    assert [bool(dataset[i]) for i in range(8)] == [False] + [True] * 7
    assert torch.stack(dataset.__getitems__([5, 0])).view(torch.uint8).tolist() == [1, 0]


def test_an_item_is_a_tensor_of_its_own(url: str) -> None:
    dataset = NpyRowDataset(url)
    row = dataset[-1]
    assert type(row) is torch.Tensor
    assert row.untyped_storage().nbytes() == 21
    np.testing.assert_array_equal(row.numpy(), ARRAY[-1])
    row.zero_()
    np.testing.assert_array_equal(dataset[199].numpy(), ARRAY[-1])


def test_rows_of_one_dimension_are_scalars(server: ObjectServer) -> None:
    dataset = NpyRowDataset(server.put("/x.npy", npy(LABELS)))
    assert dataset[7].shape == ()
    (batch,) = DataLoader(Subset(dataset, [3, 150, 4]), 3)
    assert batch.tolist() == [3, 150, 4]


@pytest.mark.parametrize("index", [200, -201, 2**62])
def test_an_index_outside_is_an_index_error(url: str, index: int) -> None:
    dataset = NpyRowDataset(url)
    with pytest.raises(IndexError, match=rf"-200 to 199 but found {index}"):
        dataset[index]
    with pytest.raises(IndexError):
        dataset.__getitems__([0, index])


@pytest.mark.parametrize("index", [2**80, -(2**80)])
def test_an_index_of_any_size_is_an_index_error(url: str, index: int) -> None:
    with pytest.raises(IndexError):
        NpyRowDataset(url)[index]


def test_an_index_that_is_none_is_a_type_error(url: str) -> None:
    with pytest.raises(TypeError):
        NpyRowDataset(url)[1.5]  # type: ignore[index]


def test_indices_may_be_numpys_and_torchs(url: str) -> None:
    dataset = NpyRowDataset(url)
    for indices in (np.array([5, -2]), [np.int32(5), np.int64(-2)], torch.tensor([5, -2])):
        np.testing.assert_array_equal(as_numpy(dataset.__getitems__(indices)), ARRAY[[5, -2]])


def test_an_empty_array_has_no_rows(server: ObjectServer) -> None:
    dataset = NpyRowDataset(server.put("/x.npy", npy(np.zeros((0, 3)))))
    assert len(dataset) == 0
    assert dataset.__getitems__([]) == []
    with pytest.raises(IndexError, match="no rows"):
        dataset[0]


def test_iteration_ends(server: ObjectServer) -> None:
    dataset = NpyRowDataset(server.put("/x.npy", npy(LABELS[:5])))
    assert [int(row) for row in dataset] == [0, 1, 2, 3, 4]


def test_nothing_is_asked_for_before_the_first_use(server: ObjectServer, url: str) -> None:
    dataset = NpyRowDataset({"x": [url, url], "y": url})
    pickle.dumps(dataset)
    assert not server.requests


def test_headers_are_asked_for_together_and_once(server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npy", npy(noise(100, 2000))) for i in range(8)]
    dataset = NpyRowDataset({"x": urls[:4], "y": urls[4:]})
    server.hold_until(8)
    assert len(dataset) == 400
    assert server.max_concurrent == 8
    server.hold_until(0)
    assert len(dataset) == 400
    dataset[0]
    assert len(server.requests) == 8 + 2
    assert server.sent_nbytes <= 8 * 4096 + 2 * 2000


def test_a_batch_costs_its_rows_and_no_header(server: ObjectServer) -> None:
    array = noise(4000, 1000)
    dataset = NpyRowDataset(server.put("/x.npy", npy(array)))
    len(dataset)
    for seed in range(2):
        indices = np.random.default_rng(seed).integers(0, 4000, 128)
        server.requests.clear()
        server.sent_nbytes = 0
        np.testing.assert_array_equal(as_numpy(dataset.__getitems__(indices)), array[indices])
        assert server.sent_nbytes <= 128_000 * 1.05 + 65536
        assert len(server.requests) < 128


def test_neighbours_come_in_one_request(server: ObjectServer) -> None:
    array = noise(4000, 1000)
    dataset = NpyRowDataset(server.put("/x.npy", npy(array)))
    len(dataset)
    server.requests.clear()
    indices = [*range(100, 200), *range(199, 149, -1), 210]
    np.testing.assert_array_equal(as_numpy(dataset.__getitems__(indices)), array[indices])
    (request,) = server.requests
    assert request.range == "bytes=100128-211127"


def test_a_client_may_coalesce_more(server: ObjectServer) -> None:
    array = noise(4000, 1000)
    client = tnp.Client(coalesce_nbytes=500_000)
    dataset = NpyRowDataset(server.put("/x.npy", npy(array)), client=client)
    len(dataset)
    server.requests.clear()
    dataset.__getitems__([0, 400, 800, 2000])
    assert len(server.requests) == 2


def test_objects_and_columns_are_asked_for_at_once(server: ObjectServer) -> None:
    x = [server.put(f"/x{i}.npy", npy(noise(100, 2000, seed=i))) for i in range(4)]
    y = [server.put(f"/y{i}.npy", npy(np.arange(100) + 1000 * i)) for i in range(4)]
    dataset = NpyRowDataset({"x": x, "y": y})
    assert len(dataset) == 400
    server.hold_until(8)
    server.max_concurrent = 0
    samples = dataset.__getitems__([350, 5, 250, 150])
    assert server.max_concurrent == 8
    assert [int(sample["y"]) for sample in samples] == [3050, 5, 2050, 1050]


def test_a_large_batch_comes_in_parts(server: ObjectServer) -> None:
    array = noise(2000, 1000)
    client = tnp.Client(part_nbytes=300_000)
    dataset = NpyRowDataset(server.put("/x.npy", npy(array)), client=client)
    found = as_numpy(dataset.__getitems__(range(100, 1900)))
    np.testing.assert_array_equal(found, array[100:1900])
    assert len(server.requests) >= 7


# More than stay open.
@pytest.mark.parametrize("remote", [False, True])
def test_many_objects_are_one_dataset(server: ObjectServer, tmp_path: Path, remote: bool) -> None:
    counts = [i % 4 for i in range(300)]
    arrays = [noise(count, 5, seed=i) for i, count in enumerate(counts)]
    urls = []
    for i, array in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", array)
        urls.append(server.put(f"/{i}.npy", npy(array)) if remote else tmp_path / f"{i}.npy")
    dataset = NpyRowDataset(urls)
    whole = np.concatenate(arrays)
    assert len(dataset) == len(whole)
    indices = np.random.default_rng(1).permutation(len(whole))
    for _ in range(2):
        np.testing.assert_array_equal(as_numpy(dataset.__getitems__(indices)), whole[indices])


def test_threads_share_a_dataset(server: ObjectServer) -> None:
    arrays = [noise(50, 100, seed=i) for i in range(4)]
    urls = [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    dataset = NpyRowDataset(urls)
    whole = np.concatenate(arrays)

    def read(seed: int) -> bool:
        indices = np.random.default_rng(seed).integers(0, 200, 20)
        return np.array_equal(as_numpy(dataset.__getitems__(indices)), whole[indices])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(40)))


def test_few_descriptors_stay_open(tmp_path: Path) -> None:
    for i in range(140):
        np.save(tmp_path / f"{i}.npy", noise(300, 1000, seed=i))
    dataset = NpyRowDataset([tmp_path / f"{i}.npy" for i in range(140)])
    before = len(os.listdir("/proc/self/fd"))
    assert len(dataset.__getitems__(range(0, 42_000, 150))) == 280
    assert len(os.listdir("/proc/self/fd")) - before <= 128
    del dataset
    assert len(os.listdir("/proc/self/fd")) == before


def test_columns_are_a_dict_of_rows(server: ObjectServer, url: str) -> None:
    parts = [
        server.put(f"/y{i}.npy", npy(part)) for i, part in enumerate(np.split(LABELS, [3, 50]))
    ]
    dataset = NpyRowDataset({"x": url, "y": parts})
    assert len(dataset) == 200
    sample = dataset[60]
    assert list(sample) == ["x", "y"]
    np.testing.assert_array_equal(sample["x"].numpy(), ARRAY[60])
    assert sample["y"] == 60


def test_columns_may_be_url_lists(server: ObjectServer) -> None:
    urls = UrlList(server.put(f"/y{i}.npy", npy(LABELS[:7] + 7 * i)) for i in range(3))
    assert [int(row) for row in NpyRowDataset(urls)] == list(range(21))
    copy = pickle.loads(pickle.dumps(NpyRowDataset({"y": urls})))
    assert copy[-1]["y"] == 20
    with pytest.raises(ValueError, match="at least one URL"):
        NpyRowDataset(UrlList([]))


def test_files_of_a_pattern_are_one_array(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", LABELS[:7] + 7 * i)
    dataset = NpyRowDataset.from_glob(tmp_path / "*.npy")
    assert [int(row) for row in dataset] == list(range(21))


def test_columns_of_unequal_length_are_named(server: ObjectServer, url: str) -> None:
    dataset = NpyRowDataset({"x": url, "y": server.put("/y.npy", npy(LABELS[1:]))})
    with pytest.raises(ValueError, match=r"'y' as in 'x', 200, but found 199"):
        len(dataset)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (noise(5, 3, 8), r"/other.npy: .*uint8 \(3, 7\), as in .*/x.npy, .*found uint8 \(3, 8\)"),
        (noise(5, 3, 7).astype("<i2"), r"expected rows of uint8 .* but found int16 \(3, 7\)"),
        (noise(5, 3), r"found uint8 \(3,\)"),
    ],
)
def test_arrays_of_a_column_that_differ_are_named(
    server: ObjectServer, url: str, other: np.ndarray, message: str
) -> None:
    dataset = NpyRowDataset([url, server.put("/other.npy", npy(other))])
    with pytest.raises(ValueError, match=message):
        dataset[0]


def test_byte_orders_that_differ_are_told_apart(server: ObjectServer) -> None:
    urls = [server.put(f"/{d}.npy", npy(np.zeros(3, d))) for d in ("<f4", ">f4")]
    with pytest.raises(ValueError, match=r"expected rows of <f4 .* but found >f4"):
        len(NpyRowDataset(urls))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], r"columns: expected at least one URL"),
        ({}, r"columns: expected at least one"),
        ({"x": []}, r"columns\['x'\]: expected at least one URL"),
        ({3: "x.npy"}, r"columns: expected names.*3"),
        ({"x": 3}, r"columns\['x'\]: expected a URL .* found a int"),
        (b"x.npy", r"columns: .* found a bytes"),
        (["x.npy", 3], r"columns: expected URLs but found a int"),
    ],
)
def test_columns_that_are_none_are_refused_at_once(columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NpyRowDataset(columns)


def test_rows_of_records_are_dicts(server: ObjectServer) -> None:
    array = np.zeros(20, [("a", ">f4"), ("b", "<i2", (2,)), ("c", "?")])
    array["a"] = np.arange(20)
    array["b"][:, 1] = np.arange(20)
    url = server.put("/x.npy", npy(array))
    dataset = NpyRowDataset(url)
    sample = dataset[5]
    assert {name: field.tolist() for name, field in sample.items()} == {
        "a": 5.0,
        "b": [0, 5],
        "c": False,
    }
    (batch,) = DataLoader(Subset(dataset, [3, 19, 4]), 3)
    assert batch["a"].tolist() == [3, 19, 4]
    assert batch["b"].tolist() == [[0, 3], [0, 19], [0, 4]]
    nested = NpyRowDataset({"r": url, "y": url})[7]
    assert nested["r"]["a"] == nested["y"]["a"] == 7


def test_dtype_names_the_bits(server: ObjectServer, url: str) -> None:
    expected = torch.randn(6, 5).bfloat16()
    bits = server.put("/b.npy", npy(expected.view(torch.int16).numpy().view("V2")))
    dataset = NpyRowDataset(bits, dtype=torch.bfloat16)
    assert torch.equal(torch.stack(dataset.__getitems__([4, 0])), expected[[4, 0]])
    with pytest.raises(tnp.UnsupportedError, match=r"/b.npy.*dtype="):
        NpyRowDataset(bits)[0]
    with pytest.raises(ValueError, match=r"/x.npy.*dtype"):
        NpyRowDataset(url, dtype=torch.bfloat16)[0]
    y = server.put("/y.npy", npy(np.arange(6)))
    sample = NpyRowDataset({"x": bits, "y": y}, dtype=torch.bfloat16)[3]
    assert torch.equal(sample["x"], expected[3])
    assert sample["y"] == 3


def test_fortran_order_says_what_to_do(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.asfortranarray(noise(30, 40))))
    with pytest.raises(tnp.UnsupportedError, match=r"/x.npy.*ortran.*ascontiguousarray"):
        len(NpyRowDataset(url))


def test_a_scalar_has_no_rows(server: ObjectServer) -> None:
    with pytest.raises(ValueError, match=r"/x.npy.*shape \(\)"):
        len(NpyRowDataset(server.put("/x.npy", npy(np.float64(1)))))


def test_objects_and_text_are_refused_by_name(server: ObjectServer) -> None:
    for array in (np.array([{}, 1], object), np.array(["a", "b"])):
        with pytest.raises(tnp.UnsupportedError, match=r"/x.npy"):
            len(NpyRowDataset(server.put("/x.npy", npy(array))))


def test_a_bad_object_is_named(server: ObjectServer, url: str) -> None:
    with pytest.raises(tnp.FormatError, match=r"/broken.npy"):
        NpyRowDataset([url, server.put("/broken.npy", b"broken")])[0]
    with pytest.raises(FileNotFoundError, match=r"/none.npy"):
        NpyRowDataset([url, server.url + "/none.npy"])[0]


def test_a_truncated_object_is_a_format_error(server: ObjectServer) -> None:
    with pytest.raises(tnp.FormatError, match=r"/x.npy.*expected.*found"):
        len(NpyRowDataset(server.put("/x.npy", npy(ARRAY)[:-1])))


@pytest.mark.parametrize("row_nbytes", [1000, 50_000])
def test_a_file_that_shrinks_is_a_format_error(tmp_path: Path, row_nbytes: int) -> None:
    array = noise(3_000_000 // row_nbytes, row_nbytes)
    path = tmp_path / "x.npy"
    np.save(path, array)
    dataset = NpyRowDataset(path)
    last = len(dataset) - 1
    assert np.array_equal(dataset[last].numpy(), array[last])
    os.truncate(path, 2_000_000)
    with pytest.raises(tnp.FormatError, match=r"x.npy.*ends there"):
        dataset.__getitems__([0, last])
    np.testing.assert_array_equal(dataset[3].numpy(), array[3])


def test_a_file_that_shrank_before_it_is_opened_again_is_a_format_error(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, ARRAY)
    dataset = NpyRowDataset(path)
    len(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    os.truncate(path, 1000)
    with pytest.raises(tnp.FormatError, match=r"x.npy"):
        copy[0]
    np.save(path, ARRAY.astype("<i2"))
    with pytest.raises(tnp.TransportError, match=r"x.npy.*changed.*anew"):
        copy[0]


def test_a_file_that_grows_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, ARRAY)
    dataset = NpyRowDataset(path)
    assert len(dataset) == 200
    copy = pickle.loads(pickle.dumps(dataset))
    np.save(path, np.concatenate([ARRAY, ARRAY]))
    assert len(copy) == 200
    np.testing.assert_array_equal(copy[-1].numpy(), ARRAY[-1])


@pytest.mark.parametrize("pickled", [False, True])
def test_an_object_that_changed_is_an_error(server: ObjectServer, url: str, pickled: bool) -> None:
    dataset = NpyRowDataset(url)
    assert len(dataset) == 200
    if pickled:
        dataset = pickle.loads(pickle.dumps(dataset))
    server.put("/x.npy", npy(ARRAY + 1))
    for _ in range(2):
        with pytest.raises(tnp.TransportError, match=r"/x.npy.*changed.*anew"):
            dataset.__getitems__([0, 100])
    np.testing.assert_array_equal(NpyRowDataset(url)[3].numpy(), ARRAY[3] + 1)

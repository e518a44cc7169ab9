"""torchnpy.ray on a local Ray: what its datasets hold, and how their reads are divided."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers.http import ObjectServer, status
from servers.s3 import S3Server
from support import noise, npy, npz, run_script

import torchnpy as tnp

# Ray's own, of its settings.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:ray", "ignore::ResourceWarning", "ignore::FutureWarning:ray"
)


@pytest.fixture(scope="module")
def tnr() -> Iterator[Any]:
    """torchnpy.ray, with a Ray of two CPUs that runs."""
    before = dict(os.environ)
    os.environ |= {
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else one is written to the home folder
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }
    import ray

    import torchnpy.ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=200 << 20,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield torchnpy.ray
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, bytes], str]:
    def write(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


Save = Callable[[str, bytes], str]


def rows_of(dataset: Any, column: str = "data") -> list[Any]:
    """In an order of their own: tasks end in any."""
    rows = [np.asarray(row[column]) for row in dataset.take_all()]
    return sorted(rows, key=lambda row: row.tobytes())


def assert_same(found: list[Any], expected: list[Any]) -> None:
    expected = sorted(map(np.asarray, expected), key=lambda row: row.tobytes())
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert (row.dtype, row.shape) == (other.dtype, other.shape)
        assert np.array_equal(row, other)


def block_sizes(dataset: Any) -> list[int]:
    """Bytes of the column of each block."""
    sizes = dataset.map_batches(lambda block: {"nbytes": [block["data"].nbytes]}, batch_size=None)
    return [int(row["nbytes"]) for row in sizes.take_all()]


def test_rows_are_those_of_rays_read_numpy(tnr: Any, save: Save) -> None:
    import ray

    arrays = [noise(rows, 3, 4, seed=rows) for rows in (5, 1, 7)]
    paths = [save(f"{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    found = tnr.read_npy(paths)
    theirs = ray.data.read_numpy(paths)
    assert found.schema() == theirs.schema()
    assert_same(rows_of(found), rows_of(theirs))
    assert found.count() == 13


def test_a_row_may_be_an_object(tnr: Any, server: ObjectServer) -> None:
    arrays = [noise(2, 3, seed=i) for i in range(5)]
    urls = [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    dataset = tnr.read_npy(urls, split_rows=False)
    assert_same(rows_of(dataset), arrays)
    assert dataset.count() == 5


def test_objects_of_other_shapes_keep_them(tnr: Any, save: Save) -> None:
    arrays = [noise(2, 3), noise(4, 1), noise(2, 3, seed=1), np.asfortranarray(noise(5, 2))]
    paths = [save(f"{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    dataset = tnr.read_npy(paths, split_rows=False, override_num_blocks=1)
    assert_same(rows_of(dataset), arrays)
    assert_same(rows_of(tnr.read_npy(paths)), [row for array in arrays for row in array])


def test_a_column_of_two_dtypes_is_an_error_that_names_both(tnr: Any, save: Save) -> None:
    paths = [save("a.npy", npy(np.zeros((2, 3), "u1"))), save("b.npy", npy(np.zeros((2, 3), "f4")))]
    with pytest.raises(ValueError, match=r"b\.npy: .* uint8 as in .*a\.npy but found float32"):
        tnr.read_npy(paths, override_num_blocks=1).take_all()


def test_dtypes_are_those_of_the_files(tnr: Any, save: Save) -> None:
    dtypes = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
    for dtype in dtypes:
        array = np.arange(6).reshape(2, 3).astype(dtype)
        assert_same(rows_of(tnr.read_npy(save(f"{dtype}.npy", npy(array)))), list(array))
    big_endian = np.arange(6, dtype=">i4").reshape(2, 3)
    path = save("big_endian.npy", npy(big_endian))
    assert_same(rows_of(tnr.read_npy(path)), list(big_endian.astype("i4")))


def test_fields_are_columns(tnr: Any, save: Save) -> None:
    array = np.zeros(3, [("x", "f4"), ("n", "i4", (2,))])
    array["x"], array["n"] = [1, 2, 3], [[1, 2], [3, 4], [5, 6]]
    dataset = tnr.read_npy(save("fields.npy", npy(array)))
    assert dataset.schema().names == ["x", "n"]
    assert_same(rows_of(dataset, "n"), list(array["n"]))
    archived = tnr.read_npz(save("fields.npz", npz(points=array)))
    assert archived.schema().names == ["points.x", "points.n"]


def test_arrays_without_rows_add_none(tnr: Any, save: Save) -> None:
    empty, full = save("0.npy", npy(np.zeros((0, 3)))), save("1.npy", npy(np.ones((2, 3))))
    assert tnr.read_npy([empty, full, empty], override_num_blocks=1).count() == 2
    assert tnr.read_npy(empty).take_all() == []


def test_paths_are_a_column_without_queries(tnr: Any, server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.arange(3)))
    rows = tnr.read_npy(f"{url}?X-Amz-Signature=secret", include_paths=True).take_all()
    assert [(row["data"], row["path"]) for row in rows] == [(i, url) for i in range(3)]


def test_headers_and_objects_are_fetched_at_once(tnr: Any, server: ObjectServer) -> None:
    arrays = [noise(50, 2000, seed=i) for i in range(8)]  # beyond what a header's read brings
    urls = [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    server.hold_until(8)
    dataset = tnr.read_npy(urls, override_num_blocks=1)
    assert server.max_concurrent == 8
    server.max_concurrent = 0
    assert_same(rows_of(dataset), [row for array in arrays for row in array])
    assert server.max_concurrent == 8


def test_tasks_share_the_bytes(tnr: Any, save: Save) -> None:
    large = save("large.npy", npy(noise(200, 1000)))
    small = [save(f"{i}.npy", npy(noise(10, 1000, seed=i))) for i in range(40)]
    sizes = block_sizes(tnr.read_npy([large, *small], override_num_blocks=3))
    assert sizes == [200_000] * 3


def test_a_large_array_is_divided_by_its_rows(tnr: Any, save: Save) -> None:
    array = np.arange(3_000_000).reshape(-1, 1000)  # 24 MB
    path = save("large.npy", npy(array))
    dataset = tnr.read_npy(path, override_num_blocks=2)
    assert block_sizes(dataset) == [12_000_000, 12_000_000]
    assert dataset.count() == 3000
    sums = dataset.map_batches(lambda block: {"sum": [block["data"].sum()]}, batch_size=None)
    assert sum(row["sum"] for row in sums.take_all()) == array.sum()


def test_a_limit_leaves_the_other_objects_alone(tnr: Any, server: ObjectServer) -> None:
    urls = [server.put(f"/{i:02}.npy", npy(np.full((1, 3), i))) for i in range(40)]
    dataset = tnr.read_npy(urls, override_num_blocks=1)
    server.requests.clear()
    assert len(dataset.map(lambda row: row).take(3)) == 3
    assert len(server.requests) == 3


def test_a_prefix_is_listed_and_its_sizes_are_believed(tnr: Any, s3_server: S3Server) -> None:
    (key_id, key), *_ = s3_server.keys.items()
    secret = key.secret
    arrays = [noise(2, 3, seed=i) for i in range(4)]
    for i, array in enumerate(arrays):
        s3_server.put_key(f"train/{i}.npy", npy(array))
    s3_server.put_key("train/notes.txt", b"x")
    client = tnp.Client(
        endpoint=s3_server.url, credentials=lambda: {"access_key": key_id, "secret_key": secret}
    )
    dataset = tnr.read_npy("s3://bucket/train/", client=client)
    assert len(s3_server.requests) == 1
    assert_same(rows_of(dataset), [row for array in arrays for row in array])


def test_a_folder_stands_for_its_files(tnr: Any, save: Save, tmp_path: Path) -> None:
    save("a.npy", npy(np.arange(3)))
    save("notes.txt", b"x")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "b.npy").write_bytes(npy(np.arange(3, 5)))
    assert_same(rows_of(tnr.read_npy(tmp_path)), list(np.arange(5)))
    with pytest.raises(ValueError, match=r"urls: expected objects that end in '\.npz' but found"):
        tnr.read_npz(tmp_path)


def test_members_are_columns(tnr: Any, server: ObjectServer) -> None:
    images, labels = noise(6, 2, 2), np.arange(6)
    urls = [
        server.put("/0.npz", npz(image=images[:4], label=labels[:4])),
        server.put("/1.npz", npz(image=images[4:], label=labels[4:], deflate=True)),
    ]
    rows = sorted(tnr.read_npz(urls).take_all(), key=lambda row: row["label"])
    assert [row["label"] for row in rows] == list(range(6))
    assert np.array_equal([row["image"] for row in rows], images)
    assert tnr.read_npz(urls, ["label"]).schema().names == ["label"]


def test_an_archive_may_be_a_row(tnr: Any, server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npz", npz(image=noise(3, 4, seed=i), id=i)) for i in range(3)]
    dataset = tnr.read_npz(urls, ["id", "image"], split_rows=False, include_paths=True)
    rows = sorted(dataset.take_all(), key=lambda row: row["id"])
    assert [(row["id"], row["path"]) for row in rows] == list(enumerate(urls))
    assert all(np.array_equal(row["image"], noise(3, 4, seed=i)) for i, row in enumerate(rows))


def test_members_of_unequal_length_are_an_error_that_names_both(tnr: Any, save: Save) -> None:
    path = save("x.npz", npz(image=np.zeros((3, 2)), label=np.arange(4)))
    with pytest.raises(ValueError, match="found 'image' with 3 rows and 'label' with 4"):
        tnr.read_npz(path).take_all()


def test_a_missing_member_is_a_key_error_at_once(tnr: Any, save: Save) -> None:
    with pytest.raises(KeyError, match="found 'mask'"):
        tnr.read_npz(save("x.npz", npz(image=np.zeros(3))), ["mask"])


@pytest.mark.parametrize("members", ["image", [], ["a", "a"]])
def test_wrong_members_are_a_value_error(tnr: Any, members: Any) -> None:
    with pytest.raises(ValueError, match="members: expected a list of names"):
        tnr.read_npz("x.npz", members)


def test_an_array_of_no_dimension_has_no_rows(tnr: Any, save: Save) -> None:
    path = save("x.npy", npy(np.float32(3)))
    with pytest.raises(ValueError, match=r"x\.npy: .* shape \(\); pass split_rows=False"):
        tnr.read_npy(path).take_all()
    assert tnr.read_npy(path, split_rows=False).take_all() == [{"data": 3.0}]


def test_a_dtype_that_arrow_lacks_is_unsupported(tnr: Any, save: Save) -> None:
    path = save("complex.npy", npy(np.zeros(3, "c8")))
    with pytest.raises(tnp.UnsupportedError, match=r"complex\.npy: .* found torch\.complex64"):
        tnr.read_npy(path).take_all()


def test_an_object_that_is_missing_is_an_error_at_once(tnr: Any, server: ObjectServer) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.npy"):
        tnr.read_npy(f"{server.url}/none.npy")


def test_errors_of_tasks_have_their_type_and_name_the_object(
    tnr: Any, server: ObjectServer, save: Save
) -> None:
    good = npy(np.arange(30_000).reshape(3, -1))
    with pytest.raises(tnp.FormatError, match=r"short\.npy"):
        tnr.read_npy(save("short.npy", good[:-8])).take_all()
    url = server.put("/gone.npy", good)
    dataset = tnr.read_npy(url)
    server.always("/gone.npy", status(404))
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        dataset.take_all()


def test_without_ray_the_import_says_what_to_install() -> None:
    out = run_script(
        """
        import sys
        sys.modules["ray"] = None
        try:
            import torchnpy.ray
        except ImportError as error:
            print(error)
        """
    )
    assert "pip install 'torchnpy[ray]'" in out

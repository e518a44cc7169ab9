"""NpzDataset: samples, batches, what is fetched; alone and under DataLoader."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import ObjectServer, status
from servers.s3 import S3Server
from support import as_list, error_of, name_in, noise, npy, npz
from torch.utils.data import DataLoader, Subset, random_split

import torchnpy as tnp
from torchnpy.data import NpzDataset

COUNT = 10
IMAGES = [noise(3, 40, 30, seed=i) for i in range(COUNT)]
MASKS = [noise(40, 30, seed=100 + i) > 127 for i in range(COUNT)]
STACKED_IMAGES = torch.from_numpy(np.stack(IMAGES))
STACKED_MASKS = torch.from_numpy(np.stack(MASKS))
ARCHIVES = [
    npz(deflate=i % 2 == 0, image=image, mask=mask, index=i)
    for i, (image, mask) in enumerate(zip(IMAGES, MASKS, strict=True))
]

# None: no worker, the loads run in the test's own process.
CONTEXTS = [None, "fork"]
# A spawned worker imports torch first, which takes seconds.
ALL_CONTEXTS = [*CONTEXTS, "spawn"]


@pytest.fixture
def urls(server: ObjectServer) -> list[str]:
    return [server.put(f"/train/{i:02}.npz", data) for i, data in enumerate(ARCHIVES)]


def loader_of(dataset: Any, batch_size: int | None, context: str | None, **options: Any) -> Any:
    workers = {"num_workers": 2, "multiprocessing_context": context} if context else {}
    return DataLoader(dataset, batch_size, **workers, **options)


def test_a_sample_is_a_dict_in_the_archives_order(urls: list[str]) -> None:
    dataset = NpzDataset(urls)
    assert len(dataset) == COUNT
    sample = dataset[3]
    assert list(sample) == ["image", "mask", "index"]
    assert torch.equal(sample["image"], STACKED_IMAGES[3])
    assert torch.equal(sample["mask"], STACKED_MASKS[3])
    assert int(sample["index"]) == 3
    assert all(type(array) is torch.Tensor for array in sample.values())
    assert int(dataset[-1]["index"]) == COUNT - 1


@pytest.mark.parametrize(
    "members",
    [["mask", "image"], ("image.npy",), ["index", "mask.npy", "image"], ["mask", "mask.npy"]],
)
def test_members_are_the_keys_in_the_order_asked_for(urls: list[str], members: Any) -> None:
    samples = NpzDataset(urls, members).__getitems__([4, 1])
    expected = {"image": STACKED_IMAGES, "mask": STACKED_MASKS, "index": torch.arange(COUNT)}
    for sample, i in zip(samples, [4, 1], strict=True):
        assert list(sample) == list(members)
        for name, array in sample.items():
            assert torch.equal(array, expected[name.removesuffix(".npy")][i])


@pytest.mark.parametrize("context", ALL_CONTEXTS)
def test_batches_equal_numpys_stacking(urls: list[str], context: str | None) -> None:
    batches = list(loader_of(NpzDataset(urls, ["mask", "image"]), 4, context))
    assert [len(batch["image"]) for batch in batches] == [4, 4, 2]
    assert all(list(batch) == ["mask", "image"] for batch in batches)
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), STACKED_IMAGES)
    assert torch.equal(torch.cat([batch["mask"] for batch in batches]), STACKED_MASKS)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_second_epoch_and_shuffling_give_every_sample(
    urls: list[str], context: str | None
) -> None:
    loader = loader_of(
        NpzDataset(urls), 4, context, shuffle=True, persistent_workers=context is not None
    )
    for _ in range(2):
        seen = []
        for batch in loader:
            assert torch.equal(batch["image"], STACKED_IMAGES[batch["index"]])
            seen += batch["index"].tolist()
        assert sorted(seen) == list(range(COUNT))


def test_a_batch_is_asked_for_at_once(server: ObjectServer, urls: list[str]) -> None:
    server.hold_until(8)
    samples = NpzDataset(urls).__getitems__([7, 0, 1, 2, 3, 4, 5, 6])
    assert server.max_concurrent == 8
    assert [int(sample["index"]) for sample in samples] == [7, 0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("workers", [0, 2])
def test_subsets_fetch_their_batches_at_once(
    server: ObjectServer, urls: list[str], workers: int
) -> None:
    parts = random_split(NpzDataset(urls), [6, 4], torch.Generator().manual_seed(0))
    server.hold_until(4)
    (batch,) = DataLoader(parts[1], 4, num_workers=workers)
    assert batch["index"].tolist() == list(parts[1].indices)
    assert server.max_concurrent == 4


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("compressed", [False, True])
def test_only_the_members_asked_for_are_fetched(
    server: ObjectServer, context: str | None, compressed: bool
) -> None:
    count, tail_nbytes = 4, 64 << 10
    arrays = {
        "left": noise(400, 500, seed=1),
        "depth": noise(2000, 500, seed=2),
        "right": noise(400, 500, seed=3),
        "rest": noise(2000, 500, seed=4),
    }
    data = npz(deflate=compressed, **arrays)
    urls = [server.put(f"/{i}.npz", data) for i in range(count)]
    (batch,) = loader_of(NpzDataset(urls, ["right", "left"]), count, context)
    assert torch.equal(batch["left"], torch.from_numpy(arrays["left"]).expand(count, -1, -1))
    assert torch.equal(batch["right"], torch.from_numpy(arrays["right"]).expand(count, -1, -1))
    needed_nbytes = arrays["left"].nbytes + arrays["right"].nbytes
    assert server.sent_nbytes <= count * (1.05 * needed_nbytes + tail_nbytes)


@pytest.mark.parametrize("index", [COUNT, -COUNT - 1])
def test_an_index_outside_is_an_index_error(
    server: ObjectServer, urls: list[str], index: int
) -> None:
    with pytest.raises(IndexError, match=str(COUNT)):
        NpzDataset(urls)[index]
    with pytest.raises(IndexError, match=str(COUNT)):
        NpzDataset(urls).__getitems__([0, index])
    assert not server.requests


def test_iteration_ends(urls: list[str]) -> None:
    assert [int(sample["index"]) for sample in NpzDataset(urls)] == list(range(COUNT))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("image", r"members: expected a sequence of names .* write \['image'\]"),
        ("", "members: expected a sequence of names"),
        ([], "members: expected names but found none"),
        (["image", "mask", "image"], "members: .* 'image' twice"),
        (["image", 0], "members: .* strings, but found 0"),
    ],
)
def test_wrong_members_are_a_value_error(
    server: ObjectServer, urls: list[str], members: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NpzDataset(urls, members)
    assert not server.requests


@pytest.mark.parametrize("context", ALL_CONTEXTS)
def test_a_missing_member_is_a_key_error_that_names_archive_and_members(
    server: ObjectServer, urls: list[str], context: str | None
) -> None:
    server.put("/train/01.npz", npz(image=IMAGES[1], index=1))
    message = error_of(loader_of(NpzDataset(urls, ["image", "mask"]), 4, context), KeyError)
    for part in ("/train/01.npz", "mask", "image", "index"):
        assert part in message


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_corrupt_member_is_a_format_error_unless_it_is_not_verified(
    server: ObjectServer, urls: list[str], context: str | None
) -> None:
    data = bytearray(npz(image=IMAGES[0], mask=MASKS[0]))
    at = data.find(IMAGES[0].tobytes()) + 1000
    data[at] ^= 1
    url = server.put("/corrupt.npz", bytes(data))
    message = error_of(loader_of(NpzDataset([url]), 1, context), tnp.FormatError)
    assert f"{url}[image.npy]: expected CRC-32 0x" in message
    (batch,) = loader_of(NpzDataset([url], verify=False), 1, context)
    changed = IMAGES[0].copy()
    changed.flat[1000] ^= 1
    assert torch.equal(batch["image"][0], torch.from_numpy(changed))


def test_a_bad_object_is_named(server: ObjectServer, urls: list[str]) -> None:
    server.always("/train/04.npz", status(404))
    with pytest.raises(FileNotFoundError, match=r"/train/04\.npz"):
        NpzDataset(urls).__getitems__([4, 5])


@pytest.mark.parametrize("context", CONTEXTS)
def test_labels_may_be_a_sequence(urls: list[str], context: str | None) -> None:
    dataset = NpzDataset(urls, labels=[10 * i for i in range(COUNT)])
    sample, label = dataset[2]
    assert (int(sample["index"]), label) == (2, 20)
    for batch, labels in loader_of(dataset, 5, context):
        assert torch.equal(10 * batch["index"], labels)


@pytest.mark.parametrize("context", ALL_CONTEXTS)
def test_labels_may_be_the_url_of_an_array(
    server: ObjectServer, urls: list[str], context: str | None
) -> None:
    labels = noise(COUNT, 4)
    dataset = NpzDataset(urls, ["index"], labels=server.put("/labels.npy", npy(labels)))
    for batch, rows in loader_of(dataset, 5, context):
        assert torch.equal(rows, torch.from_numpy(labels)[batch["index"]])
    if context is None:
        assert len(server.requests_for("/labels.npy")) == 1


@pytest.mark.parametrize("context", CONTEXTS)
def test_labels_may_be_a_function_of_the_url(urls: list[str], context: str | None) -> None:
    dataset = NpzDataset(urls, ["mask"], labels=name_in)
    assert dataset[5][1] == "05.npz"
    _, names = next(iter(loader_of(dataset, 3, context)))
    assert list(names) == ["00.npz", "01.npz", "02.npz"]


def test_labels_of_another_count_are_a_value_error(server: ObjectServer, urls: list[str]) -> None:
    with pytest.raises(ValueError, match=r"labels: expected 10, one a sample, but found 2"):
        NpzDataset(urls, labels=[1, 2])
    few = server.put("/labels.npy", npy(np.zeros(5)))
    with pytest.raises(ValueError, match=r"labels: expected 10, one a sample, but found 5"):
        NpzDataset(urls, labels=few)[0]


def test_labels_that_have_no_rows_are_a_value_error(server: ObjectServer, urls: list[str]) -> None:
    for name, array in {"/0d.npy": np.zeros(()), "/records.npy": np.zeros(10, "i4,i4")}.items():
        dataset = NpzDataset(urls, labels=server.put(name, npy(array)))
        with pytest.raises(ValueError, match="labels: expected an array with one row a sample"):
            dataset[0]


def masked(sample: dict[str, torch.Tensor]) -> torch.Tensor:
    assert type(sample) is dict
    return sample["image"] * sample["mask"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_transform_sees_the_dict(urls: list[str], context: str | None) -> None:
    dataset = NpzDataset(urls, transform=masked, labels=list(range(COUNT)))
    array, label = dataset[1]
    assert label == 1
    assert torch.equal(array, STACKED_IMAGES[1] * STACKED_MASKS[1])
    batches = list(loader_of(dataset, 5, context))
    expected = STACKED_IMAGES * STACKED_MASKS.unsqueeze(1)
    assert torch.equal(torch.cat([batch for batch, _ in batches]), expected)


@pytest.mark.parametrize("context", CONTEXTS)
def test_structured_members_are_dicts_of_batches(server: ObjectServer, context: str | None) -> None:
    boxes = np.zeros(5, [("corner", "<f4", (2,)), ("kind", "<i2")])
    boxes["kind"] = range(5)
    urls = [server.put(f"/{i}.npz", npz(boxes=boxes, image=IMAGES[i])) for i in range(3)]
    (batch,) = loader_of(NpzDataset(urls), 3, context)
    assert batch["boxes"]["corner"].shape == (3, 5, 2)
    assert batch["boxes"]["kind"].tolist() == [[0, 1, 2, 3, 4]] * 3


def test_a_member_that_is_no_array_is_bytes(server: ObjectServer) -> None:
    buffer = io.BytesIO(ARCHIVES[0])
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("caption.txt", b"a cat")
    dataset = NpzDataset([server.put("/x.npz", buffer.getvalue())], ["caption.txt", "image"])
    assert bytes(dataset[0]["caption.txt"].tolist()) == b"a cat"
    assert torch.equal(dataset[0]["image"], STACKED_IMAGES[0])


@pytest.mark.parametrize("context", CONTEXTS)
def test_archives_of_different_members_come_as_they_are(
    server: ObjectServer, context: str | None
) -> None:
    contents = [{"a": np.arange(i + 1), f"only_{i}": np.array(i)} for i in range(4)]
    urls = [server.put(f"/{i}.npz", npz(**arrays)) for i, arrays in enumerate(contents)]
    (samples,) = loader_of(NpzDataset(urls), 4, context, collate_fn=as_list)
    assert [list(sample) for sample in samples] == [["a", f"only_{i}"] for i in range(4)]
    assert [sample["a"].tolist() for sample in samples] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    # What they share can be batched.
    (batch,) = loader_of(Subset(NpzDataset(urls, ["a"]), [2]), 1, context)
    assert batch["a"].tolist() == [[0, 1, 2]]


def test_a_pickle_is_small_and_loads_the_same(urls: list[str]) -> None:
    dataset = NpzDataset(urls, ["mask"], labels=list(range(COUNT)), client=tnp.Client(retries=4))
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == COUNT
    sample, label = copy[3]
    assert list(sample) == ["mask"]
    assert torch.equal(sample["mask"], STACKED_MASKS[3])
    assert label == 3
    many = NpzDataset([f"s3://bucket/train/{i:06}.npz" for i in range(10_000)], ["mask"])
    assert len(pickle.dumps(many)) < 10_000 * 50


def test_a_pickle_holds_no_resolved_credentials(s3_server: S3Server, s3_client: tnp.Client) -> None:
    dataset = NpzDataset([s3_server.put_key("x.npz", ARCHIVES[0])], client=s3_client)
    dataset[0]
    assert s3_server.keys["AKIDEXAMPLE"].secret.encode() not in pickle.dumps(dataset)


@pytest.mark.parametrize("context", ALL_CONTEXTS)
def test_from_prefix_takes_the_archives_in_order(
    s3_server: S3Server, s3_client: tnp.Client, context: str | None
) -> None:
    s3_server.page_count = 4
    for i, data in enumerate(ARCHIVES):
        s3_server.put_key(f"train/{i:02}.npz", data)
    s3_server.put_key("train/labels.npy", npy(np.arange(COUNT) ** 2))
    s3_server.put_key("test/00.npz", ARCHIVES[0])
    dataset = NpzDataset.from_prefix(
        "s3://bucket/train/",
        members=["index"],
        labels="s3://bucket/train/labels.npy",
        client=s3_client,
    )
    assert type(dataset) is NpzDataset
    assert list(dataset.urls) == [f"s3://bucket/train/{i:02}.npz" for i in range(COUNT)]
    batches = list(loader_of(dataset, 4, context))
    assert torch.cat([batch["index"] for batch, _ in batches]).tolist() == list(range(COUNT))
    assert torch.cat([label for _, label in batches]).tolist() == [i**2 for i in range(COUNT)]


def test_from_prefix_takes_another_suffix(s3_server: S3Server, s3_client: tnp.Client) -> None:
    s3_server.put_key("train/a.zip", ARCHIVES[2])
    s3_server.put_key("train/b.npz", ARCHIVES[3])
    dataset = NpzDataset.from_prefix("s3://bucket/train/", suffix=".zip", client=s3_client)
    assert [int(sample["index"]) for sample in dataset] == [2]


def test_a_prefix_that_holds_no_archive_says_so(s3_server: S3Server, s3_client: tnp.Client) -> None:
    s3_server.put_key("train/a.npy", npy(IMAGES[0]))
    with pytest.raises(ValueError, match=r"s3://bucket/train/ that end in '\.npz' but found none"):
        NpzDataset.from_prefix("s3://bucket/train/", client=s3_client)


def test_local_archives_are_a_dataset_too(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.npz" for i in range(COUNT)]
    for path, data in zip(paths, ARCHIVES, strict=True):
        path.write_bytes(data)
    (batch,) = DataLoader(NpzDataset(list(map(str, paths))), COUNT, num_workers=1)
    assert torch.equal(batch["image"], STACKED_IMAGES)
    assert torch.equal(batch["mask"], STACKED_MASKS)


def test_samples_of_a_worker_do_not_carry_their_whole_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(npz(small=np.arange(8), large=noise(1000, 1000)))
    (sample,) = DataLoader(NpzDataset([str(path)], ["small"]), batch_size=None, num_workers=1)
    assert sample["small"].tolist() == list(range(8))
    assert sample["small"].untyped_storage().nbytes() < 100_000

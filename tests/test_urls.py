"""UrlList, and where URLs come from: prefixes, manifests, patterns."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from servers.http import ObjectServer
from servers.s3 import S3Server
from support import noise, npy, npz, run_script
from torch.utils.data import DataLoader

import torchnpy as tnp
from torchnpy.data import (
    NpyDataset,
    NpyRowDataset,
    NpyStream,
    NpzDataset,
    UrlList,
    urls_below,
    urls_in_manifest,
)
from torchnpy.data import urls_matching as matching
from torchnpy.data.listing import FromUrls
from torchnpy.sources import decode

COUNT = 1_000_000
SHORT = [
    "s3://bucket/é.npy",
    "/data/a b.npy",
    "http://host/x.npy?key=secret",
    "raw\udcff/\udc80.npy",
]


def make_url(position: int) -> str:
    return f"s3://training-bucket/datasets/images/shard-{position // 1000:05}/{position:09}.npy"


@pytest.fixture(scope="module")
def million() -> UrlList:
    return UrlList(map(make_url, range(COUNT)))


def test_a_list_of_urls_is_a_sequence_of_them() -> None:
    urls = UrlList(SHORT)
    assert len(urls) == len(SHORT)
    assert list(urls) == SHORT
    assert [urls[i] for i in range(-4, 4)] == SHORT + SHORT
    assert urls[np.int64(1)] == urls[torch.tensor(1)] == SHORT[1]  # type: ignore[index]
    assert SHORT[2] in urls
    assert urls.index(SHORT[2]) == 2
    assert list(reversed(urls)) == SHORT[::-1]


@pytest.mark.parametrize("index", [4, -5])
def test_an_index_outside_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError, match=rf"below 4 but found {index}"):
        UrlList(SHORT)[index]


@pytest.mark.parametrize("bounds", [(None, None), (1, 3), (3, 1), (None, None, -1), (-3, None, 2)])
def test_a_slice_is_a_list_of_urls(bounds: tuple[int | None, ...]) -> None:
    part = UrlList(SHORT)[slice(*bounds)]
    assert type(part) is UrlList
    assert list(part) == SHORT[slice(*bounds)]


def test_lists_are_equal_when_their_urls_are() -> None:
    assert UrlList(SHORT) == UrlList(iter(SHORT)) == SHORT == UrlList(tuple(SHORT))
    assert UrlList(SHORT) != UrlList(SHORT[:3])
    assert UrlList(SHORT) != [*SHORT[:3], "x"]
    assert UrlList([]) == []
    assert UrlList(SHORT) != "x"


def test_paths_come_back_as_strings() -> None:
    assert UrlList([Path("/a/b.npy"), "c.npy"]) == ["/a/b.npy", "c.npy"]


def test_a_subclass_of_str_comes_back_as_a_str() -> None:
    class Name(str):
        pass

    (name,) = UrlList([Name("x.npy")])
    assert type(name) is str


def test_a_list_of_a_list_shares_its_memory(million: UrlList) -> None:
    assert UrlList(million)._blob.data_ptr() == million._blob.data_ptr()


def test_bytes_are_those_that_the_library_opens() -> None:
    assert UrlList(SHORT).encoded([3, 0]) == [b"raw\xff/\x80.npy", "s3://bucket/é.npy".encode()]
    with pytest.raises(ValueError, match="expected 0 to 3 but found 4"):
        UrlList(SHORT).encoded([4])
    with pytest.raises(ValueError, match="expected 0 to 3 but found -1"):
        UrlList(SHORT).encoded([-1])


@given(st.lists(st.binary(min_size=1)))
def test_any_bytes_come_back(names: list[bytes]) -> None:
    urls = UrlList(map(decode, names))
    assert urls.encoded(range(len(names))) == names
    assert list(urls) == list(map(decode, names))


def test_a_file_with_a_name_that_is_no_text_loads(tmp_path: Path) -> None:
    path = tmp_path / "raw\udcff.npy"
    path.write_bytes(npy(noise(3)))
    (url,) = UrlList([path])
    assert torch.equal(NpyDataset([url])[0], torch.from_numpy(noise(3)))


def test_the_repr_shows_the_first_and_the_count_but_no_secrets(million: UrlList) -> None:
    first = ", ".join(repr(make_url(i)) for i in range(3))
    assert repr(million) == f"UrlList([{first}, ...], count=1000000)"
    secret = UrlList(["https://user:secret@host/x.npy?key=secret", "s3://b/a?b"])
    assert repr(secret) == "UrlList(['https://host/x.npy', 's3://b/a?b'], count=2)"


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ("s3://b/x?y=secret", "urls: expected a list of URLs but found one str; write [url]"),
        (Path("x"), "urls: expected a list of URLs but found one PosixPath; write [url]"),
        (["a", 1], "urls[1]: expected a URL or a path (str or os.PathLike) but found int"),
        (
            ["a", b"secret"],
            "urls[1]: expected a URL or a path (str or os.PathLike) but found bytes",
        ),
        ([None], "urls[0]: expected a URL or a path (str or os.PathLike) but found NoneType"),
        (
            ["a", "b", ""],
            "urls[2]: expected a URL or a path (str or os.PathLike) but found an empty",
        ),
        (["\ud800"], "urls[0]: expected a URL or a path (str or os.PathLike) but found the code"),
    ],
)
def test_what_is_no_url_is_an_error_that_names_its_position(urls: Any, message: str) -> None:
    for make in (UrlList, NpyDataset):
        with pytest.raises(ValueError, match=re.escape(message)) as raised:
            make(urls)
        assert "secret" not in str(raised.value)


def test_an_error_of_the_iterable_passes() -> None:
    def urls() -> Iterator[str]:
        yield "a"
        raise OSError("from within")

    with pytest.raises(OSError, match="from within"):
        UrlList(urls())
    with pytest.raises(TypeError, match="not iterable"):
        UrlList(3)  # type: ignore[arg-type]


def test_a_million_urls_take_their_bytes_and_eight_each(million: UrlList) -> None:
    assert len(million) == COUNT
    text_nbytes = sum(map(len, million))
    assert million.nbytes == text_nbytes + 8 * (COUNT + 1)
    assert million.nbytes <= 100 * COUNT
    tensors = [getattr(million, name) for name in UrlList.__slots__]
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == million.nbytes


def test_a_million_urls_read_back(million: UrlList) -> None:
    assert all(url == make_url(i) for i, url in enumerate(million))
    assert million[765_432] == make_url(765_432)
    assert million[-2:] == [make_url(COUNT - 2), make_url(COUNT - 1)]


def test_a_pickle_holds_the_urls_and_little_more(million: UrlList) -> None:
    data = pickle.dumps(million)
    assert len(data) < million.nbytes + 10_000
    assert pickle.loads(data) == million
    # Of a slice not the whole list.
    assert len(pickle.dumps(million[5:7])) < 10_000


def test_what_a_spawned_worker_gets_through_the_pipe_is_small(million: UrlList) -> None:
    dataset = NpyDataset(million)
    assert dataset.urls._blob.data_ptr() == million._blob.data_ptr()
    assert len(ForkingPickler.dumps(dataset)) < 4000


SPAWNED = """
import torch.multiprocessing as mp
from torchnpy.data import UrlList
from test_urls import COUNT, make_url

def check(urls, empty, sent):
    right = list(empty) == [] and all(url == make_url(i) for i, url in enumerate(urls))
    sent.put((right, urls._blob.is_shared()))

if __name__ == "__main__":
    urls = UrlList(map(make_url, range(COUNT)))
    sent = mp.get_context("spawn").SimpleQueue()
    child = mp.get_context("spawn").Process(target=check, args=(urls, UrlList([]), sent))
    child.start()
    right, is_shared = sent.get()
    child.join()
    # Whose memory it is: that of an anonymous file, and of none in /dev/shm.
    maps = open("/proc/self/maps").read().splitlines()
    large = [m for m in maps if "rw-s" in m and int(m.split("-")[1].split()[0], 16)
             - int(m.split("-")[0], 16) > 50 * COUNT]
    print(right, is_shared, len(large), any("/dev/shm" in m for m in large))
"""


def test_a_spawned_child_maps_the_memory_of_its_parent() -> None:
    assert run_script(SPAWNED) == "True True 1 False\n"


def test_a_tampered_pickle_is_an_error_and_no_read_outside() -> None:
    restore, (blob, offsets) = UrlList(SHORT).__reduce__()
    for wrong in (offsets + 10**12, offsets - 100, offsets.flip(0)):
        with pytest.raises(ValueError, match="offsets: expected ascending"):
            list(restore(blob, wrong))
    with pytest.raises(ValueError, match="offsets: expected a contiguous vector of Long"):
        list(restore(blob, offsets.int()))


FORKED = """
import os, sys
from torchnpy.data import UrlList
from test_urls import COUNT, make_url

urls = UrlList(map(make_url, range(COUNT)))

def private_dirty_nbytes():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Private_Dirty")).split()[1])

child = os.fork()
if child == 0:
    before = private_dirty_nbytes()
    length = sum(map(len, urls))
    print(length, private_dirty_nbytes() - before, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_a_forked_child_reads_all_urls_without_a_copy() -> None:
    length, grown_nbytes = map(int, run_script(FORKED).split())
    assert length > 60 * COUNT
    assert grown_nbytes < 4 << 20


class Names(FromUrls):
    """What a dataset is made with."""

    _suffix = ".npy"

    def __init__(self, urls: UrlList, labels: Any = None, **options: Any) -> None:
        self.urls, self.labels, self.options = urls, labels, options


KEYS = ["a.npy", "b.npz", "part/a1.npy", "part/b2.npy", "part/deep/c3.npy", "é.npy"]


@pytest.fixture
def prefix(s3_server: S3Server) -> str:
    for key in reversed(KEYS):
        s3_server.put_key(f"train/{key}", npy(noise(4)))
    return "s3://bucket/train/"


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (None, KEYS),
        ("*", ["a.npy", "b.npz", "é.npy"]),
        ("?.npy", ["a.npy", "é.npy"]),
        ("part/*", ["part/a1.npy", "part/b2.npy"]),
        ("*/*.npy", ["part/a1.npy", "part/b2.npy"]),
        ("**", KEYS),
        ("part/**", ["part/a1.npy", "part/b2.npy", "part/deep/c3.npy"]),
        ("**/?[0-9].npy", ["part/a1.npy", "part/b2.npy", "part/deep/c3.npy"]),
        ("part/[!a]2.npy", ["part/b2.npy"]),
        ("part[/]a1.np*", []),
        ("a.np[", []),
        (lambda entry: entry.url.endswith("z"), ["b.npz"]),
    ],
)
def test_a_match_selects_what_follows_the_prefix(
    prefix: str, s3_client: tnp.Client, match: Any, expected: list[str]
) -> None:
    if not expected:
        with pytest.raises(ValueError, match="but found none"):
            urls_below(prefix, match=match, client=s3_client)
        return
    # With and without the slash that ends the prefix.
    for start in (prefix, prefix[:-1]):
        urls = urls_below(start, match=match, client=s3_client)
        assert urls == [prefix + key for key in expected]


def test_a_listing_is_sorted_also_where_the_store_does_not_sort() -> None:
    class Unordered:
        def list(self, prefix: str, *, suffix: str) -> Iterator[tnp.ObjectInfo]:
            for key in ("b", "c", "a"):
                yield tnp.ObjectInfo(prefix + key, 0, "", "")

    assert urls_below("s3://b/", client=Unordered()) == [  # type: ignore[arg-type]
        "s3://b/a",
        "s3://b/b",
        "s3://b/c",
    ]


def test_a_long_listing_is_not_kept(s3_server: S3Server, s3_client: tnp.Client) -> None:
    s3_server.page_count = 3
    for i in range(10):
        s3_server.put_key(f"train/{i}.npy", b"")
    alive: list[int] = []

    class Counted(tnp.Client):
        def list(self, prefix: str, *, suffix: str = "") -> Iterator[tnp.ObjectInfo]:
            import gc

            for entry in s3_client.list(prefix, suffix=suffix):
                alive.append(sum(type(x) is tnp.ObjectInfo for x in gc.get_objects()))
                yield entry

    assert len(urls_below("s3://bucket/train/", client=Counted())) == 10
    assert max(alive) <= 2


def test_nothing_below_a_prefix_is_an_error_that_says_what_was_sought(
    prefix: str, s3_client: tnp.Client
) -> None:
    for match, words in (
        ("x*", " and match 'x*'"),
        (lambda _: False, " and match the given function"),
    ):
        message = f"expected objects below {prefix} that end in '.npy'{words} but found none"
        with pytest.raises(ValueError, match=re.escape(message)):
            NpyDataset.from_prefix(prefix, match=match, client=s3_client)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"match: expected a pattern but found '\[z-a\]'"):
        NpyDataset.from_prefix(prefix, match="[z-a]", client=s3_client)


def test_datasets_come_from_a_prefix(prefix: str, s3_client: tnp.Client) -> None:
    dataset = NpyDataset.from_prefix(prefix, match="part/*", client=s3_client, labels=[5, 6])
    assert dataset.urls == [f"{prefix}part/a1.npy", f"{prefix}part/b2.npy"]
    (arrays, labels), *_ = DataLoader(dataset, 2)
    assert torch.equal(arrays[1], torch.from_numpy(noise(4)))
    assert labels.tolist() == [5, 6]
    assert NpzDataset.from_prefix(prefix, client=s3_client).urls == [f"{prefix}b.npz"]


def write_text(folder: Path, text: str, name: str = "train.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def test_a_text_manifest_lists_urls_and_paths(tmp_path: Path) -> None:
    manifest = write_text(
        tmp_path,
        "\ufeff# the training set\n\ns3://bucket/a b.npy\r\n  x.npy  \n# more\n../y/é.npy\n\t\n"
        "/abs/z.npy\nraw\udcff.npy\nhttps://host/x.npy?key=1#2",
    )
    expected = [
        "s3://bucket/a b.npy",
        f"{tmp_path}/x.npy",
        f"{tmp_path}/../y/é.npy",
        "/abs/z.npy",
        f"{tmp_path}/raw\udcff.npy",
        "https://host/x.npy?key=1#2",
    ]
    for source in (manifest, str(manifest)):
        assert urls_in_manifest(source) == expected


def test_a_manifest_in_the_working_folder_lists_paths_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path, "x.npy\nsub/y.npy")
    monkeypatch.chdir(tmp_path)
    assert urls_in_manifest("train.txt") == ["x.npy", "sub/y.npy"]


def test_a_manifest_by_file_url_lists_paths_that_open(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "50%.npy").write_bytes(npy(noise(3)))
    manifest = write_text(folder, "50%.npy")
    dataset = NpyDataset.from_manifest(manifest.as_uri())
    assert torch.equal(dataset[0], torch.from_numpy(noise(3)))


def test_a_manifest_on_a_web_server_lists_its_neighbours(server: ObjectServer) -> None:
    lines = b"x.npy\n./y.npy\n../up.npy\n../../../top.npy\ns3://b/k\n/abs.npy\ndeep/../z.npy"
    url = server.put("/sets/one/train.txt", lines)
    root = url.removesuffix("/sets/one/train.txt")
    assert urls_in_manifest(url + "?key=secret/x") == [
        f"{root}/sets/one/x.npy",
        f"{root}/sets/one/y.npy",
        f"{root}/sets/up.npy",
        f"{root}/top.npy",
        "s3://b/k",
        "/abs.npy",
        f"{root}/sets/one/deep/../z.npy",
    ]


def test_a_manifest_in_a_bucket_lists_keys_below_its_own_folder(
    s3_server: S3Server, s3_client: tnp.Client
) -> None:
    url = s3_server.put_key("sets/a?b/train.txt", "é?.npy\n../x.npy".encode())
    assert urls_in_manifest(url, client=s3_client) == [
        "s3://bucket/sets/a?b/é?.npy",
        "s3://bucket/sets/x.npy",
    ]


@pytest.mark.parametrize("name", ["train.jsonl", "train.ndjson"])
def test_json_lines_are_told_by_the_name(tmp_path: Path, name: str) -> None:
    lines = [json.dumps({"n": i, "url": f"é{i}.npy"}, ensure_ascii=i == 0) for i in range(2)]
    manifest = write_text(tmp_path, "\n\n".join(lines) + "\n", name)
    assert urls_in_manifest(manifest) == [f"{tmp_path}/é0.npy", f"{tmp_path}/é1.npy"]


def test_the_format_and_the_key_may_be_given(tmp_path: Path) -> None:
    manifest = write_text(tmp_path, '{"path": "/x.npy", "url": 3}', "train.list")
    assert urls_in_manifest(manifest, format="jsonl", key="path") == ["/x.npy"]
    odd = write_text(tmp_path, "/x.npy", "train.jsonl")
    assert urls_in_manifest(odd, format="text") == ["/x.npy"]


@pytest.mark.parametrize(
    ("labels", "kind"),
    [([3, 1, -(2**63)], int), ([0.5, 1e300, 2.0], float), (["cat", "dog", "cat"], str)],
)
def test_labels_come_from_json_lines(tmp_path: Path, labels: list[Any], kind: type) -> None:
    for i in range(3):
        (tmp_path / f"{i}.npy").write_bytes(npy(noise(2, seed=i)))
    text = "\n".join(json.dumps({"url": f"{i}.npy", "y": labels[i]}) for i in range(3))
    manifest = write_text(tmp_path, text, "train.jsonl")
    dataset = NpyDataset.from_manifest(manifest, labels_key="y", transform=torch.Tensor.float)
    found = [label for _, label in dataset]
    assert found == labels
    assert all(type(label) is kind for label in found)
    assert torch.equal(dataset[2][0], torch.from_numpy(noise(2, seed=2)).float())


def test_labels_of_several_types_stay_what_they_are(tmp_path: Path) -> None:
    labels: list[Any] = [1, True, 2.5, 2**70, None, [1, {"a": 2}]]
    text = "\n".join(json.dumps({"url": "x", "y": label}) for label in labels)
    manifest = write_text(tmp_path, text, "train.jsonl")
    found = Names.from_manifest(manifest, labels_key="y").labels
    assert [(type(label), label) for label in found] == [(type(label), label) for label in labels]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.txt", "", "m.txt: expected URLs, one a line, but found none"),
        ("m.txt", "# x\n\n", "m.txt: expected URLs, one a line, but found none"),
        ("m.txt", "x\n\n\x93NUMPY\0", "m.txt: line 3: expected a URL or a path but found a NUL"),
        ("m.txt", '{"url": "x"}', "m.txt: line 1: expected a URL or a path but found JSON; JSON"),
        ("m.jsonl", "", "m.jsonl: expected URLs, one a line, but found none"),
        (
            "m.jsonl",
            '{"url": "x"}\nhttp://h/?secret',
            "m.jsonl: line 2: expected a JSON object but",
        ),
        ("m.jsonl", "\n3", "m.jsonl: line 2: expected a JSON object but found a number"),
        ("m.jsonl", '["secret"]', "m.jsonl: line 1: expected a JSON object but found an array"),
        ("m.jsonl", "{}", "m.jsonl: line 1: expected a URL at 'url' but found an empty object"),
        ("m.jsonl", '{"u": "secret"}', "line 1: expected a URL at 'url' but found only 'u'"),
        ("m.jsonl", '{"url": null}', "m.jsonl: line 1: expected a URL at 'url' but found null"),
        ("m.jsonl", '{"url": ""}', "line 1: expected a URL at 'url' but found an empty string"),
    ],
)
def test_a_bad_manifest_is_an_error_that_names_the_line(
    server: ObjectServer, name: str, text: str, message: str
) -> None:
    url = server.put(f"/{name}", text.encode())
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        urls_in_manifest(f"{url}?key=secret", format="jsonl" if "jsonl" in name else None)
    assert "secret" not in str(raised.value)
    assert str(raised.value).startswith(url)
    assert isinstance(raised.value, tnp.FormatError) == ("line " in message)


def test_the_name_that_tells_the_format_is_without_the_query(server: ObjectServer) -> None:
    url = server.put("/m.jsonl", b'{"url": "s3://b/x"}')
    assert urls_in_manifest(f"{url}?key=1") == ["s3://b/x"]


def test_an_entry_without_a_label_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    manifest = write_text(tmp_path, '{"url": "x", "y": 1}\n{"url": "x", "z": 1}', "m.jsonl")
    message = "m.jsonl: line 2: expected a label at 'y' but found only 'url', 'z'"
    with pytest.raises(tnp.FormatError, match=message):
        NpyDataset.from_manifest(manifest, labels_key="y")


def test_a_manifest_that_is_not_there_is_file_not_found(
    tmp_path: Path, server: ObjectServer
) -> None:
    for source in (tmp_path / "none.txt", server.url + "/none.txt"):
        with pytest.raises(FileNotFoundError, match=r"none\.txt"):
            urls_in_manifest(source)


@pytest.mark.parametrize(
    ("cls", "name", "options", "message"),
    [
        (NpyDataset, "m.txt", {"format": "csv"}, "format: expected 'text', 'jsonl' or None but"),
        (NpyDataset, "m.txt", {"labels_key": "y"}, "labels_key: expected None, because .*m.txt is"),
        (NpyDataset, "m.jsonl", {"labels_key": "y", "labels": [1]}, "labels: expected None beside"),
        (
            NpyStream,
            "m.jsonl",
            {"labels_key": "y"},
            "labels_key: expected None for NpyStream, which",
        ),
        (
            NpyRowDataset,
            "m.jsonl",
            {"labels_key": "y"},
            "labels_key: expected None for NpyRowDataset",
        ),
    ],
)
def test_wrong_options_of_a_manifest_are_value_errors(
    tmp_path: Path, cls: type[FromUrls], name: str, options: dict[str, Any], message: str
) -> None:
    manifest = write_text(tmp_path, '{"url": "x", "y": 1}', name)
    with pytest.raises(ValueError, match=message):
        cls.from_manifest(manifest, **options)


def test_options_are_the_constructors(tmp_path: Path) -> None:
    manifest = write_text(tmp_path, "/x.npy")
    made = Names.from_manifest(manifest, seed=3)
    assert (made.urls, made.labels) == (["/x.npy"], None)
    assert made.options == {"client": None, "seed": 3}
    assert Names.from_glob(manifest, seed=4).options == {"seed": 4}


@pytest.mark.parametrize("cls", [NpyStream, NpyRowDataset])
def test_other_datasets_come_from_anywhere_too(
    tmp_path: Path, prefix: str, s3_client: tnp.Client, cls: type[FromUrls]
) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    manifest = write_text(tmp_path, "x.npy")
    for made in (cls.from_manifest(manifest), cls.from_glob(tmp_path / "*.npy")):
        assert [int(row) for row in made] == [0, 1, 2]  # type: ignore[attr-defined]
    below = cls.from_prefix(prefix, match="part/*", client=s3_client)
    assert len(list(below)) == 8  # type: ignore[call-overload]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.npy", "a.npy", "sub/c.npy", "sub/deep/d.npy", "x.npz", ".hidden.npy"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npz(x=noise(2)) if path.suffix == ".npz" else npy(noise(2)))
    (tmp_path / "folder.npy").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.npy", ["a.npy", "b.npy"]),
        ("**/*.npy", ["a.npy", "b.npy", "sub/c.npy", "sub/deep/d.npy"]),
        ("**", ["a.npy", "b.npy", "sub/c.npy", "sub/deep/d.npy", "x.npz"]),
        ("[bc].npy", ["b.npy"]),
        (".*", [".hidden.npy"]),
    ],
)
def test_a_pattern_selects_files_sorted(folder: Path, pattern: str, expected: list[str]) -> None:
    wanted = [f"{folder}/{name}" for name in expected]
    assert matching(f"{folder}/{pattern}") == matching(folder / pattern) == wanted


def test_datasets_come_from_a_pattern(folder: Path) -> None:
    make: Callable[..., Any] = NpyDataset.from_glob
    dataset = make(folder / "*.npy", labels=["a", "b"])
    assert dataset[1][1] == "b"
    assert torch.equal(NpzDataset.from_glob(f"{folder}/*.npz")[0]["x"], torch.from_numpy(noise(2)))


def test_a_pattern_without_files_is_a_value_error(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"expected files that match '.*/\*\.txt' but found none"):
        NpyDataset.from_glob(folder / "*.txt")
    with pytest.raises(ValueError, match=r"pattern: expected one of local paths but found a URL"):
        NpyDataset.from_glob("s3://bucket/*.npy")

"""Client(cache=): what is asked for again, what is kept, and that no byte is ever another's."""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import os
import pickle
import signal
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import Answer, ObjectServer, Request, edit, status, whole
from servers.moto import MotoServer
from servers.s3 import S3Server
from support import noise, npy, npz, run_script, start_script, zipped
from torch.utils.data import DataLoader

import torchnpy as tnp
from torchnpy.data import NpyDataset

SMALL = noise(30, 100)
LARGE = noise(4000, 1000)  # several parts of 1 MiB, and mapped
MIB = 1 << 20
KINDS = ["disk", "ram", "both"]

MakeClient = Callable[..., tnp.Client]


@pytest.fixture
def make_client(tmp_path: Path) -> MakeClient:
    """A client with a cache of a kind; each call gives another client, of the same folder."""

    def make(kind: str = "disk", nbytes: int = 64 * MIB, **options: Any) -> tnp.Client:
        cache: dict[str, Any] = {"fresh_s": options.pop("fresh_s", 0)}
        if kind != "disk":
            cache["ram_nbytes"] = nbytes
        if kind != "ram":
            cache |= {"dir": tmp_path / "cache", "disk_nbytes": nbytes}
        options = {"retries": 2, "part_nbytes": MIB} | options
        return tnp.Client(cache=tnp.Cache(**cache), **options)

    return make


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("cache/v1/??/*") if path.parent.name != "new")


def same(tensor: Any, array: np.ndarray) -> bool:
    return bool(np.array_equal(tensor.numpy(), array))


def asked(server: ObjectServer) -> tuple[int, int]:
    """Requests, and bytes of bodies, since the last call."""
    counts = len(server.requests), server.sent_nbytes
    server.requests.clear()
    server.sent_nbytes = 0
    return counts


# What is asked for.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
def test_a_fresh_object_takes_no_request(
    server: ObjectServer, make_client: MakeClient, kind: str, array: np.ndarray
) -> None:
    client = make_client(kind, fresh_s=3600)
    url = server.put("/x.npy", npy(array))
    assert same(tnp.load(url, client=client), array)
    asked(server)
    assert same(tnp.load(url, client=client), array)
    assert asked(server) == (0, 0)
    metrics = client.metrics()
    assert metrics["cache_hits"] > 0
    assert metrics["cache_misses"] > 0
    assert (metrics["cache_ram_nbytes"] >= array.nbytes) == (kind != "disk")
    assert (metrics["cache_disk_nbytes"] >= array.nbytes) == (kind != "ram")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
def test_another_takes_one_request_without_a_body(
    server: ObjectServer, make_client: MakeClient, kind: str, array: np.ndarray
) -> None:
    client = make_client(kind)
    url = server.put("/x.npy", npy(array))
    tnp.load(url, client=client)
    asked(server)
    for _ in range(2):
        assert same(tnp.load(url, client=client), array)
        assert asked(server) == (1, 0)
    assert client.metrics()["cache_revalidations"] == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fresh_s", [0, 3600])
def test_a_changed_object_is_never_mixed_with_the_old_one(
    server: ObjectServer, make_client: MakeClient, kind: str, fresh_s: float
) -> None:
    client = make_client(kind, fresh_s=fresh_s)
    new = LARGE ^ 0xFF
    url = server.put("/x.npy", npy(LARGE))
    # Rows, so that some of the bytes are in the cache and some are not.
    tnp.load_rows(url, 0, 2500, client=client)
    server.put("/x.npy", npy(new))
    assert same(tnp.load(url, client=client), new)
    assert same(tnp.load_rows(url, 100, 3000, client=client), new[100:3000])
    asked(server)
    assert same(tnp.load(url, client=client), new)
    assert asked(server)[1] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_freshness_ends(server: ObjectServer, make_client: MakeClient, kind: str) -> None:
    client = make_client(kind, fresh_s=0.3)
    url = server.put("/x.npy", npy(SMALL))
    tnp.load(url, client=client)
    server.put("/x.npy", npy(SMALL + 1))
    time.sleep(0.4)
    assert same(tnp.load(url, client=client), SMALL + 1)


def test_a_check_makes_it_fresh_again(server: ObjectServer, make_client: MakeClient) -> None:
    url = server.put("/x.npy", npy(LARGE))
    tnp.load(url, client=make_client())
    tnp.load(url, client=make_client(fresh_s=1e-9))  # asks, and notes when
    asked(server)
    assert same(tnp.load(url, client=make_client(fresh_s=3600)), LARGE)
    assert asked(server) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_take_what_is_missing_only(
    server: ObjectServer, make_client: MakeClient, kind: str
) -> None:
    client = make_client(kind, fresh_s=3600)
    url = server.put("/x.npy", npy(LARGE))
    for start, stop in [(1000, 1100), (3000, 3200), (1050, 1150), (1000, 1150)]:
        assert same(tnp.load_rows(url, start, stop, client=client), LARGE[start:stop])
    asked(server)
    for start, stop in [(1000, 1150), (3100, 3200), (0, 60)]:
        assert same(tnp.load_rows(url, start, stop, client=client), LARGE[start:stop])
    assert asked(server) == (0, 0)


def test_the_whole_object_is_taken_from_ranges_that_came_one_by_one(
    server: ObjectServer, make_client: MakeClient
) -> None:
    client = make_client(fresh_s=3600)
    url = server.put("/x.npy", npy(LARGE))
    for start in [3000, 1000, 0, 2000]:
        tnp.load_rows(url, start, start + 1000, client=client)
    asked(server)
    assert same(tnp.load(url, client=client), LARGE)
    assert asked(server) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_archives_come_from_the_cache(
    server: ObjectServer, make_client: MakeClient, kind: str
) -> None:
    client = make_client(kind)
    members = {"a": SMALL, "big": LARGE, "c": np.arange(9.0)}
    for name, body in {
        "/stored.npz": npz(**members),
        "/deflated.npz": npz(deflate=True, **members),
        "/aligned.npz": zipped({f"{k}.npy": npy(v) for k, v in members.items()}, alignment=64),
    }.items():
        url = server.put(name, body)
        for turn in range(3):
            asked(server)
            with tnp.open_npz(url, client=client) as archive:
                loaded = archive.read()
            assert all(same(loaded[key], array) for key, array in members.items())
            assert turn == 0 or asked(server) == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_member_is_enough(server: ObjectServer, make_client: MakeClient, kind: str) -> None:
    client = make_client(kind, fresh_s=3600)
    url = server.put("/x.npz", npz(a=SMALL, big=LARGE, b=SMALL + 1))
    for turn in range(2):
        with tnp.open_npz(url, client=client) as archive:
            assert same(archive["a"], SMALL)
            assert same(archive["b"], SMALL + 1)
        assert turn == 0 or asked(server) == (0, 0)
        asked(server)
    with tnp.open_npz(url, client=client) as archive:
        assert same(archive["big"], LARGE)


def test_listings_are_never_kept(
    s3_server: S3Server, credentials: None, make_client: MakeClient
) -> None:
    client = make_client(endpoint=s3_server.url, fresh_s=3600)
    s3_server.put_key("a.npy", npy(SMALL))
    assert len(list(client.list("s3://bucket/"))) == 1
    s3_server.put_key("b.npy", npy(SMALL))
    assert len(list(client.list("s3://bucket/"))) == 2


def test_s3_objects_are_kept(
    s3_server: S3Server, credentials: None, make_client: MakeClient
) -> None:
    client = make_client(endpoint=s3_server.url)
    url = s3_server.put_key("a=b/x y?z#.npy", npy(LARGE))
    tnp.load(url, client=client)
    asked(s3_server)
    assert same(tnp.load(url, client=client), LARGE)
    assert asked(s3_server) == (1, 0)
    s3_server.put_key("a=b/x y?z#.npy", npy(LARGE + 1))
    assert same(tnp.load(url, client=client), LARGE + 1)


def test_moto_answers_that_nothing_changed(
    moto: MotoServer, monkeypatch: pytest.MonkeyPatch, make_client: MakeClient
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret)
    client = make_client(endpoint=moto.endpoint)
    url = moto.put("cached.npy", npy(LARGE))
    for _ in range(2):
        assert same(tnp.load(url, client=client), LARGE)
    moto.put("cached.npy", npy(LARGE + 1))
    assert same(tnp.load(url, client=client), LARGE + 1)
    assert client.metrics()["cache_revalidations"] == 1


def test_the_ops_use_the_default_clients_cache(
    server: ObjectServer, make_client: MakeClient, use_default_client: Any
) -> None:
    use_default_client(make_client(fresh_s=3600))
    url = server.put("/x.npy", npy(LARGE))
    script = torch.jit.script(lambda_load)
    for _ in range(2):
        assert same(torch.ops.npy.load(url), LARGE)
        assert same(script(url), LARGE)
        assert same(torch.ops.npy.fetch(url, 128), LARGE.reshape(-1))
    assert len(server.requests) == len({request.range for request in server.requests})


def lambda_load(url: str) -> torch.Tensor:
    return torch.ops.npy.load(url)  # type: ignore[no-any-return]


# Which objects are kept.


def test_the_query_and_headers_select_the_object(
    server: ObjectServer, make_client: MakeClient
) -> None:
    url = server.put("/x.npy", npy(SMALL))
    client = make_client(fresh_s=3600)
    tnp.load(url + "?v=1", client=client)
    server.put("/x.npy", npy(SMALL + 1))
    assert same(tnp.load(url + "?v=1", client=client), SMALL)
    assert same(tnp.load(url + "?v=2", client=client), SMALL + 1)
    other = make_client(fresh_s=3600, headers={"X-Tenant": "b"})
    assert same(tnp.load(url + "?v=1", client=other), SMALL + 1)
    token = make_client(fresh_s=3600, headers={"Authorization": "Bearer new"})
    assert same(tnp.load(url + "?v=1", client=token), SMALL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("headers", "is_kept"),
    [
        ({"ETag": 'W/"weak"'}, False),
        ({"ETag": ""}, False),
        ({"ETag": 'W/"weak"', "Last_Modified": "Sun, 06 Nov 1994 08:49:37 GMT"}, True),
        ({"ETag": "", "Last_Modified": "Sun, 06 Nov 1994 08:49:37 GMT"}, True),
        ({"ETag": "", "Last_Modified": "Sun, 06 Nov 2094 08:49:37 GMT"}, False),
        ({"ETag": "", "Last_Modified": "yesterday"}, False),
        ({"ETag": f'"{"x" * 500}"'}, False),
    ],
)
def test_only_what_a_validator_tells_apart_is_kept(
    server: ObjectServer,
    make_client: MakeClient,
    kind: str,
    headers: dict[str, str],
    is_kept: bool,
) -> None:
    url = server.put("/x.npy", npy(SMALL))

    def answer(request: Request, right: Answer) -> Answer:
        if "if-modified-since" in request.headers:
            assert "if-none-match" not in request.headers
            return Answer(304, {})
        return edit(**headers)(request, right)

    server.always("/x.npy", answer)
    client = make_client(kind)
    tnp.load(url, client=client)
    asked(server)
    assert same(tnp.load(url, client=client), SMALL)
    assert asked(server) == (1, 0 if is_kept else len(npy(SMALL)))


def test_a_server_without_ranges_fills_the_cache_too(
    server: ObjectServer, make_client: MakeClient
) -> None:
    url = server.put("/x.npy", npy(LARGE))
    server.always("/x.npy", whole(server, ETag='"one"'))
    client = make_client(fresh_s=3600)
    tnp.load(url, client=client)
    asked(server)
    assert same(tnp.load(url, client=client), LARGE)
    assert asked(server) == (0, 0)


def test_a_304_that_nobody_asked_for_is_an_error(
    server: ObjectServer, make_client: MakeClient
) -> None:
    url = server.put("/x.npy", npy(SMALL))
    server.always("/x.npy", status(304))
    with pytest.raises(tnp.TransportError, match="HTTP 304"):
        tnp.load(url, client=make_client())


def test_an_object_that_is_gone_is_not_served(
    server: ObjectServer, make_client: MakeClient
) -> None:
    client = make_client()
    url = server.put("/x.npy", npy(SMALL))
    tnp.load(url, client=client)
    del server.objects["/x.npy"]
    with pytest.raises(FileNotFoundError):
        tnp.load(url, client=client)


def test_errors_are_not_kept(server: ObjectServer, make_client: MakeClient) -> None:
    client = make_client(fresh_s=3600)
    url = server.put("/x.npy", npy(SMALL))
    server.fail("/x.npy", status(404))
    with pytest.raises(FileNotFoundError):
        tnp.load(url, client=client)
    assert same(tnp.load(url, client=client), SMALL)


# Limits.


def test_ram_keeps_what_was_used_last(server: ObjectServer, make_client: MakeClient) -> None:
    client = make_client("ram", nbytes=4 * len(npy(SMALL)), fresh_s=3600)
    urls = [server.put(f"/{i}.npy", npy(SMALL + i)) for i in range(6)]
    for i in [0, 1, 2, 0, 3, 4]:  # three fit, with what an entry takes itself
        assert same(tnp.load(urls[i], client=client), SMALL + i)
        assert client.metrics()["cache_ram_nbytes"] <= 4 * len(npy(SMALL))
    asked(server)
    for i, is_kept in [(0, True), (4, True), (3, True), (1, False)]:
        assert same(tnp.load(urls[i], client=client), SMALL + i)
        assert asked(server)[0] == (not is_kept)


def test_the_disk_keeps_what_was_used_last(
    server: ObjectServer, make_client: MakeClient, tmp_path: Path
) -> None:
    limit = 1 * MIB
    client = make_client(nbytes=limit, fresh_s=3600)
    arrays = [noise(300, 1000, seed=i) for i in range(6)]
    urls = [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    for i in [0, 1, 2, 0, 3, 4]:
        assert same(tnp.load(urls[i], client=client), arrays[i])
        assert sum(path.stat().st_blocks * 512 for path in entries(tmp_path)) <= limit
        assert client.metrics()["cache_disk_nbytes"] <= limit
        time.sleep(0.15)  # uses closer to each other than 0.1 s count as one
    asked(server)
    for i, is_kept in [(0, True), (4, True), (3, True), (1, False)]:
        assert same(tnp.load(urls[i], client=client), arrays[i])
        assert (asked(server) == (0, 0)) == is_kept


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_beyond_the_limit_is_read_past_the_cache(
    server: ObjectServer, make_client: MakeClient, kind: str, tmp_path: Path
) -> None:
    client = make_client(kind, nbytes=MIB)
    url = server.put("/x.npy", npy(LARGE))
    for _ in range(2):
        assert same(tnp.load(url, client=client), LARGE)
    assert entries(tmp_path) == []


def test_thousands_of_objects_stay_below_the_limit(
    server: ObjectServer, make_client: MakeClient, tmp_path: Path
) -> None:
    limit = 2 * MIB
    client = make_client(nbytes=limit)
    bodies = [npy(SMALL + i % 256) for i in range(600)]
    urls = [server.put(f"/{i}.npy", body) for i, body in enumerate(bodies)]
    for begin in range(0, 600, 50):
        for i, tensor in enumerate(tnp.load_many(urls[begin : begin + 50], client=client), begin):
            assert same(tensor, SMALL + i % 256)
        assert sum(path.stat().st_blocks * 512 for path in entries(tmp_path)) <= limit
    assert len(entries(tmp_path)) > 100


# Views.


def is_mapped(tensor: torch.Tensor, folder: Path) -> bool:
    """Whether its memory is a mapping of a file below `folder`."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return str(folder) in line
    return False


def test_a_large_array_is_a_view_of_the_disk_cache(
    server: ObjectServer, make_client: MakeClient, tmp_path: Path
) -> None:
    client = make_client()
    url = server.put("/x.npy", npy(LARGE))
    assert not is_mapped(tnp.load(url, client=client), tmp_path)
    for fresh_s in (0, 3600):
        client = make_client(fresh_s=fresh_s)
        tensor = tnp.load(url, client=client)
        assert is_mapped(tensor, tmp_path)
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(7)
        assert same(tnp.load(url, client=client), LARGE)
        assert not is_mapped(tnp.load(url, mmap=False, client=client), tmp_path)
    url = server.put("/x.npz", zipped({"a.npy": npy(LARGE)}, alignment=64))
    for turn in range(2):
        with tnp.open_npz(url, client=client) as archive:
            member = archive["a"]
        assert is_mapped(member, tmp_path) == (turn == 1)
        assert same(member, LARGE)
        member.fill_(7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
def test_writing_to_a_tensor_does_not_reach_the_cache(
    server: ObjectServer, make_client: MakeClient, kind: str, array: np.ndarray
) -> None:
    client = make_client(kind, fresh_s=3600)
    url = server.put("/x.npy", npy(array))
    for _ in range(3):
        tensor = tnp.load(url, client=client)
        assert same(tensor, array)
        tensor.fill_(7)


def test_views_outlive_eviction_and_change(
    server: ObjectServer, make_client: MakeClient, tmp_path: Path
) -> None:
    client = make_client()
    url = server.put("/x.npy", npy(LARGE))
    tnp.load(url, client=client)
    view = tnp.load(url, client=client)
    assert is_mapped(view, tmp_path)
    server.put("/x.npy", npy(LARGE + 1))
    assert same(tnp.load(url, client=client), LARGE + 1)
    for path in entries(tmp_path):
        path.unlink()
    assert same(view, LARGE)


# Files that are not as they were left.


def damage_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"?")


def damage_size(path: Path) -> None:
    os.truncate(path, 10_000)


def damage_all(path: Path) -> None:
    path.write_bytes(b"something else")


def damage_place(path: Path) -> None:
    """Another object's entry under this one's name."""
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_byte, damage_size, damage_all, damage_place])
def test_a_damaged_entry_is_fetched_anew(
    server: ObjectServer,
    make_client: MakeClient,
    tmp_path: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = server.put("/x.npy", npy(LARGE))
    client = make_client(fresh_s=3600)
    tnp.load(url, client=client)
    (path,) = entries(tmp_path)
    damage(path)
    asked(server)
    assert same(tnp.load(url, client=client), LARGE)
    assert asked(server)[1] == len(npy(LARGE))
    assert same(tnp.load(url, client=client), LARGE)
    assert asked(server) == (0, 0)
    assert not caplog.records


def set_boot(path: Path, boot: bytes) -> None:
    with path.open("r+b") as file:
        page = bytearray(file.read(4096))
        page[48:64] = boot
        page[8:12] = zlib.crc32(page[12:]).to_bytes(4, "little")
        file.seek(0)
        file.write(page)


def test_an_entry_of_another_boot_is_verified_once(
    server: ObjectServer, make_client: MakeClient, tmp_path: Path
) -> None:
    client = make_client(fresh_s=3600)
    url = server.put("/x.npy", npy(LARGE))
    tnp.load(url, client=client)
    (path,) = entries(tmp_path)
    boot = path.read_bytes()[48:64]
    set_boot(path, bytes(16))
    asked(server)
    assert same(tnp.load(url, client=client), LARGE)
    assert asked(server) == (0, 0)
    assert path.read_bytes()[48:64] == boot


@pytest.mark.parametrize("at", [4096, 4096 + 70_000, 4096 + LARGE.nbytes])
def test_bytes_that_a_power_loss_took_are_fetched_anew(
    server: ObjectServer, make_client: MakeClient, tmp_path: Path, at: int
) -> None:
    client = make_client(fresh_s=3600)
    url = server.put("/x.npy", npy(LARGE))
    tnp.load(url, client=client)
    (path,) = entries(tmp_path)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    set_boot(path, bytes(16))
    asked(server)
    assert same(tnp.load(url, client=client), LARGE)
    assert asked(server)[1] == len(npy(LARGE))


def test_the_folder_may_be_removed_at_any_time(
    server: ObjectServer, make_client: MakeClient, tmp_path: Path
) -> None:
    client = make_client(fresh_s=3600)
    url = server.put("/x.npy", npy(SMALL))
    for _ in range(3):
        assert same(tnp.load(url, client=client), SMALL)
        subprocess.run(["rm", "-r", tmp_path / "cache"], check=True)
    assert same(tnp.load(url, client=client), SMALL)
    asked(server)
    assert same(tnp.load(url, client=client), SMALL)
    assert asked(server) == (0, 0)


# Disks that refuse.


def test_a_folder_that_cannot_be_made_warns_once(
    server: ObjectServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    client = tnp.Client(cache=tnp.Cache(dir=tmp_path / "file" / "cache", disk_nbytes=MIB))
    url = server.put("/x.npy", npy(SMALL))
    for _ in range(3):
        assert same(tnp.load(url, client=client), SMALL)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torchnpy", logging.WARNING)
    assert "Not a directory" in record.message
    assert str(tmp_path / "file" / "cache") in record.message


def test_the_ops_warn_too(
    server: ObjectServer, tmp_path: Path, use_default_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    use_default_client(
        tnp.Client(cache=tnp.Cache(dir=tmp_path / "file" / "cache", disk_nbytes=MIB))
    )
    url = server.put("/x.npy", npy(SMALL))
    for _ in range(2):
        assert same(torch.ops.npy.load(url), SMALL)
    tnp.load(url)  # an op leaves its warnings for the next call of Python
    (record,) = caplog.records
    assert "objects are read past it" in record.message


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 1 MiB."""
    folder = tmp_path / "full"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip("only root may mount a small file system")
    yield folder
    libc.umount2(os.fsencode(folder), 2)


def test_a_full_disk_is_read_past_with_one_warning(
    server: ObjectServer, full_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = tnp.Client(cache=tnp.Cache(dir=full_disk / "cache", disk_nbytes=64 * MIB))
    url, small = server.put("/x.npy", npy(LARGE)), server.put("/small.npy", npy(SMALL))
    tnp.load(small, client=client)
    for _ in range(3):
        assert same(tnp.load(url, client=client), LARGE)
    asked(server)
    assert same(tnp.load(small, client=client), SMALL)  # what is there is used
    assert asked(server) == (1, 0)
    (record,) = caplog.records
    assert "No space left" in record.message


def test_a_limit_of_file_sizes_is_read_past_with_one_warning(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(LARGE))
    out = run_script(
        """
        import logging, resource, sys, tempfile, torch, torchnpy as tnp
        logging.basicConfig(stream=sys.stdout, format="%(name)s %(message)s")
        plain = tnp.load(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        with tempfile.TemporaryDirectory() as folder:
            client = tnp.Client(cache=tnp.Cache(dir=folder, disk_nbytes=1 << 30))
            for _ in range(3):
                assert torch.equal(tnp.load(sys.argv[1], client=client), plain)
        """,
        url,
    )
    assert out.count("\n") == 1
    assert "File too large" in out


def test_too_many_open_files_do_not_fail_a_load(server: ObjectServer, tmp_path: Path) -> None:
    urls = [server.put(f"/{i}.npy", npy(SMALL + i)) for i in range(100)]
    run_script(
        """
        import resource, sys, torch, torchnpy as tnp
        client = tnp.Client(cache=tnp.Cache(dir=sys.argv[1], disk_nbytes=1 << 30))
        first = tnp.load(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
        for _ in range(2):
            for i, x in enumerate(tnp.load_many(sys.argv[2:], client=client)):
                assert torch.equal(x, first + i)
        """,
        tmp_path,
        *urls,
    )


# Processes and threads.

LOAD = """
    import sys, torchnpy as tnp
    client = tnp.Client(cache=tnp.Cache(dir=sys.argv[1], disk_nbytes=64 << 20, fresh_s=3600),
                        part_nbytes=1 << 20)
    for url in sys.argv[2:]:
        print(int(tnp.load(url, client=client).long().sum()))
"""


def test_another_process_uses_what_is_there(server: ObjectServer, tmp_path: Path) -> None:
    url = server.put("/x.npy", npy(LARGE))
    expected = f"{LARGE.astype(np.int64).sum()}\n"
    assert run_script(LOAD, tmp_path / "cache", url) == expected
    asked(server)
    assert run_script(LOAD, tmp_path / "cache", url) == expected
    assert asked(server) == (0, 0)


def test_processes_that_fill_the_same_entries_do_no_harm(
    server: ObjectServer, tmp_path: Path
) -> None:
    arrays = [noise(2000, 1000, seed=i) for i in range(4)]
    urls = [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    code = (
        "import torchnpy as tnp, numpy as np, sys\n"
        "client = tnp.Client(cache=tnp.Cache(dir=sys.argv[1], disk_nbytes=64 << 20, fresh_s=9))\n"
        "for _ in range(3):\n"
        "    for i, x in enumerate(tnp.load_many(sys.argv[2:], client=client)):\n"
        "        r = np.random.default_rng(i).integers(0, 256, (2000, 1000), np.uint8)\n"
        "        assert np.array_equal(x.numpy(), r)\n"
    )
    script = tmp_path / "load.py"
    script.write_text(code)
    run_script(
        """
        import os, runpy, sys
        sys.argv = sys.argv[1:]
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                runpy.run_path(sys.argv[0])
                os._exit(0)
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        """,
        script,
        tmp_path / "cache",
        *urls,
    )
    asked(server)
    client = tnp.Client(cache=tnp.Cache(dir=tmp_path / "cache", disk_nbytes=64 * MIB, fresh_s=3600))
    for tensor, array in zip(tnp.load_many(urls, client=client), arrays, strict=True):
        assert same(tensor, array)
    assert asked(server) == (0, 0)


def test_killed_processes_leave_nothing_wrong(server: ObjectServer, tmp_path: Path) -> None:
    arrays = [noise(3000, 1000, seed=i) for i in range(4)]
    urls = [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    code = """
        import sys, torchnpy as tnp
        client = tnp.Client(cache=tnp.Cache(dir=sys.argv[1], disk_nbytes=64 << 20, fresh_s=3600),
                            part_nbytes=256 << 10)
        print("ready", flush=True)
        tnp.load_many(sys.argv[2:], client=client)
    """
    folder = tmp_path / "cache"
    delay_s = 0.0
    while delay_s < 0.03:
        delay_s += 0.002
        with start_script(code, folder, *urls) as script:
            script.stdout.readline()
            time.sleep(delay_s)
            script.send_signal(signal.SIGKILL)
            script.finish()
        for path in entries(tmp_path)[::2]:
            path.unlink()  # so that there is something to do for the next
    client = tnp.Client(
        cache=tnp.Cache(dir=folder, disk_nbytes=64 * MIB, fresh_s=3600), part_nbytes=256 << 10
    )
    for _ in range(2):
        for tensor, array in zip(tnp.load_many(urls, client=client), arrays, strict=True):
            assert same(tensor, array)
    assert not list((folder / "v1" / "new").iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_forked_workers_share_the_cache(
    server: ObjectServer, make_client: MakeClient, kind: str
) -> None:
    client = make_client(kind, fresh_s=3600)
    arrays = [noise(100, 1000, seed=i) for i in range(12)]
    urls = [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    tnp.load_many(urls[:6], client=client)
    asked(server)
    loader = DataLoader(
        NpyDataset(urls, client=client), 2, num_workers=2, multiprocessing_context="fork"
    )
    for _ in range(2):
        for i, batch in enumerate(loader):
            assert same(batch[0], arrays[2 * i])
            assert same(batch[1], arrays[2 * i + 1])
    # The parent's half is there, in the children's copies of its memory, too.
    expected = 6 * (1 if kind != "ram" else 2)
    assert len({r.path for r in server.requests}) == 6
    assert sum(r.range.startswith("bytes=0-") for r in server.requests) == expected


def test_a_fork_while_others_fill_the_cache_hangs_nobody(
    server: ObjectServer, tmp_path: Path
) -> None:
    urls = [server.put(f"/{i}.npy", npy(noise(100, 1000) + i)) for i in range(8)]
    out = run_script(
        """
        import os, sys, threading, numpy as np, torchnpy as tnp
        urls = sys.argv[2:]
        cache = tnp.Cache(dir=sys.argv[1], disk_nbytes=600_000, ram_nbytes=300_000)
        client = tnp.Client(cache=cache, part_nbytes=20_000)
        first = tnp.load(urls[0]).numpy()
        stop, loads = threading.Event(), [0] * 4

        def work(n):
            while not stop.is_set():
                for i, x in enumerate(tnp.load_many(urls, client=client)):
                    assert np.array_equal(x.numpy(), first + np.uint8(i))
                loads[n] += 1

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for i in range(15):
            child = os.fork()
            if child == 0:
                x = tnp.load(urls[i % 8], client=client).numpy()
                os._exit(0 if np.array_equal(x, first + np.uint8(i % 8)) else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        print(min(loads) > 0)
        """,
        tmp_path / "cache",
        *urls,
    )
    assert out == "True\n"


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_the_cache(server: ObjectServer, make_client: MakeClient, kind: str) -> None:
    # Smaller than the objects together: they are evicted while others use them.
    client = make_client(kind, nbytes=6 * MIB, part_nbytes=256 << 10)
    arrays = [noise(1500, 1000, seed=i) for i in range(6)]
    urls = [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for i in range(12):
                j = (number + i) % 6
                if i % 3 == 0:
                    rows = tnp.load_rows(urls[j], number * 50, number * 50 + 300, client=client)
                    wrong.extend([j] * (not same(rows, arrays[j][number * 50 :][:300])))
                else:
                    wrong.extend([j] * (not same(tnp.load(urls[j], client=client), arrays[j])))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert client.metrics()["cache_ram_nbytes"] <= 6 * MIB
    assert client.metrics()["cache_hits"] > 0


# Options.


def test_a_client_pickles_with_its_cache(
    server: ObjectServer, make_client: MakeClient, tmp_path: Path
) -> None:
    client = make_client(fresh_s=3600)
    url = server.put("/x.npy", npy(SMALL))
    tnp.load(url, client=client)
    asked(server)
    copy = pickle.loads(pickle.dumps(client))
    assert same(tnp.load(url, client=copy), SMALL)
    assert asked(server) == (0, 0)
    assert str(tmp_path) in repr(copy)


def test_a_cache_is_a_frozen_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tnp.Cache(ram_nbytes=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cache.ram_nbytes = 2  # type: ignore[misc]
    assert cache == tnp.Cache(ram_nbytes=1)
    monkeypatch.chdir(tmp_path)
    assert tnp.Cache(dir="x", disk_nbytes=MIB) == tnp.Cache(dir=tmp_path / "x", disk_nbytes=MIB)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "cache: expected ram_nbytes, or dir and disk_nbytes, but found neither"),
        ({"ram_nbytes": -1}, "cache.ram_nbytes: .* found -1"),
        ({"disk_nbytes": MIB}, "cache.dir: expected a folder .* found none"),
        ({"dir": "", "disk_nbytes": MIB}, "cache.dir: expected a folder .* found none"),
        ({"dir": "/x"}, "cache.disk_nbytes: expected the bytes .* found 0"),
        ({"dir": "/x", "disk_nbytes": -5}, "cache.disk_nbytes: .* found -5"),
        ({"dir": "/x", "disk_nbytes": 5}, "cache.disk_nbytes: expected 64 KiB to 1 EiB .* found 5"),
        ({"dir": "/x\0y", "disk_nbytes": MIB}, "cache.dir: expected an absolute path"),
        ({"ram_nbytes": MIB, "fresh_s": -1}, "cache.fresh_s: expected seconds.* found -1"),
        ({"ram_nbytes": MIB, "fresh_s": float("nan")}, "cache.fresh_s: .* found nan"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tnp.Client(cache=tnp.Cache(**options))


def test_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"cache: expected a torchnpy\.Cache but found dict"):
        tnp.Client(cache={"ram_nbytes": 1})  # type: ignore[arg-type]


def test_the_caches_own_headers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"headers: .*If-None-Match"):
        tnp.Client(headers={"If-None-Match": '"x"'})

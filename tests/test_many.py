"""Many objects at once."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from servers.http import ObjectServer, cut, status
from servers.moto import MotoServer
from support import noise, npy

import torchnpy as tnp


@pytest.mark.parametrize("call", [tnp.load_many, torch.ops.npy.load_many])
def test_all_objects_are_asked_for_at_once_and_come_in_order(server: ObjectServer, call) -> None:  # type: ignore[no-untyped-def]
    server.hold_until(32)
    urls = [server.put(f"/{i}.npy", npy(np.full(i, i))) for i in range(32)]
    loaded = call(urls)
    assert server.max_concurrent == 32
    assert [x.tolist() for x in loaded] == [[i] * i for i in range(32)]


def test_loads_of_several_threads_run_at_once(server: ObjectServer) -> None:
    server.hold_until(4)
    urls = [server.put(f"/{i}.npy", npy(np.zeros(i))) for i in range(4)]
    threads = [threading.Thread(target=tnp.load, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.max_concurrent == 4


def test_the_parts_of_one_object_are_asked_for_at_once(server: ObjectServer) -> None:
    array = noise(1000, 1000)
    url = server.put("/x.npy", npy(array))
    tnp.header(url)  # a first connection; the parts need more
    server.latency_s = 0.2
    loaded = tnp.load(url, client=tnp.Client(part_nbytes=200_000))
    assert server.max_concurrent >= 4
    assert torch.equal(loaded, torch.from_numpy(array))


def test_sources_of_all_kinds_mix(server: ObjectServer, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    record = np.zeros(2, [("a", "f4")])
    sources = [
        server.put("/a.npy", npy(noise(300, 1000))),
        tmp_path / "x.npy",
        npy(np.float32(2)),
        server.put("/b.npy", npy(record)),
    ]
    first, second, third, fourth = tnp.load_many(sources)
    assert torch.equal(first, torch.from_numpy(noise(300, 1000)))
    assert second.tolist() == [0, 1, 2]
    assert third.item() == 2
    assert list(fourth) == ["a"]


def test_no_objects_are_no_tensors() -> None:
    assert tnp.load_many([]) == []
    assert torch.ops.npy.load_many([]) == []


def test_one_object_twice_gives_two_tensors(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.zeros(3)))
    first, second = tnp.load_many([url, url])
    first += 1
    assert second.tolist() == [0, 0, 0]


@pytest.mark.parametrize("call", [tnp.load_many, torch.ops.npy.load_many])
def test_the_object_that_failed_is_named(server: ObjectServer, call) -> None:  # type: ignore[no-untyped-def]
    urls = [server.put(f"/{i}.npy", npy(noise(10))) for i in range(20)]
    server.always("/13.npy", status(404))
    with pytest.raises(FileNotFoundError, match=r"/13.npy"):
        call(urls)


def test_a_failure_ends_the_loads_that_hang(server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npy", npy(noise(1000))) for i in range(4)]
    for path in ("/0.npy", "/1.npy", "/3.npy"):
        server.always(path, cut(600, "stall"))
    server.always("/2.npy", status(403))
    with pytest.raises(PermissionError, match=r"/2.npy"):
        tnp.load_many(urls, client=tnp.Client(stall_timeout_s=600))
    assert server.dropped.wait(10)


def test_hundreds_of_objects_with_faults_among_them(server: ObjectServer) -> None:
    arrays = [noise(50, 50 + i, seed=i) for i in range(300)]
    urls = [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    for i in range(0, 300, 7):
        server.fail(f"/{i}.npy", status(503) if i % 2 else cut(1000))
    for loaded, array in zip(tnp.load_many(urls), arrays, strict=True):
        assert torch.equal(loaded, torch.from_numpy(array))


def test_moto_serves_a_batch(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto closes each connection after its answer."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret)
    urls = [moto.put(f"many/{i}.npy", npy(np.full(3, i))) for i in range(20)]
    loaded = tnp.load_many(urls, client=tnp.Client(endpoint=moto.endpoint))
    assert [x.tolist() for x in loaded] == [[i] * 3 for i in range(20)]


def test_an_iterator_of_sources_is_read_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.npy" for i in range(5)]
    for i, path in enumerate(paths):
        np.save(path, np.full(3, i))
    loaded = tnp.load_many(path for path in paths)
    assert [array[0].item() for array in loaded] == list(range(5))

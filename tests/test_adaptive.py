"""How much is asked for at once: by what was seen, by what others ask for, by options."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from servers.http import ObjectServer, status
from support import noise, npy, npz

import torchnpy as tnp


def ranges(server: ObjectServer, path: str) -> list[tuple[int, int]]:
    """The first and last byte of each request for `path`."""
    spans = [
        request.range.removeprefix("bytes=").split("-") for request in server.requests_for(path)
    ]
    return [(int(first), int(last)) for first, last in spans]


def test_one_request_each_is_learnt_for_objects_of_one_size(server: ObjectServer) -> None:
    arrays = [noise(200_000, seed=i) for i in range(40)]
    urls = [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    client = tnp.Client()
    for url, array in zip(urls, arrays, strict=True):
        assert np.array_equal(tnp.load(url, client=client), array)
    assert len(server.requests_for("/0.npy")) > 1
    assert len(server.requests_for("/39.npy")) == 1


def test_a_large_object_comes_in_about_sixteen_parts(server: ObjectServer) -> None:
    array = noise(24 << 20)
    assert np.array_equal(tnp.load(server.put("/x.npy", npy(array))), array)
    assert len(server.requests_for("/x.npy")) == 17
    tnp.load(server.put("/y.npy", npy(array)), client=tnp.Client(part_nbytes=1 << 20))
    assert len(server.requests_for("/y.npy")) == 25


def test_a_small_object_is_not_stuck_behind_a_large_one(server: ObjectServer) -> None:
    large = server.put("/large.npy", npy(noise(8 << 20)))
    small = server.put("/small.npy", npy(noise(100)))
    client = tnp.Client(max_in_flight=2, part_nbytes=1 << 17)
    server.latency_s = 0.02
    loads = threading.Thread(target=tnp.load, args=[large], kwargs={"client": client})
    loads.start()
    while len(server.requests) < 6:
        time.sleep(0.001)
    tnp.load(small, client=client)
    behind = [request.path for request in server.requests]
    loads.join()
    # Of the 64 parts only those came before that were in flight, and one that had its turn.
    assert behind.index("/small.npy") < 20


def test_the_same_url_many_times_is_asked_for_once(server: ObjectServer) -> None:
    array = noise(300, 20)
    url = server.put("/x.npy", npy(array))
    other = server.put("/y.npy", npy(array + 1))
    server.latency_s = 0.2
    client = tnp.Client()
    loaded = tnp.load_many([url, other, url, url, other], client=client)
    for tensor, offset in zip(loaded, [0, 1, 0, 0, 1], strict=True):
        assert np.array_equal(tensor, array + offset)
    assert len(server.requests) == 2
    assert client.metrics()["reads_shared"] == 3
    loaded[0].zero_()  # each has memory of its own
    assert np.array_equal(loaded[2], array)


def test_an_error_of_a_shared_request_is_everybodys(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(noise(10)))
    server.latency_s = 0.2
    server.fail("/x.npy", status(403))
    client = tnp.Client()
    errors: list[Exception] = []

    def work() -> None:
        try:
            tnp.load(url, client=client)
        except PermissionError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == client.metrics()["reads_shared"] + 1


def test_a_late_answer_is_hedged(server: ObjectServer) -> None:
    array = noise(50)
    url = server.put("/x.npy", npy(array))
    client = tnp.Client(hedge=True)
    for i in range(20):  # what was late before may have used up the five percent
        for _ in range(40):
            tnp.load(url, client=client)
        late = server.put(f"/late{i}.npy", npy(array))
        server.fail(f"/late{i}.npy", lambda _, answer: time.sleep(1) or answer)
        assert np.array_equal(tnp.load(late, client=client), array)
        if len(server.requests_for(f"/late{i}.npy")) == 2:
            break
    metrics = client.metrics()
    assert metrics["hedges_won"] >= 1
    assert metrics["hedges"] * 20 <= metrics["requests"]
    assert metrics["errors"] == 0


@pytest.mark.parametrize("coalesce_nbytes", [None, 0, 300_000])
def test_gaps_up_to_coalesce_nbytes_are_read_over(
    server: ObjectServer, coalesce_nbytes: int | None
) -> None:
    members = {name: noise(200_000, seed=ord(name)) for name in "abcdef"}
    url = server.put("/x.npz", npz(**members))
    client = tnp.Client(coalesce_nbytes=coalesce_nbytes)
    with tnp.open_npz(url, client=client) as archive:
        before = len(server.requests)
        read = archive.read(["a", "c", "e"])
        count = len(server.requests) - before
    for name, tensor in read.items():
        assert torch.equal(tensor, torch.from_numpy(members[name]))
    assert count == (1 if coalesce_nbytes else 3)


def test_a_negative_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="coalesce_nbytes"):
        tnp.Client(coalesce_nbytes=-1)

"""Client.metrics(): the numbers add up, and are those that the server counted."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from servers.http import ObjectServer, cut, damage, redirect, status
from servers.s3 import S3Server
from support import noise, npy, npz

import torchnpy as tnp

REASONS = ("status", "connection", "timeout", "changed", "checksum", "learnt")


def check_sums(metrics: dict[str, int | float]) -> None:
    """What holds for every client that nothing is in flight of."""
    assert metrics["retries"] == sum(metrics[f"retries_{reason}"] for reason in REASONS)
    more = metrics["retries"] - metrics["retries_checksum"] + metrics["redirects"]
    answered = metrics["requests"] + metrics["reads_shared"]
    assert answered == metrics["reads"] + more + metrics["hedges"]
    assert metrics["in_flight"] == 0
    assert metrics["connections_opened"] + metrics["connections_reused"] <= metrics["requests"]
    for name in ("first_byte", "total"):
        p50, p95, p99 = (metrics[f"{name}_p{share}_s"] for share in (50, 95, 99))
        assert 0 <= p50 <= p95 <= p99
    assert metrics["total_p99_s"] >= metrics["first_byte_p50_s"]


def test_counts_are_those_of_the_server_while_faults_hit(server: ObjectServer) -> None:
    arrays = [noise(700 + i, seed=i) for i in range(60)]
    urls = [server.put(f"/{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    for i in range(0, 60, 5):
        server.fail(f"/{i}.npy", [status(503), cut(100), cut(0)][i // 5 % 3])
    server.objects["/moved.npy"] = npy(noise(10))
    server.put("/from.npy", b"")
    server.always("/from.npy", redirect("/moved.npy"))
    client = tnp.Client(retries=3)
    loaded = tnp.load_many([*urls, f"{server.url}/from.npy"], client=client)
    for array, tensor in zip(arrays, loaded, strict=False):
        np.testing.assert_array_equal(tensor, array)
    metrics = client.metrics()
    check_sums(metrics)
    assert metrics["requests"] == len(server.requests)
    assert metrics["reads"] == 61
    assert metrics["retries"] == 12
    assert (metrics["retries_status"], metrics["retries_connection"]) == (4, 8)
    assert metrics["redirects"] == 1
    assert metrics["bytes_received"] == server.sent_nbytes
    assert metrics["connections_opened"] == server.connections()
    assert 1 <= metrics["in_flight_max"] <= 61


def test_threads_archives_and_rows_add_up(server: ObjectServer) -> None:
    rows = server.put("/rows.npy", npy(noise(9000, 20)))
    archive = server.put("/a.npz", npz(x=noise(200_000), y=noise(50)))
    client = tnp.Client(part_nbytes=1 << 16)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            pool.submit(tnp.load, rows, client=client)
            pool.submit(tnp.load_rows, rows, 4000, 4010, client=client)
            pool.submit(lambda: tnp.load(archive, client=client)["x"])
    metrics = client.metrics()
    check_sums(metrics)
    assert metrics["requests"] == len(server.requests)
    assert metrics["bytes_received"] == server.sent_nbytes


def test_a_read_that_fails_is_an_error(server: ObjectServer) -> None:
    client = tnp.Client()
    with pytest.raises(FileNotFoundError):
        tnp.load(f"{server.url}/none.npy", client=client)
    metrics = client.metrics()
    check_sums(metrics)
    assert (metrics["errors"], metrics["reads"], metrics["retries"]) == (1, 1, 0)


def test_what_s3_told_is_a_retry_with_that_reason(
    s3_client: tnp.Client, s3_server: S3Server
) -> None:
    s3_server.buckets["bucket"].region = "eu-west-1"
    tnp.load(s3_server.put_key("x.npy", npy(noise(10))), client=s3_client)
    metrics = s3_client.metrics()
    check_sums(metrics)
    assert (metrics["retries"], metrics["retries_learnt"]) == (1, 1)


def test_a_load_begun_again_for_its_checksum_is_a_retry(
    s3_server: S3Server, credentials: None
) -> None:
    client = tnp.Client(endpoint=s3_server.url, checksums=True)
    url = s3_server.put_key("x.npy", npy(noise(10)))
    s3_server.keep_checksum("x.npy", "crc32")
    s3_server.fail("/bucket/x.npy", damage())
    tnp.load(url, client=client)
    metrics = client.metrics()
    check_sums(metrics)
    assert (metrics["retries"], metrics["requests"]) == (1, len(s3_server.requests))


def test_counts_are_int_and_seconds_are_float() -> None:
    for name, value in tnp.Client().metrics().items():
        assert type(value) is (float if name.endswith("_s") else int), name
        assert value == 0


def test_every_name_is_documented() -> None:
    documented = re.findall(r"``(\w+)``", (tnp.Client.metrics.__doc__ or "").partition("====")[2])
    names = set(tnp.Client().metrics())
    shown = {re.sub(r"_p\d+_s$", "_pNN_s", name) for name in names}
    assert set(documented) == shown

"""Client(checksums=True): what is loaded from S3 is compared with the checksum that S3 keeps."""

from __future__ import annotations

import boto3
import numpy as np
import pytest
import torch
from servers.http import Answer, ObjectServer, Request, cut, damage
from servers.moto import MotoServer
from servers.s3 import S3Server, checksum
from support import noise, npy, npz

import torchnpy as tnp
from torchnpy.data import NpyDataset

ALGORITHMS = ["crc32", "crc32c", "crc64nvme"]
PATH = "/bucket/x.npy"
PART_NBYTES = 1 << 16
SMALL = noise(900)
ONE_PART = noise(PART_NBYTES + 30_000)
PARTS = noise(400_000)


@pytest.fixture
def client(s3_server: S3Server, credentials: None) -> tnp.Client:
    return tnp.Client(endpoint=s3_server.url, part_nbytes=PART_NBYTES, checksums=True)


def put(server: S3Server, array: np.ndarray, algorithm: str = "crc32", parts: int = 0) -> str:
    url = server.put_key("x.npy", npy(array))
    server.keep_checksum("x.npy", algorithm, parts=parts)
    return url


def test_digits_have_the_checksums_of_the_catalogue() -> None:
    assert checksum("crc32c", b"123456789") == "4waSgw=="
    assert checksum("crc64nvme", b"123456789") == "rosUhgp5mIg="


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("array", "requests"), [(SMALL, 1), (ONE_PART, 1), (PARTS, 7)], ids=["small", "part", "parts"]
)
def test_what_matches_is_loaded_with_no_more_requests(
    s3_server: S3Server, client: tnp.Client, algorithm: str, array: np.ndarray, requests: int
) -> None:
    url = put(s3_server, array, algorithm)
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(array))
    first, *rest = s3_server.requests
    assert (first.range, first.headers["x-amz-checksum-mode"]) == ("", "ENABLED")
    assert len(rest) == requests - 1
    assert all(request.range for request in rest)
    assert client.metrics()["retries"] == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("array", [SMALL, ONE_PART, PARTS], ids=["small", "part", "parts"])
def test_what_came_damaged_once_is_read_again(
    s3_server: S3Server, client: tnp.Client, algorithm: str, array: np.ndarray
) -> None:
    url = put(s3_server, array, algorithm)
    s3_server.fail(PATH, damage(200))
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(array))
    metrics = client.metrics()
    assert (metrics["retries"], metrics["retries_checksum"]) == (1, 1)


def test_damage_in_a_later_part_is_found(s3_server: S3Server, client: tnp.Client) -> None:
    url = put(s3_server, PARTS, "crc64nvme")
    s3_server.fail(PATH, None, None, None, damage(-5))
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(PARTS))
    assert client.metrics()["retries_checksum"] == 1


def test_damage_to_what_was_resumed_is_found(s3_server: S3Server, client: tnp.Client) -> None:
    url = put(s3_server, ONE_PART, "crc32c")
    s3_server.fail(PATH, cut(50_000), damage(7))
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(ONE_PART))
    assert client.metrics()["retries_checksum"] == 1


def test_damage_that_makes_the_array_shorter_is_found(
    s3_server: S3Server, client: tnp.Client
) -> None:
    url = put(s3_server, SMALL)
    digit = npy(SMALL).index(b"900")  # 9 becomes a blank

    def shorten(_: Request, answer: Answer) -> Answer:
        answer.body = answer.body[:digit] + b" " + answer.body[digit + 1 :]
        return answer

    s3_server.fail(PATH, shorten)
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(SMALL))
    assert client.metrics()["retries_checksum"] == 1


def test_damage_that_breaks_the_header_is_a_format_error(
    s3_server: S3Server, client: tnp.Client
) -> None:
    url = put(s3_server, SMALL)
    s3_server.fail(PATH, damage(126))  # a blank of its padding
    with pytest.raises(tnp.FormatError, match="the header is not as NumPy writes it"):
        tnp.load(url, client=client)


@pytest.mark.parametrize(
    ("algorithm", "name", "digits"),
    [("crc32", "CRC-32", 8), ("crc32c", "CRC-32C", 8), ("crc64nvme", "CRC-64/NVME", 16)],
)
@pytest.mark.parametrize("array", [SMALL, PARTS], ids=["small", "parts"])
def test_what_always_comes_damaged_is_an_error(
    s3_server: S3Server,
    client: tnp.Client,
    algorithm: str,
    name: str,
    digits: int,
    array: np.ndarray,
) -> None:
    url = put(s3_server, array, algorithm)
    s3_server.always(PATH, damage(200))
    value = f"0x[0-9a-f]{{{digits}}}"
    message = f"^{url}: expected {name} {value} but found {value}; the data was damaged on its way$"
    with pytest.raises(tnp.TransportError, match=message):
        tnp.load(url, client=client)
    assert client.metrics()["retries_checksum"] == 1


@pytest.mark.parametrize(
    ("algorithm", "parts"), [("crc32", 3), ("crc64nvme", 1), ("sha256", 0), (None, 0)]
)
def test_what_has_no_checksum_of_its_bytes_is_not_compared(
    s3_server: S3Server, client: tnp.Client, algorithm: str | None, parts: int
) -> None:
    url = s3_server.put_key("x.npy", npy(SMALL))
    if algorithm:
        s3_server.keep_checksum("x.npy", algorithm, parts=parts)
    s3_server.fail(PATH, damage())
    assert tnp.load(url, client=client)[-1] == SMALL[-1] ^ 0x10


@pytest.mark.parametrize("value", ["4waSg===", "4waSgw", "4waS*w==", "", "4waSgx==", "4waSgw==="])
def test_what_is_no_checksum_is_not_compared(
    s3_server: S3Server, client: tnp.Client, value: str
) -> None:
    url = put(s3_server, SMALL, "crc32c")
    s3_server.buckets["bucket"].checksums["x.npy"]["x-amz-checksum-crc32c"] = value
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(SMALL))


def test_a_store_need_not_name_the_type(s3_server: S3Server, client: tnp.Client) -> None:
    url = put(s3_server, SMALL)
    del s3_server.buckets["bucket"].checksums["x.npy"]["x-amz-checksum-type"]
    s3_server.fail(PATH, damage())
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(SMALL))
    assert client.metrics()["retries_checksum"] == 1


def test_nothing_is_asked_for_by_default(s3_server: S3Server, s3_client: tnp.Client) -> None:
    url = put(s3_server, SMALL)
    s3_server.fail(PATH, damage())
    assert tnp.load(url, client=s3_client)[-1] == SMALL[-1] ^ 0x10
    assert "x-amz-checksum-mode" not in s3_server.requests[0].headers
    assert s3_server.requests[0].range


def test_rows_headers_and_members_ask_for_no_more_than_they_need(
    s3_server: S3Server, client: tnp.Client
) -> None:
    url = put(s3_server, PARTS.reshape(400, 1000))
    assert torch.equal(
        tnp.load_rows(url, 300, 302, client=client),
        torch.from_numpy(PARTS[300_000:302_000]).view(2, 1000),
    )
    assert tnp.header(url, client=client).shape == (400, 1000)
    archive = s3_server.put_key("x.npz", npz(a=PARTS, b=SMALL))
    assert torch.equal(tnp.load(archive, client=client)["b"], torch.from_numpy(SMALL))
    assert all(request.range for request in s3_server.requests)


@pytest.mark.parametrize("array", [noise(20), SMALL, PARTS], ids=["tiny", "small", "parts"])
@pytest.mark.parametrize("more", [b"more", bytes(100_000)], ids=["little", "much"])
def test_what_follows_the_array_is_compared_too(
    s3_server: S3Server, client: tnp.Client, array: np.ndarray, more: bytes
) -> None:
    url = s3_server.put_key("x.npy", npy(array) + more)
    s3_server.keep_checksum("x.npy", "crc32")
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(array))
    assert client.metrics()["retries"] == 0
    s3_server.always(PATH, damage(-1))
    with pytest.raises(tnp.TransportError, match="damaged on its way"):
        tnp.load(url, client=client)


def test_an_object_that_changed_is_compared_with_its_new_checksum(
    s3_server: S3Server, client: tnp.Client
) -> None:
    url = put(s3_server, PARTS)
    newer = noise(400_000, seed=9)

    def change(request: Request, answer: Answer) -> Answer:
        put(s3_server, newer)
        return answer

    # The first answer gives the old ETag: every later part is asked of the new object.
    s3_server.fail(PATH, change)
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(newer))


def test_every_sample_of_a_batch_is_compared(s3_server: S3Server, client: tnp.Client) -> None:
    arrays = [noise(500, seed=i) for i in range(30)]
    urls = [s3_server.put_key(f"{i}.npy", npy(array)) for i, array in enumerate(arrays)]
    for i in range(30):
        s3_server.keep_checksum(f"{i}.npy", ALGORITHMS[i % 3])
    for i in (3, 10, 20):
        s3_server.fail(f"/bucket/{i}.npy", damage())
    samples = NpyDataset(urls, client=client).__getitems__(range(30))
    for sample, array in zip(samples, arrays, strict=True):
        assert torch.equal(sample, torch.from_numpy(array))
    assert client.metrics()["retries_checksum"] == 3
    assert len(s3_server.requests) == 33


def test_plain_http_asks_for_none(server: ObjectServer) -> None:
    client = tnp.Client(checksums=True)
    tnp.load(server.put("/x.npy", npy(SMALL)), client=client)
    assert "x-amz-checksum-mode" not in server.requests[0].headers


def test_motos_checksum_matches(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret)
    url = moto.put("sum.npy", npy(PARTS))
    bucket, key = url.removeprefix("s3://").split("/")
    s3 = boto3.client("s3", endpoint_url=moto.endpoint, region_name="us-east-1")
    s3.put_object(Bucket=bucket, Key=key, Body=npy(PARTS), ChecksumAlgorithm="CRC32")
    assert s3.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")["ChecksumCRC32"]
    client = tnp.Client(endpoint=moto.endpoint, checksums=True, part_nbytes=PART_NBYTES)
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(PARTS))
    assert client.metrics()["retries"] == 0

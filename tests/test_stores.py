"""Stores other than AWS: real web servers, and servers that play what stores that speak S3 do."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import Answer, Fault, ObjectServer, edit, s3_error
from servers.nginx import Nginx
from servers.s3 import Bucket, Key, S3Server
from support import noise, npy, npz

import torchnpy as tnp
from torchnpy.data import NpyDataset

SMALL = noise(10, 100)
LARGE = noise(500, 1000)
PARTS = tnp.Client(part_nbytes=100_000, retries=2)


def check_all_loads(put: Callable[[str, bytes], str]) -> None:
    """Arrays small and large, rows, headers, archives and batches come whole."""
    small, large = put("small.npy", npy(SMALL)), put("large.npy", npy(LARGE))
    archive = put("x.npz", npz(a=SMALL, b=LARGE))
    for url, array in ((small, SMALL), (large, LARGE)):
        assert torch.equal(tnp.load(url, client=PARTS), torch.from_numpy(array))
    assert torch.equal(
        tnp.load_rows(large, 100, 300, client=PARTS), torch.from_numpy(LARGE[100:300])
    )
    assert tnp.header(large, client=PARTS).shape == (500, 1000)
    members = tnp.load(archive, client=PARTS).read()
    assert torch.equal(members["a"], torch.from_numpy(SMALL))
    assert torch.equal(members["b"], torch.from_numpy(LARGE))
    batch = NpyDataset([small] * 3, client=PARTS).__getitems__([0, 1, 2])
    assert all(torch.equal(sample, torch.from_numpy(SMALL)) for sample in batch)
    empty = put("empty.npy", npy(np.zeros((0, 3))))
    assert tnp.load(empty, client=PARTS).shape == (0, 3)
    with pytest.raises(tnp.FormatError):
        tnp.load(put("nothing.npy", b""), client=PARTS)
    with pytest.raises(FileNotFoundError, match=r"none\.npy: HTTP 404"):
        tnp.load(small.replace("small", "none"), client=PARTS)


def test_nginx(tmp_path: Path) -> None:
    with Nginx(tmp_path) as server:
        check_all_loads(server.put)
        # Its tags are strong and its dates are the file's.
        url = server.put("changes.npy", npy(SMALL))
        archive = tnp.open_npz(server.put("changes.npz", npz(a=LARGE, b=LARGE + 1)), client=PARTS)
        server.put("changes.npy", npy(SMALL + 1))
        server.put("changes.npz", npz(a=LARGE[:400], b=LARGE))
        assert torch.equal(tnp.load(url, client=PARTS), torch.from_numpy(SMALL + 1))
        with pytest.raises(tnp.TransportError, match="changed"):
            archive["b"]


@pytest.fixture
def plain_server(tmp_path: Path) -> Iterator[Callable[[str, bytes], str]]:
    """Python's own: HTTP/1.0, no ranges, no ETag. Gives put()."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def put(name: str, body: bytes) -> str:
            (tmp_path / name).write_bytes(body)
            return f"http://127.0.0.1:{server.server_port}/{name}"

        yield put
        server.shutdown()


def test_pythons_http_server(plain_server: Callable[[str, bytes], str]) -> None:
    check_all_loads(plain_server)


def ignoring_ranges(server: ObjectServer, chunked: bool, **headers: str) -> Fault:
    """200 with everything, whatever is asked for; chunked: and without its length."""

    def fault(request: Any, answer: Answer) -> Answer:
        if answer.status != 206:
            return answer
        body = server.objects[request.path]
        fields = {"ETag": answer.headers["ETag"]} | headers
        if not chunked:
            return Answer(200, fields, body)
        pieces = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
        text = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        return Answer(200, fields | {"Transfer-Encoding": "chunked", "Content-Length": ""}, text)

    return fault


OTHERS: dict[str, Callable[[ObjectServer], Fault]] = {
    "a CDN that answers 200 to ranges": lambda server: ignoring_ranges(server, False, ETag='W/"1"'),
    "chunks without a length": lambda server: ignoring_ranges(server, True),
    # An object with Content-Encoding: gzip, which Cloud Storage decodes as it sends it.
    "Cloud Storage's transcoding": lambda server: ignoring_ranges(
        server,
        True,
        Warning="214 UploadServer gunzipped",
        Vary="Accept-Encoding",
        x_goog_stored_content_encoding="gzip",
    ),
    "weak tags": lambda _: edit(ETag='W/"1"'),
    "neither tags nor dates": lambda _: edit(ETag=""),
    "each connection once": lambda _: edit(Connection="close"),
}


@pytest.mark.parametrize("how", OTHERS)
def test_other_answers_load_whole(server: ObjectServer, how: str) -> None:
    def put(name: str, body: bytes) -> str:
        fault = OTHERS[how](server)
        server.always(
            f"/{name}",
            lambda request, answer: answer if answer.status == 416 else fault(request, answer),
        )
        return server.put(f"/{name}", body)

    check_all_loads(put)


# What docs/stores.md says to pass, against a server that wants just that.
STORES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # region, key id, options
    "MinIO": ("us-east-1", "minioadmin", {}),
    "MinIO with MINIO_DOMAIN": ("us-east-1", "minioadmin", {"addressing": "virtual"}),
    "Ceph": ("default", "0555B35654AD1656D804", {"region": "default"}),
    "OpenStack's Ceph": ("RegionOne", "0555B35654AD1656D804", {"region": "RegionOne"}),
    "R2": ("auto", "0123456789abcdef0123456789abcdef", {"region": "auto"}),
    "R2 by default": ("us-east-1", "0123456789abcdef0123456789abcdef", {}),
    "Cloud Storage": ("auto", "GOOG1EXAMPLEEXAMPLEEXAMPLE", {"region": "auto"}),
}


@pytest.mark.parametrize("store", STORES)
def test_stores_take_their_documented_settings(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    region, key_id, options = STORES[store]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a/secret+of==")
    s3_server.keys = {key_id: Key("a/secret+of==")}
    s3_server.buckets["bucket"] = Bucket(region=region)
    urls = [s3_server.put_key(f"p/{i}.npy", npy(LARGE + i)) for i in range(2)]
    endpoint = f"http://localhost:{s3_server.port}"
    client = tnp.Client(endpoint=endpoint, part_nbytes=100_000, checksums=True, **options)
    assert [info.url for info in client.list("s3://bucket/p/")] == urls
    for i, loaded in enumerate(tnp.load_many(urls, client=client)):
        assert torch.equal(loaded, torch.from_numpy(LARGE + i))
    assert client.metrics()["retries"] == 0


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDownRead"),  # MinIO
        (503, "XMinioServerNotInitialized"),
        (503, "ServiceUnavailable"),  # Ceph, Cloud Storage
        (429, "TooManyRequests"),  # R2
        (429, "SlowDown"),  # Cloud Storage
        (400, "RequestTimeout"),
    ],
)
def test_what_stores_say_when_they_are_busy_is_tried_again(
    s3_server: S3Server, s3_client: tnp.Client, status: int, code: str
) -> None:
    url = s3_server.put_key("k.npy", npy(SMALL))
    s3_server.fail("/bucket/k.npy", s3_error(status, code))
    assert torch.equal(tnp.load(url, client=s3_client), torch.from_numpy(SMALL))
    assert len(s3_server.requests) == 2


def test_a_wrong_region_of_minio_is_learnt(s3_server: S3Server, s3_client: tnp.Client) -> None:
    s3_server.buckets["bucket"].region = "my-region"
    url = s3_server.put_key("k.npy", npy(SMALL))
    assert torch.equal(tnp.load(url, client=s3_client), torch.from_numpy(SMALL))
    assert s3_client.metrics()["retries_learnt"] == 1

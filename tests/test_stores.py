"""Stores that are not AWS: plain HTTP servers, and S3 with the accents of docs/stores.md."""

from __future__ import annotations

import gzip
import http.server
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers.http import (
    Answer,
    Fault,
    ObjectServer,
    Request,
    chunked,
    edit,
    redirect,
    status,
    until_close,
    whole,
)
from servers.moto import MotoServer
from servers.nginx import Nginx
from servers.stores import DIALECTS, StoreServer
from support import ROOT, noise, npy, npz

import torchnpy as tnp

SMALL = noise(5, 7)
LARGE = noise(3000, 100)
PART_NBYTES = 1 << 16
ROWS = (slice(0, 3), slice(1700, 1704), slice(2999, 3000))
MEMBERS = {"first": LARGE, "second": SMALL, "third": noise(50_000, seed=1)}
FILES = {
    "small.npy": npy(SMALL),
    "large.npy": npy(LARGE),
    "stored.npz": npz(**MEMBERS),
    "deflated.npz": npz(**MEMBERS, deflate=True),
}


def assert_equal(loaded: Any, array: np.ndarray) -> None:
    assert loaded.numpy().tobytes() == array.tobytes()


def check_reads(put: Callable[[str, bytes], str], client: tnp.Client) -> None:
    """Arrays, rows and archives, whole and in parts."""
    urls = {name: put(name, body) for name, body in FILES.items()}
    assert_equal(tnp.load(urls["small.npy"], client=client), SMALL)
    assert_equal(tnp.load(urls["large.npy"], client=client), LARGE)
    for rows in ROWS:
        loaded = tnp.load_rows(urls["large.npy"], rows.start, rows.stop, client=client)
        assert_equal(loaded, LARGE[rows])
    for name in ("stored.npz", "deflated.npz"):
        with tnp.open_npz(urls[name], client=client) as archive:
            assert archive.files == list(MEMBERS)
            assert_equal(archive["second"], SMALL)
            for member, loaded in archive.read().items():
                assert_equal(loaded, MEMBERS[member])
    for loaded in tnp.load_many([urls["small.npy"]] * 3, client=client):
        assert_equal(loaded, SMALL)


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class _PythonServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:  # readers may leave early
        pass


@pytest.fixture(params=["HTTP/1.0", "HTTP/1.1"])
def python_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, str]]:
    """Its folder and URL."""
    folder = tmp_path / "python"
    folder.mkdir()
    protocol = {"protocol_version": request.param}
    handler = type("Handler", (_Handler,), protocol)

    def make(*args: Any) -> Any:
        return handler(*args, directory=str(folder))

    with _PythonServer(("127.0.0.1", 0), make) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


NGINX = {
    "ranges": "",
    "no ranges": "max_ranges 0;",
    "no tags": "etag off;",
    "compression": "gzip on; gzip_types *; gzip_min_length 1;",
}


@pytest.mark.parametrize("options", NGINX.values(), ids=NGINX)
def test_nginx_serves_arrays_rows_and_archives(tmp_path: Path, options: str) -> None:
    with Nginx(tmp_path, options=options) as nginx:
        check_reads(nginx.put, tnp.Client(part_nbytes=PART_NBYTES))


def test_pythons_server_without_ranges_serves_arrays_rows_and_archives(
    python_server: tuple[Path, str],
) -> None:
    folder, url = python_server

    def put(name: str, body: bytes) -> str:
        (folder / name).write_bytes(body)
        return f"{url}/{name}"

    check_reads(put, tnp.Client(part_nbytes=PART_NBYTES))


def test_a_cache_that_knows_ranges_before_a_server_that_does_not_serves_both_kinds_of_answers(
    tmp_path: Path, python_server: tuple[Path, str]
) -> None:
    folder, url = python_server
    options = f"""location / {{
      proxy_pass {url}; proxy_cache all; proxy_cache_valid 1h; proxy_force_ranges on;
    }}"""
    (tmp_path / "nginx").mkdir()

    def put(name: str, body: bytes) -> str:
        (folder / name).write_bytes(body)
        return f"{nginx.url}/{name}"

    with Nginx(tmp_path / "nginx", options=options) as nginx:
        check_reads(put, tnp.Client(part_nbytes=PART_NBYTES))


ENDINGS: dict[str, Fault] = {
    "length": lambda _, answer: answer,
    "chunked": chunked,
    "until close": until_close,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_cdn_that_answers_ranges_with_200_is_read(server: ObjectServer, ending: str) -> None:
    def put(name: str, body: bytes) -> str:
        def answer_whole(request: Request, answer: Answer) -> Answer:
            return ENDINGS[ending](request, whole(server, Age="100")(request, answer))

        server.always(f"/{name}", answer_whole)
        return server.put(f"/{name}", body)

    check_reads(put, tnp.Client(part_nbytes=PART_NBYTES))


@pytest.mark.parametrize("begins_with", [200, 206])
def test_a_cdn_that_knows_ranges_of_what_it_has_only_is_read(
    server: ObjectServer, begins_with: int
) -> None:
    def put(name: str, body: bytes) -> str:
        tag = server.etags[f"/{name}"] = f'"{name}"'
        fetch = whole(server, ETag=tag)  # from the origin, while it answers
        server.fail(f"/{name}", *([fetch] if begins_with == 200 else [None, fetch, fetch]))
        return server.put(f"/{name}", body)

    check_reads(put, tnp.Client(part_nbytes=PART_NBYTES))


@pytest.fixture(params=DIALECTS)
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreServer]:
    with StoreServer(DIALECTS[request.param]) as running:
        (key_id, key), *_ = running.keys.items()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key.secret)
        yield running


def only(*names: str) -> pytest.MarkDecorator:
    """The stores that a test is about."""
    return pytest.mark.parametrize("store", names, indirect=True)


@pytest.fixture
def client(store: StoreServer) -> tnp.Client:
    return tnp.Client(endpoint=store.url, region=store.dialect.region, part_nbytes=PART_NBYTES)


def test_a_store_serves_arrays_rows_and_archives(store: StoreServer, client: tnp.Client) -> None:
    check_reads(store.put_key, client)
    assert client.metrics()["retries"] == 0


def test_a_store_with_checksums_asked_for_that_it_does_not_keep_serves_the_same(
    store: StoreServer,
) -> None:
    client = tnp.Client(endpoint=store.url, region=store.dialect.region, checksums=True)
    check_reads(store.put_key, client)


def test_listed_objects_load_whatever_their_names(store: StoreServer, client: tnp.Client) -> None:
    names = ["a b.npy", "a&b.npy", "a+b=c.npy", "a/ü.npy", "a%20.npy", "<a>.npy", "z/~*'().npy"]
    arrays = {f"train/{name}": noise(9, seed=i) for i, name in enumerate(names)}
    for key, array in arrays.items():
        store.put_key(key, npy(array))
    store.put_key("test/other.npy", npy(SMALL))
    listed = {info.url: info for info in client.list("s3://bucket/train/", suffix=".npy")}
    assert list(listed) == [f"s3://bucket/{key}" for key in sorted(arrays)]
    for key, array in arrays.items():
        info = listed[f"s3://bucket/{key}"]
        body = npy(array)
        tag = re.sub('^"(.*)"$', r"\1", store.dialect.tag(body))
        assert (info.nbytes, info.etag) == (len(body), tag)
        assert info.modified == "2024-05-06T07:08:09.000Z"
        assert_equal(tnp.load(info.url, client=client), array)


def test_a_listing_of_unknown_length_is_read(store: StoreServer, client: tnp.Client) -> None:
    store.put_key("x.npy", npy(SMALL))
    store.always("/bucket", chunked)
    assert [info.url for info in client.list("s3://bucket/")] == ["s3://bucket/x.npy"]


def test_an_empty_listing_is_empty(client: tnp.Client) -> None:
    assert list(client.list("s3://bucket/none/")) == []


@only("unquoted")
def test_a_store_that_lists_by_version_1_only_is_refused_and_never_half_listed(
    store: StoreServer, client: tnp.Client
) -> None:
    page = "<IsTruncated>true</IsTruncated><NextMarker>a</NextMarker>"
    body = f"<ListBucketResult>{page}</ListBucketResult>".encode()
    store.always("/bucket", lambda *_: Answer(200, {}, body))
    with pytest.raises(tnp.FormatError, match="NextContinuationToken"):
        list(client.list("s3://bucket/"))


@only("unquoted", "weak")
def test_a_tag_that_if_match_does_not_take_is_never_sent(
    store: StoreServer, client: tnp.Client
) -> None:
    url = store.put_key("large.npy", npy(LARGE))
    assert_equal(tnp.load(url, client=client), LARGE)
    assert len(store.requests) > 1
    assert not any("if-match" in request.headers for request in store.requests)


def test_an_object_that_is_replaced_between_two_parts_is_loaded_as_it_became(
    store: StoreServer, client: tnp.Client
) -> None:
    after = noise(*LARGE.shape, seed=7)
    url = store.put_key("large.npy", npy(LARGE))

    def replace_afterwards(_: Request, answer: Answer) -> Answer:
        store.put_key("large.npy", npy(after))
        return answer

    store.fail("/bucket/large.npy", replace_afterwards)
    assert_equal(tnp.load(url, client=client), after)


BUSY = {
    "MinIO": (503, "SlowDownRead"),
    "Ceph, AWS": (503, "SlowDown"),
    "R2": (429, "TooManyRequests"),
    "Google": (429, "rateLimitExceeded"),
    "Google, overloaded": (503, "ServiceUnavailable"),
    "Google, failing": (500, "InternalError"),
    "MinIO, starting": (503, "XMinioServerNotInitialized"),
}


@only("minio")
@pytest.mark.parametrize(("code", "name"), BUSY.values(), ids=BUSY)
def test_a_store_that_is_busy_is_asked_again_and_quoted_in_the_end(
    store: StoreServer, code: int, name: str
) -> None:
    words = f"<Code>{name}</Code><Message>later</Message>"
    space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"' if code == 429 else ""
    body = f"<?xml version='1.0'?><Error {space}>{words}</Error>".encode()
    busy = status(code, body, Content_Type="application/xml")
    client = tnp.Client(endpoint=store.url, retries=2)
    store.fail("/bucket/x.npy", busy)
    url = store.put_key("x.npy", npy(SMALL))
    assert_equal(tnp.load(url, client=client), SMALL)
    assert client.metrics()["retries_status"] == 1
    store.always("/bucket/x.npy", busy)
    with pytest.raises(
        tnp.TransportError, match=rf"HTTP {code} \({name}: later\) after 2 attempts"
    ):
        tnp.load(url, client=client)


def test_a_missing_object_is_not_found_in_the_stores_words(
    store: StoreServer, client: tnp.Client
) -> None:
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/none.npy: HTTP 404 \(NoSuchKey"):
        tnp.load("s3://bucket/none.npy", client=client)


def test_a_missing_object_is_not_found_when_a_proxy_answers_with_a_page(
    store: StoreServer, client: tnp.Client
) -> None:
    page = b"<!DOCTYPE html><html><head><title>404</title><body><p>Not here<br></html>"
    store.always("/bucket/none.npy", status(404, page, Content_Type="text/html"))
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/none.npy: HTTP 404"):
        tnp.load("s3://bucket/none.npy", client=client)


def test_a_wrong_secret_is_denied_in_the_stores_words(store: StoreServer) -> None:
    (key_id, _), *_ = store.keys.items()
    client = tnp.Client(
        endpoint=store.url,
        region=store.dialect.region,
        credentials=lambda: {"access_key": key_id, "secret_key": "wrong"},
    )
    url = store.put_key("x.npy", npy(SMALL))
    with pytest.raises(PermissionError, match="SignatureDoesNotMatch"):
        tnp.load(url, client=client)


@only("r2", "google", "swift")
def test_the_stores_region_is_in_the_scope_that_is_signed(
    store: StoreServer, client: tnp.Client
) -> None:
    tnp.load(store.put_key("x.npy", npy(SMALL)), client=client)
    (request,) = store.requests
    assert f"/{store.dialect.region}/s3/aws4_request" in request.headers["authorization"]


@only("minio")
@pytest.mark.parametrize("in_header", [True, False], ids=["header", "body"])
def test_a_region_that_the_store_names_is_learnt(store: StoreServer, in_header: bool) -> None:
    url = store.put_key("x.npy", npy(SMALL))
    client = tnp.Client(endpoint=store.url, region="eu-west-1")
    if not in_header:
        store.fail("/bucket/x.npy", edit(**{"x-amz-bucket-region": ""}))
    assert_equal(tnp.load(url, client=client), SMALL)
    assert (client.metrics()["retries_learnt"], len(store.requests)) == (1, 2)


@only("r2", "swift")
def test_a_region_that_the_store_does_not_name_must_be_passed(store: StoreServer) -> None:
    url = store.put_key("x.npy", npy(SMALL))
    with pytest.raises(tnp.TransportError, match="pass region to Client"):
        tnp.load(url, client=tnp.Client(endpoint=store.url, region="eu-west-1"))


@only("ceph")
def test_credentials_do_not_follow_a_redirect_to_another_gateway(
    store: StoreServer, client: tnp.Client, other_server: ObjectServer
) -> None:
    store.always("/bucket/x.npy", redirect(f"{other_server.url}/bucket/x.npy", 301))
    other_server.always("/bucket/x.npy", status(403, b"<Error><Code>AccessDenied</Code></Error>"))
    with pytest.raises(PermissionError, match="AccessDenied"):
        tnp.load("s3://bucket/x.npy", client=client)
    (request,) = other_server.requests
    assert not any(name.startswith(("authorization", "x-amz-")) for name in request.headers)


def transcode(_: Request, answer: Answer) -> Answer:
    """What Google does with an object that is stored as gzip: unpacks it, whole."""
    headers = {
        "x-goog-stored-content-encoding": "gzip",
        "Warning": "214 UploadServer gunzipped",
        "ETag": answer.headers["ETag"],
    }
    return Answer(200, headers, answer.body)


@only("google")
def test_objects_that_the_store_decompresses_are_read(
    store: StoreServer, client: tnp.Client
) -> None:
    def put(name: str, body: bytes) -> str:
        url = store.put_key(name, body)
        packed = store.dialect.tag(gzip.compress(body, mtime=0))
        store.etags[f"/bucket/{name}"] = packed

        def answer_whole(request: Request, answer: Answer) -> Answer:
            answer = transcode(request, answer)
            answer.body = body
            return chunked(request, answer)

        store.always(f"/bucket/{name}", answer_whole)
        return url

    check_reads(put, client)


@only("google", "r2")
def test_objects_that_come_compressed_are_refused_with_what_to_do(
    store: StoreServer, client: tnp.Client
) -> None:
    url = store.put_key("x.npy", gzip.compress(npy(LARGE)))
    as_stored = edit(Content_Encoding="gzip", Cache_Control="no-transform")
    store.always("/bucket/x.npy", as_stored)
    with pytest.raises(tnp.TransportError, match="Content-Encoding gzip; store the object without"):
        tnp.load(url, client=client)


def test_moto_serves_arrays_rows_archives_and_lists(
    moto: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret)
    client = tnp.Client(endpoint=moto.endpoint)
    check_reads(lambda name, body: moto.put(f"stores/{name}", body), client)
    listed = {info.url: info.nbytes for info in client.list("s3://bucket/stores/")}
    assert listed == {f"s3://bucket/stores/{name}": len(FILES[name]) for name in sorted(FILES)}


def test_the_documented_settings_make_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GCS_HMAC_ID", "GCS_HMAC_SECRET"):
        monkeypatch.setitem(os.environ, name, "x")
    text = (ROOT / "docs" / "stores.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        scope: dict[str, Any] = {}
        exec(block, scope)
        assert isinstance(scope["client"], tnp.Client)

"""Arrays over HTTP: what is asked of the server, and every kind of server that answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from servers.http import Answer, Fault, ObjectServer, Request, cut, edit, s3_error, status, whole
from support import noise, npy

import torchnpy as tnp

SMALL = noise(10, 100)
LARGE = noise(300, 1000)  # more than the first request asks for


def test_a_small_array_takes_one_ranged_get(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(SMALL))
    assert torch.equal(tnp.load(url), torch.from_numpy(SMALL))
    (request,) = server.requests
    assert (request.method, request.range) == ("GET", "bytes=0-65535")
    assert request.headers["accept-encoding"] == "identity"


def test_each_byte_of_a_large_array_is_sent_once_and_later_parts_are_pinned(
    server: ObjectServer,
) -> None:
    body = npy(LARGE)
    url = server.put("/x.npy", body)
    loaded = tnp.load(url, client=tnp.Client(part_nbytes=100_000))
    assert torch.equal(loaded, torch.from_numpy(LARGE))
    assert server.sent_nbytes == len(body)
    assert len(server.requests) > 2
    assert {request.method for request in server.requests} == {"GET"}
    assert all("if-match" in request.headers for request in server.requests[1:])


ARRAYS = {
    "scalar": np.float64(1.5),
    "empty": np.zeros((0, 3), np.int32),
    "big-endian": np.arange(6, dtype=">f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "complex": np.array([1 + 2j, 3 - 4j], np.complex64),
    "large big-endian": np.arange(100_000, dtype=">i8"),
    "large fortran": np.asfortranarray(np.arange(200_000.0).reshape(400, 500)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_kinds_of_arrays_equal_numpys(server: ObjectServer, name: str) -> None:
    array = np.asarray(ARRAYS[name])
    loaded = tnp.load(server.put("/x.npy", npy(array)))
    assert isinstance(loaded, torch.Tensor)
    np.testing.assert_array_equal(loaded.numpy(), array)
    if array.size:
        assert (
            loaded.stride()
            == torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).stride()
        )


@pytest.mark.parametrize("count", [3, 50_000])
def test_a_structured_array_is_a_dict(server: ObjectServer, count: int) -> None:
    array = np.zeros(count, [("a", "<f4"), ("b", ">i2", (2,))])
    array["a"], array["b"][:, 1] = np.arange(count), np.arange(count) % 1000
    loaded = tnp.load(server.put("/x.npy", npy(array)))
    assert isinstance(loaded, dict)
    assert list(loaded) == ["a", "b"]
    np.testing.assert_array_equal(loaded["a"].numpy(), array["a"])
    np.testing.assert_array_equal(loaded["b"].numpy(), array["b"])


@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}, {"ETag": 'W/"1"'}])
def test_servers_without_ranges_work(
    server: ObjectServer, array: np.ndarray, headers: dict[str, str]
) -> None:
    url = server.put("/x.npy", npy(array))
    server.always("/x.npy", whole(server, **headers))
    assert torch.equal(tnp.load(url), torch.from_numpy(array))


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_a_weak_or_missing_etag_is_never_sent_back(server: ObjectServer, etag: str) -> None:
    url = server.put("/x.npy", npy(LARGE))
    server.always("/x.npy", edit(ETag=etag))
    assert torch.equal(tnp.load(url), torch.from_numpy(LARGE))
    assert not any("if-match" in request.headers for request in server.requests)


def test_an_object_that_changes_once_is_loaded_as_it_became(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(LARGE))

    def change_afterwards(_: Request, answer: Answer) -> Answer:
        server.put("/x.npy", npy(LARGE[::-1]))
        return answer

    server.fail("/x.npy", change_afterwards)
    loaded = tnp.load(url)
    assert torch.equal(loaded, torch.from_numpy(LARGE[::-1].copy()))


def test_an_object_that_changes_all_the_time_is_an_error(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(LARGE))

    def change_afterwards(_: Request, answer: Answer) -> Answer:
        server.etags["/x.npy"] = f'"{len(server.requests)}"'
        return answer

    server.always("/x.npy", change_afterwards)
    with pytest.raises(tnp.TransportError, match="changed"):
        tnp.load(url)


WRONG_ANSWERS = {
    "other start": edit(Content_Range="bytes 1-100/1128"),
    "other end": edit(Content_Range="bytes 0-1200/1128"),
    "no Content-Range": edit(Content_Range=""),
    "nonsense": edit(Content_Range="bytes x-y/z"),
    "gzip": edit(Content_Encoding="gzip"),
    "no content": status(204),
}


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_a_wrong_answer_is_an_error_and_never_data(server: ObjectServer, name: str) -> None:
    url = server.put("/x.npy", npy(SMALL))
    fault: Fault = WRONG_ANSWERS[name]
    server.always("/x.npy", fault)
    with pytest.raises((tnp.TransportError, tnp.UnsupportedError), match=r"/x.npy"):
        tnp.load(url, client=tnp.Client(retries=2))


def test_an_empty_object_and_a_truncated_one_are_format_errors(server: ObjectServer) -> None:
    for body in (b"", npy(SMALL)[:-1], npy(LARGE)[:-1]):
        url = server.put("/x.npy", body)
        with pytest.raises(tnp.FormatError, match=r"/x.npy"):
            tnp.load(url)


@pytest.mark.parametrize(
    "target", ["/a/../b.npy", "//x.npy", "/a/./x.npy", "/%2e%2E/x.npy", "/x.npy?a=%2F&b=c+d%20e"]
)
def test_urls_go_out_as_they_are_given(server: ObjectServer, target: str) -> None:
    with pytest.raises(FileNotFoundError):
        tnp.load(server.url + target)
    assert server.requests[0].target == target


@pytest.mark.parametrize("target", ["/a%2fé.npy", "/a%2Fé.npy", "/é.npy?x=%2f", "/é.npy"])
def test_bytes_beyond_ascii_go_out_escaped(server: ObjectServer, target: str) -> None:
    with pytest.raises(FileNotFoundError):
        tnp.load(server.url + target)
    sent = server.requests[0].target
    assert sent.lower() == target.replace("é", "%c3%a9").lower()
    assert ("%2f" in sent) == ("%2f" in target)


def test_dot_segments_name_their_own_object(server: ObjectServer) -> None:
    server.put("/b.npy", npy(np.zeros(1)))
    url = server.url + "/a/../b.npy"
    server.objects["/a/../b.npy"] = npy(SMALL)
    assert torch.equal(tnp.load(url), torch.from_numpy(SMALL))


def test_the_clients_headers_are_sent(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(SMALL))
    tnp.load(url, client=tnp.Client(headers={"X-Token": "abc"}))
    assert server.requests[0].headers["x-token"] == "abc"


def test_a_connection_serves_many_loads(server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npy", npy(SMALL)) for i in range(20)]
    client = tnp.Client(io_threads=1)
    for url in urls:
        tnp.load(url, client=client)
    assert server.connections() == 1


def test_requests_in_flight_are_capped(server: ObjectServer) -> None:
    server.latency_s = 0.02
    urls = [server.put(f"/{i}.npy", npy(SMALL)) for i in range(10)]
    tnp.load_many(urls, client=tnp.Client(max_in_flight=3))
    assert server.max_concurrent <= 3
    assert len(server.requests) == 10


def test_the_proxy_is_asked_for_the_whole_url(server: ObjectServer) -> None:
    server.put("/x.npy", npy(SMALL))
    client = tnp.Client(proxy=server.url)
    assert torch.equal(
        tnp.load("http://nowhere.invalid/x.npy", client=client), torch.from_numpy(SMALL)
    )
    assert server.requests[0].headers["host"] == "nowhere.invalid"


def test_metrics_count_what_the_client_did(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(SMALL))
    server.fail("/x.npy", status(500))
    client = tnp.Client()
    tnp.load(url, client=client)
    metrics = client.metrics()
    assert metrics["requests"] == 2
    assert metrics["retries"] == 1


def test_listing_over_http_is_unsupported(server: ObjectServer) -> None:
    with pytest.raises(tnp.UnsupportedError, match="list"):
        list(tnp.Client().list(server.url + "/"))


def test_the_header_alone_is_read_from_a_large_object(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(LARGE.astype(">f4")))
    header = tnp.header(url)
    assert header.descr == ">f4"
    assert header.dtype == torch.float32
    assert tuple(header.shape) == LARGE.shape
    assert not header.fortran_order
    assert header.nbytes == LARGE.size * 4
    assert header.data_offset == 128
    assert tuple(header.version) == (1, 0)
    assert server.sent_nbytes <= 65536


def test_an_s3_like_error_page_is_quoted(server: ObjectServer) -> None:
    url = server.put("/x.npy", b"")
    server.always("/x.npy", s3_error(403, "AccessDenied", "Not yours"))
    with pytest.raises(PermissionError, match="403"):
        tnp.load(url)


def test_a_cut_body_is_never_handed_on(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(SMALL))
    server.always("/x.npy", cut(600, "close"))
    with pytest.raises(tnp.TransportError, match="1128 bytes but found 600"):
        tnp.load(url, client=tnp.Client(retries=1))

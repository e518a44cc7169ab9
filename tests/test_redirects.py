"""Redirects: followed with care about what another host gets to see."""

from __future__ import annotations

import pytest
import torch
from servers.http import Answer, ObjectServer, redirect
from servers.s3 import S3Server
from support import noise, npy

import torchnpy as tnp

ARRAY = noise(300, 1000)
BEARER = {"Authorization": "Bearer t", "Cookie": "c=1", "X-Api-Key": "k"}
# All that another host may get.
HARMLESS = {"host", "range", "if-match", "accept-encoding", "accept", "user-agent"}


def bearer_client() -> tnp.Client:
    """Anonymous in S3's sense: it brings an Authorization of its own."""
    return tnp.Client(headers=BEARER, credentials="anonymous")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_with_its_range(
    server: ObjectServer, other_server: ObjectServer, code: int
) -> None:
    target = other_server.put("/y.npy", npy(ARRAY))
    server.always("/x.npy", redirect(target, code))
    assert torch.equal(tnp.load(server.url + "/x.npy"), torch.from_numpy(ARRAY))
    assert other_server.requests[0].range == "bytes=0-65535"


def test_a_relative_location_is_resolved(server: ObjectServer) -> None:
    server.put("/a/y z.npy", npy(ARRAY))
    server.always("/a/x.npy", redirect("y%20z.npy?q=1"))
    assert torch.equal(tnp.load(server.url + "/a/x.npy"), torch.from_numpy(ARRAY))
    assert server.requests[1].target == "/a/y%20z.npy?q=1"


def test_the_same_host_keeps_the_clients_headers(server: ObjectServer) -> None:
    server.put("/y.npy", npy(ARRAY))
    server.always("/x.npy", redirect("/y.npy"))
    tnp.load(server.url + "/x.npy", client=bearer_client())
    assert all(r.headers["authorization"] == "Bearer t" for r in server.requests)


def test_another_port_never_sees_the_clients_headers(
    server: ObjectServer, other_server: ObjectServer
) -> None:
    server.always("/x.npy", redirect(other_server.put("/y.npy", npy(ARRAY))))
    loaded = tnp.load(server.url + "/x.npy", client=bearer_client())
    assert torch.equal(loaded, torch.from_numpy(ARRAY))
    for request in other_server.requests:
        assert set(request.headers) <= HARMLESS


def test_s3_credentials_never_cross_to_another_host(
    s3_server: S3Server,
    other_server: ObjectServer,
    s3_client: tnp.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    s3_server.always("/bucket/x.npy", redirect(other_server.put("/y.npy", npy(ARRAY)), 307))
    assert torch.equal(tnp.load("s3://bucket/x.npy", client=s3_client), torch.from_numpy(ARRAY))
    assert s3_server.requests[0].headers["x-amz-security-token"] == "token"
    for request in other_server.requests:
        assert set(request.headers) <= HARMLESS


@pytest.mark.parametrize("code", [301, 302, 307, 308])
@pytest.mark.usefixtures("credentials")
def test_another_host_of_the_store_gets_a_signature_of_its_own(
    s3_server: S3Server, code: int
) -> None:
    s3_server.put_key("x y.npy", npy(ARRAY))
    target = f"http://bucket.localhost:{s3_server.port}/x%20y.npy"
    s3_server.always("/bucket/x y.npy", redirect(target, code))
    client = tnp.Client(endpoint=f"http://localhost:{s3_server.port}")
    loaded = tnp.load("s3://bucket/x y.npy", client=client)
    assert torch.equal(loaded, torch.from_numpy(ARRAY))
    followed = s3_server.requests_for("/x y.npy")
    assert followed[0].headers["host"] == f"bucket.localhost:{s3_server.port}"
    assert followed[0].range == "bytes=0-65535"


@pytest.mark.usefixtures("credentials")
def test_a_listing_is_redirected_within_the_store(s3_server: S3Server) -> None:
    url = s3_server.put_key("a/x.npy", npy(ARRAY))
    s3_server.fail(
        "/bucket",
        lambda request, _: Answer(
            307, {"Location": f"http://bucket.localhost:{s3_server.port}/?{request.query}"}
        ),
    )
    client = tnp.Client(endpoint=f"http://localhost:{s3_server.port}")
    assert [info.url for info in client.list("s3://bucket/a/")] == [url]


@pytest.mark.usefixtures("credentials")
def test_a_redirect_that_comes_back_to_the_store_stays_unsigned(
    s3_server: S3Server, other_server: ObjectServer
) -> None:
    s3_server.put_key("x.npy", npy(ARRAY))
    s3_server.always("/bucket/x.npy", redirect(other_server.url + "/y"))
    other_server.always("/y", redirect(f"http://bucket.localhost:{s3_server.port}/x.npy"))
    with pytest.raises(PermissionError, match="anonymous"):
        tnp.load(
            "s3://bucket/x.npy", client=tnp.Client(endpoint=f"http://localhost:{s3_server.port}")
        )
    assert "authorization" not in s3_server.requests_for("/x.npy")[0].headers


def test_headers_stay_away_when_the_redirect_comes_back(
    server: ObjectServer, other_server: ObjectServer
) -> None:
    server.put("/z.npy", npy(ARRAY))
    server.always("/x.npy", redirect(other_server.url + "/y.npy"))
    other_server.always("/y.npy", redirect(server.url + "/z.npy"))
    assert torch.equal(
        tnp.load(server.url + "/x.npy", client=bearer_client()), torch.from_numpy(ARRAY)
    )
    assert set(server.requests_for("/z.npy")[0].headers) <= HARMLESS


def test_a_loop_ends_after_ten(server: ObjectServer) -> None:
    server.always("/x.npy", redirect("/x.npy"))
    with pytest.raises(tnp.TransportError, match="redirect"):
        tnp.load(server.url + "/x.npy")
    assert len(server.requests) == 11


def test_https_never_falls_to_http(
    tls_server: ObjectServer, server: ObjectServer, ca_file: str
) -> None:
    tls_server.always("/x.npy", redirect(server.put("/y.npy", npy(ARRAY))))
    with pytest.raises(tnp.TransportError, match="https"):
        tnp.load(tls_server.url + "/x.npy", client=tnp.Client(ca_bundle=ca_file))
    assert server.requests == []


def test_http_may_rise_to_https(
    tls_server: ObjectServer, server: ObjectServer, ca_file: str
) -> None:
    server.always("/x.npy", redirect(tls_server.put("/y.npy", npy(ARRAY))))
    loaded = tnp.load(server.url + "/x.npy", client=tnp.Client(ca_bundle=ca_file))
    assert torch.equal(loaded, torch.from_numpy(ARRAY))


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "", "http://"]
)
def test_a_location_that_is_no_http_url_is_refused(server: ObjectServer, location: str) -> None:
    server.always("/x.npy", redirect(location))
    with pytest.raises(tnp.TransportError, match=r"/x.npy"):
        tnp.load(server.url + "/x.npy", client=tnp.Client(retries=2))
    assert len(server.requests) == 1


def test_a_redirect_without_a_location_is_an_error(server: ObjectServer) -> None:
    server.always("/x.npy", lambda *_: Answer(302))
    with pytest.raises(tnp.TransportError, match=r"302|[Ll]ocation"):
        tnp.load(server.url + "/x.npy", client=tnp.Client(retries=2))


def test_a_failure_behind_a_redirect_hides_the_query_of_the_location(
    server: ObjectServer, other_server: ObjectServer
) -> None:
    server.always("/x.npy", redirect(other_server.url + "/y.npy?sig=secret"))
    with pytest.raises(FileNotFoundError, match=r"/x.npy") as caught:
        tnp.load(server.url + "/x.npy?key=secret")
    assert "secret" not in str(caught.value)


def test_a_retry_starts_at_the_first_url_again(
    server: ObjectServer, other_server: ObjectServer
) -> None:
    """A redirect's target may be signed for a moment only."""
    server.put("/x.npy", b"")
    attempts: list[str] = []

    def move(*_: object) -> Answer:
        attempts.append(f"/{len(attempts)}.npy")
        return Answer(302, {"Location": other_server.put(attempts[-1], npy(ARRAY[:10]))})

    server.always("/x.npy", move)
    other_server.fail("/0.npy", lambda *_: Answer(503))
    assert torch.equal(tnp.load(server.url + "/x.npy"), torch.from_numpy(ARRAY[:10]))
    assert attempts == ["/0.npy", "/1.npy"]

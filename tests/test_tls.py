"""HTTPS: certificates are verified unless the user says otherwise."""

from __future__ import annotations

import pytest
import torch
import trustme
from servers.http import ObjectServer
from support import noise, npy

import torchnpy as tnp

ARRAY = noise(300, 1000)


def test_an_unknown_authority_is_refused_before_any_request(tls_server: ObjectServer) -> None:
    url = tls_server.put("/x.npy", npy(ARRAY))
    with pytest.raises(tnp.TransportError, match=r"(?i)certificate") as caught:
        tnp.load(url + "?token=secret", client=tnp.Client(retries=2))
    assert tls_server.url in str(caught.value)
    assert "secret" not in str(caught.value)
    assert tls_server.requests == []


def test_a_certificate_that_does_not_verify_is_not_tried_again(tls_server: ObjectServer) -> None:
    client = tnp.Client(retries=5)
    with pytest.raises(tnp.TransportError):
        tnp.load(tls_server.put("/x.npy", b""), client=client)
    assert client.metrics()["retries"] == 0


def test_ca_bundle_is_trusted(tls_server: ObjectServer, ca_file: str) -> None:
    url = tls_server.put("/x.npy", npy(ARRAY))
    loaded = tnp.load(url, client=tnp.Client(ca_bundle=ca_file))
    assert torch.equal(loaded, torch.from_numpy(ARRAY))


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"])
def test_the_environment_names_the_bundle(
    tls_server: ObjectServer, ca_file: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, ca_file)
    url = tls_server.put("/x.npy", npy(ARRAY))
    assert torch.equal(tnp.load(url, client=tnp.Client()), torch.from_numpy(ARRAY))


def test_ca_bundle_goes_before_the_environment(
    tls_server: ObjectServer, ca_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = trustme.CA()
    with other.cert_pem.tempfile() as wrong:
        monkeypatch.setenv("SSL_CERT_FILE", wrong)
        url = tls_server.put("/x.npy", npy(ARRAY))
        assert torch.equal(
            tnp.load(url, client=tnp.Client(ca_bundle=ca_file)), torch.from_numpy(ARRAY)
        )
        with pytest.raises(tnp.TransportError, match=r"(?i)certificate"):
            tnp.load(url, client=tnp.Client(retries=1))


def test_another_hosts_certificate_is_refused(tls_server: ObjectServer, ca_file: str) -> None:
    tls_server.put("/x.npy", npy(ARRAY))
    client = tnp.Client(ca_bundle=ca_file, retries=1)
    with pytest.raises(tnp.TransportError, match=r"(?i)certificate|localhost"):
        tnp.load(f"https://localhost:{tls_server.port}/x.npy", client=client)
    assert tls_server.requests == []


def test_verify_tls_false_takes_any_certificate(tls_server: ObjectServer) -> None:
    url = tls_server.put("/x.npy", npy(ARRAY))
    loaded = tnp.load(url, client=tnp.Client(verify_tls=False))
    assert torch.equal(loaded, torch.from_numpy(ARRAY))


def test_a_bundle_that_is_missing_is_named(tls_server: ObjectServer) -> None:
    with pytest.raises((tnp.TransportError, ValueError), match=r"no/such.pem"):
        tnp.load(tls_server.url + "/x.npy", client=tnp.Client(ca_bundle="/no/such.pem", retries=1))


def test_plain_http_on_a_tls_port_fails_with_the_object_named(tls_server: ObjectServer) -> None:
    url = tls_server.put("/x.npy", b"").replace("https:", "http:")
    with pytest.raises(tnp.TransportError, match=r"/x.npy"):
        tnp.load(url, client=tnp.Client(retries=1))

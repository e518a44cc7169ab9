"""The requests for S3 objects, held against what botocore sends and signs."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.client
import botocore.credentials
import numpy as np
import pytest
import torch

import torchnpy

ACCESS_KEY = "AKIDEXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
REGION = "eu-west-1"
BUCKET = "bucket"
KEYS = [
    "plain.npy",
    "a=b/c d+e%2Fü.npy",
    "/lead.npy",
    "a//b.npy",
    "a/../b.npy",
    "a/./b.npy",
    "ä?x#y.npy",
    "100%",
    "😀.npy",
    "~-_.!*'();:@&=+$,[]",
]


@dataclass
class Request:
    path: str
    headers: dict[str, str]  # names in lower case


@dataclass
class Server:
    """Answers each GET with the same .npy file and keeps what it was asked."""

    endpoint: str = ""
    array: np.ndarray = field(default_factory=lambda: np.arange(6, dtype="<f4").reshape(2, 3))
    requests: list[Request] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    buffer = io.BytesIO()
    np.save(buffer, state.array)
    content = buffer.getvalue()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.requests.append(Request(self.path, headers))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", '"v1"')
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{http.server_address[1]}"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


def botocore_signature(request: Request, token: str | None) -> str:
    """The signature that botocore makes for the request as it was received."""
    credentials = botocore.credentials.Credentials(ACCESS_KEY, SECRET_KEY, token)
    auth = botocore.auth.S3SigV4Auth(credentials, "s3", REGION)
    names = request.headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    signed = botocore.awsrequest.AWSRequest(
        method="GET",
        url=f"http://{request.headers['host']}{request.path}",
        headers={name: request.headers[name] for name in names if name != "host"},
    )
    signed.context["timestamp"] = request.headers["x-amz-date"]
    string_to_sign = auth.string_to_sign(signed, auth.canonical_request(signed))
    return auth.signature(string_to_sign, signed)


def botocore_path(endpoint: str, key: str) -> str:
    """The path of the request that boto3 would send for the key."""
    sent: list[str] = []

    def stop(request: botocore.awsrequest.AWSPreparedRequest, **_: object) -> None:
        sent.append(request.url)
        raise InterruptedError

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=botocore.client.Config(s3={"addressing_style": "path"}),
    )
    client.meta.events.register("before-send.s3.GetObject", stop)
    with pytest.raises(InterruptedError):
        client.get_object(Bucket=BUCKET, Key=key)
    return urlsplit(sent[0]).path


@pytest.mark.parametrize("token", [None, "TOKEN/+="], ids=["static", "session"])
@pytest.mark.parametrize("key", KEYS)
def test_object_is_asked_for_as_botocore_does(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str, token: str | None
) -> None:
    if token is not None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    client = torchnpy.Client(
        endpoint=server.endpoint,
        region=REGION,
        requester_pays=True,
        headers={"X-Amz-Meta-Note": " two   words "},
    )
    loaded = torchnpy.load(f"s3://{BUCKET}/{key}", client=client)

    assert torch.equal(loaded, torch.from_numpy(server.array))
    [request] = server.requests
    assert request.path == botocore_path(server.endpoint, key)
    assert request.headers.get("x-amz-security-token") == token
    assert request.headers["x-amz-request-payer"] == "requester"
    authorization = request.headers["authorization"]
    assert authorization.startswith(f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/")
    assert authorization.endswith("Signature=" + botocore_signature(request, token))

"""Fixtures: servers and clients."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

# What the machine sets must not reach the tests, nor the programs that they start.
for _name in list(os.environ):
    if _name.startswith(("AWS_", "SSL_CERT_")) or _name.lower().endswith(("_proxy", "ca_bundle")):
        del os.environ[_name]
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull

import pytest  # noqa: E402
import trustme  # noqa: E402
from servers.http import ObjectServer  # noqa: E402
from servers.moto import MotoServer  # noqa: E402
from servers.s3 import S3Server  # noqa: E402
from support import Ended, Run  # noqa: E402

import torchnpy as tnp  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh_default_client() -> None:
    """What a client has learnt of other tests' objects changes how much it asks for first."""
    tnp.set_default_client(tnp.Client())


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as running:
        yield running


@pytest.fixture
def other_server() -> Iterator[ObjectServer]:
    with ObjectServer() as running:
        yield running


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def tls_server(authority: trustme.CA) -> Iterator[ObjectServer]:
    """Its certificate, of the local authority, is for 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ObjectServer(context) as running:
        yield running


@pytest.fixture
def s3_server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, s3_server: S3Server) -> None:
    """The S3 server's key, in the environment."""
    (key_id, key), *_ = s3_server.keys.items()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key.secret)


@pytest.fixture
def s3_client(s3_server: S3Server, request: pytest.FixtureRequest) -> tnp.Client:
    request.getfixturevalue("credentials")
    return tnp.Client(endpoint=s3_server.url, retries=2)


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    running = MotoServer()
    yield running
    running.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line, in an empty folder."""
    from torchnpy.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        exit_status = main(list(map(str, arguments)))
        return Ended(exit_status, *capsys.readouterr())

    return run


@pytest.fixture
def s3(run: Run, s3_server: S3Server, credentials: None) -> Run:
    """The same with the local S3 server."""
    return lambda *arguments: run("--endpoint", s3_server.url, "--retries", "2", *arguments)


@pytest.fixture
def cp(s3: Run) -> Run:
    return lambda *arguments: s3("cp", *arguments)


@pytest.fixture
def use_default_client() -> Iterator[Callable[[tnp.Client], None]]:
    """Sets the default client for one test."""
    before = tnp.default_client()
    yield tnp.set_default_client
    tnp.set_default_client(before)

"""Where credentials come from, and how they are refreshed: each place played by a local server."""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import torch
from servers.aws import AwsServer
from servers.http import refused_url
from servers.s3 import Key, S3Server
from support import noise, npy

import torchnpy as tnp

ARRAY = noise(5, 7)


@pytest.fixture
def aws(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsServer]:
    with AwsServer(s3_server) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", running.url)
        monkeypatch.setenv("HTTP_PROXY", "")
        yield running


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path / "config"


def loads(s3: S3Server, **options: Any) -> tnp.Client:
    """A client that has loaded an object with the credentials that it found."""
    client = tnp.Client(endpoint=s3.url, **options)
    url = s3.put_key("k.npy", npy(ARRAY))
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(ARRAY))
    return client


def signer(s3: S3Server) -> str:
    return s3.requests[-1].headers["authorization"].partition("Credential=")[2].split("/")[0]


ROOT_KEY = "aws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = {}\n"


def root_key(s3: S3Server) -> str:
    return ROOT_KEY.format(s3.keys["AKIDEXAMPLE"].secret)


def test_a_role_is_assumed_with_its_source_profile(
    s3_server: S3Server, aws: AwsServer, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(
        f"[profile base]\n{root_key(s3_server)}"
        "[profile role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\n"
        "external_id = e+1\nrole_session_name = me\nduration_seconds = 900\n"
    )
    loads(s3_server, profile="role")
    assert signer(s3_server) == "ASIA0001"
    expected = {"RoleArn": "arn:aws:iam::1:role/r", "ExternalId": "e+1", "RoleSessionName": "me"}
    assert aws.calls[0].items() >= {**expected, "DurationSeconds": "900"}.items()
    # botocore reads the same files alike, and signs alike.
    session = boto3.Session(profile_name="role", region_name="us-east-1")
    assert session.get_credentials().get_frozen_credentials().access_key == "ASIA0002"
    ignored = ("Action", "Version")
    assert {k: v for k, v in aws.calls[1].items() if k not in ignored} == {
        k: v for k, v in aws.calls[0].items() if k not in ignored
    }


def test_roles_are_assumed_in_a_chain(s3_server: S3Server, aws: AwsServer, config: Path) -> None:
    config.write_text(
        f"[profile base]\n{root_key(s3_server)}"
        "[profile one]\nrole_arn = arn:one\nsource_profile = base\n"
        "[profile two]\nrole_arn = arn:two\nsource_profile = one\n"
    )
    loads(s3_server, profile="two")
    assert [call["RoleArn"] for call in aws.calls] == ["arn:one", "arn:two"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("role_arn = a\nsource_profile = q\n[profile q]\nrole_arn = b\nsource_profile = p\n",
         ValueError, "loop: p -> q -> p"),
        ("role_arn = a\n", ValueError, "source_profile or credential_source"),
        ("role_arn = a\nsource_profile = none\n", ValueError, 'found "none"'),
        ("role_arn = a\ncredential_source = Moon\n", ValueError, 'found "Moon"'),
        ("role_arn = a\nmfa_serial = m\n", tnp.UnsupportedError, "mfa_serial"),
        ("sso_account_id = 1\nsso_role_name = r\n", tnp.UnsupportedError, "get_frozen_credentials"),
        ("credential_process = 'open\n", ValueError, "closing '"),
        ("credential_process = /nowhere/x\n", PermissionError, "No such file"),
        (f"credential_process = {sys.executable} -c 'import sys; sys.exit(\"why\")'\n",
         PermissionError, "status 1: why"),
        (f"credential_process = {sys.executable} -c 'print(1)'\n", PermissionError, "JSON object"),
    ],
)  # fmt: skip
def test_a_profile_that_gives_none_says_why(
    s3_server: S3Server, aws: AwsServer, config: Path, text: str, error: Any, message: str
) -> None:
    config.write_text(f"[profile p]\n{text}")
    with pytest.raises(error, match=message):
        loads(s3_server, profile="p")


def test_a_role_that_sts_refuses_says_so_without_the_secret(
    s3_server: S3Server, aws: AwsServer, config: Path
) -> None:
    config.write_text(
        "[profile p]\nrole_arn = a\nsource_profile = p\n"
        "aws_access_key_id = NOBODY\naws_secret_access_key = hidden\n"
    )
    with pytest.raises(PermissionError, match="InvalidClientTokenId") as caught:
        loads(s3_server, profile="p")
    assert "hidden" not in str(caught.value)


def test_a_web_identity_is_read_anew_and_unsigned(
    s3_server: S3Server, aws: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("identity\n")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:web")
    loads(s3_server)
    assert signer(s3_server) == "ASIA0001"
    (tmp_path / "token").write_text("other")
    with pytest.raises(PermissionError, match="InvalidIdentityToken"):
        loads(s3_server)


def test_a_process_prints_them(s3_server: S3Server, config: Path) -> None:
    s3_server.keys["PROC"] = Key("s", "t")
    answer = {"Version": 1, "AccessKeyId": "PROC", "SecretAccessKey": "s", "SessionToken": "t"}
    (config.parent / "a b.json").write_text(json.dumps(answer))
    config.write_text(f'[default]\ncredential_process = cat "{config.parent}/a b.json"\n')
    loads(s3_server)
    assert signer(s3_server) == "PROC"
    assert boto3.Session().get_credentials().access_key == "PROC"


@pytest.mark.parametrize("place", ["variable", "file"])
def test_a_container_gives_them(
    s3_server: S3Server,
    aws: AwsServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", aws.url + "/container")
    monkeypatch.setenv("HTTP_PROXY", refused_url())  # not for metadata
    monkeypatch.setenv("NO_PROXY", "nothing.example")
    aws.container_token = "secret"
    with pytest.raises(PermissionError, match=r"401 .*wrong token"):
        loads(s3_server, proxy="")
    if place == "file":
        (tmp_path / "token").write_text("secret")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    else:
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "secret")
    loads(s3_server, proxy="")
    assert signer(s3_server) == "ASIA0001"


def test_a_container_elsewhere_is_not_asked(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://10.0.0.1/x")
    with pytest.raises(ValueError, match=r"169\.254\.170\.2.*10\.0\.0\.1"):
        loads(s3_server)


def test_an_instance_gives_them(
    s3_server: S3Server, aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", aws.url)
    loads(s3_server)
    assert [request.method for request in aws.requests] == ["PUT", "GET", "GET"]


class Store:
    """A callable that pickles."""

    def __init__(self, key: str, secret: str) -> None:
        self.key, self.secret = key, secret

    def __call__(self) -> dict[str, str]:
        return {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret}


def test_a_callable_is_the_only_place_and_pickles(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    s3_server.keys["CALL"] = Key("hidden")
    client = loads(s3_server, credentials=Store("CALL", "hidden"))
    assert signer(s3_server) == "CALL"
    assert "hidden" not in repr(client)
    again = pickle.loads(pickle.dumps(client))
    assert torch.equal(tnp.load("s3://bucket/k.npy", client=again), torch.from_numpy(ARRAY))


def test_a_callable_may_be_botocores(s3_server: S3Server) -> None:
    session = boto3.Session("AKIDEXAMPLE", s3_server.keys["AKIDEXAMPLE"].secret)
    loads(s3_server, credentials=session.get_credentials().get_frozen_credentials)


GOOD = {"access_key": "a", "secret_key": "b"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "credentials but found NoneType"),
        ({}, "access key as a str"),
        (GOOD | {"secret_key": 1}, "secret key as a str but found int"),
        (GOOD | {"expiration": datetime(2090, 1, 1)}, "time zone"),
        (GOOD | {"expiry": "soon"}, "ISO 8601"),
        (SimpleNamespace(access_key="a b", secret_key="c"), "blanks"),
    ],
)
def test_a_callable_that_returns_something_else_is_a_value_error(
    s3_server: S3Server, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"credentials: .*{message}"):
        loads(s3_server, credentials=lambda: value)


def test_what_a_callable_raises_is_told(s3_server: S3Server) -> None:
    def fail() -> None:
        raise RuntimeError("log in first")

    with pytest.raises(PermissionError, match="RuntimeError: log in first"):
        loads(s3_server, credentials=fail)


def test_a_credential_that_is_no_choice_is_a_value_error_unshown() -> None:
    with pytest.raises(ValueError, match="credentials: ") as caught:
        tnp.Client(credentials="AKIA-secret")  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_a_token_that_expires_in_mid_epoch_is_refreshed_once(s3_server: S3Server) -> None:
    """32 threads load; none fails."""
    count = 0

    def make() -> dict[str, Any]:
        nonlocal count
        count += 1
        s3_server.keys[f"K{count}"] = Key("s", f"t{count}")
        end = datetime.now(UTC) + timedelta(hours=1)
        return {"access_key": f"K{count}", "secret_key": "s", "token": f"t{count}", "expiry": end}

    client = loads(s3_server, credentials=make)
    url = "s3://bucket/k.npy"

    def load(number: int) -> bool:
        if number == 40:
            s3_server.keys["K1"].expired = True
        return bool((tnp.load(url, client=client).numpy() == ARRAY).all())

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(load, range(400)))
    assert count == 2
    assert client.metrics()["credentials_refreshes"] == 1


def test_static_keys_that_expired_fail_at_once(s3_server: S3Server, s3_client: tnp.Client) -> None:
    url = s3_server.put_key("k.npy", npy(ARRAY))
    s3_server.keys["AKIDEXAMPLE"].expired = True
    with pytest.raises(PermissionError, match=r"ExpiredToken.*new credentials"):
        tnp.load(url, client=s3_client)
    assert len(s3_server.requests) == 1


def test_credentials_near_their_end_are_refreshed_before_it(
    s3_server: S3Server, aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", aws.url + "/container")
    aws.lifetime_s = 3
    client = loads(s3_server)
    for _ in range(100):
        if aws.made > 1:
            break
        tnp.load("s3://bucket/k.npy", client=client)
        time.sleep(0.05)
    assert aws.made >= 2

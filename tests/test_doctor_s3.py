"""What `torchnpy doctor` tells of the settings of S3, and that it tells no secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers.http import ObjectServer
from servers.s3 import Key, S3Server
from support import Run, npy

import torchnpy as tnp


@pytest.fixture
def settings(run: Run) -> Callable[[], dict[str, Any]]:
    """The section of --json."""
    return lambda: run("doctor", "--json").rows[0]["s3"]


PLACES = ["environment", "credentials", "credential_process", "config"]


@pytest.mark.parametrize("first", range(len(PLACES)), ids=PLACES)
def test_source_of_credentials_is_the_one_that_signs(
    first: int,
    settings: Callable[[], dict[str, Any]],
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3_server.keys = {f"AKID{number}": Key(f"secret{number}") for number in range(len(PLACES))}
    s3_server.buckets["bucket"].objects["x.npy"] = npy(np.arange(3))
    process = '{"Version": 1, "AccessKeyId": "AKID2", "SecretAccessKey": "secret2"}'
    (tmp_path / "answer").write_text(process)
    keys = "aws_access_key_id = AKID{0}\naws_secret_access_key = secret{0}\n"
    config = ["[profile lab]"]
    if first <= 2:
        config.append(f"credential_process = cat {tmp_path}/answer")
    (tmp_path / "config").write_text("\n".join([*config, keys.format(3)]))
    (tmp_path / "credentials").write_text("[lab]\n" + (keys.format(1) if first <= 1 else ""))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.url)
    if first == 0:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID0")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret0")

    found = settings()
    assert (
        found["credentials"]
        == [
            "the environment (AWS_ACCESS_KEY_ID)",
            f'profile "lab" of {tmp_path}/credentials',
            'credential_process of profile "lab"',
            f'profile "lab" of {tmp_path}/config',
        ][first]
    )
    assert (found["profile"], found["endpoint"]) == ("lab", s3_server.url)
    tnp.load("s3://bucket/x.npy", client=tnp.Client(retries=1))
    assert f"Credential=AKID{first}/" in s3_server.requests[-1].headers["authorization"]


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Writes ~/.aws in a home of its own."""
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))

    def write(config: str = "", credentials: str = "") -> None:
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws/config").write_text(config)
        (tmp_path / ".aws/credentials").write_text(credentials)

    return write


@pytest.mark.parametrize(
    ("config", "environment", "source"),
    [
        ("", {}, "none"),
        ("[default]\nrole_arn = a\nsource_profile = b", {}, 'role_arn of profile "default"'),
        ("[default]\nweb_identity_token_file = answer\nrole_arn = a", {}, "a web identity"),
        ("", {"AWS_WEB_IDENTITY_TOKEN_FILE": "t", "AWS_ROLE_ARN": "a"}, "a web identity"),
        ("[default]\nsso_account_id = 1", {}, 'SSO of profile "default"'),
        ("[default]\nlogin_session = x", {}, 'login_session of profile "default"'),
        ("", {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/x"}, "the container's credentials"),
        ("", {"AWS_EC2_METADATA_DISABLED": "false"}, "EC2's instance metadata"),
    ],
)
def test_source_of_credentials_is_named(
    config: str,
    environment: dict[str, str],
    source: str,
    settings: Callable[[], dict[str, Any]],
    aws: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aws(config)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings()["credentials"].startswith(source)


def test_no_service_is_asked(
    settings: Callable[[], dict[str, Any]], server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
    assert settings()["credentials"].startswith("EC2's instance metadata")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.url}/credentials")
    assert settings()["credentials"] == "the container's credentials service"
    assert server.requests == []


def test_settings_of_a_profile_are_told(
    settings: Callable[[], dict[str, Any]],
    aws: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aws(
        '[profile "lab"]\nregion = eu-west-1\nservices = local\n'
        "[services local]\ns3 =\n  endpoint_url = http://127.0.0.1:9000\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "lab")
    found = settings()
    assert (found["region"], found["endpoint"]) == ("eu-west-1", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    found = settings()
    assert (found["region"], found["endpoint"]) == ("us-west-2", "AWS")


@pytest.mark.parametrize("broken", ["", "hush without a delimiter\n"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_secret_is_printed(
    broken: str,
    form: list[str],
    run: Run,
    aws: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = "aws_access_key_id = hush\naws_secret_access_key = hush\naws_session_token = hush\n"
    aws(
        f"{broken}[default]\ncredential_process = program --password hush\nexternal_id = hush\n"
        f"{keys}endpoint_url = http://hush:hush@127.0.0.1/?X-Amz-Signature=hush\n",
        f"[default]\n{keys}{broken}",
    )
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "AWS_BEARER_TOKEN_BEDROCK",
    ):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1/?token=hush")
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://hush:hu@sh@proxy:3128/?hush#hush")
    monkeypatch.setenv("HTTPS_PROXY", "hush:hush@proxy:3128")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "https://hush:hush@sts.example/")
    ended = run("doctor", *form)
    assert ended.status == 0
    assert "hush" not in ended.out + ended.err
    assert "http://***@proxy:3128/?***" in ended.out
    assert ("found something else in line" in ended.out) == bool(broken)


# Advice


def test_ways_of_a_profile_that_need_boto3_are_named(
    settings: Callable[[], dict[str, Any]], aws: Callable[..., None]
) -> None:
    aws("[default]\nrole_arn = a\nsource_profile = b\nmfa_serial = c\n")
    assert settings()["problems"][0] == (
        'profile "default" takes its credentials by SSO, a login or an MFA code, which torchnpy '
        'cannot; pass Client(credentials=boto3.Session(profile_name="default").get_credentials()'
        ".get_frozen_credentials)"
    )


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"AWS_ACCESS_KEY_ID": "x"}, "but AWS_SECRET_ACCESS_KEY is not; set both"),
        ({"AWS_PROFILE": "lab"}, "AWS_PROFILE: expected a profile of /dev/null or /dev/null but "),
        (
            {"AWS_DEFAULT_PROFILE": "lab"},
            "AWS_DEFAULT_PROFILE: expected a profile of /dev/null or ",
        ),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/none"}, "found none at /none; mount it"),
        ({"AWS_CONFIG_FILE": "/"}, "/: expected a readable file but found: Is a directory"),
    ],
)
def test_advice_on_settings(
    environment: dict[str, str], problem: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = run("doctor", "--json").rows[0]
    (line,) = found["s3"]["problems"]
    assert problem in line
    assert line in found["advice"]

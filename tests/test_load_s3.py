"""Arrays from S3: keys, addressing, credentials, regions, listings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from botocore.config import Config
from servers.http import cut, s3_error
from servers.moto import MotoServer
from servers.s3 import Bucket, Key, S3Server
from support import noise, npy

import torchnpy as tnp

ARRAY = noise(5, 7)
LARGE = noise(300, 1000)
ODD_KEYS = [
    "plain.npy",
    "a=b/c d+e%2Fü.npy",
    "/leading.npy",
    "//a//b//",
    "a/../b.npy",
    "./a/./b.npy",
    "../b.npy",
    "what?x=1&y#z.npy",
    "!*'()~-_.,:;@$[]{}|^`\"<>\\",
    "日本語/😀.npy",
    "tab\tnewline\n",
]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_any_key_is_found(s3_server: S3Server, s3_client: tnp.Client, key: str) -> None:
    url = s3_server.put_key(key, npy(ARRAY))
    assert torch.equal(tnp.load(url, client=s3_client), torch.from_numpy(ARRAY))
    assert len(s3_server.requests) == 1


@pytest.mark.parametrize("key", ["plain.npy", "a=b/c d+e%2Fü.npy", "x?y#z.npy"])
@pytest.mark.parametrize("array", [ARRAY, LARGE], ids=["small", "large"])
def test_moto_accepts_the_signature(
    moto: MotoServer, monkeypatch: pytest.MonkeyPatch, key: str, array: np.ndarray
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret)
    client = tnp.Client(endpoint=moto.endpoint)
    url = moto.put(key, npy(array))
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(array))


def test_moto_refuses_a_wrong_secret(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    url = moto.put("x.npy", npy(ARRAY))
    with pytest.raises(PermissionError, match="SignatureDoesNotMatch") as caught:
        tnp.load(url, client=tnp.Client(endpoint=moto.endpoint))
    assert isinstance(caught.value, tnp.TransportError)


@pytest.mark.parametrize(
    ("addressing", "bucket", "host", "path"),
    [
        ("auto", "bucket", "localhost", "/bucket/k.npy"),
        ("path", "bucket", "localhost", "/bucket/k.npy"),
        ("virtual", "bucket", "bucket.localhost", "/k.npy"),
        ("auto", "dotted.bucket", "localhost", "/dotted.bucket/k.npy"),
    ],
)
@pytest.mark.usefixtures("credentials")
def test_addressing_puts_the_bucket_in_the_path_or_the_host(
    s3_server: S3Server, addressing: Any, bucket: str, host: str, path: str
) -> None:
    s3_server.buckets[bucket] = Bucket()
    url = s3_server.put_key("k.npy", npy(ARRAY), bucket)
    endpoint = f"http://localhost:{s3_server.port}"
    client = tnp.Client(endpoint=endpoint, addressing=addressing)
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(ARRAY))
    assert s3_server.requests[0].headers["host"] == f"{host}:{s3_server.port}"
    assert s3_server.requests[0].target == path


def test_a_session_token_in_the_environment_is_sent_and_signed(
    s3_server: S3Server, s3_client: tnp.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.keys["AKIDEXAMPLE"].token = "the/session+token=="
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the/session+token==")
    url = s3_server.put_key("k.npy", npy(ARRAY))
    assert torch.equal(tnp.load(url, client=s3_client), torch.from_numpy(ARRAY))


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.usefixtures("credentials")
def test_the_endpoint_comes_from_the_environment(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv(variable, s3_server.url)
    url = s3_server.put_key("k.npy", npy(ARRAY))
    assert torch.equal(tnp.load(url, client=tnp.Client(retries=1)), torch.from_numpy(ARRAY))


@pytest.mark.parametrize(
    ("environment", "option", "region"),
    [
        ({}, None, "us-east-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-3"}, None, "eu-west-3"),
        ({"AWS_DEFAULT_REGION": "eu-west-3", "AWS_REGION": "ap-south-1"}, None, "ap-south-1"),
        ({"AWS_REGION": "ap-south-1"}, "sa-east-1", "sa-east-1"),
    ],
)
@pytest.mark.usefixtures("credentials")
def test_the_region_that_signs(
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    option: str | None,
    region: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3_server.buckets["bucket"].region = region
    url = s3_server.put_key("k.npy", npy(ARRAY))
    tnp.load(url, client=tnp.Client(endpoint=s3_server.url, region=option))
    assert len(s3_server.requests) == 1


def write_profiles(folder: Path, endpoint: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = DEFAULTKEY\naws_secret_access_key = default/secret\n"
        "# a comment\n\n"
        "[work]\naws_access_key_id=WORKKEY\naws_secret_access_key=work/secret+=\n"
        "aws_session_token = token==\n"
    )
    (folder / "config").write_text(
        f"[default]\nregion = eu-west-3\nendpoint_url = {endpoint}\n"
        f"[profile work]\nregion = ap-south-1\nendpoint_url = {endpoint}\n"
        "s3 =\n  addressing_style = path\n"
        f"[profile keys]\nendpoint_url = {endpoint}\naws_access_key_id = DEFAULTKEY\n"
        "aws_secret_access_key = default/secret\nregion = eu-west-3\n"
    )


@pytest.mark.parametrize(
    ("profile", "variable", "region"),
    [
        (None, None, "eu-west-3"),
        ("work", None, "ap-south-1"),
        (None, "work", "ap-south-1"),
        ("keys", "work", "eu-west-3"),
    ],
)
@pytest.mark.parametrize("place", ["home", "variables"])
def test_profiles_give_keys_region_and_endpoint(
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    profile: str | None,
    variable: str | None,
    region: str,
    place: str,
) -> None:
    write_profiles(tmp_path / ".aws", s3_server.url)
    for name, file in (
        ("AWS_CONFIG_FILE", "config"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
    ):
        if place == "home":
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, str(tmp_path / ".aws" / file))
    monkeypatch.setenv("HOME", str(tmp_path if place == "home" else tmp_path / "nowhere"))
    if variable:
        monkeypatch.setenv("AWS_PROFILE", variable)
    s3_server.keys = {
        "DEFAULTKEY": Key("default/secret"),
        "WORKKEY": Key("work/secret+=", "token=="),
    }
    s3_server.buckets["bucket"].region = region
    url = s3_server.put_key("k.npy", npy(ARRAY))
    client = tnp.Client(profile=profile, retries=1)
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(ARRAY))
    assert len(s3_server.requests) == 1


def test_a_profile_that_is_missing_is_named(s3_server: S3Server) -> None:
    with pytest.raises((tnp.TransportError, ValueError), match="nobody"):
        tnp.load("s3://bucket/k", client=tnp.Client(endpoint=s3_server.url, profile="nobody"))
    assert s3_server.requests == []


def test_no_credentials_is_an_error_that_says_what_to_do(s3_server: S3Server) -> None:
    with pytest.raises(tnp.TransportError, match=r"credentials.*anonymous"):
        tnp.load("s3://bucket/k.npy", client=tnp.Client(endpoint=s3_server.url))
    assert s3_server.requests == []


@pytest.mark.usefixtures("credentials")
def test_anonymous_requests_are_not_signed(
    s3_server: S3Server,
) -> None:
    s3_server.buckets["bucket"].public = True
    url = s3_server.put_key("k.npy", npy(ARRAY))
    client = tnp.Client(endpoint=s3_server.url, credentials="anonymous")
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(ARRAY))
    headers = s3_server.requests[0].headers
    assert not [name for name in headers if name == "authorization" or name.startswith("x-amz-")]


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.usefixtures("credentials")
def test_requester_pays_only_when_asked(s3_server: S3Server, pays: bool) -> None:
    s3_server.buckets["bucket"].requester_pays = True
    url = s3_server.put_key("k.npy", npy(ARRAY))
    client = tnp.Client(endpoint=s3_server.url, requester_pays=pays)
    if pays:
        assert torch.equal(tnp.load(url, client=client), torch.from_numpy(ARRAY))
    else:
        with pytest.raises(PermissionError, match="requester pays"):
            tnp.load(url, client=client)


@pytest.mark.parametrize("code", [301, 400, 403])
@pytest.mark.parametrize("addressing", ["path", "virtual"])
@pytest.mark.usefixtures("credentials")
def test_a_wrong_region_is_found_and_remembered(
    s3_server: S3Server, code: int, addressing: Any
) -> None:
    s3_server.wrong_region_status = code
    s3_server.buckets["far"] = Bucket(region="eu-north-1")
    urls = [s3_server.put_key(f"{i}.npy", npy(ARRAY), "far") for i in range(3)]
    client = tnp.Client(
        endpoint=f"http://localhost:{s3_server.port}", addressing=addressing, retries=1
    )
    for url in urls:
        assert torch.equal(tnp.load(url, client=client), torch.from_numpy(ARRAY))
    folder = "/far" if addressing == "path" else ""
    assert [request.path for request in s3_server.requests] == [
        f"{folder}/{number}.npy" for number in (0, 0, 1, 2)
    ]
    assert [info.url for info in client.list("s3://far/")] == urls


REGION = "<Region>eu-north-1</Region>"


@pytest.mark.parametrize(
    ("code", "name", "headers", "more"),
    [
        (301, "PermanentRedirect", {"x_amz_bucket_region": "eu-north-1"}, ""),
        (301, "PermanentRedirect", {}, REGION),
        (400, "AuthorizationHeaderMalformed", {}, REGION),
        (400, "IllegalLocationConstraintException", {"x_amz_bucket_region": "eu-north-1"}, ""),
        (403, "AccessDenied", {"x_amz_bucket_region": "eu-north-1"}, ""),
        (307, "TemporaryRedirect", {"x_amz_bucket_region": "eu-north-1"}, ""),
    ],
)
@pytest.mark.parametrize("addressing", ["path", "virtual"])
@pytest.mark.usefixtures("credentials")
def test_the_region_is_taken_from_the_header_or_the_body(
    s3_server: S3Server,
    code: int,
    name: str,
    headers: dict[str, str],
    more: str,
    addressing: Any,
) -> None:
    s3_server.buckets["bucket"].region = "eu-north-1"
    url = s3_server.put_key("k.npy", npy(ARRAY))
    path = "/bucket/k.npy" if addressing == "path" else "/k.npy"
    s3_server.fail(path, s3_error(code, name, f"as asked</Message>{more}<Message>", **headers))
    client = tnp.Client(
        endpoint=f"http://localhost:{s3_server.port}", addressing=addressing, retries=1
    )
    assert torch.equal(tnp.load(url, client=client), torch.from_numpy(ARRAY))
    regions = [r.headers["authorization"].split("/")[2] for r in s3_server.requests]
    assert regions == ["us-east-1", "eu-north-1"]


@pytest.mark.usefixtures("credentials")
def test_a_region_that_is_named_again_and_again_ends_in_an_error(s3_server: S3Server) -> None:
    url = s3_server.put_key("k.npy", npy(ARRAY))
    fault = s3_error(400, "AuthorizationHeaderMalformed", x_amz_bucket_region="eu-north-1")
    s3_server.always("/bucket/k.npy", fault)
    with pytest.raises(tnp.TransportError, match="AuthorizationHeaderMalformed"):
        tnp.load(url, client=tnp.Client(endpoint=s3_server.url))
    assert len(s3_server.requests) == 4


def presign(s3_server: S3Server, key: str) -> str:
    client = boto3.client(
        "s3",
        endpoint_url=s3_server.url,
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key=s3_server.keys["AKIDEXAMPLE"].secret,
        region_name="us-east-1",
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    return str(client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": key}))


@pytest.mark.parametrize("array", [ARRAY, LARGE], ids=["small", "large"])
def test_a_presigned_url_works_without_credentials(s3_server: S3Server, array: np.ndarray) -> None:
    s3_server.put_key("a=b/c d+e%2Fü.npy", npy(array))
    url = presign(s3_server, "a=b/c d+e%2Fü.npy")
    assert torch.equal(tnp.load(url), torch.from_numpy(array))
    assert {request.method for request in s3_server.requests} == {"GET"}


def test_a_refused_presigned_url_is_named_without_its_query(s3_server: S3Server) -> None:
    s3_server.put_key("x.npy", npy(ARRAY))
    url = presign(s3_server, "x.npy").replace("X-Amz-Signature=", "X-Amz-Signature=0")
    with pytest.raises(PermissionError, match=r"/bucket/x.npy.*SignatureDoesNotMatch") as caught:
        tnp.load(url)
    assert "X-Amz" not in str(caught.value)
    assert "AKID" not in str(caught.value)


def test_a_listing_of_several_pages_is_in_order(s3_server: S3Server, s3_client: tnp.Client) -> None:
    s3_server.page_count = 4
    urls = {
        s3_server.put_key("p/" + key, npy(ARRAY[:i])): key for i, key in enumerate("zyxwvutsrq")
    }
    s3_server.put_key("other", b"")
    infos = list(s3_client.list("s3://bucket/p/"))
    assert [info.url for info in infos] == sorted(urls)
    assert len(s3_server.requests) == 3
    assert infos[0].nbytes == len(npy(ARRAY[:9]))
    assert len(infos[0].etag) == 32
    assert str(infos[0].modified).startswith("2024-05-06")


def test_a_listing_is_lazy(s3_server: S3Server, s3_client: tnp.Client) -> None:
    s3_server.page_count = 1
    for key in "abc":
        s3_server.put_key(key, b"")
    assert next(iter(s3_client.list("s3://bucket/"))).url == "s3://bucket/a"
    assert len(s3_server.requests) < 3


def test_listed_odd_keys_load(s3_server: S3Server, s3_client: tnp.Client) -> None:
    for key in ODD_KEYS[:-1]:
        s3_server.put_key(key, npy(ARRAY))
    urls = [info.url for info in s3_client.list("s3://bucket/")]
    assert urls == sorted(f"s3://bucket/{key}" for key in ODD_KEYS[:-1])
    assert all(
        torch.equal(x, torch.from_numpy(ARRAY)) for x in tnp.load_many(urls, client=s3_client)
    )


def test_a_listing_takes_a_suffix_and_an_odd_prefix(
    s3_server: S3Server, s3_client: tnp.Client
) -> None:
    for key in ("a b+c/1.npy", "a b+c/2.txt", "a b"):
        s3_server.put_key(key, b"")
    infos = s3_client.list("s3://bucket/a b+c/", suffix=".npy")
    assert [info.url for info in infos] == ["s3://bucket/a b+c/1.npy"]
    assert list(s3_client.list("s3://bucket/none/")) == []


def test_moto_lists_what_was_put(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret)
    urls = [moto.put(f"list/{key}", b"x") for key in ("a", "b c", "d=e+f")]
    client = tnp.Client(endpoint=moto.endpoint)
    assert [info.url for info in client.list("s3://bucket/list/")] == urls


def test_a_listing_that_is_refused_says_why(s3_client: tnp.Client) -> None:
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        list(s3_client.list("s3://nobody/"))


@pytest.mark.parametrize(
    "fault",
    [
        s3_error(503, "SlowDown"),
        s3_error(400, "RequestTimeout"),
        s3_error(500, "InternalError"),
        cut(100, "close"),
    ],
)
def test_what_may_pass_is_tried_again_and_signed_anew(
    s3_server: S3Server, s3_client: tnp.Client, fault: Any
) -> None:
    url = s3_server.put_key("k.npy", npy(ARRAY))
    s3_server.fail("/bucket/k.npy", fault)
    assert torch.equal(tnp.load(url, client=s3_client), torch.from_numpy(ARRAY))
    assert len(s3_server.requests) == 2


def test_a_skewed_clock_is_corrected_by_the_servers_date(
    s3_server: S3Server, s3_client: tnp.Client
) -> None:
    url = s3_server.put_key("k.npy", npy(ARRAY))
    skewed = s3_error(403, "RequestTimeTooSkewed", Date="Wed, 01 Jan 2031 10:00:00 GMT")
    s3_server.fail("/bucket/k.npy", skewed)
    assert torch.equal(tnp.load(url, client=s3_client), torch.from_numpy(ARRAY))
    assert s3_server.requests[1].headers["x-amz-date"].startswith("20310101T100")


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///key", "s3://bucket", "s3://bucket/", "s3://Bad_Bucket!/k", "ftp://x/y.npy"],
)
def test_a_url_that_names_no_object_is_a_value_error(s3_client: tnp.Client, url: str) -> None:
    with pytest.raises(ValueError, match=r"expected|bucket|key|scheme"):
        tnp.load(url, client=s3_client)


@pytest.mark.parametrize(
    "url", ["s3://name--use1-az4--x-s3/k.npy", "s3://arn:aws:s3:::accesspoint/x/k.npy"]
)
def test_express_buckets_and_arns_are_unsupported(s3_client: tnp.Client, url: str) -> None:
    with pytest.raises(tnp.UnsupportedError):
        tnp.load(url, client=s3_client)


def test_ops_use_the_default_client(
    s3_server: S3Server,
    s3_client: tnp.Client,
    use_default_client: Callable[[tnp.Client], None],
) -> None:
    use_default_client(s3_client)
    url = s3_server.put_key("k.npy", npy(ARRAY))
    assert torch.equal(torch.ops.npy.load(url), torch.from_numpy(ARRAY))
    assert s3_client.metrics()["requests"] == 1

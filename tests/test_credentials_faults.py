"""Credentials when things go wrong: services that are silent, refreshes that last, forks, exits."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from servers.aws import AwsServer
from servers.http import cut, refused_url, status
from servers.s3 import Key, S3Server
from support import noise, npy, run_script, start_script

import torchnpy as tnp

ARRAY = noise(5, 7)
URL = "s3://bucket/k.npy"
IMDS_TOKEN = "/latest/api/token"


@pytest.fixture
def store(s3_server: S3Server) -> S3Server:
    s3_server.put_key("k.npy", npy(ARRAY))
    return s3_server


@pytest.fixture
def aws(store: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsServer]:
    with AwsServer(store) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", running.url)
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", running.url)
        yield running


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path / "config"


def load(client: tnp.Client) -> bool:
    return torch.equal(tnp.load(URL, client=client), torch.from_numpy(ARRAY))


def root_key(store: S3Server) -> str:
    secret = store.keys["AKIDEXAMPLE"].secret
    return f"aws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = {secret}\n"


@pytest.fixture
def no_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "0.3")


@pytest.mark.usefixtures("no_instance")
def test_a_machine_without_metadata_says_that_nobody_answered(
    store: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", refused_url().removesuffix("/x.npy"))
    with pytest.raises(PermissionError, match=r"metadata \(Connection refused\)"):
        load(tnp.Client(endpoint=store.url))


@pytest.mark.usefixtures("no_instance")
def test_silent_metadata_is_waited_for_once(store: S3Server, aws: AwsServer) -> None:
    aws.always(IMDS_TOKEN, cut(None, "stall"))
    client = tnp.Client(endpoint=store.url)
    for _ in range(3):
        with pytest.raises(PermissionError, match=r"metadata \(no answer within 0.3 s\)"):
            load(client)
    assert len(aws.requests) == 1


@pytest.mark.parametrize("code", [403, 404, 405])
@pytest.mark.usefixtures("no_instance")
def test_metadata_of_version_1_is_refused_by_name(
    store: S3Server, aws: AwsServer, code: int
) -> None:
    aws.always(IMDS_TOKEN, status(code))
    client = tnp.Client(endpoint=store.url)
    with pytest.raises(PermissionError, match=f"HTTP {code} .*IMDSv2"):
        load(client)
    aws.always(IMDS_TOKEN, lambda _, answer: answer)  # switched on meanwhile
    assert load(client)


@pytest.mark.usefixtures("no_instance")
def test_an_instance_without_a_role_says_so(store: S3Server, aws: AwsServer) -> None:
    aws.always("/latest/meta-data/iam/security-credentials/", status(404))
    with pytest.raises(PermissionError, match=r"metadata \(the instance has no role\)"):
        load(tnp.Client(endpoint=store.url))


def test_sts_is_asked_again_after_a_fault(store: S3Server, aws: AwsServer, config: Path) -> None:
    config.write_text(f"[default]\nrole_arn = r\nsource_profile = default\n{root_key(store)}")
    aws.fail("/", status(503), cut(None), None)
    assert load(tnp.Client(endpoint=store.url))
    assert len(aws.requests) == 3


@pytest.mark.parametrize("place", ["Environment", "Ec2InstanceMetadata", "EcsContainer"])
@pytest.mark.usefixtures("no_instance")
def test_a_role_is_assumed_with_its_credential_source(
    store: S3Server, aws: AwsServer, config: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    config.write_text(f"[profile p]\nrole_arn = r\ncredential_source = {place}\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", store.keys["AKIDEXAMPLE"].secret)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", aws.url + "/container")
    assert load(tnp.Client(endpoint=store.url, profile="p"))
    asked = {"Environment": "", "Ec2InstanceMetadata": "/latest", "EcsContainer": "/container"}
    signer = "AKIDEXAMPLE" if place == "Environment" else "ASIA0001"
    assert aws.requests[0].path.startswith(asked[place])
    assert f"Credential={signer}/" in aws.requests[-1].headers["authorization"]


def test_a_process_ends_though_workers_are_forked_meanwhile(store: S3Server, config: Path) -> None:
    """A worker that kept the written end of its output would keep that from ending."""
    store.keys["PROC"] = Key("s")
    answer = '{"Version": 1, "AccessKeyId": "PROC", "SecretAccessKey": "s"}'
    (config.parent / "answer").write_text(answer)
    config.write_text(f"[default]\ncredential_process = cat {config.parent}/answer\n")
    run_script(
        """
        import os, sys, threading, torchnpy as tnp
        reading, writing = os.pipe()
        ended = threading.Event()

        def load():
            while not ended.is_set():
                tnp.load("s3://bucket/k.npy", client=tnp.Client(endpoint=sys.argv[1]))

        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        children = []
        for _ in range(50):
            child = os.fork()
            if child == 0:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            children.append(child)
        ended.set()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        os.close(writing)
        for child in children:
            os.waitpid(child, 0)
        """,
        store.url,
    )


class Keys:
    """A callable: a new key each time, after `delay_s` but for the first."""

    def __init__(self, store: S3Server, delay_s: float = 0, lifetime_s: float = 3600) -> None:
        self.store, self.delay_s, self.lifetime_s = store, delay_s, lifetime_s
        self.count = 0

    def __call__(self) -> dict[str, Any]:
        self.count += 1
        name = f"K{self.count}"
        if self.count > 1:
            time.sleep(self.delay_s)
        self.store.keys[name] = Key("s")
        end = datetime.now(UTC) + timedelta(seconds=self.lifetime_s)
        return {"access_key": name, "secret_key": "s", "expiry": end}


def test_a_load_waits_for_a_refresh_without_using_up_its_attempts(store: S3Server) -> None:
    keys = Keys(store, delay_s=1.5)
    client = tnp.Client(endpoint=store.url, credentials=keys, retries=2)
    assert load(client)
    store.keys["K1"].expired = True
    assert load(client)
    assert [r.headers["authorization"].split("/")[0][-2:] for r in store.requests] == [
        "K1",
        "K1",
        "K2",
    ]


def test_many_loads_wait_for_one_refresh(store: S3Server) -> None:
    keys = Keys(store, delay_s=1)
    client = tnp.Client(endpoint=store.url, credentials=keys, retries=2)
    assert load(client)
    store.keys["K1"].expired = True
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda _: load(client), range(64)))
    assert keys.count == 2


def test_a_refresh_that_fails_ends_the_wait(store: S3Server) -> None:
    keys = Keys(store)

    def once() -> dict[str, Any]:
        if keys.count == 1:
            raise RuntimeError("log in again")
        return keys()

    client = tnp.Client(endpoint=store.url, credentials=once, retries=2)
    assert load(client)
    store.keys["K1"].expired = True
    with pytest.raises(PermissionError, match=r"ExpiredToken|log in again"):
        load(client)


def test_a_deadline_ends_the_wait_for_a_refresh(store: S3Server) -> None:
    keys = Keys(store, delay_s=3)
    client = tnp.Client(endpoint=store.url, credentials=keys, deadline_s=0.5)
    assert load(client)
    store.keys["K1"].expired = True
    with pytest.raises(TimeoutError, match="deadline"):
        load(client)


def test_an_early_refresh_that_fails_is_a_warning_and_no_error(
    store: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(store, lifetime_s=6)

    def once() -> dict[str, Any]:
        if keys.count == 1:
            raise RuntimeError("not yet")
        return keys()

    client = tnp.Client(endpoint=store.url, credentials=once)
    assert load(client)
    end = time.monotonic() + 5.5
    time.sleep(3.05)
    found: list[str] = []
    while not found and time.monotonic() < end:
        assert load(client)
        # What an earlier test caused may come late.
        found = [text for r in caplog.records if "not yet" in (text := r.getMessage())]
    assert len(found) == 1
    assert "credentials were not refreshed" in found[0]
    assert caplog.records[-1].levelno == logging.WARNING


CALLABLE = """
import datetime, os, sys, threading, time, torchnpy as tnp

class Keys:
    def __init__(self, marker, first_waits):
        self.marker, self.waits = marker, first_waits

    def __call__(self):
        if self.waits:
            open(self.marker, "w").close()
            time.sleep(600)
        self.waits = True
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        return {"access_key": "ASIA", "secret_key": "s", "expiry": end}

def make_client(place, marker, endpoint, first_waits):
    options = {"credentials": Keys(marker, first_waits)} if place == "callable" else {}
    return tnp.Client(endpoint=endpoint, **options)
"""


class Waiting:
    """A place whose second answer (or first) never comes."""

    def __init__(self, place: str, store: S3Server, aws: AwsServer, config: Path) -> None:
        self.marker = config.parent / "waits"
        self.store, self.aws, self.place = store, aws, place
        store.keys["ASIA"] = Key("s")
        script = config.parent / "process.sh"
        end = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        script.write_text(
            f"if [ -e {config.parent}/block ]; then touch {self.marker}; exec sleep 600; fi\n"
            'echo \'{"Version": 1, "AccessKeyId": "ASIA", "SecretAccessKey": "s", '
            f'"Expiration": "{end}"}}\'\n'
        )
        if place == "process":
            config.write_text(f"[default]\ncredential_process = sh {script}\n")
        if place == "sts":
            config.write_text(
                f"[default]\nrole_arn = r\nsource_profile = default\n{root_key(store)}"
            )

    def block(self) -> None:
        (self.marker.parent / "block").touch()
        self.aws.always("/", cut(None, "stall"))

    def has_begun(self) -> bool:
        for _ in range(600):
            if self.marker.exists() or self.aws.stalled.is_set():
                return True
            time.sleep(0.05)
        return False


@pytest.fixture(params=["callable", "process", "sts"])
def waiting(
    request: pytest.FixtureRequest, store: S3Server, aws: AwsServer, config: Path
) -> Waiting:
    return Waiting(request.param, store, aws, config)


def test_ctrl_c_ends_the_wait_for_credentials(waiting: Waiting) -> None:
    waiting.block()
    code = f"""{CALLABLE}
try:
    tnp.load("s3://bucket/k.npy", client=make_client(*sys.argv[1:], True))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with start_script(code, waiting.place, waiting.marker, waiting.store.url) as script:
        assert waiting.has_begun()
        script.send_signal(signal.SIGINT)
        assert script.finish() == (0, "interrupted\n", "")


def test_an_interpreter_ends_during_a_refresh(waiting: Waiting) -> None:
    code = f"""{CALLABLE}
client = make_client(*sys.argv[1:], False)
tnp.load("s3://bucket/k.npy", client=client)
print("loaded", flush=True)
sys.stdin.readline()
threading.Thread(target=tnp.load, args=[URL], kwargs=dict(client=client), daemon=True).start()
sys.stdin.readline()
print("ends", flush=True)
""".replace("URL", '"s3://bucket/k.npy"')
    with start_script(code, waiting.place, waiting.marker, waiting.store.url) as script:
        assert script.stdout.readline() == "loaded\n"
        for key in waiting.store.keys.values():
            key.expired = True
        waiting.block()
        script.stdin.write("\n")
        script.stdin.flush()
        assert waiting.has_begun()
        assert script.finish() == (0, "ends\n", "")


@pytest.mark.parametrize("parent", ["idle", "refreshing"])
def test_a_forked_child_refreshes_for_itself(
    store: S3Server, aws: AwsServer, monkeypatch: pytest.MonkeyPatch, parent: str
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", aws.url + "/container")
    code = """
import os, sys, threading, torchnpy as tnp
client = tnp.Client(endpoint=sys.argv[1], retries=2)

def load():
    assert tuple(tnp.load("s3://bucket/k.npy", client=client).shape) == (5, 7)

load()
thread = threading.Thread(target=load)
print("loaded", flush=True)
sys.stdin.readline()
if sys.argv[2] == "refreshing":
    thread.start()
    sys.stdin.readline()
child = os.fork()
if child == 0:
    load()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
load()
if thread.ident:
    thread.join()
"""
    with start_script(code, store.url, parent) as script:
        assert script.stdout.readline() == "loaded\n"
        store.keys["ASIA0001"].expired = True
        aws.latency_s = 1
        script.stdin.write("\n")
        script.stdin.flush()
        while parent == "refreshing" and len(aws.requests) < 2:
            time.sleep(0.02)
        assert script.finish() == (0, "", "")
    assert aws.made == 3

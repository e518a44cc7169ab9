"""Uploads: one PUT or parts, tried again, checked by the store, and never seen half."""

from __future__ import annotations

import gc
import logging
import random
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers.http import Answer, Cut, Fault, ObjectServer, Request, cut, redirect, s3_error, status
from servers.moto import MotoServer
from servers.nginx import Nginx
from servers.s3 import Bucket, Key, S3Server, checksum
from support import noise, npy, run_script, start_script

import torchnpy as tnp
from torchnpy._ops import _C
from torchnpy.log import refresh

PART = 8 << 20
SMALL = noise(1000).tobytes()
LARGE = noise(2 * PART + 1000).tobytes()  # in three parts
URL = "s3://bucket/x.npy"


@pytest.fixture
def bucket(s3_server: S3Server) -> Bucket:
    return s3_server.buckets["bucket"]


@pytest.fixture
def client(s3_server: S3Server, credentials: None) -> tnp.Client:
    return tnp.Client(endpoint=s3_server.url, retries=3, stall_timeout_s=1)


def create(
    url: str, client: tnp.Client, *, nbytes: int | None = None, if_none_match: bool = False
) -> _C.Target:
    return _C.create(client._native, url.encode(), nbytes, False, if_none_match)


def upload(url: str, client: tnp.Client, *pieces: bytes | bytearray, **options: Any) -> None:
    target = create(url, client, **options)
    for piece in pieces:
        target.write(piece)
    target.finish()


def pieces_of(data: bytes, nbytes: int) -> Iterator[bytearray]:
    """That nobody else keeps."""
    for begin in range(0, len(data), nbytes):
        yield bytearray(data[begin : begin + nbytes])


def done(server: S3Server) -> list[str]:
    """What was asked of the store, in order."""
    return [server.names(request)[0] for request in server.requests]


# What is sent.


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("nbytes", [0, 1, 1000, 2 * PART, 2 * PART + 1])
def test_what_is_written_is_the_object(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket, nbytes: int, known: bool
) -> None:
    data = LARGE[:nbytes]
    upload(URL, client, data, nbytes=nbytes if known else None)
    assert bucket.objects == {"x.npy": data}
    if nbytes <= 2 * PART:
        assert done(s3_server) == ["PUT"]
    else:
        assert done(s3_server)[0] == "begin"
        assert done(s3_server)[-1] == "end"
        assert sorted(done(s3_server)[1:-1]) == ["part 1", "part 2", "part 3"]
    assert not bucket.uploads


@pytest.mark.parametrize("step", [1000, 1 << 20, PART + 1])
def test_a_stream_goes_up_in_parts(client: tnp.Client, bucket: Bucket, step: int) -> None:
    data = LARGE if step > 1000 else LARGE[: 2 * PART + 1]
    upload(URL, client, *pieces_of(data, step))
    assert bucket.objects["x.npy"] == data


def test_pieces_with_and_without_an_owner_meet_in_order(client: tnp.Client, bucket: Bucket) -> None:
    pieces = [bytearray(b"head"), LARGE[:PART], bytearray(b"between"), LARGE[PART:], b"", b"tail"]
    upload(URL, client, *pieces)
    assert bucket.objects["x.npy"] == b"".join(pieces)


def test_what_has_no_owner_may_change_after_write(client: tnp.Client, bucket: Bucket) -> None:
    target = create(URL, client)
    piece = bytearray(LARGE)
    target.write(piece)
    piece[:] = bytes(len(piece))
    target.finish()
    assert bucket.objects["x.npy"] == LARGE


def test_what_has_an_owner_is_kept_until_the_end_and_no_longer(client: tnp.Client) -> None:
    array = np.frombuffer(LARGE, np.uint8)
    view = memoryview(array)
    target = create(URL, client)
    target.write(view)
    with pytest.raises(BufferError):
        view.release()
    target.finish()
    view.release()


def test_part_nbytes_is_the_size_of_parts(
    s3_server: S3Server, credentials: None, bucket: Bucket
) -> None:
    client = tnp.Client(endpoint=s3_server.url, part_nbytes=6 << 20)
    upload(URL, client, LARGE)
    sizes = {r.query[:12]: len(r.body) for r in s3_server.requests if r.method == "PUT"}
    assert sizes == {
        "partNumber=1": 6 << 20,
        "partNumber=2": 6 << 20,
        "partNumber=3": len(LARGE) - (12 << 20),
    }


def test_one_put_holds_a_part(s3_server: S3Server, credentials: None, bucket: Bucket) -> None:
    upload(URL, tnp.Client(endpoint=s3_server.url, part_nbytes=20 << 20), LARGE)
    assert done(s3_server) == ["PUT"]


def test_no_more_requests_at_once_than_max_in_flight(
    s3_server: S3Server, credentials: None, bucket: Bucket
) -> None:
    client = tnp.Client(endpoint=s3_server.url, max_in_flight=2, part_nbytes=5 << 20)
    upload(URL, client, *pieces_of(2 * LARGE, 1 << 20))
    assert bucket.objects["x.npy"] == 2 * LARGE
    assert client.metrics()["in_flight_max"] == 2


def test_keys_are_encoded_as_for_reads(client: tnp.Client, bucket: Bucket) -> None:
    for data in (SMALL, LARGE):
        upload("s3://bucket/a b+c%20?d#é", client, data)
        assert bucket.objects["a b+c%20?d#é"] == data


def test_a_wrong_number_of_bytes_is_an_error(client: tnp.Client, bucket: Bucket) -> None:
    with pytest.raises(ValueError, match=rf"{URL}: expected 5 bytes.* but found more"):
        upload(URL, client, b"123456", nbytes=5)
    with pytest.raises(ValueError, match=rf"{URL}: expected 5 bytes.* but found 4"):
        upload(URL, client, b"1234", nbytes=5)
    assert not bucket.objects


def test_more_than_the_store_can_keep_is_refused_at_once(client: tnp.Client) -> None:
    with pytest.raises(
        tnp.UnsupportedError, match=rf"{URL}: expected at most 53687091200000 bytes"
    ):
        create(URL, client, nbytes=53_687_091_200_001)


def test_nothing_may_follow_the_end(client: tnp.Client) -> None:
    target = create(URL, client)
    target.finish()
    for call in (target.finish, lambda: target.write(b"1")):
        with pytest.raises(ValueError, match="closed"):
            call()


# Faults.

PASSING: dict[str, Fault] = {
    "500": status(500),
    "503": status(503),
    "429": status(429, Retry_After="0"),
    "SlowDown": s3_error(503, "SlowDown"),
    "RequestTimeout": s3_error(400, "RequestTimeout"),
    "OperationAborted": s3_error(409, "OperationAborted"),
    "reset": cut(None),
    "closed": cut(None, "close"),
}


@pytest.mark.parametrize(
    ("stage", "name"),
    [("PUT", name) for name in PASSING]
    + [(s, n) for s in ("begin", "part 2", "end") for n in ("503", "SlowDown", "reset", "closed")],
)
def test_a_fault_that_passes_is_healed(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket, stage: str, name: str
) -> None:
    s3_server.fail(stage, PASSING[name])
    data = SMALL if stage == "PUT" else LARGE
    upload(URL, client, data)
    assert bucket.objects["x.npy"] == data
    assert done(s3_server).count(stage) == 2
    # Of a begin whose answer was lost the store alone knows.
    assert len(bucket.uploads) == (1 if stage == "begin" and name in ("reset", "closed") else 0)


@pytest.mark.parametrize(
    ("stage", "by"),
    [("PUT", "reset"), ("part 1", "reset"), ("part 3", "reset"), ("part 2", "stall")],
)
def test_a_body_that_breaks_off_is_sent_again_from_its_start(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket, stage: str, by: str
) -> None:
    s3_server.cut_body(stage, Cut(500, by), Cut(0, "reset"))
    data = SMALL if stage == "PUT" else LARGE
    upload(URL, client, data)
    assert bucket.objects["x.npy"] == data
    # Where a kept connection dies of it, libcurl itself tries again.
    assert done(s3_server).count(stage) == 3


def test_many_faults_at_once(s3_server: S3Server, client: tnp.Client, bucket: Bucket) -> None:
    s3_server.fail("begin", status(503))
    s3_server.fail("part", status(503), cut(None), None, status(500))
    s3_server.cut_body("part", None, Cut(1 << 20), None, Cut(5 << 20))
    s3_server.fail("end", status(503), cut(None))
    upload(URL, client, LARGE)
    assert bucket.objects == {"x.npy": LARGE}
    assert not bucket.uploads


def test_damage_on_the_way_is_found_by_the_store_and_sent_again(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    damaged = []

    def damage_once(request: Request) -> None:
        if len(request.body) > 500 and not damaged:
            damaged.append(request.query)
            request.body = b"\0" + request.body[1:]

    s3_server.receive = damage_once  # type: ignore[method-assign]
    for data in (SMALL, LARGE):
        damaged.clear()
        upload(URL, client, data)
        assert len(damaged) == 1
        assert bucket.objects["x.npy"] == data
    assert client.metrics()["retries_status"] == 2


def test_an_error_that_does_not_pass_tells_all_and_leaves_nothing(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    bucket.objects["x.npy"] = b"old"
    s3_server.fail("part 2", s3_error(403, "AccessDenied", "no such right"))
    expected = rf"{URL}: part 2: HTTP 403 \(AccessDenied: no such right\) after 1 attempt in \d"
    with pytest.raises(PermissionError, match=expected):
        upload(URL, client, LARGE)
    wait_for_abort(s3_server, bucket)
    assert bucket.objects["x.npy"] == b"old"


def test_the_end_of_attempts_tells_all_and_leaves_nothing(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    s3_server.fail("part 1", *[status(503)] * 3)
    with pytest.raises(tnp.TransportError, match=r"part 1: HTTP 503 .* after 3 attempts in"):
        upload(URL, client, LARGE)
    wait_for_abort(s3_server, bucket)
    s3_server.fail("PUT", *[cut(None)] * 9)  # libcurl itself tries again, too
    with pytest.raises(tnp.TransportError, match=r"the connection was lost .* after 3 attempts in"):
        upload(URL, client, SMALL)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (s3_error(404, "NoSuchBucket"), FileNotFoundError, "NoSuchBucket"),
        (s3_error(403, "AccessDenied"), PermissionError, "AccessDenied"),
        (s3_error(400, "EntityTooLarge"), tnp.TransportError, "EntityTooLarge"),
    ],
)
def test_errors_are_of_the_kinds_of_reads(
    s3_server: S3Server, client: tnp.Client, fault: Fault, kind: type[Exception], words: str
) -> None:
    for stage, data in (("PUT", SMALL), ("begin", LARGE)):
        s3_server.fail(stage, fault)
        with pytest.raises(kind, match=words):
            upload(URL, client, data)


def wait_for_abort(server: S3Server, bucket: Bucket, count: int = 1) -> None:
    """It is not waited for by who failed."""
    server.wait_until(lambda: len(bucket.aborted) >= count)
    assert not bucket.uploads


# The end of an upload in parts.


def test_a_good_status_with_an_error_in_it_is_an_error(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    s3_server.fail("end", s3_error(200, "InternalError", "We encountered an internal error."))
    upload(URL, client, LARGE)
    assert client.metrics()["retries"] == 1
    assert bucket.objects.pop("x.npy") == LARGE
    s3_server.fail("end", s3_error(200, "AccessDenied", "not you"))
    expected = rf"{URL}: ending the upload: HTTP 200 \(AccessDenied: not you\) after 1 attempt"
    with pytest.raises(tnp.TransportError, match=expected):
        upload(URL, client, LARGE)
    wait_for_abort(s3_server, bucket)
    assert not bucket.objects


@pytest.mark.parametrize("fault", ["reset", "closed"])
def test_an_end_whose_answer_is_lost_is_found_to_be_done(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket, fault: str
) -> None:
    s3_server.fail("end", PASSING[fault])
    upload(URL, client, LARGE)
    assert bucket.objects["x.npy"] == LARGE
    assert done(s3_server)[-3:] == ["end", "end", "HEAD"]


def test_an_end_whose_answer_is_lost_is_told_by_its_tag_without_checksums(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    s3_server.knows_checksums = False
    s3_server.fail("end", cut(None))
    upload(URL, client, LARGE)
    assert not bucket.checksums["x.npy"]
    assert done(s3_server)[-3:] == ["end", "end", "HEAD"]


def test_an_upload_that_is_gone_is_an_error_where_another_object_is(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    def lose(_: Request, answer: Answer) -> Answer:
        bucket.objects["x.npy"] = LARGE[::-1]  # another writer's, of the same size
        bucket.etags.clear()
        bucket.checksums.clear()
        return cut(None)(_, answer)

    s3_server.fail("end", lose)
    with pytest.raises(FileNotFoundError, match=r"ending the upload: HTTP 404 \(NoSuchUpload"):
        upload(URL, client, LARGE)


# Checksums.


def test_the_store_keeps_the_checksum_of_all_bytes_for_later_loads(
    s3_server: S3Server, credentials: None, bucket: Bucket
) -> None:
    array = noise(20, 1 << 20)
    client = tnp.Client(endpoint=s3_server.url, checksums=True)
    upload(URL, client, npy(array))
    assert bucket.checksums["x.npy"] == {
        "x-amz-checksum-crc32c": checksum("crc32c", npy(array)),
        "x-amz-checksum-type": "FULL_OBJECT",
    }
    assert np.array_equal(tnp.load(URL, client=client).numpy(), array)
    bucket.objects["x.npy"] = npy(array)[:-1] + b"\0"
    with pytest.raises(tnp.TransportError, match="CRC-32C"):
        tnp.load(URL, client=client)


def test_a_store_that_keeps_checksums_of_parts_alone_gets_those(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    s3_server.knows_whole_checksums = False
    upload(URL, client, LARGE)
    assert bucket.objects["x.npy"] == LARGE
    end = s3_server.requests[-1]
    assert "x-amz-checksum-crc32c" not in end.headers
    assert checksum("crc32c", LARGE[:PART]).encode() in end.body


def test_a_store_that_refuses_checksums_is_asked_once(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    s3_server.knows_checksums = False
    for data in (SMALL, LARGE, SMALL):
        upload(URL, client, data)
        assert bucket.objects["x.npy"] == data
    assert client.metrics()["retries_learnt"] == 1
    assert b"ChecksumCRC32C" not in b"".join(
        r.body for r in s3_server.requests if r.method != "PUT"
    )


# Conditions.


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_if_none_match_makes_new_objects_only(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket, data: bytes
) -> None:
    upload(URL, client, data, if_none_match=True)
    assert bucket.objects["x.npy"] == data
    assert client.metrics()["errors"] == 0
    with pytest.raises(FileExistsError, match=rf"{URL}: .*expected no object of that name"):
        upload(URL, client, data[::-1], if_none_match=True)
    assert bucket.objects["x.npy"] == data
    # A large one is not sent in vain.
    assert done(s3_server)[-1] == ("PUT" if data is SMALL else "HEAD")


def test_of_two_that_write_at_once_one_fails(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    target = create(URL, client, if_none_match=True)
    target.write(LARGE)
    upload(URL, client, SMALL, if_none_match=True)
    with pytest.raises(FileExistsError):
        target.finish()
    wait_for_abort(s3_server, bucket)
    assert bucket.objects["x.npy"] == SMALL


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_conflict_of_conditions_is_tried_again(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket, data: bytes
) -> None:
    s3_server.fail("PUT" if data is SMALL else "end", s3_error(409, "ConditionalRequestConflict"))
    upload(URL, client, data, if_none_match=True)
    assert bucket.objects["x.npy"] == data


def test_an_object_that_is_ones_own_is_no_other(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    s3_server.fail("PUT", cut(None))  # done, but not told
    upload(URL, client, SMALL, if_none_match=True)
    assert done(s3_server) == ["PUT", "PUT", "HEAD"]


def test_an_object_that_may_be_ones_own_is_told(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    s3_server.knows_checksums = False
    s3_server.fail("PUT", None, cut(None))
    with pytest.raises(FileExistsError, match="which may be this very upload"):
        upload(URL, client, SMALL, if_none_match=True)


# Signing.


def test_the_region_is_learnt(s3_server: S3Server, client: tnp.Client, bucket: Bucket) -> None:
    bucket.region = "eu-west-1"
    for data in (SMALL, LARGE):
        upload(URL, client, data)
        assert bucket.objects["x.npy"] == data
    assert client.metrics()["retries_learnt"] == 1


def test_the_clock_is_learnt(s3_server: S3Server, client: tnp.Client, bucket: Bucket) -> None:
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    s3_server.fail("PUT", s3_error(403, "RequestTimeTooSkewed", Date=date))
    upload(URL, client, SMALL)
    assert s3_server.requests[-1].headers["x-amz-date"].startswith("20261021T0728")


def test_credentials_that_expire_are_fetched_anew(s3_server: S3Server, bucket: Bucket) -> None:
    (key_id, key), *_ = s3_server.keys.items()
    s3_server.keys["OLD"] = Key("old", expired=True)
    given = [{"access_key": "OLD", "secret_key": "old"}]

    def provide() -> dict[str, str]:
        return given.pop() if given else {"access_key": key_id, "secret_key": key.secret}

    client = tnp.Client(endpoint=s3_server.url, credentials=provide, retries=5)
    upload(URL, client, LARGE)
    assert bucket.objects["x.npy"] == LARGE
    assert client.metrics()["retries"] == 1


def test_headers_of_the_object_go_with_the_request_that_makes_it(
    s3_server: S3Server, credentials: None
) -> None:
    headers = {"x-amz-storage-class": "GLACIER_IR", "x-amz-meta-who": "me", "Content-Type": "a/b"}
    client = tnp.Client(endpoint=s3_server.url, headers=headers, requester_pays=True)
    upload(URL, client, SMALL)
    upload(URL, client, LARGE)
    for request in s3_server.requests:
        made = s3_server.names(request)[0] in ("PUT", "begin")
        assert ("x-amz-storage-class" in request.headers) == made
        assert ("x-amz-meta-who" in request.headers) == made
        assert (request.headers.get("content-type") == "a/b") == made
        assert request.headers["x-amz-request-payer"] == "requester"


def test_no_request_waits_for_consent(s3_server: S3Server, client: tnp.Client) -> None:
    upload(URL, client, LARGE)
    assert not any("expect" in request.headers for request in s3_server.requests)


# Giving up.


def test_what_is_abandoned_leaves_nothing(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    for number, let_go in enumerate(("abandon", "collected"), 1):
        target = create(URL, client)
        target.write(LARGE)
        if let_go == "abandon":
            target.abandon()
        del target
        gc.collect()
        wait_for_abort(s3_server, bucket, number)
    target = create(URL, client)
    target.write(SMALL)
    target.abandon()
    assert not bucket.objects
    assert "PUT" not in done(s3_server)


def test_write_waits_while_too_much_is_on_its_way(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    gate = threading.Event()

    def hold(_: Request, answer: Answer) -> Answer:
        gate.wait()
        return answer

    s3_server.fail("part", *[hold] * 40)
    patient = tnp.Client(endpoint=s3_server.url)
    target = create(URL, patient)
    written = []

    def write() -> None:
        for _ in range(30):
            target.write(bytearray(PART))
            written.append(PART)
        target.finish()

    writer = threading.Thread(target=write)
    writer.start()
    s3_server.wait_until(lambda: len(s3_server.requests) == 9)  # begin, and 64 MiB
    assert sum(written) <= (64 << 20) + 2 * PART
    gate.set()
    writer.join()
    assert len(bucket.objects["x.npy"]) == 30 * PART


SCRIPT = """
import os, sys, time
os.environ |= {"AWS_ACCESS_KEY_ID": sys.argv[2], "AWS_SECRET_ACCESS_KEY": sys.argv[3]}
import torchnpy as tnp
from torchnpy._ops import _C
client = tnp.Client(endpoint=sys.argv[1])
def create():
    return _C.create(client._native, b"s3://bucket/x.npy", None, False, False)
"""


@pytest.fixture
def script_args(s3_server: S3Server) -> tuple[object, ...]:
    (key_id, key), *_ = s3_server.keys.items()
    return (s3_server.url, key_id, key.secret)


@pytest.mark.parametrize("wait_in", ["write", "finish", "PUT"])
def test_control_c_ends_an_upload_and_leaves_nothing(
    s3_server: S3Server, bucket: Bucket, script_args: tuple[object, ...], wait_in: str
) -> None:
    s3_server.cut_body("PUT" if wait_in == "PUT" else "part", *[Cut(1000, "stall")] * 40)
    count = {"write": 30, "finish": 3, "PUT": 1}[wait_in]
    code = f"""
target = create()
try:
    for _ in range({count}):
        target.write(bytearray({PART}))
    print("written", flush=True)
    target.finish()
except KeyboardInterrupt:
    print("interrupted", time.time(), flush=True)
"""
    with start_script(SCRIPT + code, *script_args) as script:
        assert s3_server.stalled.wait(30)
        if wait_in != "write":
            assert script.stdout.readline() == "written\n"
        script.send_signal(signal.SIGINT)
        status, out, err = script.finish()
    assert (status, err) == (0, "")
    assert out.startswith("interrupted")
    assert not bucket.objects
    assert not bucket.uploads  # also when the process ends at once
    assert len(bucket.aborted) == (0 if wait_in == "PUT" else 1)


def test_a_killed_process_leaves_no_part_of_an_object(
    s3_server: S3Server, bucket: Bucket, script_args: tuple[object, ...]
) -> None:
    s3_server.fail("part", *[status(503), None, None, cut(None), None, None] * 20)
    code = """
data = bytes(10_000_000)
print("ready", flush=True)
for i in range(100):
    target = create()
    target.write(bytes([i]) + data + data)
    target.finish()
    print(i, flush=True)
"""
    choice = random.Random(0)
    for _ in range(5):
        bucket.objects.clear()
        with start_script(SCRIPT + code, *script_args) as script:
            script.stdout.readline()
            seen = choice.randrange(2)
            for _ in range(seen):
                script.stdout.readline()
            count = len(s3_server.requests) + choice.randrange(1, 6)
            s3_server.wait_until(lambda count=count: len(s3_server.requests) >= count)
            script.send_signal(signal.SIGKILL)
            script.finish()
        if body := bucket.objects.get("x.npy"):
            assert body == body[:1] + bytes(20_000_000)
        assert seen == 0 or body


def test_a_forked_child_leaves_its_parents_upload_alone(
    s3_server: S3Server, bucket: Bucket, script_args: tuple[object, ...]
) -> None:
    code = f"""
data = bytes({PART})
target = create()
target.write(data + data + data)
pid = os.fork()
if pid == 0:
    try:
        target.write(data)
    except tnp.TransportError as error:
        print(error, flush=True)
    del target
    own = create()
    own.abandon()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
target.write(data)
target.finish()
"""
    out = run_script(SCRIPT + code, *script_args)
    assert out.startswith("s3://bucket/x.npy: expected the process that began the upload")
    assert bucket.objects["x.npy"] == bytes(4 * PART)
    assert not bucket.aborted


def test_an_exit_with_an_upload_under_way_leaves_nothing(
    s3_server: S3Server, bucket: Bucket, script_args: tuple[object, ...]
) -> None:
    s3_server.cut_body("part", *[Cut(1000, "stall")] * 40)
    code = f"""
target = create()
target.write(bytearray({2 * PART + 1}))
"""
    assert run_script(SCRIPT + code, *script_args) == ""
    assert not bucket.objects
    assert len(bucket.aborted) == 1
    assert not bucket.uploads


# What is told.


def test_bytes_that_are_sent_are_counted(
    s3_server: S3Server, client: tnp.Client, bucket: Bucket
) -> None:
    upload(URL, client, SMALL)
    assert client.metrics()["bytes_sent"] == len(SMALL)
    s3_server.fail("PUT", status(503))
    upload(URL, client, SMALL)
    metrics = client.metrics()
    assert metrics["bytes_sent"] == 3 * len(SMALL)
    assert (metrics["requests"], metrics["retries"], metrics["reads"]) == (3, 1, 0)
    assert (metrics["in_flight"], metrics["errors"]) == (0, 0)


def test_each_request_is_a_line_of_the_log(
    s3_server: S3Server, client: tnp.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "torchnpy")
    s3_server.fail("part 2", status(503))
    refresh()  # the level has changed
    upload(URL, client, LARGE)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 6
    pattern = (
        r"(PUT|POST) s3://bucket/x.npy (part \d|beginning the upload|ending the upload): HTTP "
    )
    assert all(re.match(pattern, line) for line in lines)
    (retried,) = (line for line in lines if "again in" in line)
    assert re.search(r"part 2: HTTP 503, 8388608 bytes sent, 0 bytes, .* attempt 1; again", retried)
    assert not any("uploadId" in line or "AKID" in line for line in lines)


# Plain HTTP.


def test_http_takes_one_put(server: ObjectServer) -> None:
    client = tnp.Client(headers={"X-Mine": "1"})
    upload(server.url + "/a%20b?key=secret", client, LARGE)
    assert server.objects["/a b"] == LARGE
    (request,) = server.requests
    assert (request.method, request.query) == ("PUT", "key=secret")
    assert request.headers["x-mine"] == "1"
    assert not any(name.startswith("x-amz") for name in request.headers)


def test_a_stream_over_http_is_kept_in_a_file(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    data = 2 * LARGE
    server.fail("/x", status(503))
    server.cut_body("/x", None, Cut(20 << 20))
    upload(server.url + "/x", tnp.Client(), *pieces_of(data, 999_999))
    assert server.objects["/x"] == data
    assert len(server.requests) == 3
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with pytest.raises(tnp.TransportError, match=r"/x: a file .*none \(TMPDIR\): No such file"):
        upload(server.url + "/x", tnp.Client(), *pieces_of(data, 999_999))


def test_errors_over_http_hold_no_secret(server: ObjectServer) -> None:
    server.fail("/x", status(401))
    with pytest.raises(PermissionError, match=r"/x: HTTP 401 .*after 1 attempt") as caught:
        upload(server.url.replace("//", "//me:word@") + "/x?key=secret", tnp.Client(), SMALL)
    assert not re.search("secret|word", str(caught.value))
    assert server.requests[0].headers["authorization"].startswith("Basic ")


def test_redirects_are_followed_with_the_body(
    server: ObjectServer, other_server: ObjectServer
) -> None:
    client = tnp.Client(headers={"Authorization": "Bearer secret"})
    server.fail("/x", redirect(other_server.url + "/y", 307))
    upload(server.url + "/x", client, LARGE)
    assert other_server.objects["/y"] == LARGE
    assert "authorization" not in other_server.requests[0].headers
    server.fail("/x", redirect(other_server.url + "/y", 303))
    with pytest.raises(tnp.TransportError, match="HTTP 303"):
        upload(server.url + "/x", client, SMALL)


def test_http_objects_can_be_conditional(server: ObjectServer) -> None:
    url = server.url + "/x"
    upload(url, tnp.Client(), SMALL, if_none_match=True)
    assert server.requests[-1].headers["if-none-match"] == "*"
    count = len(server.requests)
    with pytest.raises(FileExistsError, match="expected no object of that name"):
        upload(url, tnp.Client(), LARGE, if_none_match=True)
    assert [request.method for request in server.requests[count:]] == ["HEAD"]
    server.fail("/y", None, cut(None))
    with pytest.raises(FileExistsError, match="which may be this very upload"):
        upload(server.url + "/y", tnp.Client(), SMALL, if_none_match=True)


def test_https(tls_server: ObjectServer, ca_file: str) -> None:
    tls_server.cut_body("/x", Cut(1 << 20))
    upload(tls_server.url + "/x", tnp.Client(ca_bundle=ca_file), LARGE)
    assert tls_server.objects["/x"] == LARGE


# Other people's servers.


@pytest.mark.parametrize("http2", [False, True])
def test_nginx(tmp_path: Path, authority: Any, ca_file: str, http2: bool) -> None:
    options = "dav_methods PUT; create_full_put_path on; client_max_body_size 0;"
    with Nginx(tmp_path, authority, http2=http2, options=options) as nginx:
        client = tnp.Client(ca_bundle=ca_file, http2=http2)
        upload(nginx.url + "/folder/x", client, LARGE)
        assert (nginx.root / "folder" / "x").read_bytes() == LARGE
        with pytest.raises(FileExistsError):
            upload(nginx.url + "/folder/x", client, SMALL, if_none_match=True)
        assert set(nginx.protocols()) == {"HTTP/2.0" if http2 else "HTTP/1.1"}


def test_moto(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret)
    client = tnp.Client(endpoint=moto.endpoint, retries=2)
    for key, data in (("small +é", SMALL), ("large", LARGE)):
        upload(f"s3://bucket/{key}", client, data)
        assert moto.s3.get_object(Bucket="bucket", Key=key)["Body"].read() == data
        with pytest.raises(FileExistsError):
            upload(f"s3://bucket/{key}", client, data, if_none_match=True)
    target = create("s3://bucket/none", client)
    target.write(LARGE)
    target.abandon()
    client.metrics()
    assert "Uploads" not in moto.s3.list_multipart_uploads(Bucket="bucket")

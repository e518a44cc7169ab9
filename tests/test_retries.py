"""Faults that may pass are tried again, the others are not; each error tells the whole story."""

from __future__ import annotations

import re
import threading
import time

import numpy as np
import pytest
import torch
from servers.http import Fault, ObjectServer, cut, refused_url, s3_error, status
from support import noise, npy

import torchnpy as tnp

SMALL = noise(40, 1000)
LARGE = noise(500, 1000)

PASSING = {
    "500": status(500),
    "502": status(502),
    "503": status(503),
    "503 with Retry-After": status(503, Retry_After="0"),
    "503 with a date": status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "503 with nonsense": status(503, Retry_After="soon"),
    "504": status(504),
    "408": status(408),
    "429": status(429),
    "SlowDown": s3_error(503, "SlowDown"),
    "reset before the head": cut(None),
    "closed before the head": cut(None, "close"),
    "reset in the body": cut(1000),
    "closed in the body": cut(1000, "close"),
    "closed after the head": cut(0, "close"),
}


@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_costs_one_more_request(
    server: ObjectServer, name: str, array: np.ndarray
) -> None:
    url = server.put("/x.npy", npy(array))
    tnp.load(url)
    undisturbed = len(server.requests)
    server.fail("/x.npy", PASSING[name])
    assert torch.equal(tnp.load(url), torch.from_numpy(array))
    assert len(server.requests) == 2 * undisturbed + 1


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_in_a_later_part_is_healed(server: ObjectServer, name: str) -> None:
    url = server.put("/x.npy", npy(LARGE))
    server.fail("/x.npy", None, PASSING[name], None, PASSING[name])
    loaded = tnp.load(url, client=tnp.Client(part_nbytes=100_000))
    assert torch.equal(loaded, torch.from_numpy(LARGE))


def test_a_body_resumes_where_it_stopped(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(SMALL))
    server.fail("/x.npy", cut(10_000, "close"), cut(10_000, "close"))
    assert torch.equal(tnp.load(url), torch.from_numpy(SMALL))
    starts = [int(re.findall(r"\d+", request.range)[0]) for request in server.requests]
    assert starts == [0, 10_000, 20_000]
    assert all("if-match" in request.headers for request in server.requests[1:])


def test_a_body_of_a_server_without_ranges_starts_again(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(SMALL))

    def whole_but_cut(keep: int | None) -> Fault:
        def fault(request, answer):  # type: ignore[no-untyped-def]
            whole = status(200, server.objects["/x.npy"])(request, answer)
            whole.cut, whole.cut_by = keep, "close"
            return whole

        return fault

    server.fail("/x.npy", whole_but_cut(10_000), whole_but_cut(20_000))
    server.always("/x.npy", whole_but_cut(None))
    assert torch.equal(tnp.load(url), torch.from_numpy(SMALL))
    assert len(server.requests) == 3


@pytest.mark.parametrize("before_head", [True, False])
def test_a_stall_is_cut_off_and_tried_again(server: ObjectServer, before_head: bool) -> None:
    url = server.put("/x.npy", npy(SMALL))
    server.fail("/x.npy", cut(None if before_head else 500, "stall"))
    loaded = tnp.load(url, client=tnp.Client(stall_timeout_s=1))
    assert torch.equal(loaded, torch.from_numpy(SMALL))
    assert server.dropped.is_set()
    assert len(server.requests) == 2


def test_a_server_that_comes_up_late_is_reached() -> None:
    url = refused_url()
    port = int(url.split(":")[2].split("/")[0])
    result: list[object] = []
    thread = threading.Thread(target=lambda: result.append(tnp.load(url)))
    thread.start()
    time.sleep(0.3)  # the first attempt is refused
    with ObjectServer(port=port) as late:
        late.put("/x.npy", npy(SMALL))
        thread.join()
    assert isinstance(result[0], torch.Tensor)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 410, 418, 451, 501])
def test_other_answers_are_final(server: ObjectServer, code: int) -> None:
    server.always("/x.npy", status(code, b"the server's own words"))
    with pytest.raises(tnp.TransportError, match=str(code)):
        tnp.load(server.url + "/x.npy")
    assert len(server.requests) == 1


FINAL = {
    "503": (
        s3_error(503, "SlowDown", "Please reduce your rate"),
        ["503", "SlowDown", "Please red"],
    ),
    "500": (status(500, b"plain words"), ["500"]),
    "reset": (cut(None), ["3 attempts"]),
    "short": (cut(1000, "close"), ["3 attempts"]),
}


@pytest.mark.parametrize("name", FINAL)
def test_the_last_error_tells_object_status_words_attempts_and_time(
    server: ObjectServer, name: str
) -> None:
    fault, expected = FINAL[name]
    url = server.put("/x.npy", npy(SMALL))
    progress = name == "short"
    server.always("/x.npy", cut(0, "close") if progress else fault)
    client = tnp.Client(retries=3, headers={"X-Api-Key": "secret"})
    with pytest.raises(tnp.TransportError) as caught:
        tnp.load(url + "?sig=secret", client=client)
    message = str(caught.value)
    assert len(server.requests) == 3
    for part in [url, "3 attempts", *expected]:
        assert part in message
    assert re.search(r"\d m?s\b", message), message
    assert "secret" not in message
    assert "sig=" not in message


def test_a_refused_connection_is_tried_again_and_named() -> None:
    url = refused_url()
    client = tnp.Client(retries=3)
    with pytest.raises(tnp.TransportError, match="3 attempts") as caught:
        tnp.load(url + "?sig=secret", client=client)
    assert url in str(caught.value)
    assert "refused" in str(caught.value).lower() or "connect" in str(caught.value).lower()
    assert "secret" not in str(caught.value)
    assert client.metrics()["retries"] == 2


def test_userinfo_of_a_url_is_never_shown() -> None:
    url = refused_url().replace("http://", "http://user:secret@")
    with pytest.raises(tnp.TransportError) as caught:
        tnp.load(url, client=tnp.Client(retries=1))
    assert "secret" not in str(caught.value)


def test_a_stall_that_stays_is_a_timeout(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(SMALL))
    server.always("/x.npy", cut(None, "stall"))
    with pytest.raises(TimeoutError, match="2 attempts"):
        tnp.load(url, client=tnp.Client(stall_timeout_s=1, retries=2))


def test_a_deadline_ends_a_load_whatever_the_attempts(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(SMALL))
    server.always("/x.npy", cut(None, "stall"))
    with pytest.raises(TimeoutError, match=r"deadline|1 s|1.0 s"):
        tnp.load(url, client=tnp.Client(deadline_s=1))
    assert len(server.requests) == 1


def test_retry_timeout_bounds_the_attempts(server: ObjectServer) -> None:
    server.always("/x.npy", status(503, Retry_After="3600"))
    with pytest.raises(tnp.TransportError, match="503"):
        tnp.load(server.url + "/x.npy", client=tnp.Client(retry_timeout_s=1))
    assert len(server.requests) == 1


def test_one_attempt_means_no_retry(server: ObjectServer) -> None:
    server.always("/x.npy", status(503))
    with pytest.raises(tnp.TransportError):
        tnp.load(server.url + "/x.npy", client=tnp.Client(retries=1))
    assert len(server.requests) == 1

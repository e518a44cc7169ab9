"""Archives over HTTP and S3: what is asked of the server, and what it may do in between."""

from __future__ import annotations

import signal
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import Answer, Fault, ObjectServer, Request, cut, edit, parse_range, status, whole
from servers.moto import MotoServer
from servers.s3 import S3Server
from support import noise, npy, npz, run_script, start_script, zipped
from zip_bytes import end64_bytes, entries

import torchnpy as tnp

SMALL = {"x": noise(10, 100), "y": np.arange(50)}
# Stored, so that what a member needs is known; noise, so that deflated ones are as large.
COUNT, SIDE = 200, 100
MANY_ARRAYS = {f"m{i:03}": noise(SIDE, SIDE, seed=i) for i in range(COUNT)}
STORED = npz(**MANY_ARRAYS)
DEFLATED = npz(deflate=True, **MANY_ARRAYS)
MEMBER_NBYTES = SIDE * SIDE + 128
TAIL_NBYTES = 1 << 16
SLACK_NBYTES = 1 << 16
MANY = 1_000_000
# Far beyond what a prompt end may take, and far below what the stalls here last.
PROMPT_S = 15

both = pytest.mark.parametrize("data", [STORED, DEFLATED], ids=["stored", "deflated"])


def assert_is(array: tnp.Array, name: str) -> None:
    expected = SMALL[name] if name in SMALL else MANY_ARRAYS[name]
    assert torch.equal(array, torch.from_numpy(expected))  # type: ignore[arg-type]


def spans(server: ObjectServer, nbytes: int) -> list[tuple[int, int]]:
    found = [parse_range(request.range, nbytes) for request in server.requests]
    return [span for span in found if span is not None]


@pytest.mark.parametrize("deflate", [False, True], ids=["stored", "deflated"])
def test_a_small_archive_is_one_request(server: ObjectServer, deflate: bool) -> None:
    url = server.put("/x.npz", npz(deflate=deflate, **SMALL))
    archive = tnp.open_npz(url)
    for _ in range(2):
        for name, array in archive.read().items():
            assert_is(array, name)
        assert_is(archive["x"], "x")
        assert archive.header("y").shape == (50,)
        assert "float" in repr(archive) or "int" in repr(archive)
    (request,) = server.requests
    assert (request.method, request.range) == ("GET", f"bytes=-{TAIL_NBYTES}")
    assert request.headers["accept-encoding"] == "identity"


def test_opening_a_large_archive_fetches_its_end_only(server: ObjectServer) -> None:
    archive = tnp.load(server.put("/x.npz", STORED))
    assert archive.files == list(MANY_ARRAYS)
    assert len(server.requests) == 1
    assert server.sent_nbytes == TAIL_NBYTES


def test_a_directory_longer_than_the_tail_takes_one_more_request(server: ObjectServer) -> None:
    data = zipped({f"{'long name ' * 10}{i}.npy": npy(np.int16(i)) for i in range(2000)})
    directory_nbytes = struct.unpack_from("<I", data, len(data) - 10)[0]
    assert directory_nbytes > 2 * TAIL_NBYTES
    archive = tnp.open_npz(server.put("/x.npz", data))
    assert len(archive) == 2000
    assert len(server.requests) == 2
    assert server.sent_nbytes <= directory_nbytes + 22 + SLACK_NBYTES
    assert all("if-match" in request.headers for request in server.requests[1:])


@both
@pytest.mark.parametrize(
    "numbers",
    [[0], [100], [3, 100, 150], list(range(50, 60)), list(range(0, COUNT, 2)), [*range(COUNT)]],
    ids=["first", "middle", "three", "ten in a row", "every other", "all"],
)
def test_only_the_members_asked_for_are_fetched(
    server: ObjectServer, data: bytes, numbers: list[int]
) -> None:
    archive = tnp.open_npz(server.put("/x.npz", data))
    before = server.sent_nbytes
    names = [f"m{i:03}" for i in numbers]
    for name, array in archive.read(names).items():
        assert_is(array, name)
    needed = len(names) * len(data) / COUNT
    assert server.sent_nbytes - before <= 1.05 * needed + SLACK_NBYTES
    assert server.sent_nbytes <= 1.05 * needed + TAIL_NBYTES + SLACK_NBYTES
    assert all("if-match" in request.headers for request in server.requests[1:])


@both
def test_members_in_a_row_are_one_request(server: ObjectServer, data: bytes) -> None:
    archive = tnp.open_npz(server.put("/x.npz", data))
    archive.read([f"m{i:03}" for i in range(50, 60)])
    assert len(server.requests) == 2
    archive["m010"]
    assert len(server.requests) == 3


def test_the_order_of_the_keys_does_not_matter(server: ObjectServer) -> None:
    archive = tnp.open_npz(server.put("/x.npz", STORED))
    names = [f"m{i:03}" for i in (57, 51, 59, 50, 52, 58, 54, 53, 56, 55)]
    loaded = archive.read(names)
    assert list(loaded) == names
    for name in names:
        assert_is(loaded[name], name)
    assert len(server.requests) == 2


def test_far_members_are_fetched_at_once(server: ObjectServer) -> None:
    archive = tnp.open_npz(server.put("/x.npz", STORED))
    server.hold_until(3)
    for name, array in archive.read(["m003", "m080", "m150"]).items():
        assert_is(array, name)
    assert len(server.requests) == 4
    assert server.max_concurrent == 3


def test_a_large_member_is_fetched_in_parts_each_byte_once(server: ObjectServer) -> None:
    array = noise(1000, 1000)
    for deflate in (False, True):
        data = npz(deflate=deflate, x=array, y=array)
        url = server.put(f"/{deflate}.npz", data)
        before = server.sent_nbytes
        loaded = tnp.open_npz(url, client=tnp.Client(part_nbytes=100_000))["x"]
        assert torch.equal(loaded, torch.from_numpy(array))
        assert len(server.requests_for(f"/{deflate}.npz")) > 5
        sent = server.sent_nbytes - before
        assert sent <= 1.05 * len(data) / 2 + TAIL_NBYTES + SLACK_NBYTES


@pytest.mark.parametrize("deflate", [False, True], ids=["stored", "deflated"])
def test_a_header_costs_little(server: ObjectServer, deflate: bool) -> None:
    data = npz(deflate=deflate, big=noise(1000, 1000), other=noise(1000, 1000))
    archive = tnp.open_npz(server.put("/x.npz", data))
    header = archive.header("big")
    assert (header.shape, header.dtype) == ((1000, 1000), torch.uint8)
    assert server.sent_nbytes <= TAIL_NBYTES + SLACK_NBYTES


def test_a_repr_asks_nothing_of_the_server(server: ObjectServer) -> None:
    archive = tnp.open_npz(server.put("/x.npz", STORED))
    assert "m000" in repr(archive)
    assert len(server.requests) == 1
    archive["m000"]
    server.close()
    assert "/x.npz" in repr(archive)


@pytest.mark.parametrize("name", ["/x.npz", "/x.npy", "/x"])
@pytest.mark.parametrize("large", [False, True])
def test_load_tells_archives_and_arrays_by_content(
    server: ObjectServer, name: str, large: bool
) -> None:
    archive = tnp.load(server.put(name, STORED if large else npz(**SMALL)))
    key = "m007" if large else "x"
    assert isinstance(archive, tnp.NpzFile)
    assert_is(archive[key], key)
    array = noise(300_000 if large else 30)
    assert torch.equal(tnp.load(server.put(name, npy(array))), torch.from_numpy(array))


def test_the_right_name_saves_a_request(server: ObjectServer) -> None:
    tnp.load(server.put("/x.npz", STORED))
    assert len(server.requests) == 1
    tnp.load(server.put("/x.npy", npy(SMALL["x"])))
    assert len(server.requests) == 2


def test_no_secret_of_the_url_is_shown(server: ObjectServer) -> None:
    url = server.put("/x.npz", npz(**SMALL)) + "?X-Amz-Signature=secret"
    archive = tnp.open_npz(url)
    for text in (repr(archive), archive.name):
        assert "/x.npz" in text
        assert "secret" not in text
    with pytest.raises(KeyError) as caught:
        archive["z"]
    assert "secret" not in str(caught.value)


@both
def test_an_archive_in_s3_is_read_by_signed_ranges(
    s3_server: S3Server, s3_client: tnp.Client, data: bytes
) -> None:
    url = s3_server.put_key("a=b/c d.npz", data)
    archive = tnp.open_npz(url, client=s3_client)
    assert archive.name == url
    for name, array in archive.read(["m001", "m111"]).items():
        assert_is(array, name)
    assert all("authorization" in request.headers for request in s3_server.requests)
    assert s3_server.sent_nbytes < TAIL_NBYTES + SLACK_NBYTES + 4 * MEMBER_NBYTES


def test_the_default_client_reads_archives(
    s3_server: S3Server, s3_client: tnp.Client, use_default_client: Any
) -> None:
    use_default_client(s3_client)
    archive = tnp.load(s3_server.put_key("x.npz", STORED))
    use_default_client(tnp.Client(endpoint="http://127.0.0.1:1", retries=1))
    assert_is(archive["m100"], "m100")  # with the client that opened it


def test_moto_serves_archives(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret)
    archive = tnp.load(moto.put("x.npz", STORED), client=tnp.Client(endpoint=moto.endpoint))
    for name, array in archive.read(["m000", "m199"]).items():
        assert_is(array, name)


VALIDATORS: dict[str, Callable[[int], Fault]] = {
    "a strong ETag": lambda version: edit(ETag=f'"{version}"'),
    "a weak ETag": lambda version: edit(ETag=f'W/"{version}"'),
    "Last-Modified alone": lambda version: edit(
        ETag="", Last_Modified=f"Wed, 21 Oct 2015 07:28:0{version} GMT"
    ),
}


@both
@pytest.mark.parametrize("validator", VALIDATORS)
def test_an_archive_that_changes_after_opening_is_an_error_and_never_mixed(
    server: ObjectServer, validator: str, data: bytes
) -> None:
    """Nothing is checked but the answers: the other object is as long, and all zeros."""

    def put(version: int, body: bytes) -> str:
        server.etags["/x.npz"] = f'"{version}"'
        server.always("/x.npz", with_412(VALIDATORS[validator](version)))
        return server.put("/x.npz", body)

    archive = tnp.open_npz(put(1, data), verify=False)
    assert_is(archive["m003"], "m003")
    put(2, bytes(len(data)))
    for ask in (lambda: archive["m100"], lambda: archive.read(["m001", "m150"])):
        with pytest.raises(tnp.TransportError, match=r"/x\.npz.*changed"):
            ask()


def with_412(fault: Fault) -> Fault:
    """Leaves alone what refuses: it has the validator of the object that is there."""
    return lambda request, answer: answer if answer.status == 412 else fault(request, answer)


def test_a_new_opening_sees_the_new_archive(server: ObjectServer) -> None:
    url = server.put("/x.npz", npz(x=SMALL["x"]))
    tnp.open_npz(url)
    server.put("/x.npz", npz(x=SMALL["x"] + 1))
    assert torch.equal(tnp.open_npz(url)["x"], torch.from_numpy(SMALL["x"] + 1))


def test_an_archive_that_changes_while_it_is_opened_is_read_as_it_became(
    server: ObjectServer,
) -> None:
    """Its directory is longer than the first answer."""

    def numbered(offset: int) -> bytes:
        names = [f"{'long name ' * 10}{i}.npy" for i in range(2000)]
        return zipped({name: npy(np.int16(i + offset)) for i, name in enumerate(names)})

    url = server.put("/x.npz", numbered(0))

    def change_afterwards(_: Request, answer: Answer) -> Answer:
        server.put("/x.npz", numbered(5))
        return answer

    server.fail("/x.npz", change_afterwards)
    archive = tnp.open_npz(url)
    assert int(archive[archive.files[7]]) == 12  # type: ignore[arg-type]


@both
@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}, {"ETag": 'W/"1"'}])
def test_a_server_that_ignores_ranges_works(
    server: ObjectServer, data: bytes, headers: dict[str, str]
) -> None:
    url = server.put("/x.npz", data)
    server.always("/x.npz", whole(server, **headers))
    archive = tnp.load(url)
    assert archive.files == list(MANY_ARRAYS)
    for name, array in archive.read(["m001", "m111"]).items():
        assert_is(array, name)
    assert_is(archive["m199"], "m199")


def test_a_server_that_knows_no_suffix_ranges_works(server: ObjectServer) -> None:
    url = server.put("/x.npz", STORED)

    def refuse_suffix(request: Request, answer: Answer) -> Answer:
        if request.range.startswith("bytes=-"):
            return whole(server)(request, answer)
        return answer

    server.always("/x.npz", refuse_suffix)
    assert_is(tnp.open_npz(url)["m150"], "m150")


PASSING: dict[str, Fault] = {
    "503": status(503),
    "reset before the head": cut(None),
    "reset in the body": cut(5000),
    "closed in the body": cut(5000, "close"),
}


@both
@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("when", ["opening", "member"])
def test_a_fault_that_passes_costs_one_more_request(
    server: ObjectServer, data: bytes, fault: str, when: str
) -> None:
    url = server.put("/x.npz", data)
    server.fail("/x.npz", *([] if when == "opening" else [None]), PASSING[fault])
    assert_is(tnp.open_npz(url)["m100"], "m100")
    assert len(server.requests) == 3


@both
def test_a_member_resumes_where_it_stopped(server: ObjectServer, data: bytes) -> None:
    url = server.put("/x.npz", data)
    archive = tnp.open_npz(url)
    server.fail("/x.npz", cut(3000, "close"), cut(4000, "close"))
    assert_is(archive["m100"], "m100")
    _, first, second, third = spans(server, len(data))
    assert second == (first[0] + 3000, first[1])
    assert third == (first[0] + 7000, first[1])


def test_a_fault_that_stays_names_archive_and_attempts(server: ObjectServer) -> None:
    archive = tnp.open_npz(server.put("/x.npz", STORED), client=tnp.Client(retries=2))
    server.always("/x.npz", status(503))
    for ask in (lambda: archive["m100"], lambda: archive.read(["m001", "m150"])):
        with pytest.raises(tnp.TransportError, match=r"/x\.npz.*503.*2 attempts"):
            ask()
    server.always("/x.npz", lambda _, answer: answer)
    assert_is(archive["m100"], "m100")


def test_a_missing_archive_is_not_found(server: ObjectServer) -> None:
    for open_ in (tnp.open_npz, tnp.load):
        with pytest.raises(FileNotFoundError, match=r"/none\.npz.*404"):
            open_(server.url + "/none.npz")


NO_ARCHIVES = {
    "empty": b"",
    "one byte": b"P",
    "text": b"<html>not found</html>",
    "long text": b"no archive at all " * 10_000,
    "an archive without its end": STORED[:-30],
    "the first half of an archive": STORED[: len(STORED) // 2],
    "the last half of an archive": STORED[-TAIL_NBYTES // 2 :],
}


@pytest.mark.parametrize("kind", NO_ARCHIVES)
def test_what_is_no_archive_says_so(server: ObjectServer, kind: str) -> None:
    url = server.put("/x.npz", NO_ARCHIVES[kind])
    for open_ in (tnp.open_npz, tnp.load):
        with pytest.raises(tnp.FormatError, match=r"/x\.npz: expected .* but found"):
            open_(url)
    assert server.sent_nbytes <= 4 * (TAIL_NBYTES + SLACK_NBYTES)


def test_a_corrupt_member_is_named_and_the_others_are_read(server: ObjectServer) -> None:
    data = bytearray(STORED)
    data[data.index(npy(MANY_ARRAYS["m100"])) + 500] ^= 1
    url = server.put("/x.npz", bytes(data))
    archive = tnp.open_npz(url)
    with pytest.raises(tnp.FormatError, match=r"/x\.npz\[m100\.npy\]: expected CRC-32"):
        archive["m100"]
    assert_is(archive["m101"], "m101")
    assert tnp.open_npz(url, verify=False)["m100"].shape == (SIDE, SIDE)


@pytest.mark.parametrize("says", [MANY, 10, 499_999])
def test_a_directory_of_a_million_entries_is_refused(server: ObjectServer, says: int) -> None:
    directory = entries(MANY)
    data = directory + end64_bytes(says, len(directory), 0)
    url = server.put("/x.npz", data)
    with pytest.raises(tnp.FormatError, match=r"/x\.npz: .*expected .*found|limit"):
        tnp.open_npz(url)
    if says == MANY:  # the end record alone tells
        assert server.sent_nbytes == TAIL_NBYTES


def test_a_member_beyond_the_archive_is_not_asked_for(server: ObjectServer) -> None:
    data = bytearray(STORED)
    entry = data.index(b"PK\x01\x02")
    struct.pack_into("<II", data, entry + 20, 1 << 31, 1 << 31)
    url = server.put("/x.npz", bytes(data))
    with pytest.raises(tnp.FormatError, match=r"/x\.npz.*expected .*found"):
        tnp.open_npz(url)["m000"]
    assert server.sent_nbytes <= TAIL_NBYTES


def test_threads_share_a_remote_archive(server: ObjectServer) -> None:
    archive = tnp.open_npz(server.put("/x.npz", DEFLATED))

    def work(number: int) -> None:
        assert_is(archive[f"m{number:03}"], f"m{number:03}")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(0, COUNT, 3)))


INTERRUPTED = {
    "member": "archive['big']",
    "read": "archive.read(['big', 'other'])",
    "header": "archive.header('big')",
    "open": "tnp.open_npz(url, client=client)",
    "load": "tnp.load(url, client=client)",
    "op": "tnp.set_default_client(client); torch.ops.npy.load_npz(url)",
}


@pytest.mark.parametrize("how", INTERRUPTED)
def test_ctrl_c_ends_a_stalled_read(server: ObjectServer, how: str) -> None:
    data = npz(deflate=True, big=noise(1000, 1000), other=noise(500, 500), last=noise(300, 300))
    url = server.put("/x.npz", data)
    code = f"""
        import sys, torch, torchnpy as tnp
        url, client = sys.argv[1], tnp.Client(stall_timeout_s=600)
        archive = tnp.open_npz(url, client=client)
        print("opened", flush=True)
        sys.stdin.readline()
        try:
            {INTERRUPTED[how]}
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        sys.stdin.read()
        """
    with start_script(code, url) as script:
        assert script.stdout.readline() == "opened\n"
        server.always("/x.npz", cut(40, "stall"))
        script.stdin.write("go\n")
        script.stdin.flush()
        assert server.stalled.wait(60)
        script.send_signal(signal.SIGINT)
        assert script.stdout.readline() == "interrupted\n"
        assert server.dropped.wait(PROMPT_S), "the connection was left open"
        assert script.finish() == (0, "", "")


def test_an_archive_works_after_an_interrupted_read(server: ObjectServer) -> None:
    url = server.put("/x.npz", STORED)
    server.fail("/x.npz", None, cut(40, "stall"))
    out = run_script(
        """
        import os, signal, sys, threading, torchnpy as tnp
        archive = tnp.open_npz(sys.argv[1], client=tnp.Client(stall_timeout_s=600))
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            archive["m100"]
        except KeyboardInterrupt:
            print(tuple(archive["m100"].shape))
        """,
        url,
    )
    assert out == "(100, 100)\n"


def test_an_exit_with_a_member_in_flight_is_clean(server: ObjectServer) -> None:
    url = server.put("/x.npz", STORED)
    server.fail("/x.npz", None)
    server.always("/x.npz", cut(40, "stall"))
    with start_script(
        """
        import sys, threading, torchnpy as tnp
        archive = tnp.open_npz(sys.argv[1], client=tnp.Client(stall_timeout_s=600))
        threading.Thread(target=archive.read, daemon=True).start()
        sys.stdin.read()
        """,
        url,
    ) as script:
        assert server.stalled.wait(60)
        assert script.finish(PROMPT_S) == (0, "", "")


def test_a_forked_child_reads_on_in_its_parents_archive(server: ObjectServer) -> None:
    url = server.put("/x.npz", DEFLATED)
    run_script(
        """
        import os, sys, torch, torchnpy as tnp
        archive = tnp.open_npz(sys.argv[1])
        expected = archive["m100"]
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(archive["m100"], expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(archive["m100"], expected)
        """,
        url,
    )


def fake_end_records(nbytes: int) -> bytes:
    """Each with a locator of its own that leads one byte further to the front than the last."""
    data = bytearray(nbytes)
    further = nbytes - (22 + 65535 + 20 + 56)
    for end in range(nbytes - 22, nbytes - 60_000, -42):
        further -= 1
        data[end - 20 : end] = b"PK\6\7" + struct.pack("<IQI", 0, further, 1)
        comment_nbytes = nbytes - end - 22
        data[end : end + 22] = b"PK\5\6" + struct.pack(
            "<HHHHIIH", 0, 0, 1, 1, 46, 0, comment_nbytes
        )
    return bytes(data)


def test_any_number_of_fake_end_records_costs_one_more_request(server: ObjectServer) -> None:
    url = server.put("/x.npz", fake_end_records(400_000))
    with pytest.raises(tnp.FormatError, match="end record"):
        tnp.open_npz(url)
    assert len(server.requests) <= 2
    assert server.sent_nbytes < 200_000


def test_an_answer_of_unknown_length_is_not_kept_without_limit(server: ObjectServer) -> None:
    zeros = bytes(80 << 20)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(zeros), zeros)
    url = server.put("/x.npz", b"")
    server.always("/x.npz", lambda *_: Answer(200, {"Transfer-Encoding": "chunked"}, chunked))
    with pytest.raises(tnp.UnsupportedError, match=r"/x\.npz: expected an answer that gives"):
        tnp.open_npz(url)


def test_two_names_of_one_member_are_two_arrays(server: ObjectServer) -> None:
    archive = tnp.open_npz(server.put("/x.npz", npz(**SMALL)))
    arrays = archive.read(["x", "x.npy"])
    arrays["x"].zero_()
    assert_is(arrays["x.npy"], "x")

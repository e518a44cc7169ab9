"""``torchnpy cp`` to stores: from files, and from store to store."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from servers.http import Cut, ObjectServer, edit, s3_error, status
from servers.s3 import S3Server
from support import Run, start_script

from torchnpy.cli import transfer

# Before what the S3 server's listings say.
OLD_S = 1_600_000_000


def make_files(files: dict[str, bytes]) -> None:
    for name, body in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        os.utime(path, (OLD_S, OLD_S))


def test_a_folder_becomes_a_prefix(cp: Run, s3_server: S3Server) -> None:
    found = {"x": b"1", "b/y z": b"", "b/c/%41+&?#": b"22", "é": b"3"}
    make_files({f"in/{name}": body for name, body in found.items()})
    Path("in/.torchnpy-0.part").write_bytes(b"not whole yet")
    Path("in/loop").symlink_to(".")
    ended = cp("-r", "in", "s3://bucket/new")
    assert ended == (0, "4 copied (4 B), 0 were there already, 0 failed\n", "")
    objects = s3_server.buckets["bucket"].objects
    assert objects == {f"new/{name}": body for name, body in found.items()}


def test_one_file_goes_below_a_prefix_or_takes_the_name(cp: Run, s3_server: S3Server) -> None:
    make_files({"x": b"1"})
    for target in ("s3://bucket", "s3://bucket/a/", "s3://bucket/b"):
        assert cp("x", target).status == 0
    assert set(s3_server.buckets["bucket"].objects) == {"x", "a/x", "b"}


def test_what_is_there_and_equal_is_not_sent(cp: Run, s3_server: S3Server) -> None:
    make_files({"in/x": b"1", "in/y": b"2"})
    cp("-r", "in", "s3://bucket/a")

    def again(*options: str) -> dict[str, str]:
        return cp("-r", "--json", *options, "in", "s3://bucket/a").outcomes

    assert again() == {"in/x": "skipped", "in/y": "skipped"}
    assert again("--force") == {"in/x": "copied", "in/y": "copied"}
    Path("in/x").write_bytes(b"3")  # as long, but newer
    Path("in/z").write_bytes(b"4")
    assert again() == {"in/x": "copied", "in/y": "skipped", "in/z": "copied"}
    make_files({"in/y": b"22"})
    assert again()["in/y"] == "copied"
    # One file is looked up alone, and what begins with its name is another.
    s3_server.put_key("q2", b"1")
    make_files({"q": b"1"})
    assert cp("--json", "q", "s3://bucket/q").outcomes == {"q": "copied"}
    assert cp("--json", "q", "s3://bucket/q").outcomes == {"q": "skipped"}


def test_who_may_not_list_can_copy(cp: Run, s3_server: S3Server) -> None:
    make_files({"x": b"1"})
    s3_server.always("/bucket", s3_error(403, "AccessDenied"))
    assert cp("--json", "x", "s3://bucket/a").outcomes == {"x": "copied"}
    assert cp("--json", "x", "s3://bucket/a").outcomes == {"x": "copied"}


@pytest.mark.parametrize("nbytes", [0, 99_999, 100_000, 100_001, 17 << 20])
def test_objects_arrive_whole(
    cp: Run, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    monkeypatch.setattr(transfer, "PIECE_NBYTES", 100_000 if nbytes < 1 << 20 else 4 << 20)
    body = np.random.default_rng(0).bytes(nbytes)
    make_files({"x": body})
    assert cp("x", "s3://bucket/a").status == 0
    assert s3_server.buckets["bucket"].objects == {"a": body}
    assert cp("s3://bucket/a", "s3://bucket/b").status == 0
    assert s3_server.buckets["bucket"].objects["b"] == body


def test_a_failure_leaves_nothing_and_stops_nothing(cp: Run, s3_server: S3Server) -> None:
    make_files({"in/a": b"1", "in/b": bytes(17 << 20), "in/c": b"3"})
    for _ in range(2):
        s3_server.fail("part 2", status(500))
    ended = cp("-r", "in", "s3://bucket/")
    assert ended.status == 1
    assert ended.out == "2 copied (2 B), 0 were there already, 1 failed\n"
    assert ended.err.startswith("torchnpy: s3://bucket/b: part 2: HTTP 500")
    bucket = s3_server.buckets["bucket"]
    assert set(bucket.objects) == {"a", "c"}
    while bucket.uploads:  # only the end of the process waits until it is aborted
        time.sleep(0.01)
    assert len(bucket.aborted) == 1


def test_a_file_that_changes_meanwhile_is_not_copied(
    cp: Run, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PIECE_NBYTES", 1000)
    make_files({"x": bytes(10_000)})
    read = transfer.Reader.read

    def change(self: transfer.Reader, offset: int, nbytes: int) -> memoryview:
        if offset == 5000:
            Path("x").write_bytes(bytes(10_000))
        return read(self, offset, nbytes)

    monkeypatch.setattr(transfer.Reader, "read", change)
    ended = cp("x", "s3://bucket/a")
    assert ended.status == 1
    assert "x: expected the file that the copy began with but found it changed" in ended.err
    assert s3_server.buckets["bucket"].objects == {}


def test_ctrl_c_leaves_no_upload(s3_server: S3Server, credentials: None, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(40 << 20))
    s3_server.cut_body("part 3", Cut(1000, "stall"))
    code = "import sys; from torchnpy.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["cp", "--endpoint", s3_server.url, str(path), "s3://bucket/x"]
    with start_script(code, *arguments) as script:
        assert s3_server.stalled.wait(30)
        script.send_signal(signal.SIGINT)
        assert script.finish() == (130, "", "")
    bucket = s3_server.buckets["bucket"]
    assert (bucket.objects, bucket.uploads, len(bucket.aborted)) == ({}, {}, 1)


def test_from_store_to_store_keys_are_kept(cp: Run, s3_server: S3Server) -> None:
    keys = ["x", "a", "a/b", "../up", "a//b", "é\x01", "./c"]
    for key in keys:
        s3_server.put_key(f"from/{key}", key.encode())
    assert cp("-r", "s3://bucket/from", "s3://bucket/to/").status == 0
    objects = s3_server.buckets["bucket"].objects
    assert {key: objects[f"to/{key}"] for key in keys} == {key: key.encode() for key in keys}
    outcomes = cp("-r", "--json", "s3://bucket/from", "s3://bucket/to/").outcomes
    assert set(outcomes.values()) == {"skipped"}
    s3_server.put_key("from/x", b"y")  # as long, and of the same time in this server's listings
    s3_server.buckets["bucket"].objects["to/a"] = b"b"
    outcomes = cp("-r", "--json", "s3://bucket/from", "s3://bucket/to/").outcomes
    assert set(outcomes.values()) == {"skipped"}


def test_files_go_to_web_servers_too(run: Run, server: ObjectServer) -> None:
    make_files({"in/a b": b"1", "in/c/d%": b"2"})
    assert run("cp", "-r", "in", f"{server.url}/up").status == 0
    assert server.objects == {"/up/a b": b"1", "/up/c/d%": b"2"}
    assert run("cp", "in/a b", f"{server.url}/one?token=secret").status == 0
    assert server.objects["/one"] == b"1"
    server.always("/one", status(403))
    ended = run("cp", "in/a b", f"{server.url}/one?token=secret")
    assert ended.status == 1
    assert "HTTP 403" in ended.err
    assert "secret" not in ended.out + ended.err


def test_keys_that_servers_resolve_are_refused(
    cp: Run, s3_server: S3Server, other_server: ObjectServer
) -> None:
    s3_server.put_key("p/../up", b"evil")
    s3_server.put_key("p/x", b"good")
    ended = cp("-r", "s3://bucket/p", f"{other_server.url}/in")
    assert ended.status == 1
    assert (
        's3://bucket/p/../up: expected a name of a file below the folder but found a part ".."'
        in (ended.err)
    )
    assert other_server.objects == {"/in/x": b"good"}


def test_an_object_that_changes_on_its_way_is_not_copied(
    cp: Run, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PIECE_NBYTES", 1000)
    url = s3_server.put_key("x", bytes(10_000))
    s3_server.fail("/bucket/x", None, None, None, edit(ETag='"other"'))
    ended = cp("--force", url, "s3://bucket/y")
    assert ended.status == 1
    assert "changed" in ended.err
    assert set(s3_server.buckets["bucket"].objects) == {"x"}

"""``torchnpy cp``: what arrives where, what does not, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from servers.http import ObjectServer, cut, edit, status
from servers.s3 import S3Server
from support import Ended, Run, files, npy, start_script

from torchnpy.cli import transfer

MODIFIED = "Mon, 06 May 2024 07:08:09 GMT"
MODIFIED_S = 1714979289  # of the S3 server's listings, too

SCRIPT = """
    import sys
    from torchnpy.cli import main, transfer
    transfer.PIECE_NBYTES = 100_000
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    """Copies in pieces of so many bytes."""
    monkeypatch.setattr(transfer, "PIECE_NBYTES", 100_000)
    return 100_000


def random_bytes(nbytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


# Names


def test_a_prefix_becomes_a_folder(cp: Run, s3_server: S3Server) -> None:
    objects = {"x": b"1", "b/y z": b"", "b/c/%41+&?": b"22", "é": b"3"}
    for key, body in objects.items():
        s3_server.put_key(f"a/{key}", body)
    s3_server.put_key("ab", b"not below a/")
    s3_server.put_key("a/b/", b"")  # as a store's console marks a folder
    ended = cp("-r", "s3://bucket/a", "out/new")
    assert ended == (0, "4 copied (4 B), 0 were there already, 0 failed\n", "")
    assert files("out/new") == objects
    assert Path("out/new/x").stat().st_mtime == MODIFIED_S


def test_one_object_goes_into_a_folder_or_takes_the_name(cp: Run, s3_server: S3Server) -> None:
    url = s3_server.put_key("a/x", b"1")
    Path("here").mkdir()
    for target in ("here", "new/", "c", "d/e"):
        assert cp(url, target).status == 0
    assert files(".") == {"here/x": b"1", "new/x": b"1", "c": b"1", "d/e": b"1"}
    assert cp(url, s3_server.put_key("y", b"2"), "both").status == 0
    assert files("both") == {"x": b"1", "y": b"2"}


def test_http_names_are_decoded_but_lead_nowhere_else(run: Run, server: ObjectServer) -> None:
    assert run("cp", server.put("/a/x y.npy", b"1") + "?q=1#f", "out/").status == 0
    assert files("out") == {"x y.npy": b"1"}
    server.put("/../up", b"1")
    ended = run("cp", server.url + "/..%2fup", "out/")
    assert ended.status == 1
    assert "expected the name of a file but found ../up" in ended.err
    assert not Path("up").exists()


HOSTILE_KEYS = [
    "../up",
    "a/../../up",
    "/etc/x",
    "a//b",
    "a/./b",
    "..",
    "nul\0byte",
    "trailing/",
    ".torchnpy-x.part",
    "link/x",
    "l\u0300ong" + "x" * 300,
]


def test_no_key_leads_outside_of_the_folder(cp: Run, s3_server: S3Server, tmp_path: Path) -> None:
    for key in [*HOSTILE_KEYS, "good"]:
        s3_server.put_key("p/" + key, b"evil" if key != "good" else b"good")
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "deep" / "out"
    inside.mkdir(parents=True)
    (inside / "link").symlink_to(outside)
    ended = cp("-r", "--json", "s3://bucket/p", inside)
    assert ended.status == 1
    assert files(tmp_path) == {"deep/out/good": b"good"}
    for key in HOSTILE_KEYS:
        escaped = key.replace("\0", "\\x00")
        assert f"torchnpy: s3://bucket/p/{escaped}: " in ended.err
    assert "expected a folder link to put it into but found a symbolic link" in ended.err
    assert 'found a part ".."' in ended.err
    assert ended.err.count("\n") == len(HOSTILE_KEYS)


def test_links_and_folders_in_the_way_are_left_alone(
    cp: Run, s3_server: S3Server, tmp_path: Path
) -> None:
    for key in ("a/link", "a/folder", "a/file/x", "a/dangling"):
        s3_server.put_key(key, b"new")
    Path("secret").write_bytes(b"old")
    Path("out/folder").mkdir(parents=True)
    Path("out/file").write_bytes(b"old")
    Path("out/link").symlink_to(tmp_path / "secret")
    Path("out/dangling").symlink_to(tmp_path / "nowhere")
    ended = cp("-r", "--force", "s3://bucket/a", "out")
    assert ended.status == 1
    assert files(".") == {"secret": b"old", "out/file": b"old", "out/link": b"old"}
    for text in (
        "s3://bucket/a/link: expected a file link, or none, but found a symbolic link",
        "s3://bucket/a/folder: expected a file folder, or none, but found a folder",
        "s3://bucket/a/file/x: expected a folder file to put it into but found a file",
        "s3://bucket/a/dangling: expected a file dangling, or none, but found a symbolic link",
    ):
        assert text in ended.err
    # What the user names is followed.
    assert cp("s3://bucket/a/link", "out/link").status == 0
    assert Path("secret").read_bytes() == b"new"
    assert Path("out/link").is_symlink()


def test_an_object_that_is_also_a_folder_is_refused_with_both_names(
    cp: Run, s3_server: S3Server
) -> None:
    for key in ("p/a", "p/a/b", "p/a/c", "p/d"):
        s3_server.put_key(key, key.encode())
    ended = cp("-r", "s3://bucket/p", "out")
    assert ended.status == 1
    assert ended.err == (
        "torchnpy: s3://bucket/p/a: expected a file but found that s3://bucket/p/a/b makes a a "
        "folder; copy one of them elsewhere\n"
    )
    assert files("out") == {"a/b": b"p/a/b", "a/c": b"p/a/c", "d": b"p/d"}


def test_two_objects_of_one_name_are_refused(cp: Run, s3_server: S3Server) -> None:
    ended = cp(s3_server.put_key("a/x", b"1"), s3_server.put_key("b/x", b"2"), "out")
    assert ended.status == 1
    assert "s3://bucket/b/x: expected another name than that of s3://bucket/a/x" in ended.err
    assert files("out") == {"x": b"1"}


def test_folders_need_recursive(cp: Run) -> None:
    Path("d").mkdir()
    for source in ("d", "s3://bucket/a/"):
        ended = cp(source, "out")
        assert ended.status == 2
        assert f"{source}: expected an object but found a folder; --recursive" in ended.err


# What is there already


def test_what_is_there_and_equal_is_left_alone(cp: Run, s3_server: S3Server) -> None:
    url = s3_server.put_key("a/x", b"1234")
    assert cp("-r", "--json", "s3://bucket/a", "out").outcomes == {url: "copied"}

    def again(*options: str) -> str:
        return cp("-r", "--json", *options, "s3://bucket/a", "out").outcomes[url]

    assert again() == "skipped"
    assert again("--force") == "copied"
    os.utime("out/x", (MODIFIED_S + 100, MODIFIED_S + 100))
    assert again() == "skipped"  # newer here
    os.utime("out/x", (MODIFIED_S - 1, MODIFIED_S - 1))
    assert again() == "copied"
    Path("out/x").write_bytes(b"12")
    assert again() == "copied"
    assert files("out") == {"x": b"1234"}


def test_one_object_asks_the_store_before_it_is_left_alone(run: Run, server: ObjectServer) -> None:
    url = server.put("/x", random_bytes(50_000))
    server.always("/x", edit(Last_Modified=MODIFIED))
    assert run("cp", "--json", url, "x").rows[0]["outcome"] == "copied"
    assert Path("x").stat().st_mtime == MODIFIED_S
    before = server.sent_nbytes
    assert run("cp", "--json", url, "x").rows[0] == {
        "source": url,
        "target": str(Path("x").resolve()),
        "outcome": "skipped",
        "nbytes": 0,
        "error": None,
    }
    assert server.sent_nbytes - before == 1
    server.always("/x", edit())  # no time: it may have changed
    assert run("cp", "--json", url, "x").rows[0]["outcome"] == "copied"


# Failures


def test_a_failure_does_not_stop_the_others(cp: Run, s3_server: S3Server) -> None:
    for i in range(30):
        s3_server.put_key(f"a/{i:02}", b"x")
    s3_server.always("/bucket/a/07", status(403))
    s3_server.always("/bucket/a/11", cut(0))
    ended = cp("-r", "s3://bucket/a", "out")
    assert ended.status == 1
    assert ended.out == "28 copied (28 B), 0 were there already, 2 failed\n"
    assert sorted(line.split(": ")[1] for line in ended.err.splitlines()) == [
        "s3://bucket/a/07",
        "s3://bucket/a/11",
    ]
    assert len(files("out")) == 28
    rows = cp("-r", "--json", "s3://bucket/a", "out").rows
    assert len(rows) == 30
    (failed,) = [row for row in rows if row["source"] == "s3://bucket/a/07"]
    assert (failed["outcome"], failed["nbytes"]) == ("failed", 0)
    assert "HTTP 403" in failed["error"]


def test_fail_fast_ends_with_the_first(cp: Run, s3_server: S3Server) -> None:
    for i in range(50):
        s3_server.put_key(f"a/{i:02}", b"x")
    s3_server.always("/bucket/a/00", status(403))
    ended = cp("-r", "--fail-fast", "-j", "1", "s3://bucket/a", "out")
    assert ended.status == 1
    assert ended.out == "0 copied (0 B), 0 were there already, 1 failed\n"
    assert files("out") == {}


def test_a_full_disk_leaves_the_old_file(cp: Run, s3_server: S3Server) -> None:
    import resource

    url = s3_server.put_key("x", random_bytes(50_000))
    Path("x").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        ended = cp(url, "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert ended.status == 1
    assert ended.err == (f"torchnpy: {url}: cannot write {Path('x').absolute()}: File too large\n")
    assert files(".") == {"x": b"old"}


# Large objects


@pytest.mark.parametrize("nbytes", [99_999, 100_000, 100_001, 1_000_000])
def test_large_objects_arrive_whole(cp: Run, s3_server: S3Server, pieces: int, nbytes: int) -> None:
    body = random_bytes(nbytes)
    assert cp(s3_server.put_key("x", body), "x").status == 0
    assert files(".") == {"x": body}


def test_memory_is_bounded_by_pieces(cp: Run, s3_server: S3Server, pieces: int) -> None:
    cp(s3_server.put_key("x", random_bytes(1_000_000)), "x")
    spans = [request.range.removeprefix("bytes=").split("-") for request in s3_server.requests]
    assert max(int(end) - int(begin) + 1 for begin, end in spans) <= pieces
    assert len(spans) >= 10


def test_an_object_that_changes_meanwhile_is_never_mixed(
    cp: Run, s3_server: S3Server, pieces: int
) -> None:
    old, new = random_bytes(500_000, 1), random_bytes(500_000, 2)
    url = s3_server.put_key("x", old)

    def change(_: object, answer: object) -> object:
        s3_server.put_key("x", new)
        return answer

    s3_server.fail("/bucket/x", None, None, change)  # type: ignore[arg-type]
    ended = cp("--force", url, "x")
    assert ended.status == 1
    assert "changed" in ended.err
    assert "x" not in files(".")
    assert cp(url, "x").status == 0
    assert files(".") == {"x": new}


def interrupt(arguments: list[str], server: ObjectServer, number: int) -> tuple[int, str, str]:
    """Sends a signal to a copy once the server goes no further."""
    with start_script(SCRIPT, *arguments) as script:
        assert server.stalled.wait(30)
        script.send_signal(number)
        return script.finish()


@pytest.fixture
def half(
    cp: Run, s3_server: S3Server, pieces: int, request: pytest.FixtureRequest
) -> Callable[[], Ended]:
    """A copy of 1 MB that was ended by a signal half way; gives the copy that goes on."""
    body = random_bytes(1_000_000)
    url = s3_server.put_key("x", body)
    s3_server.fail("/bucket/x", None, None, None, None, None, cut(10, "stall"))
    # A script has a working directory of its own.
    command = ["cp", "--endpoint", s3_server.url, "--force", url, str(Path("x").absolute())]
    ended = interrupt(command, s3_server, request.param)
    assert ended == ((130, "", "") if request.param == signal.SIGINT else (-9, "", ""))
    s3_server._faults.clear()
    s3_server.requests.clear()
    assert "x" not in files(".")
    return lambda: cp("--json", "--force", url, "x")


BOTH = pytest.mark.parametrize("half", [signal.SIGINT, signal.SIGKILL], indirect=True)
ONE = pytest.mark.parametrize("half", [signal.SIGKILL], indirect=True)  # faster


@BOTH
def test_an_interrupted_copy_goes_on(half: Callable[[], Ended]) -> None:
    partial, note = files(".")
    there = len(files(".")[note if note.endswith(".part") else partial])
    assert there >= 300_000
    ended = half()
    assert ended.status == 0
    assert ended.rows[0]["nbytes"] == 1_000_000 - there
    assert files(".") == {"x": random_bytes(1_000_000)}


@ONE
def test_another_version_begins_anew(half: Callable[[], Ended], s3_server: S3Server) -> None:
    s3_server.put_key("x", random_bytes(1_000_000, 9))  # as long as the first
    assert half().rows[0]["nbytes"] == 1_000_000
    assert files(".") == {"x": random_bytes(1_000_000, 9)}


@ONE
def test_a_broken_note_begins_anew(half: Callable[[], Ended]) -> None:
    (note,) = Path().glob("*.json")
    known = json.loads(note.read_text())
    for text in ("{", "[]", json.dumps(known | {"nbytes": "x"}), json.dumps({"nbytes": 5})):
        note.write_text(text)
    assert half().rows[0]["nbytes"] == 1_000_000
    assert files(".") == {"x": random_bytes(1_000_000)}


def test_two_copies_to_one_file_at_once_are_refused(cp: Run, s3_server: S3Server) -> None:
    url = s3_server.put_key("x", random_bytes(1000))
    from torchnpy.cli.folder import Folder

    folder = Folder(".")
    with folder.partial(["x"], url) as partial:
        ended = cp(url, "x")
        assert ended.status == 1
        assert "expected to be the only copy to x but found another one at work" in ended.err
        partial.begin(None)
    folder.close()
    assert files(".") == {}


def test_modes_are_as_open_gives_them(cp: Run, s3_server: S3Server) -> None:
    url = s3_server.put_key("a/x", b"1")
    before = os.umask(0o027)
    try:
        cp("-r", "--sync", "s3://bucket/a", "out")
    finally:
        os.umask(before)
    assert Path("out/x").stat().st_mode & 0o777 == 0o640
    os.chmod("out/x", 0o604)
    cp("--force", url, "out/x")
    assert Path("out/x").stat().st_mode & 0o777 == 0o604


def test_files_are_copied_to_files(run: Run) -> None:
    Path("a/b").mkdir(parents=True)
    Path("a/x.npy").write_bytes(npy(np.arange(3)))
    Path("a/b/y").write_bytes(b"")
    os.symlink(".", "a/loop")
    assert run("cp", "-r", "a", "out").status == 0
    assert files("out") == files("a")
    assert run("cp", "--json", "-r", "a", "out").rows[0]["outcome"] == "skipped"
    assert run("cp", "a/none", "out").err == "torchnpy: a/none: No such file or directory\n"

"""The commands that read: what they print, for people and for programs, and how they end."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers.http import ObjectServer, cut, damage, status
from servers.s3 import S3Server
from support import Run, Script, npy, npz, start_script, zipped

from torchnpy.cli import main

RUN = "import sys; from torchnpy.cli import main; sys.exit(main(sys.argv[1:]))"


# info


def test_info_tells_what_a_header_says(run: Run) -> None:
    Path("x.npy").write_bytes(npy(np.zeros((3, 4), "<f4")) + b"junk")
    (found,) = run("info", "--json", "x.npy").rows
    assert found == {
        "name": "x.npy",
        "format": "npy",
        "nbytes": 180,
        "descr": "<f4",
        "dtype": "float32",
        "unit": "",
        "shape": [3, 4],
        "fortran_order": False,
        "version": "1.0",
        "data_offset": 128,
        "data_nbytes": 48,
        "missing_nbytes": 0,
        "trailing_nbytes": 4,
    }
    lines = run("info", "x.npy").out.splitlines()
    assert "shape\t(3, 4)" in lines
    assert "dtype\tfloat32 (<f4)" in lines
    assert "trailing\t4 bytes after the data" in lines


def test_info_lists_the_members_of_an_archive(run: Run) -> None:
    members = {"w.npy": npy(np.arange(5)), "note": b"text", "bad.npy": b"\x93NUMPY\x01\x00"}
    Path("x.bin").write_bytes(zipped(members, deflate=True))  # the content tells what it is
    (found,) = run("info", "--json", "x.bin").rows
    assert (found["format"], found["nbytes"]) == ("npz", Path("x.bin").stat().st_size)
    array, note, bad = found["members"]
    assert array["array"]["shape"] == [5]
    assert (array["key"], array["name"], array["method"]) == ("w", "w.npy", "deflated")
    assert (array["nbytes"], array["error"]) == (168, None)
    assert (note["array"], note["error"], note["nbytes"]) == (None, None, 4)
    assert bad["array"] is None
    assert "x.bin[bad.npy]: expected" in bad["error"]
    assert "w\tint64 (<i8)\t(5,)\t168\t" in run("info", "x.bin").out


def test_info_fetches_no_data(run: Run, server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.zeros(1_000_000)))
    assert run("info", url).status == 0
    assert [request.range for request in server.requests] == ["bytes=0-65535"]


def test_what_fails_is_one_line_and_the_others_go_on(run: Run) -> None:
    Path("x.npy").write_bytes(npy(np.zeros(3)))
    Path("junk.npy").write_bytes(b"junk")
    ended = run("info", "--json", "none.npy", "junk.npy", "x.npy")
    assert ended.status == 1
    assert [row["name"] for row in ended.rows] == ["x.npy"]
    none, junk = ended.err.splitlines()
    assert none == "torchnpy: none.npy: cannot open: No such file or directory"
    assert junk.startswith("torchnpy: junk.npy: expected")


def test_debug_shows_where_it_failed(run: Run) -> None:
    ended = run("--debug", "info", "none.npy")
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("torchnpy: none.npy")
    assert "Traceback" not in run("info", "none.npy").err


# head and cat


def test_head_fetches_only_the_rows_that_it_shows(run: Run, server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.arange(4_000_000.0).reshape(-1, 4)))
    (found,) = run("head", "-n", "2", "--json", url).rows
    assert found["rows"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (found["name"], found["member"], found["shape"]) == (url, None, [1_000_000, 4])
    assert server.sent_nbytes < 200_000
    assert run("head", "-n", "1", url).out == (
        f"{url}  float64 (<f8)  (1000000, 4)\ntensor([[0., 1., 2., 3.]], dtype=torch.float64)\n"
    )


@pytest.mark.parametrize(
    ("array", "rows"),
    [
        (np.array([1.5, np.nan, -np.inf]), [1.5, "nan", "-inf"]),
        (np.array(7), 7),
        (np.asfortranarray(np.arange(6).reshape(3, 2)), [[0, 1], [2, 3]]),
        (np.array([1 + 2j]), [[1, 2]]),
        (np.array([2**63], "<u8"), [2**63]),
        (np.zeros((0, 2)), []),
        (np.array([(1, 2.5)], [("a", "<i4"), ("b", "<f8")]), {"a": [1], "b": [2.5]}),
    ],
)
def test_rows_as_json(run: Run, array: np.ndarray, rows: Any) -> None:
    Path("x.npy").write_bytes(npy(array))
    limit = "2" if array.shape == (3, 2) else "3"
    (found,) = run("head", "--json", "-n", limit, "x.npy").rows
    assert found["rows"] == rows


def test_head_shows_each_member_or_one(run: Run) -> None:
    Path("x.npz").write_bytes(npz(a=np.arange(3), b=np.array(["text"]), c=np.ones(2)))
    ended = run("head", "--json", "-n", "1", "x.npz")
    assert ended.status == 1  # text has no tensor
    assert [(row["member"], row["rows"]) for row in ended.rows] == [("a", [0]), ("c", [1])]
    assert "x.npz[b.npy]" in ended.err
    assert [row["member"] for row in run("head", "--json", "-m", "c", "x.npz").rows] == ["c"]
    missing = run("head", "-m", "d", "x.npz")
    assert (missing.status, missing.out) == (1, "")
    assert "d" in missing.err


def test_cat_writes_text(run: Run) -> None:
    Path("x.npy").write_bytes(npy(np.arange(6).reshape(3, 2)))
    assert run("cat", "x.npy").out == "0 1\n2 3\n4 5\n"
    assert run("cat", "--delimiter", ",", "x.npy").out == "0,1\n2,3\n4,5\n"
    Path("x.npz").write_bytes(npz(a=np.arange(2), b=np.arange(3)))
    assert run("cat", "-m", "b", "x.npz").out == "0\n1\n2\n"
    assert run("cat", "x.npz") == (
        1,
        "",
        "torchnpy: x.npz: expected one array but found an archive of 2 members; choose one with "
        "--member\n",
    )
    assert "expected an archive for --member but found an array" in run("cat", "-ma", "x.npy").err


def test_cat_raw_writes_any_bytes(
    s3_server: S3Server,
    credentials: None,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("torchnpy.cli.inspect._PIECE_NBYTES", 1000)
    body = np.random.default_rng(0).bytes(2500)
    url = s3_server.put_key("any thing", body)
    assert main(["--endpoint", s3_server.url, "cat", "--raw", url]) == 0
    assert capsysbinary.readouterr().out == body
    archive = tmp_path / "x.npz"
    archive.write_bytes(zipped({"note": b"\0\1\2"}))
    assert main(["cat", "--raw", "-m", "note", str(archive)]) == 0
    assert capsysbinary.readouterr().out == b"\0\1\2"


# ls


def test_ls_shows_one_level_of_a_prefix_or_all(s3: Run, s3_server: S3Server) -> None:
    for key in ("a/x.npy", "a/b/y.npy", "a/b/z.npy", "other"):
        s3_server.put_key(key, b"1234")
    rows = s3("ls", "--json", "s3://bucket/a/").rows
    assert [(row["name"], row["type"]) for row in rows] == [
        ("s3://bucket/a/b/", "folder"),
        ("s3://bucket/a/x.npy", "object"),
    ]
    assert rows[1] == {
        "name": "s3://bucket/a/x.npy",
        "type": "object",
        "nbytes": 4,
        "modified": "2024-05-06T07:08:09.000Z",
        "etag": "81dc9bdb52d04dc20036dbd8313ed055",
    }
    names = [row["name"] for row in s3("ls", "-r", "--json", "s3://bucket/").rows]
    assert names == [f"s3://bucket/{key}" for key in ("a/b/y.npy", "a/b/z.npy", "a/x.npy", "other")]
    assert s3("ls", "s3://bucket/other").out == (
        f"{4:>15}  2024-05-06T07:08:09  s3://bucket/other\n"
    )


def test_ls_of_folders_files_and_archives(run: Run) -> None:
    Path("d/e").mkdir(parents=True)
    Path("d/x.npz").write_bytes(npz(w=np.arange(5)))
    Path("d/e/y").write_bytes(b"12")
    Path("d/loop").symlink_to(".")
    rows = run("ls", "--json", "d").rows
    assert [(row["name"], row["type"]) for row in rows] == [
        ("d/e/", "folder"),
        ("d/loop/", "folder"),
        ("d/x.npz", "object"),
    ]
    assert [row["name"] for row in run("ls", "-r", "--json", "d").rows] == ["d/e/y", "d/x.npz"]
    assert [row["nbytes"] for row in run("ls", "--json", "d/e/y").rows] == [2]
    (member,) = run("ls", "--json", "d/x.npz").rows
    assert member["name"] == "w"
    assert (member["type"], member["method"], member["nbytes"]) == ("member", "stored", 168)
    assert run("ls", "none").err == "torchnpy: none: No such file or directory\n"


def test_http_has_no_listings(run: Run, server: ObjectServer) -> None:
    ended = run("ls", server.url + "/a/")
    assert ended.status == 1
    assert "HTTP has no listings" in ended.err


def test_names_never_reach_the_terminal_raw(s3: Run, s3_server: S3Server) -> None:
    hostile = "\x1b[31m\x9b\r\n\u202e\u2028é.npz"
    url = s3_server.put_key(hostile, zipped({"\x1b]0;x\x07": b"1"}))
    escaped = "\\x1b[31m\\x9b\\r\\n\\u202e\\u2028é.npz"
    for arguments in (["ls", "-r", "s3://bucket/"], ["verify", url], ["info", url], ["ls", url]):
        ended = s3(*arguments)
        assert ended.status == 0
        assert all(line.isprintable() for line in ended.out.replace("\t", " ").splitlines())
    assert escaped in s3("ls", "-r", "s3://bucket/").out
    assert s3("ls", "--json", "-r", "s3://bucket/").rows[0]["name"] == url
    failed = s3("info", url + "\x1b[0m")
    assert "\\x1b[0m" in failed.err
    assert failed.err.removesuffix("\n").isprintable()
    Path(os.fsdecode(b"\xff.npy")).write_bytes(b"junk")
    assert "\\udcff.npy" in s3("info", os.fsdecode(b"\xff.npy")).err


# verify


def test_verify_names_what_is_broken(run: Run) -> None:
    good = npy(np.arange(10))
    deflated = bytearray(npz(w=np.arange(1000), v=np.arange(3), deflate=True))
    deflated[200] ^= 0x10
    stored = zipped({"w.npy": good})
    Path("d/e").mkdir(parents=True)
    for name, data in {
        "d/good.npy": good,
        "d/e/good.npz": npz(a=np.arange(3), b=np.array(["text"]), c=np.array([{}], object)),
        "d/short.npy": good[:-1],
        "d/long.npy": good + b"12",
        "d/flipped.npz": bytes(deflated),
        "d/crc.npz": stored.replace(good[-8:], good[-8:-1] + b"\1"),
        "d/cut.npz": npz(a=np.arange(30))[:-30],
        "d/inner.npz": zipped({"s.npy": good[:-3]}),
        "d/object.npy": npy(np.array([None], object)),
        "d/other.txt": b"not looked at",
    }.items():
        Path(name).write_bytes(data)
    ended = run("verify", "--json", "d")
    assert ended.status == 1
    rows = {row["name"]: row for row in ended.rows}
    assert {name for name, row in rows.items() if row["ok"]} == {
        "d/good.npy",
        "d/e/good.npz",
        "d/object.npy",
    }
    assert rows["d/e/good.npz"] == {
        "name": "d/e/good.npz",
        "ok": True,
        "format": "npz",
        "nbytes": Path("d/e/good.npz").stat().st_size,
        "members": 3,
        "error": None,
    }
    errors = {name: row["error"] for name, row in rows.items() if not row["ok"]}
    assert errors["d/short.npy"] == (
        "d/short.npy: expected 80 bytes of data (<i8, shape (10,)) but found 79; it is truncated"
    )
    assert errors["d/long.npy"] == (
        "d/long.npy: expected the end at byte 208 but found 2 more bytes; --allow-trailing allows "
        "them"
    )
    assert "[w.npy]: expected" in errors["d/flipped.npz"]
    assert "d/crc.npz[w.npy]: expected CRC-32" in errors["d/crc.npz"]
    assert "d/cut.npz: expected" in errors["d/cut.npz"]
    assert errors["d/inner.npz"].startswith("d/inner.npz[s]: expected 80 bytes of data")
    assert len(errors) == 6 == len(ended.err.splitlines())
    assert run("verify", "--allow-trailing", "d/long.npy").status == 0


def test_verify_looks_at_a_whole_prefix(s3: Run, s3_server: S3Server) -> None:
    for i in range(40):
        s3_server.put_key(f"a/{i:02}.npy", npy(np.arange(i)))
    s3_server.put_key("a/bad.npz", b"bad")
    ended = s3("verify", "s3://bucket/a/")
    assert ended.status == 1
    assert sorted(ended.out.splitlines())[1] == "ok  s3://bucket/a/01.npy  npy of 136 bytes"
    assert len(ended.out.splitlines()) == 40
    assert "s3://bucket/a/bad.npz: expected" in ended.err
    del s3_server.buckets["bucket"].objects["a/bad.npz"]
    assert s3("verify", "-q", "-r", "s3://bucket/a") == (0, "", "")
    assert s3("verify", "s3://bucket/none/") == (
        1,
        "",
        "torchnpy: s3://bucket/none/: expected objects that end in .npy or .npz but found none\n",
    )


def test_checksums_of_the_store_are_compared(s3: Run, s3_server: S3Server) -> None:
    url = s3_server.put_key("x.npy", npy(np.arange(100)))
    s3_server.keep_checksum("x.npy", "crc32")
    s3_server.always("/bucket/x.npy", damage())
    assert s3("head", "-n1000", url).status == 0
    assert "expected CRC-32" in s3("cat", "--checksums", url).err


# bench


def test_bench_tells_rates_and_latencies(s3: Run, s3_server: S3Server) -> None:
    for i in range(10):
        s3_server.put_key(f"a/{i}.npy", npy(np.zeros(100)))
    s3_server.put_key("a/x.npz", npz(w=np.zeros(100)))
    (found,) = s3("bench", "--json", "-n", "55", "-b", "8", "s3://bucket/a/").rows
    assert (found["objects"], found["nbytes"]) == (55, 55 * 800)
    assert 0 < found["requests"] <= 60  # reads of the same bytes share one
    assert found["objects_per_s"] > 0 < found["mb_per_s"]
    assert 0 < found["total_p50_s"] <= found["total_p95_s"] <= found["total_p99_s"]
    assert 0 < found["first_byte_p50_s"] <= found["total_p99_s"]
    assert (found["retries"], found["errors"]) == (0, 0)
    table = s3("bench", "-s", "0.01", "s3://bucket/a/").out
    assert "whole read p50, p95, p99\t" in table


def test_bench_of_files_has_no_latencies(run: Run) -> None:
    Path("x.npy").write_bytes(npy(np.zeros(100)))
    (found,) = run("bench", "--json", "-n", "3", "x.npy").rows
    assert (found["objects"], found["requests"], found["total_p50_s"]) == (3, 0, None)
    assert run("bench", "none.npy").status == 1


# the frame


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frob"], "torchnpy: No such command 'frob'; see torchnpy --help"),
        (["info"], "torchnpy info: Missing argument 'NAME...'; see torchnpy info --help"),
        (["info", "--frob", "x"], "torchnpy info: No such option '--frob'"),
        (["info", "--retries", "x", "y"], "torchnpy info: Invalid value for '--retries'"),
        (["--retries", "-3", "info", "x"], "retries: expected"),
        (["--header", "x", "info", "x"], "--header: expected NAME:VALUE"),
        (["head", "-n", "-1", "x"], "Invalid value for '--rows'"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(run: Run, arguments: list[str], message: str) -> None:
    ended = run(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert ended.err.count("\n") == 1


def test_help_and_version(run: Run) -> None:
    ended = run()
    assert (ended.status, ended.out, ended.err[:6]) == (2, "", "Usage:")
    assert run("--version").out.startswith("torchnpy 0.")
    ended = run("--help")
    assert ended.status == 0
    for name in ("info", "head", "ls", "cat", "verify", "convert", "cp", "append"):
        assert f"\n  {name} " in ended.out
        assert "..." not in ended.out.partition("Commands:")[2]  # whole sentences
        assert run(name, "--help").status == 0


def test_options_of_the_client_stand_before_or_behind_the_command(
    run: Run, s3_server: S3Server, credentials: None
) -> None:
    s3_server.buckets["bucket"].public = True
    url = s3_server.put_key("x.npy", npy(np.zeros(3)))
    options = ("--endpoint", s3_server.url, "--anonymous", "--header", "X-Test: a b")
    assert run(*options, "info", url).status == 0
    assert run("info", *options, url).status == 0
    assert run("--endpoint", "http://127.0.0.1:1", "info", url, *options).status == 0
    for request in s3_server.requests:
        assert "authorization" not in request.headers
        assert request.headers["x-test"] == "a b"


def test_verbose_tells_each_request(run: Run, server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.zeros(3)))
    assert run("info", url).err == ""
    assert f"{url}" in run("-v", "info", url + "?secret=1").err
    assert "secret" not in run("-v", "info", url + "?secret=1").err


def test_missing_libraries_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["info", "x"]) == 1
    assert capsys.readouterr().err == (
        "torchnpy: expected the package rich for the command line but found none; "
        "pip install 'torchnpy[cli]'\n"
    )


def test_a_terminal_gets_a_table_without_markup_from_names(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    Path("[red]x.npz").write_bytes(zipped({"[bold]w": b"1"}))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["info", "[red]x.npz"]) == 0
    assert "[bold]w" in terminal.getvalue()
    assert "member" in terminal.getvalue()


@pytest.mark.parametrize("command", ["ls", "cat", "verify"])
def test_a_closed_pipe_ends_quietly(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    Path("x.npy").write_bytes(npy(np.zeros(100_000)))
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        try:
            ended = run(command, "x.npy")
        finally:
            monkeypatch.undo()
            with open(os.devnull, "w") as null:  # what is left in its buffer
                os.dup2(null.fileno(), writer)
    assert (ended.status, ended.err) == (141, "")


def test_a_full_disk_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x.npy").write_bytes(npy(np.zeros(3)))
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        ended = run("info", "x.npy")
        monkeypatch.undo()
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), full.fileno())
    assert (ended.status, ended.err) == (1, "torchnpy: [Errno 28] No space left on device\n")


def interrupt(script: Script, server: ObjectServer) -> tuple[int, str, str]:
    """Ctrl-C while the server does not go on."""
    assert server.stalled.wait(30)
    script.send_signal(signal.SIGINT)
    return script.finish()


def test_ctrl_c_ends_quietly(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.zeros(100_000)))
    server.always("/x.npy", cut(10, "stall"))
    with start_script(RUN, "verify", url) as script:
        ended = interrupt(script, server)
    assert ended == (130, "", ""), ended[2]
    assert server.dropped.wait(5)


def test_refused_objects_are_told_without_a_traceback(run: Run, server: ObjectServer) -> None:
    url = server.put("/x.npy", b"")
    server.always("/x.npy", status(403, b"no"))
    ended = run("info", url)
    assert ended.status == 1
    assert "HTTP 403" in ended.err
    assert ended.err.count("\n") == 1

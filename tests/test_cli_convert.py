"""``torchnpy convert``, ``append`` and ``recover``."""

from __future__ import annotations

import gzip
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from servers.s3 import S3Server
from support import Run, npy, npz, zipped

import torchnpy as tnp


def save(name: str, array: np.ndarray) -> str:
    Path(name).write_bytes(npy(array))
    return name


def data_offsets(path: str) -> list[int]:
    """Where each stored member's array begins."""
    data = Path(path).read_bytes()
    offsets = []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            begin = info.header_offset + 30 + name + extra
            offsets.append(begin + 10 + struct.unpack_from("<H", data, begin + 8)[0])
    return offsets


ARRAY = np.array([[1.5, 0.1], [-2.25, 1e30]])


@pytest.mark.parametrize(
    "ends", ["x.npy", "x.npz", "x.txt", "x.csv", "x.tsv", "x.csv.gz", "x.txt.xz", "x.csv.bz2"]
)
def test_every_format_gives_the_array_back(run: Run, ends: str) -> None:
    save("in.npy", ARRAY)
    assert run("convert", "in.npy", ends) == (0, "", "")
    assert run("convert", ends, "back.npy").status == 0
    assert np.array_equal(np.load("back.npy"), ARRAY)


def test_an_archive_is_rewritten_with_aligned_members(run: Run) -> None:
    members = {"a": np.arange(5), "bcd": np.ones((3, 3), "f4"), "e": np.float16(2)}
    for deflate in (False, True):
        Path("old.npz").write_bytes(npz(**members, deflate=deflate))
        assert run("convert", "--json", "old.npz", "new.npz").rows == [
            {"name": "new.npz", "format": "npz", "arrays": ["a", "bcd", "e"]}
        ]
        assert [offset % 64 for offset in data_offsets("new.npz")] == [0, 0, 0]
        with np.load("new.npz") as found:
            assert found.files == list(members)
            assert all(np.array_equal(found[key], members[key]) for key in members)


def test_members_are_compressed_when_asked(run: Run) -> None:
    Path("old.npz").write_bytes(npz(a=np.zeros(10_000), b=np.arange(10_000)))
    sizes = []
    for options in ((), ("-c",), ("-c", "--level", "9"), ("-c", "--level", "0")):
        assert run("convert", *options, "old.npz", "new.npz").status == 0
        with np.load("new.npz") as found:
            assert np.array_equal(found["b"], np.arange(10_000))
        sizes.append(Path("new.npz").stat().st_size)
    assert sizes[1] < sizes[0] / 3
    assert sizes[2] < sizes[0] / 3


def test_members_are_chosen_and_named(run: Run) -> None:
    Path("x.npz").write_bytes(npz(a=np.arange(3), b=np.arange(4)))
    assert run("convert", "-m", "b", "x.npz", "b.npy").status == 0
    assert np.array_equal(np.load("b.npy"), np.arange(4))
    assert run("convert", "-m", "b.npy", "x.npz", "b.npz").status == 0
    assert np.load("b.npz").files == ["b"]
    assert run("convert", "-m", "w", "b.npy", "w.npz").status == 0
    assert np.load("w.npz").files == ["w"]
    ended = run("convert", "x.npz", "x.npy")
    assert ended.status == 1
    assert "expected one array to write but found 2; choose one with --member" in ended.err
    assert "nope" in run("convert", "-m", "nope", "x.npz", "y.npz").err
    assert not Path("y.npz").exists()


def test_several_sources_become_one_archive(run: Run) -> None:
    save("a.npy", np.arange(3))
    Path("b.csv").write_text("1,2\n3,4\n")
    assert run("convert", "a.npy", "b.csv", "x.npz").status == 0
    with np.load("x.npz") as found:
        assert found.files == ["a", "b"]
        assert np.array_equal(found["b"], [[1, 2], [3, 4]])
    Path("d").mkdir()
    save("d/a.npy", np.arange(3))
    ended = run("convert", "a.npy", "d/a.npy", "y.npz")
    assert ended.status == 1
    assert not Path("y.npz").exists()


def test_casting(run: Run) -> None:
    save("x.npy", ARRAY)
    assert run("convert", "--dtype", "float32", "x.npy", "y.npy").status == 0
    assert np.array_equal(np.load("y.npy"), ARRAY.astype("f4"))
    save("c.npy", np.array([1j]))
    assert "expected a complex dtype" in run("convert", "--dtype", "float32", "c.npy", "y.npy").err
    assert run("convert", "--dtype", "frob", "x.npy", "y.npy").status == 2
    save("b.npy", np.array([1.5], ml_dtypes.bfloat16))
    assert run("convert", "b.npy", "y.npy").status == 1
    assert run("convert", "--bits", "bfloat16", "b.npy", "y.csv").status == 0
    assert Path("y.csv").read_text() == "1.5\n"


def test_text_is_read_and_written_as_asked(run: Run) -> None:
    Path("x.txt").write_text("# comment\na;b\n1;2\n3;4\n")
    arguments = ("--delimiter", ";", "--skip", "2", "--dtype", "int32")
    assert run("convert", *arguments, "x.txt", "x.npy").status == 0
    found = np.load("x.npy")
    assert (found.dtype, found.tolist()) == (np.int32, [[1, 2], [3, 4]])
    assert run("convert", "--format", "%.2f", "--to", "txt", "x.npy", "out").status == 0
    assert Path("out").read_text() == "1.00 2.00\n3.00 4.00\n"
    Path("bad.csv").write_text("1,2\n3,x\n")
    ended = run("convert", "bad.csv", "y.npy")
    assert ended.status == 1
    assert ended.err.startswith("torchnpy: bad.csv: ")
    assert not Path("y.npy").exists()
    assert run("convert", "x.npy", "y.csv.gz").status == 0
    assert gzip.decompress(Path("y.csv.gz").read_bytes()) == b"1,2\n3,4\n"


def test_cat_of_odd_shapes(run: Run) -> None:
    save("c.npy", np.array([[1 + 2j, 3]]))
    save("t.npy", np.arange(8, dtype="f4").reshape(2, 2, 2))
    save("s.npy", np.array([(1, 2.5), (3, 0.1)], [("a", "<i4"), ("b", "<f8")]))
    save("n.npy", np.array(7))
    save("z.npy", np.zeros((0, 3)))
    assert run("cat", "c.npy").out.split() == ["(1+2j)", "(3+0j)"]
    assert run("cat", "t.npy").out == "0 1\n2 3\n4 5\n6 7\n"
    assert run("cat", "s.npy").out == "1 2.5\n3 0.10000000000000001\n"
    assert run("cat", "n.npy").out == "7\n"
    assert run("cat", "--format", "%5.1f", "c.npy").out.split() == [
        "(",
        "1.0+",
        "2.0j)",
        "(",
        "3.0+",
        "0.0j)",
    ]
    assert run("cat", "z.npy") == (0, "", "")


def test_what_is_no_array_is_not_made_one(run: Run) -> None:
    Path("x.npz").write_bytes(zipped({"note": b"text", "a.npy": npy(np.arange(2))}))
    ended = run("convert", "x.npz", "y.npz")
    assert ended.status == 1
    assert "x.npz[note]: expected an array but found other bytes" in ended.err
    assert run("convert", "-m", "a", "x.npz", "y.npz").status == 0
    save("text.npy", np.array(["a"]))
    assert run("convert", "text.npy", "z.npy").status == 1
    assert run("convert", "x.npz", "z").status == 2
    assert not Path("z").exists()


def test_stores_are_read_and_written(s3: Run, s3_server: S3Server) -> None:
    url = s3_server.put_key("x.npz", npz(a=ARRAY, deflate=True))
    assert s3("convert", url, "s3://bucket/y.npz").status == 0
    assert s3("convert", "s3://bucket/y.npz", "s3://bucket/z.csv").status == 0
    objects = s3_server.buckets["bucket"].objects
    assert np.loadtxt(objects["z.csv"].decode().splitlines(), delimiter=",").tolist() == (
        ARRAY.tolist()
    )
    ended = s3("convert", "-n", url, "s3://bucket/y.npz")
    assert ended.status == 1
    assert "s3://bucket/y.npz: HTTP 412: expected no object of that name" in ended.err


def test_failures_leave_the_old_file(run: Run) -> None:
    save("x.npy", ARRAY)
    Path("bad.npy").write_bytes(npy(ARRAY)[:-1])
    assert run("convert", "bad.npy", "x.npy").status == 1
    assert np.array_equal(np.load("x.npy"), ARRAY)
    assert run("convert", "--no-clobber", "x.npy", "x.npy").status == 1
    assert run("convert", "--dtype", "float32", "x.npy", "x.npy").status == 0  # over itself
    assert np.array_equal(np.load("x.npy"), ARRAY.astype("f4"))


# append and recover


def test_rows_are_appended(s3: Run, s3_server: S3Server) -> None:
    first, url = save("a.npy", np.ones((2, 3))), s3_server.put_key("b.npy", npy(np.zeros((4, 3))))
    assert s3("append", "log.npy", first, url).out == "log.npy: 6 rows appended, shape (6, 3)\n"
    assert s3("append", "--json", "log.npy", first).rows == [
        {"name": "log.npy", "appended": 2, "shape": [8, 3]}
    ]
    expected = np.concatenate([np.ones((2, 3)), np.zeros((4, 3)), np.ones((2, 3))])
    assert np.array_equal(np.load("log.npy"), expected)
    assert s3("append", "--new", "log.npy", first).status == 0
    assert len(np.load("log.npy")) == 2


def test_a_new_file_replaces_the_old_only_by_rows_that_are_there(run: Run) -> None:
    old = np.ones((2, 3))
    save("log.npy", old)
    Path("link.npy").symlink_to("log.npy")
    save("number.npy", np.array(5.0))
    for sources, status in (
        (["nofile.npy"], 1),
        (["number.npy"], 1),
        (["log.npy"], 2),
        (["number.npy", "./link.npy"], 2),
    ):
        assert run("append", "--new", "log.npy", *sources).status == status
        assert np.array_equal(np.load("log.npy"), old)
    save("rows.npy", old[:1])
    save("none.npy", old[:0])
    assert run("append", "--new", "log.npy", "none.npy", "rows.npy").status == 0
    assert np.array_equal(np.load("log.npy"), old[:1])


@pytest.mark.filterwarnings("default")
def test_warnings_are_lines_of_the_command(run: Run) -> None:
    Path("empty.csv").write_text("")
    message = 'torchnpy: loadtxt: input contained no data: "empty.csv"\n'
    assert run("convert", "empty.csv", "x.npy") == (0, "", message)
    assert np.load("x.npy").shape == (0,)


def test_rows_that_do_not_fit_are_refused(run: Run) -> None:
    run("append", "log.npy", save("a.npy", np.ones((2, 3), "i4")))
    for array in (np.ones((2, 4), "i4"), np.full((2, 3), 1.5)):
        ended = run("append", "log.npy", save("b.npy", array))
        assert ended.status == 1
        assert ended.err.count("\n") == 1
    assert run("append", "--casting", "unsafe", "log.npy", "b.npy").status == 0
    assert np.load("log.npy")[-1].tolist() == [1, 1, 1]
    Path("x.npz").write_bytes(npz(a=np.ones(3)))
    assert "found an archive" in run("append", "log.npy", "x.npz").err
    assert "objects cannot grow" in run("append", "s3://bucket/x.npy", "a.npy").err


def test_tight_headers_are_prepared(run: Run) -> None:
    body = np.arange(3).tobytes()
    text = b"{'descr':'<i8','fortran_order':False,'shape':(3,)}"
    text += b" " * (-(len(text) + 11) % 16) + b"\n"
    Path("x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)
    save("rows.npy", np.arange(3))
    assert run("append", "x.npy", "rows.npy").status == 1
    assert run("append", "--prepare", "x.npy", "rows.npy").status == 0
    assert np.load("x.npy").tolist() == [0, 1, 2, 0, 1, 2]


def test_recover_counts_the_rows_that_are_there(run: Run) -> None:
    Path("long.npy").write_bytes(npy(np.arange(3)) + np.arange(2).tobytes() + b"123")
    save("good.npy", np.arange(3))
    ended = run("recover", "--check", "--json", "long.npy", "good.npy")
    assert ended.status == 1
    assert [(row["name"], row["needed"], row["recovered"]) for row in ended.rows] == [
        ("long.npy", True, False),
        ("good.npy", False, False),
    ]
    assert run("recover", "long.npy", "good.npy").out == (
        "long.npy: recovered, shape (5,)\ngood.npy: whole, shape (3,)\n"
    )
    assert np.load("long.npy").tolist() == [0, 1, 2, 0, 1]
    assert run("recover", "--check", "long.npy").status == 0
    Path("long.npy").write_bytes(npy(np.arange(3)) + b"\1")
    assert run("recover", "--zero-fill", "long.npy").status == 0
    assert np.load("long.npy").tolist() == [0, 1, 2, 1]
    ended = run("recover", "none.npy", "good.npy")
    assert ended.status == 1
    assert ended.out == "good.npy: whole, shape (3,)\n"


def test_what_convert_writes_is_mapped_and_not_copied(run: Run) -> None:
    Path("old.npz").write_bytes(npz(a=np.zeros(100_000), deflate=True))
    run("convert", "old.npz", "new.npz")
    with tnp.open_npz("new.npz") as new, tnp.open_npz("old.npz") as old:
        assert new["a"].data_ptr() == new["a"].data_ptr()
        first, second = old["a"], old["a"]
        assert first.data_ptr() != second.data_ptr()

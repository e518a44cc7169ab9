"""Where arrays go: files that are whole or not there, open files of any kind, archives."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import npy, run_script, start_script

import torchnpy as tnp

X = torch.arange(12, dtype=torch.float32).view(3, 4)
SAVED = npy(X.numpy())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["x", "x.npy", "x.npz", "x.npy.gz", ".npy", "s3:x", "no//x"])
def test_a_path_gets_numpys_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / "no").mkdir()
    (tmp_path / "numpy" / "no").mkdir(parents=True)
    np.save(f"{tmp_path}/numpy/{name}", X.numpy())
    tnp.save(f"{tmp_path}/{name}", X)
    expected = [path for path in (tmp_path / "numpy").rglob("*") if path.is_file()]
    (path,) = expected
    assert (tmp_path / path.relative_to(tmp_path / "numpy")).read_bytes() == path.read_bytes()


def test_a_url_is_taken_as_it_is(tmp_path: Path) -> None:
    tnp.save(f"file://{tmp_path}/a%20b", X)
    assert (tmp_path / "a b").read_bytes() == SAVED
    tnp.savez(f"file://{tmp_path}/c", X)
    assert np.load(tmp_path / "c").files == ["arr_0"]


def test_archives_get_a_suffix_too(tmp_path: Path) -> None:
    tnp.savez(tmp_path / "a", X)
    tnp.savez_compressed(str(tmp_path / "b.npz"), X)
    assert names(tmp_path) == ["a.npz", "b.npz"]


def test_names_need_not_be_text(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    tnp.save(path, X)
    assert Path(path + ".npy").read_bytes() == SAVED
    with pytest.raises(tnp.UnsupportedError) as refused:
        tnp.save(path, X.to_sparse())
    assert str(refused.value).startswith(path + ".npy: expected a tensor")


def test_pipes_and_devices_get_no_suffix(tmp_path: Path) -> None:
    tnp.save(os.devnull, X)
    os.mkfifo(tmp_path / "pipe")
    with start_script(
        "import sys; print(open(sys.argv[1], 'rb').read().hex())", tmp_path / "pipe"
    ) as reader:
        tnp.save(tmp_path / "pipe", X)
        assert reader.finish()[:2] == (0, SAVED.hex() + "\n")
    assert names(tmp_path) == ["pipe"]


def test_stdout_is_written_where_it_is(tmp_path: Path) -> None:
    run_script(
        """
        import os, sys
        import torch, torchnpy as tnp
        out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        tnp.save("/dev/stdout", torch.ones(3))
        os.lseek(1, 0, os.SEEK_END)
        os.write(1, b"and on")
        """,
        tmp_path / "out",
    )
    assert (tmp_path / "out").read_bytes() == npy(np.ones(3, "f4")) + b"and on"


@pytest.mark.parametrize("target", [3, None, b"x.npy"])
def test_what_is_no_target_is_a_type_error(target: Any) -> None:
    with pytest.raises(TypeError) as refused:
        tnp.save(target, X)
    assert str(refused.value) == (
        "target: expected a URL, a path or an open binary file but found " + type(target).__name__
    )


def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_its_own(tmp_path: Path) -> None:
    run_script(
        """
        import os, sys
        import torch, torchnpy as tnp
        os.umask(0o027)
        tnp.save(sys.argv[1] + "/new.npy", torch.ones(3))
        open(sys.argv[1] + "/old.npy", "w").close()
        os.chmod(sys.argv[1] + "/old.npy", 0o604)
        tnp.save(sys.argv[1] + "/old.npy", torch.ones(3))
        """,
        tmp_path,
    )
    assert stat.S_IMODE((tmp_path / "new.npy").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "old.npy").stat().st_mode) == 0o604


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.npy").symlink_to("folder/y.npy")
    tnp.save(tmp_path / "x", X)
    assert (tmp_path / "x.npy").is_symlink()
    assert (tmp_path / "folder" / "y.npy").read_bytes() == SAVED


def test_synced_files_are_the_same(tmp_path: Path) -> None:
    tnp.save(tmp_path / "x", X, sync=True)
    assert (tmp_path / "x.npy").read_bytes() == SAVED


def test_if_none_match_does_not_replace(tmp_path: Path) -> None:
    tnp.save(tmp_path / "x", X, if_none_match=True)
    with pytest.raises(tnp.TransportError) as refused:
        tnp.save(tmp_path / "x", X * 2, if_none_match=True)
    assert isinstance(refused.value, FileExistsError)
    assert str(refused.value) == (
        f"{tmp_path}/x.npy: expected no file but found one; choose another name, or allow "
        "if_none_match=False"
    )
    assert names(tmp_path) == ["x.npy"]
    assert (tmp_path / "x.npy").read_bytes() == SAVED


def test_one_of_many_savers_is_first(tmp_path: Path) -> None:
    won: list[int] = []

    def save(i: int) -> None:
        try:
            tnp.save(tmp_path / "x", torch.full((100_000,), i), if_none_match=True)
            won.append(i)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=save, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = won
    assert torch.equal(tnp.load(tmp_path / "x.npy"), torch.full((100_000,), winner))
    assert names(tmp_path) == ["x.npy"]


def test_what_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        tnp.save(tmp_path / "no" / "x", X)
    assert str(missing.value) == f"{tmp_path}/no/x.npy: cannot create: No such file or directory"
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(tnp.TransportError) as folder:
        tnp.save(tmp_path / "x", X)
    assert str(folder.value) == f"{tmp_path}/x.npy: cannot create: Is a directory"


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        folder.rmdir()
        pytest.skip(f"only a user who may mount has a disk to fill: {done.stderr}")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def test_a_full_disk_leaves_the_old_file(small_disk: Path) -> None:
    path = small_disk / "x.npy"
    tnp.save(path, X)
    with pytest.raises(tnp.TransportError) as full:
        tnp.save(path, torch.zeros(1 << 20))
    written = int(str(full.value).split(" more than ")[1].split()[0])
    assert 900_000 < written <= 1 << 20
    assert str(full.value) == (
        f"{path}: cannot write more than {written} of 4194432 bytes: No space left on device; what "
        "was there before is unchanged"
    )
    with pytest.raises(tnp.TransportError, match="No space left on device"):
        tnp.savez(path, torch.zeros(1 << 20))
    assert names(small_disk) == ["x.npy"]
    assert path.read_bytes() == SAVED


def test_a_limit_of_file_sizes_is_an_error_and_no_signal(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(SAVED)
    out = run_script(
        """
        import resource, signal, sys
        import torch, torchnpy as tnp
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            tnp.save(sys.argv[1], torch.zeros(1 << 20))
        except OSError as error:
            print(error)
        """,
        tmp_path / "x.npy",
    )
    assert out == (
        f"{tmp_path}/x.npy: cannot write more than 1048576 of 4194432 bytes: File too large; what "
        "was there before is unchanged\n"
    )
    assert names(tmp_path) == ["x.npy"]
    assert (tmp_path / "x.npy").read_bytes() == SAVED


def test_a_process_that_is_killed_leaves_one_of_its_arrays_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    count = 300_000
    tnp.save(path, torch.zeros(count))
    chance = random.Random(1)
    for _ in range(25):
        with start_script(
            f"""
            import sys
            import torch, torchnpy as tnp
            arrays = [torch.full(({count},), i) for i in range(4)]
            print("begun", flush=True)
            while True:
                for array in arrays:
                    tnp.save(sys.argv[1], array)
            """,
            path,
        ) as script:
            script.stdout.readline()
            time.sleep(chance.uniform(0, 0.03))
            script.send_signal(signal.SIGKILL)
            assert script.finish()[0] == -signal.SIGKILL
        left = np.load(path)
        assert left.shape == (count,)
        assert (left == left[0]).all()
        assert len(names(tmp_path)) <= 2
    tnp.save(path, X)
    assert names(tmp_path) == ["x.npy"]


def test_ctrl_c_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(SAVED)
    with start_script(
        """
        import sys
        import torch, torchnpy as tnp
        print("begun", flush=True)
        try:
            tnp.save(sys.argv[1], torch.zeros(1, 1).expand(1 << 15, 1 << 20))  # 128 GiB
        except KeyboardInterrupt:
            print("interrupted")
        """,
        tmp_path / "x.npy",
    ) as script:
        script.stdout.readline()
        while len(names(tmp_path)) == 1:
            time.sleep(0.001)
        script.send_signal(signal.SIGINT)
        sent = time.monotonic()
        assert script.finish() == (0, "interrupted\n", "")
        assert time.monotonic() - sent < 10
    assert names(tmp_path) == ["x.npy"]
    assert (tmp_path / "x.npy").read_bytes() == SAVED


def test_ctrl_c_ends_the_wait_for_a_pipes_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with start_script(
        """
        import sys
        import torch, torchnpy as tnp
        print("begun", flush=True)
        try:
            tnp.save(sys.argv[1], torch.ones(3))
        except KeyboardInterrupt:
            print("interrupted")
        """,
        tmp_path / "pipe",
    ) as script:
        script.stdout.readline()
        time.sleep(0.05)
        script.send_signal(signal.SIGINT)
        assert script.finish() == (0, "interrupted\n", "")


# Open files.


def test_arrays_are_appended_to_an_open_file_as_numpy_does(tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as file:
        file.write(b"head")
        tnp.save(file, X)
        tnp.save(file, X.T)
        file.write(b"tail")
    expected = b"head" + SAVED + npy(X.numpy().T) + b"tail"
    assert (tmp_path / "x").read_bytes() == expected
    with open(tmp_path / "x", "rb") as file:
        file.seek(4)
        assert torch.equal(tnp.load(file), X)
        assert torch.equal(tnp.load(file), X.T)


def test_large_arrays_go_to_files_of_all_kinds(tmp_path: Path) -> None:
    tensor = torch.randint(0, 100, (5 << 20,), dtype=torch.int32)  # 20 MiB: two pieces
    expected = npy(tensor.numpy())
    memory = io.BytesIO()
    tnp.save(memory, tensor)
    assert memory.getvalue() == expected
    for buffering in (-1, 0):
        with open(tmp_path / "x", "wb", buffering=buffering) as file:
            tnp.save(file, tensor)
        assert (tmp_path / "x").read_bytes() == expected
    with gzip.open(tmp_path / "x.gz", "wb", compresslevel=1) as packed:
        tnp.save(packed, tensor)
    assert gzip.decompress((tmp_path / "x.gz").read_bytes()) == expected
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        with archive.open("m", "w") as member:
            tnp.save(member, tensor)
        assert archive.read("m") == expected
    with tempfile.TemporaryFile() as temporary:
        tnp.save(temporary, tensor[::2])
        temporary.seek(0)
        assert temporary.read() == npy(tensor[::2].numpy())


def test_a_socket_gets_all_of_it() -> None:
    tensor = torch.arange(1 << 20)
    ours, theirs = socket.socketpair()
    received = bytearray()

    def receive() -> None:
        while data := theirs.recv(1 << 16):
            received.extend(data)

    reader = threading.Thread(target=receive)
    reader.start()
    with (
        ours,
        ours.makefile("wb", buffering=0) as raw,
    ):  # whose write() takes what there is room for
        tnp.save(raw, tensor)
        tnp.savez(raw, a=tensor)
    reader.join()
    theirs.close()
    expected = npy(tensor.numpy())
    assert received[: len(expected)] == expected
    with np.load(io.BytesIO(received[len(expected) :])) as archive:
        assert np.array_equal(archive["a"], tensor.numpy())


class Stingy(io.RawIOBase):
    """Takes little at a time, or what it is told to."""

    def __init__(self, answer: Any = 0) -> None:
        self.data = bytearray()
        self.answer = answer

    def write(self, data: Any) -> Any:
        taken = bytes(data)[:1000]
        self.data += taken
        return self.answer if self.answer != 0 else len(taken)


def test_short_writes_are_continued() -> None:
    stream = Stingy()
    tnp.save(stream, torch.arange(3000))
    assert stream.data == npy(np.arange(3000))


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            None,
            BlockingIOError,
            "<stream>: expected a file that blocks but found one that does not, and is full; make "
            "it blocking",
        ),
        (-1, OSError, "<stream>: expected write() to take 1 to 128 bytes but it says -1"),
        (30_000, OSError, "<stream>: expected write() to take 1 to 128 bytes but it says 30000"),
        ("x", OSError, "<stream>: expected write() to take 1 to 128 bytes but it says 'x'"),
    ],
)
def test_a_write_that_answers_nonsense_is_an_error(
    answer: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as refused:
        tnp.save(Stingy(answer), torch.arange(3000))  # type: ignore[arg-type]
    assert str(refused.value) == message


class Keeper:
    """Keeps what it is given, and says nothing."""

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def write(self, data: Any) -> None:
        self.parts.append(data)


def test_a_file_like_object_may_keep_the_bytes() -> None:
    keeper = Keeper()
    tensor = torch.arange(1000)
    tnp.save(keeper, tensor)  # type: ignore[arg-type]
    tensor.zero_()
    assert b"".join(keeper.parts) == npy(np.arange(1000))


class Broken:
    def write(self, data: Any) -> int:
        raise RuntimeError("no more")


@pytest.mark.parametrize("save", [tnp.save, tnp.savez, tnp.savez_compressed])
def test_what_a_write_raises_arrives(save: Any) -> None:
    for run in (lambda call: call(), _in_a_thread):
        with pytest.raises(RuntimeError, match="no more"):
            run(lambda: save(Broken(), X))


def test_an_error_of_a_write_keeps_no_memory_that_is_gone() -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(OSError, match="No space left") as error,
    ):
        tnp.save(full, X)
    lent = [
        value
        for entry in error.traceback
        for value in entry.frame.f_locals.values()
        if isinstance(value, memoryview)
    ]
    assert lent
    for view in lent:
        with pytest.raises(ValueError, match="released"):
            view.tobytes()


def test_a_text_file_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="str"):
        tnp.save(io.StringIO(), X)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["sync", "if_none_match"])
def test_options_of_names_are_refused_for_open_files(option: str) -> None:
    message = f"^{option}: expected False for an open file but found True$"
    with pytest.raises(ValueError, match=message):
        tnp.save(io.BytesIO(), X, **{option: True})  # type: ignore[arg-type]


def _in_a_thread(call: Any) -> None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def test_a_thread_saves_to_an_open_file() -> None:
    file = io.BytesIO()
    _in_a_thread(lambda: tnp.save(file, X))
    assert file.getvalue() == SAVED


def test_a_thread_that_never_ends_writing_does_not_keep_the_process() -> None:
    run_script(
        """
        import socket, threading, time
        import torch, torchnpy as tnp
        ours, theirs = socket.socketpair()
        file = ours.makefile("wb", buffering=0)
        threading.Thread(target=tnp.save, args=(file, torch.zeros(1 << 20)), daemon=True).start()
        time.sleep(0.1)
        """
    )


# Archives.


def test_archives_have_numpys_names(tmp_path: Path) -> None:
    arrays = {"a": X, "file": X[0], "self": X[1], "target": X.T, "sync": X, "\u4e2d/b c": X}
    tnp.savez(tmp_path / "x", X, X[:, 0], **arrays)
    with np.load(tmp_path / "x.npz") as archive:
        assert archive.files == [*arrays, "arr_0", "arr_1"]
        for name, array in arrays.items():
            assert np.array_equal(archive[name], array.numpy())
            assert archive[name].flags.f_contiguous == (name == "target" or array.dim() < 2)
    loaded = tnp.load_npz((tmp_path / "x.npz").read_bytes())
    assert torch.equal(loaded["target"], X.T)


def test_arrays_of_all_kinds_are_members(tmp_path: Path) -> None:
    tnp.savez(tmp_path / "x", [1, 2], {"a": X[:, 0]}, t=np.array("text"), s=2.5)
    np.savez(tmp_path / "y", [1, 2], r=np.zeros(3), t=np.array("text"), s=2.5)
    with np.load(tmp_path / "x.npz") as ours, np.load(tmp_path / "y.npz") as theirs:
        assert ours.files == ["t", "s", "arr_0", "arr_1"]
        for name in ("arr_0", "t", "s"):
            assert ours[name].dtype == theirs[name].dtype
            assert np.array_equal(ours[name], theirs[name])
        assert ours["arr_1"].dtype == [("a", "<f4")]


@pytest.mark.parametrize("save", [tnp.savez, tnp.savez_compressed])
def test_a_name_that_is_taken_is_numpys_error(tmp_path: Path, save: Any) -> None:
    message = "^Cannot use un-named variables and keyword arr_0$"
    for one in (np.savez, save):
        with pytest.raises(ValueError, match=message):
            one(tmp_path / "x", X, arr_0=X)
    assert not (tmp_path / "x.npz").exists()


def test_level_is_an_option_or_an_array(tmp_path: Path) -> None:
    tensor = torch.arange(100_000)
    sizes = {}
    for level in (0, 1, None, 9):
        tnp.savez_compressed(tmp_path / "x", a=tensor, level=level)
        sizes[level] = (tmp_path / "x.npz").stat().st_size
        with np.load(tmp_path / "x.npz") as archive:
            assert archive.files == ["a"]
            assert np.array_equal(archive["a"], tensor.numpy())
    assert sizes[0] > 800_000 > sizes[1] >= sizes[9]
    tnp.savez_compressed(tmp_path / "x", a=tensor, level=X)
    with np.load(tmp_path / "x.npz") as archive:
        assert archive.files == ["a", "level"]
        assert np.array_equal(archive["level"], X.numpy())
    tnp.savez(tmp_path / "x", a=tensor, level=3)
    with np.load(tmp_path / "x.npz") as archive:
        assert archive["level"] == 3


def test_an_interrupted_archive_leaves_the_old_file(tmp_path: Path) -> None:
    tnp.savez(tmp_path / "x", X)
    before = (tmp_path / "x.npz").read_bytes()
    with pytest.raises(ValueError, match="name"):
        tnp.savez(tmp_path / "x", **{"a": X, "\0": X})
    assert (tmp_path / "x.npz").read_bytes() == before
    assert names(tmp_path) == ["x.npz"]


def test_nothing_makes_an_empty_archive(tmp_path: Path) -> None:
    tnp.savez(tmp_path / "x")
    assert np.load(tmp_path / "x.npz").files == []


def test_long_names_leave_no_trace(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".npy")
    tnp.save(path, X)
    assert names(tmp_path) == [path.name]
    shutil.rmtree(tmp_path)

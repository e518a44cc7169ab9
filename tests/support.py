"""What the tests share: arrays as bytes, and scripts run in a process of their own."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import io
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

import torchnpy

TESTS = Path(__file__).parent
ROOT = TESTS.parent


def ops_library() -> str:
    """The library of the ops for the torch that is imported."""
    return next(name for name in torch.ops.loaded_libraries if name.endswith("libtorchnpy.so"))


def load_tool(name: str) -> ModuleType:
    """The program tools/NAME, or the module NAME.py there, as a module."""
    if str(ROOT / "tools") not in sys.path:
        sys.path.append(str(ROOT / "tools"))  # where it finds the modules beside it
    if (ROOT / "tools" / f"{name}.py").exists():
        return importlib.import_module(name)
    loader = importlib.machinery.SourceFileLoader(f"{name}_tool", str(ROOT / "tools" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # where dataclasses look up the annotations
    loader.exec_module(module)
    return module


def npy(array: Any) -> bytes:
    """The array as numpy writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(*arrays: Any, deflate: bool = False, **named: Any) -> bytes:
    """The arrays as numpy archives them."""
    buffer = io.BytesIO()
    (np.savez_compressed if deflate else np.savez)(buffer, *arrays, **named)
    return buffer.getvalue()


def zipped(
    members: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    *,
    deflate: bool = False,
    alignment: int = 1,
    comment: bytes = b"",
) -> bytes:
    """An archive of these members; names may repeat. The data of each begins at a multiple of
    `alignment`, which an extra field of the local header pads to."""
    buffer = io.BytesIO()
    pairs = members.items() if isinstance(members, Mapping) else members
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that repeat
        for name, data in pairs:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
            if alignment > 1:
                begin = buffer.tell() + 30 + len(name.encode()) + 4
                padding = -begin % alignment
                info.extra = struct.pack("<HH", 0xD935, padding) + bytes(padding)
            archive.writestr(info, data)
        archive.comment = comment
    return buffer.getvalue()


class Pipe(io.RawIOBase):
    """Takes bytes and cannot seek."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.data += data
        return len(data)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Values that no two tests share by accident."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


class Ended(NamedTuple):
    """What a command of the command line left."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[Any]:
        """What --json printed."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def outcomes(self) -> dict[str, str]:
        """Of ``cp --json``, by source."""
        return {row["source"]: row["outcome"] for row in self.rows}


Run: TypeAlias = Callable[..., Ended]


def files(folder: str | Path) -> dict[str, bytes]:
    """All below it, by their names."""
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def name_in(url: str) -> str:
    """Its last part; for datasets in workers, which import it by name."""
    return url.rpartition("/")[2]


def as_list(samples: list[Any]) -> list[Any]:
    """A collate function that collates nothing."""
    return samples


def error_of(loader: Iterable[Any], kind: type[Exception]) -> str:
    """What the exception says that ends the loading."""
    try:
        list(loader)
    except kind as error:
        # It and torch's frames hold each other; workers that the garbage collector ends take 5 s.
        error.__traceback__ = None
        return str(error)
    raise AssertionError(f"expected {kind.__name__}")


def can_unshare(namespaces: str) -> bool:
    """Whether a script may make namespaces of its own; those that unshare(1) is told."""
    command = ["unshare", namespaces, "true"]
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(command, capture_output=True).returncode
    )


# TorchScript reads the source of what it compiles: scripts must be files.
_scripts = tempfile.TemporaryDirectory()
_script_numbers = itertools.count()


def script_environment() -> dict[str, str]:
    """In which a script imports what the tests import, and from the same place."""
    package = Path(torchnpy.__file__).parents[1]
    # From 3.12 on Python warns of what the tests of forks are for.
    warning = "ignore:This process:DeprecationWarning"
    path = f"{TESTS}{os.pathsep}{package}"
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": warning}


def _write_script(code: str) -> Path:
    path = Path(_scripts.name) / f"script_{next(_script_numbers)}.py"
    path.write_text(textwrap.dedent(code))
    return path


class Launcher:
    """A process that has imported torch (seconds) but not torchnpy, and forks one script at a
    time. A script is its __main__, and ends as an interpreter does."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        command = [sys.executable, str(TESTS / "launcher.py"), str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=script_environment()
        )
        theirs.close()
        self.answers = self.socket.makefile("r")


_launcher: Launcher | None = None


class Script:
    """A script that runs: like a Popen, with text pipes. One lives at a time."""

    def __init__(self, code: str, args: tuple[object, ...]) -> None:
        global _launcher
        _launcher = _launcher or Launcher()
        request = {
            "path": str(_write_script(code)),
            "args": list(map(str, args)),
            "env": script_environment(),
        }
        (stdin, ours_in), (ours_out, stdout) = os.pipe(), os.pipe()
        # A file, so that a script that says much on both never waits for the reader of one.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by finish())
        descriptors = [stdin, stdout, self._stderr.fileno()]
        socket.send_fds(_launcher.socket, [json.dumps(request).encode()], descriptors)
        os.close(stdin)
        os.close(stdout)
        self.stdin, self.stdout = os.fdopen(ours_in, "w"), os.fdopen(ours_out)
        self.pid = int(_launcher.answers.readline())
        self._status: int | None = None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def finish(self, timeout_s: float = 60) -> tuple[int, str, str]:
        """Exit status (negative: the signal), stdout, stderr; killed when it hangs."""
        assert _launcher
        killer = threading.Timer(timeout_s, self.send_signal, [signal.SIGKILL])
        killer.start()
        self.stdin.close()
        out = self.stdout.read()
        if self._status is None:
            self._status = int(_launcher.answers.readline())
        killer.cancel()
        self.stdout.close()
        self._stderr.seek(0)
        with self._stderr:
            return self._status, out, self._stderr.read()

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.stdout.closed:
            with contextlib.suppress(ProcessLookupError):
                self.send_signal(signal.SIGKILL)
            self.finish()


def start_script(code: str, *args: object) -> Script:
    return Script(code, args)


def run_script(code: str, *args: object) -> str:
    """stdout of `code`, which must exit with 0 and say nothing on stderr."""
    with start_script(code, *args) as script:
        status, out, err = script.finish()
    assert (status, err) == (0, ""), f"exit status {status}\n{out}\n{err}"
    return out


def run_fresh(code: str, *args: object, env: dict[str, str] | None = None) -> str:
    """The same in an interpreter that has imported nothing: takes seconds."""
    done = subprocess.run(
        [sys.executable, str(_write_script(code)), *map(str, args)],
        capture_output=True,
        text=True,
        env=script_environment() if env is None else env,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout

"""A local folder that files are put into, and nowhere else, whatever their names say."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from torchnpy.errors import LockError

# Of files that are not whole yet, and of what is known of them.
PARTIAL_PREFIX = ".torchnpy-"


def split_name(name: str, url: str) -> list[str]:
    """The parts of a name below a folder. Raises ValueError, which names ``url``, for one that
    would lead elsewhere, or that no file can have."""
    parts = name.split("/")
    for part in parts:
        wrong = ""
        if part in ("", ".", ".."):
            wrong = f'a part "{part}"'
        elif "\0" in part:
            wrong = "a NUL"
        elif part.startswith(PARTIAL_PREFIX):
            wrong = f'a part that begins with "{PARTIAL_PREFIX}", as unfinished copies do'
        if wrong:
            raise ValueError(
                f"{url}: expected a name of a file below the folder but found {wrong}; copy it "
                "alone, to a name of your own"
            )
    return parts


class Folder:
    """Made with its parents where it is missing. Links inside it are never followed."""

    def __init__(self, path: str) -> None:
        self.path = path or "."
        os.makedirs(self.path, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def find(self, parts: list[str]) -> os.stat_result | None:
        """Of the file of that name; None where there is none, or something else."""
        try:
            with self._parent(parts, make=False) as fd:
                found = os.stat(parts[-1], dir_fd=fd, follow_symlinks=False)
        except OSError:  # partial() will say what
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    @contextlib.contextmanager
    def partial(self, parts: list[str], url: str) -> Iterator[PartialFile]:
        """The file to be, under a name of its own until it is whole.

        Raises:
            LockError: Another process copies to it.
            OSError: Where a folder should be there is something else, a link for example, or one
                where the file should be.
        """
        try:
            with self._parent(parts, make=True, url=url) as fd:
                partial = PartialFile(fd, parts[-1], url)
                try:
                    yield partial
                finally:
                    partial.close()
        except OSError as error:
            if error.strerror is None:  # it names the object
                raise
            path = os.path.join(self.path, *parts)
            raise OSError(f"{url}: cannot write {path}: {error.strerror}") from error

    @contextlib.contextmanager
    def _parent(self, parts: list[str], *, make: bool, url: str = "") -> Iterator[int]:
        fd = os.dup(self._fd)
        try:
            for part in parts[:-1]:
                inner = _enter(fd, part, make=make, url=url)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)


def _enter(fd: int, name: str, *, make: bool, url: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=fd)
    try:
        return os.open(name, flags, dir_fd=fd)
    except NotADirectoryError:
        if not make:
            raise
        is_link = stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
        found = "a symbolic link, which is not followed" if is_link else "a file"
        raise NotADirectoryError(
            f"{url}: expected a folder {name} to put it into but found {found}"
        ) from None


class PartialFile:
    """A file on its way, locked, and a note beside it that says what its bytes are of."""

    def __init__(self, parent: int, name: str, url: str) -> None:
        self._parent, self._name, self._url = parent, name, url
        _check_free(parent, name, url)
        # Of a length that every file system takes.
        key = hashlib.sha256(os.fsencode(name)).hexdigest()[:24]
        self._path, self._note = f"{PARTIAL_PREFIX}{key}.part", f"{PARTIAL_PREFIX}{key}.json"
        self._fd = self._open()
        self._kept = False
        self._done = False

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        while True:
            fd = os.open(self._path, flags, 0o666, dir_fd=self._parent)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who held the lock before may have given the file its name.
                here = os.stat(self._path, dir_fd=self._parent, follow_symlinks=False)
                if os.path.samestat(here, os.fstat(fd)):
                    return fd
            except FileNotFoundError:
                pass
            except BlockingIOError:
                os.close(fd)
                raise LockError(
                    f"{self._url}: expected to be the only copy to {self._name} but found another "
                    "one at work; wait for it"
                ) from None
            os.close(fd)

    def resume(self) -> tuple[dict[str, Any], int]:
        """What the note says, and how many bytes are here; an empty one where there is none."""
        try:
            fd = os.open(self._note, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._parent)
            with open(fd, encoding="utf-8") as file:
                note = json.load(file)
        except (OSError, ValueError):
            return {}, 0
        return (note, os.fstat(self._fd).st_size) if isinstance(note, dict) else ({}, 0)

    def begin(self, note: dict[str, Any] | None) -> None:
        """Empties it. With a note it is kept when the copy fails, for resume()."""
        self._remove_note()
        os.ftruncate(self._fd, 0)
        self._kept = note is not None
        if note is None:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self._note, flags, 0o666, dir_fd=self._parent), "w") as file:
            json.dump(note, file)

    def keep(self) -> None:
        """Goes on with what resume() gave."""
        self._kept = True

    def write(self, offset: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._fd, data, offset)
            offset += written
            data = data[written:]

    def finish(self, nbytes: int, modified_s: float | None, *, sync: bool) -> None:
        """Gives it its name, whole; what had the name before is gone."""
        os.ftruncate(self._fd, nbytes)
        with contextlib.suppress(FileNotFoundError):
            old = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
            os.fchmod(self._fd, stat.S_IMODE(old.st_mode))
        if modified_s is not None:
            os.utime(self._fd, (modified_s, modified_s))
        if sync:
            os.fsync(self._fd)
        _check_free(self._parent, self._name, self._url)
        os.rename(self._path, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        self._done = True
        self._remove_note()
        if sync:
            os.fsync(self._parent)

    def close(self) -> None:
        """Leaves only what resume() can go on with."""
        try:
            if not self._done and not (self._kept and os.fstat(self._fd).st_size):
                self._remove_note()
                os.unlink(self._path, dir_fd=self._parent)
        finally:
            os.close(self._fd)

    def _remove_note(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._note, dir_fd=self._parent)


def _check_free(parent: int, name: str, url: str) -> None:
    """Raises where the file cannot replace what is there."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OSError(f"{url}: cannot write {name}: {error.strerror}") from None
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFLNK: "a symbolic link, which is not followed", stat.S_IFDIR: "a folder"}
    found = kinds.get(stat.S_IFMT(mode), "a device, a pipe or a socket")
    raise FileExistsError(f"{url}: expected a file {name}, or none, but found {found}")

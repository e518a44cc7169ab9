"""What ``cp`` is to copy where."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from urllib.parse import quote, unquote

import click

from torchnpy.cli.folder import PARTIAL_PREFIX, Folder, split_name
from torchnpy.cli.objects import (
    Entry,
    as_folder,
    base_name,
    describe_file,
    is_remote,
    is_s3,
    list_below,
    local_path,
)
from torchnpy.cli.transfer import Transfer
from torchnpy.client import Client


class Copy(NamedTuple):
    source: Entry
    name: str  # below the target


def _by_name(
    copies: Iterable[Copy],
    check_name: Callable[[str, str], object],
    fail: Callable[[Exception], None],
) -> dict[str, Copy]:
    """Those whose name ``check_name(name, url)`` takes, the first of each name."""
    good: dict[str, Copy] = {}
    for copy in copies:
        url = copy.source.url
        try:
            check_name(copy.name, url)
            if copy.name in good:
                raise ValueError(
                    f"{url}: expected another name than that of {good[copy.name].source.url} "
                    f"but found {copy.name} twice; copy one of them elsewhere"
                )
        except ValueError as error:
            fail(error)
            continue
        good[copy.name] = copy
    return good


class LocalTarget:
    """A folder; or a file of one, if it is not to be into a folder."""

    def __init__(self, path: str, *, into: bool) -> None:
        # What the user names may be a link, and then is what the link leads to.
        path = os.path.realpath(path)
        folder, self.name = (path, "") if into else os.path.split(path)
        self.folder = Folder(folder)

    def url(self, copy: Copy) -> str:
        return os.path.join(self.folder.path, copy.name)

    def check(self, copies: Iterable[Copy], fail: Callable[[Exception], None]) -> list[Copy]:
        """Those that can be; what is wrong with the others is told to ``fail``."""
        good = _by_name(copies, split_name, fail)
        folders: dict[str, Copy] = {}
        for copy in good.values():
            parts = copy.name.split("/")
            for i in range(1, len(parts)):
                folders.setdefault("/".join(parts[:i]), copy)
        for name in good.keys() & folders.keys():
            inner = folders[name].source.url
            fail(
                ValueError(
                    f"{good.pop(name).source.url}: expected a file but found that {inner} makes "
                    f"{name} a folder; copy one of them elsewhere"
                )
            )
        return list(good.values())

    def find(self, copies: list[Copy]) -> None:
        """Nothing: is_current() looks for itself."""

    def is_current(self, copy: Copy) -> bool:
        found = self.folder.find(copy.name.split("/"))
        if found is None:
            return False
        there = Entry(copy.name, found.st_size)
        return is_current(copy.source, there, found.st_mtime_ns / 1e9)

    def put(self, transfer: Transfer, copy: Copy) -> int:
        return transfer.to_file(copy.source, self.folder, copy.name.split("/"))

    def close(self) -> None:
        self.folder.close()


class RemoteTarget:
    """A prefix, or one object."""

    def __init__(self, client: Client, url: str, *, into: bool) -> None:
        self._client = client
        self._url = as_folder(url) if into else url
        self.name = "" if into else base_name(url)
        self._into = into
        self._there: dict[str, Entry] = {}

    def url(self, copy: Copy) -> str:
        if not self._into:
            return self._url
        return self._url + (copy.name if is_s3(self._url) else quote(os.fsencode(copy.name)))

    def check(self, copies: Iterable[Copy], fail: Callable[[Exception], None]) -> list[Copy]:
        """As LocalTarget; keys of S3 may be anything."""
        checked = (lambda name, url: None) if is_s3(self._url) else split_name
        return list(_by_name(copies, checked, fail).values())

    def find(self, copies: list[Copy]) -> None:
        """Lists what is there already. Who may not list finds nothing."""
        if not is_s3(self._url):
            return
        wanted = {self.url(copy) for copy in copies}
        try:
            if len(wanted) == 1:
                found: Iterable[Entry] = self._first(*wanted)
            else:
                found = (Entry(*item) for item in self._client.list(self._url))
            self._there = {entry.url: entry for entry in found if entry.url in wanted}
        except PermissionError:
            self._there = {}

    def _first(self, url: str) -> Iterator[Entry]:
        """The object of that very URL comes before those that go on."""
        for item in self._client.list(url):
            yield Entry(*item)
            return

    def is_current(self, copy: Copy) -> bool:
        there = self._there.get(self.url(copy))
        return there is not None and is_current(copy.source, there, there.modified_s)

    def put(self, transfer: Transfer, copy: Copy) -> int:
        return transfer.to_url(copy.source, self.url(copy))

    def close(self) -> None:
        pass


Target = LocalTarget | RemoteTarget


def is_current(source: Entry, there: Entry, there_modified_s: float | None) -> bool:
    """Whether what is there need not be copied again: it is as long as the source, and has its
    ETag or is no older, to the second."""
    if source.nbytes is None or source.nbytes != there.nbytes:
        return False
    if source.etag and source.etag == there.etag:
        return True
    if source.modified_s is None or there_modified_s is None:
        return False
    return math.floor(there_modified_s) >= math.floor(source.modified_s)


def make_target(client: Client, sources: tuple[str, ...], target: str, recursive: bool) -> Target:
    into = recursive or len(sources) > 1 or target.endswith("/")
    if is_remote(target):
        bucket_only = is_s3(target) and "/" not in target[len("s3://") :]
        return RemoteTarget(client, target, into=into or bucket_only)
    path = local_path(target)
    return LocalTarget(path, into=into or os.path.isdir(path))


def find_copies(
    client: Client, sources: tuple[str, ...], target: Target, recursive: bool
) -> Iterator[Copy]:
    """Lists the sources. Raises what keeps one from being listed."""
    for source in sources:
        is_folder = source.endswith("/") if is_remote(source) else os.path.isdir(local_path(source))
        if is_folder and not recursive:
            raise click.UsageError(f"{source}: expected an object but found a folder; --recursive")
        if is_folder or (recursive and is_s3(source)):
            yield from _below(client, source)
            continue
        name = target.name or base_name(source)
        if not target.name and is_remote(source) and not is_s3(source):
            name = unquote(name, errors="surrogateescape")
            if "/" in name:
                raise ValueError(
                    f"{source}: expected the name of a file but found {name}; copy it to a name "
                    "of your own"
                )
        yield Copy(_entry(source), name)


def _below(client: Client, source: str) -> Iterator[Copy]:
    root = as_folder(source if is_remote(source) else local_path(source))
    for entry in list_below(client, source):
        name = entry.url[len(root) :]
        # Stores' consoles make such objects for folders.
        is_marker = entry.url.endswith("/") and not entry.nbytes
        is_partial = not is_remote(source) and base_name(name).startswith(PARTIAL_PREFIX)
        if not is_marker and not is_partial:
            yield Copy(entry, name)


def _entry(source: str) -> Entry:
    if is_remote(source):
        return Entry(source)
    path = local_path(source)
    return describe_file(path, os.stat(path))

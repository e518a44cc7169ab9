"""Manifests: files that list the objects of a data set, a line each."""

from __future__ import annotations

import io
import json
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from torchnpy._ops import _C
from torchnpy.client import Client
from torchnpy.data.urls import UrlList
from torchnpy.errors import FormatError
from torchnpy.sources import Url, decode, encode, native

_JSON_SUFFIXES = (".jsonl", ".ndjson")
_INT64 = range(-(1 << 63), 1 << 63)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Manifest:
    urls: UrlList
    labels: Sequence[Any] | None
    """One a URL, if they were asked for."""


def read_manifest(
    source: Url,
    *,
    format: Literal["text", "jsonl"] | None,
    key: str,
    labels_key: str | None,
    client: Client | None,
) -> Manifest:
    """See urls_in_manifest() and FromUrls.from_manifest()."""
    if format not in (None, "text", "jsonl"):
        raise ValueError(f"format: expected 'text', 'jsonl' or None but found {format!r}")
    encoded = encode(source)
    name = _C.display_name(encoded)
    is_json = format == "jsonl" or (format is None and name.endswith(_JSON_SUFFIXES))
    if labels_key is not None and not is_json:
        raise ValueError(
            f"labels_key: expected None, because {name} is read as a text of URLs, but found "
            f"{labels_key!r}; labels stand in JSON lines (format='jsonl')"
        )
    lines = _Lines(_C.fetch(native(client), encoded), name)
    base = _Base(decode(encoded))
    labels: list[Any] = []
    found = _urls_of_json(lines, key, labels_key, labels) if is_json else _urls_of_text(lines)
    urls = UrlList(map(base.resolve, found))
    if not urls:
        raise ValueError(f"{name}: expected URLs, one a line, but found none")
    return Manifest(urls, None if labels_key is None else _compact(labels))


class _Lines:
    """The lines that say something, and where the last one was."""

    def __init__(self, content: bytes, manifest: str) -> None:
        self._content = content.removeprefix(_BYTE_ORDER_MARK)
        self._manifest = manifest
        self._number = 0

    def __iter__(self) -> Iterator[bytes]:
        for number, line in enumerate(io.BytesIO(self._content), 1):
            self._number = number
            if stripped := line.strip():
                yield stripped

    def error(self, expected: str, found: str) -> FormatError:
        # Never the line itself: URLs may hold secrets.
        return FormatError(
            f"{self._manifest}: line {self._number}: expected {expected} but found {found}"
        )


def _urls_of_text(lines: _Lines) -> Iterator[str]:
    for line in lines:
        if line.startswith(b"#"):
            continue
        if b"\0" in line:
            raise lines.error("a URL or a path", "a NUL byte; a manifest is text or JSON lines")
        if line.startswith(b"{") and line.endswith(b"}"):
            raise lines.error("a URL or a path", "JSON; JSON lines need format='jsonl'")
        yield line.decode("utf-8", "surrogateescape")


def _urls_of_json(
    lines: _Lines, key: str, labels_key: str | None, labels: list[Any]
) -> Iterator[str]:
    """Adds the labels to ``labels``."""
    for line in lines:
        try:
            entry = json.loads(line.decode("utf-8", "surrogateescape"))
        except json.JSONDecodeError as error:
            found = f"other text ({error.msg} at character {error.pos})"
            raise lines.error("a JSON object", found) from None
        if not isinstance(entry, dict):
            raise lines.error("a JSON object", _json_type(entry))
        url = entry.get(key)
        if not isinstance(url, str) or not url:
            found = "an empty string" if url == "" else _json_type(url)
            raise lines.error(f"a URL at {key!r}", found if key in entry else _keys_of(entry))
        if labels_key is not None:
            if labels_key not in entry:
                raise lines.error(f"a label at {labels_key!r}", _keys_of(entry))
            labels.append(entry[labels_key])
        yield url


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", type(None): "null"}
    return names.get(type(value), "true or false" if isinstance(value, bool) else "a number")


def _keys_of(entry: dict[str, Any]) -> str:
    return f"only {', '.join(map(repr, entry))}" if entry else "an empty object"


def _compact(labels: list[Any]) -> Sequence[Any]:
    """The same values; numbers without an object each, which forks would copy."""
    types = set(map(type, labels))
    if types == {int} and min(labels) in _INT64 and max(labels) in _INT64:
        return array("q", labels)
    if types == {float}:
        return array("d", labels)
    return labels


class _Base:
    """The folder that relative paths start at."""

    def __init__(self, manifest: str) -> None:
        self._path = None if "://" in manifest else os.path.dirname(manifest)
        scheme, _, rest = manifest.partition("://")
        if scheme.lower() in ("http", "https"):
            rest = re.split("[?#]", rest, maxsplit=1)[0]
        host, *folders = rest.split("/")
        self._is_file = scheme.lower() == "file"
        self._root, self._folders = f"{scheme}://{host}", folders[:-1]

    def resolve(self, url: str) -> str:
        if "://" in url or os.path.isabs(url):
            return url
        if self._path is not None:
            return os.path.join(self._path, url)
        if self._is_file:
            url = quote(url, errors="surrogateescape")
        # Only leading dots: "a/../b" may be a key.
        folders = self._folders
        while url.startswith(("./", "../")):
            dots, _, url = url.partition("/")
            if dots == ".." and folders:
                folders = folders[:-1]
        return "/".join([self._root, *folders, url])

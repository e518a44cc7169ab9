"""The URLs of a data set: below a prefix, in a manifest, or by a pattern."""

from __future__ import annotations

import glob
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal, Self, TypeAlias, cast

from torchnpy.client import Client, ObjectInfo, default_client
from torchnpy.data.manifest import read_manifest
from torchnpy.data.urls import UrlList
from torchnpy.sources import Url

Match: TypeAlias = str | Callable[[ObjectInfo], bool]


def urls_below(
    prefix: str, *, suffix: str = "", match: Match | None = None, client: Client | None = None
) -> UrlList:
    """The URLs of the objects below ``s3://bucket/prefix``, sorted.

    Args:
        suffix: What they end in.
        match: A pattern for what follows the prefix (less a leading slash): ``*`` and ``?`` stand
            for characters but slashes, ``[...]`` for one of several, ``**/`` for any folders. Or a
            function of an ObjectInfo, which is true for the objects to take.
        client: Default: default_client().

    Raises:
        ValueError: There is none.
        UnsupportedError, TransportError: See Client.list().
    """
    listed = (client or default_client()).list(prefix, suffix=suffix)
    takes = match if callable(match) else _matcher(prefix, match)
    found = _Sorted(entry.url for entry in listed if takes(entry))
    urls = UrlList(found)
    if not found.in_order:  # S3 lists by key; directory buckets and some other stores do not
        urls = UrlList(sorted(urls))
    if not urls:
        matching = f" and match {match!r}" if isinstance(match, str) else ""
        if callable(match):
            matching = " and match the given function"
        raise ValueError(
            f"expected objects below {prefix} that end in {suffix!r}{matching} but found none"
        )
    return urls


def urls_matching(pattern: Url) -> UrlList:
    """The paths of the local files that match a pattern, as glob.glob() has them, sorted.

    Args:
        pattern: ``**`` stands for any number of folders. Names that begin with a dot match only
            patterns that do.

    Raises:
        ValueError: There is none, or ``pattern`` is a URL.
    """
    pattern = os.fspath(pattern)
    if "://" in pattern:
        raise ValueError(
            "pattern: expected one of local paths but found a URL; from_prefix(match=...) takes a "
            "pattern of S3 keys"
        )
    urls = UrlList(
        sorted(path for path in glob.iglob(pattern, recursive=True) if not os.path.isdir(path))
    )
    if not urls:
        raise ValueError(f"expected files that match {pattern!r} but found none")
    return urls


def urls_in_manifest(
    source: Url,
    *,
    format: Literal["text", "jsonl"] | None = None,
    key: str = "url",
    client: Client | None = None,
) -> UrlList:
    """The URLs that a manifest lists, in its order.

    Args:
        source: A text file with one URL or path a line, where blank lines and lines that begin with
            ``#`` do not count, or JSON lines: an object a line. Relative paths start at the
            manifest's own folder; UTF-8.
        format: Default: "jsonl" for names that end in ``.jsonl`` or ``.ndjson``, else "text".
        key: Of JSON lines: the name of the entry with the URL.
        client: Default: default_client().

    Raises:
        FormatError: A line is no URL; the message names the manifest and the line.
        ValueError: There is no URL.
        TransportError: See load().
    """
    return read_manifest(source, format=format, key=key, labels_key=None, client=client).urls


class FromUrls:
    """Ways to make a dataset whose constructor takes URLs first, and ``client``."""

    _suffix: ClassVar[str] = ""
    """What the names of the objects end in."""

    @classmethod
    def from_prefix(
        cls,
        prefix: str,
        *,
        suffix: str | None = None,
        match: Match | None = None,
        client: Client | None = None,
        **options: Any,
    ) -> Self:
        """The objects below ``s3://bucket/prefix``, sorted by URL: see urls_below().

        Args:
            suffix: Default: that of the format, ``.npy`` or ``.npz``.
            match: A pattern for what follows the prefix, or a function of an ObjectInfo.
            options: As the constructor takes them.

        Raises:
            ValueError: There is none.
            UnsupportedError, TransportError: See Client.list().
        """
        suffix = cls._suffix if suffix is None else suffix
        urls = urls_below(prefix, suffix=suffix, match=match, client=client)
        return cls._make(urls, client=client, **options)

    @classmethod
    def from_manifest(
        cls,
        source: Url,
        *,
        format: Literal["text", "jsonl"] | None = None,
        key: str = "url",
        labels_key: str | None = None,
        client: Client | None = None,
        **options: Any,
    ) -> Self:
        """The objects that a manifest lists, in its order: see urls_in_manifest().

        Args:
            format: "text" or "jsonl" (JSON lines). Default: by the manifest's name.
            key: Of JSON lines: the name of the entry with the URL.
            labels_key: Of JSON lines: the name of the entry with the sample's label, which is any
                value. For NpyDataset and NpzDataset.
            options: As the constructor takes them.

        Raises:
            FormatError, ValueError, TransportError: See urls_in_manifest().
        """
        if labels_key is not None:
            if "labels" not in inspect.signature(cls).parameters:
                raise ValueError(
                    f"labels_key: expected None for {cls.__name__}, which takes no labels, "
                    f"but found {labels_key!r}"
                )
            if options.get("labels") is not None:
                raise ValueError("labels: expected None beside labels_key but found others")
        manifest = read_manifest(
            source, format=format, key=key, labels_key=labels_key, client=client
        )
        if labels_key is not None:
            options["labels"] = manifest.labels
        return cls._make(manifest.urls, client=client, **options)

    @classmethod
    def from_glob(cls, pattern: Url, **options: Any) -> Self:
        """The local files that match a pattern, sorted: see urls_matching().

        Args:
            pattern: As glob.glob() has them; ``**`` stands for any number of folders.
            options: As the constructor takes them.

        Raises:
            ValueError: There is none.
        """
        return cls._make(urls_matching(pattern), **options)

    @classmethod
    def _make(cls, urls: UrlList, **options: Any) -> Self:
        return cast(Callable[..., Self], cls)(urls, **options)


class _Sorted:
    """Iterates over texts, and tells afterwards whether they were in order."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.in_order = True

    def __iter__(self) -> Iterator[str]:
        before = ""
        for text in self._texts:
            self.in_order &= before <= text
            before = text
            yield text


def _matcher(prefix: str, pattern: str | None) -> Callable[[ObjectInfo], bool]:
    if pattern is None:
        return lambda _: True
    try:
        matches = re.compile(_translate(pattern), re.DOTALL).fullmatch
    except re.error as error:
        raise ValueError(f"match: expected a pattern but found {pattern!r}: {error.msg}") from None
    return lambda entry: matches(entry.url[len(prefix) :].removeprefix("/")) is not None


def _translate(pattern: str) -> str:
    """A regular expression; fnmatch's stars match slashes, too."""
    fixed = {"**/": "(?:[^/]+/)*", "**": ".+", "*": "[^/]*", "?": "[^/]"}
    translated = ""
    for part in re.split(r"(\*\*/|\*\*$|\*|\?|\[!?\]?[^]]*\])", pattern):
        if part in fixed:
            translated += fixed[part]
        elif part.startswith("[") and part.endswith("]"):
            negation, members = ("^", part[2:-1]) if part[1] == "!" else ("", part[1:-1])
            translated += f"(?!/)[{negation}" + re.sub(r"([]\\[^&~|])", r"\\\1", members) + "]"
        else:
            translated += re.escape(part)
    return translated

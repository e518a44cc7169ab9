"""How objects are reached: connections, credentials, retries."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torchnpy._ops import _C
from torchnpy.log import refresh


class ObjectInfo(NamedTuple):
    """One object of a listing."""

    url: str
    nbytes: int
    etag: str  # without quotes
    modified: str  # ISO 8601, as the store gives it


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Where a client keeps what it reads: in memory, on a disk, or both (docs/cache.md).

    Args:
        ram_nbytes: Bytes of memory that it may take, in each process that loads.
        dir: Folder that it may use, which any number of processes of this machine share. What is
            read from it is mapped, not copied, where it is large. Made when it is missing.
        disk_nbytes: Bytes that `dir` may take, of all processes together. What was not used for
            longest goes.
        fresh_s: For so many seconds after the store was asked, it is not asked again whether the
            object is still the same (float("inf"): never). Default: it is asked each time, with a
            request that carries no data when the object is the same.
    """

    ram_nbytes: int = 0
    dir: str | os.PathLike[str] | None = None
    disk_nbytes: int = 0
    fresh_s: float = 0

    def __post_init__(self) -> None:
        if self.dir:
            # Workers may have another working directory.
            path = os.path.abspath(os.path.expanduser(os.fspath(self.dir)))
            object.__setattr__(self, "dir", path)


def _call_on_thread(
    call: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
) -> None:
    """Calls on a daemon thread and hands on what comes of it; the library's own threads use it."""

    def run() -> None:
        try:
            found, error = call(), None
        except BaseException as raised:
            found, error = None, raised
        done(found, error)

    threading.Thread(target=run, name="torchnpy-call", daemon=True).start()


class Client:
    """The options of all requests: where to, as whom, how often, how long.

    Connections are shared by the whole process, and are made when they are first needed. A client
    pickles as its options; credentials are looked up anew where it is unpickled.

    Args:
        endpoint: URL of an S3 service. Default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the
            profile's endpoint_url, else AWS.
        region: Default: AWS_REGION, AWS_DEFAULT_REGION, the profile's, else us-east-1. A bucket's
            own region is found and remembered.
        profile: Section of ~/.aws/config and ~/.aws/credentials. Default: AWS_PROFILE.
        addressing: "path" (endpoint/bucket/key), "virtual" (bucket.endpoint/key), or "auto": path
            when an endpoint is given or the bucket's name has a dot.
        credentials: "auto" (the places that boto3 looks in, in its order: docs/credentials.md),
            "anonymous" (requests are not signed), or a callable without parameters, which then is
            the only place. It returns a mapping or an object with ``access_key`` (or
            ``aws_access_key_id``, ``access_key_id``), ``secret_key`` (``aws_secret_access_key``,
            ``secret_access_key``) and, where there are any, ``token`` (``session_token``,
            ``aws_session_token``) and ``expiration`` (``expiry``, ``expiry_time``): a datetime with
            a time zone, or ISO 8601. ``boto3.Session().get_credentials().get_frozen_credentials``
            is one. It is called again before they expire and when S3 says that they have, on any
            thread. What it raises arrives with its message in a TransportError. A client with a
            callable pickles if the callable does.
        headers: Sent with each request, but never to another host after a redirect.
        requester_pays: Accept that the requester is charged.
        ca_bundle: File with the certificates to trust. Default: AWS_CA_BUNDLE, SSL_CERT_FILE,
            CURL_CA_BUNDLE, else the system's, else certifi's.
        verify_tls: False accepts any certificate.
        proxy: URL. Default: HTTPS_PROXY, HTTP_PROXY and NO_PROXY as they were at the first
            request; "" for none.
        max_in_flight: Requests start while fewer than this many are in flight in the process.
        io_threads: I/O threads that the requests are spread over; the process's threads are shared.
        part_nbytes: Large objects are read in parts of this many bytes at most.
        coalesce_nbytes: Ranges of one object with gaps of at most so many bytes between them share
            a request. Default: while gaps make up at most 5 % of the bytes wanted (and 64 KiB).
        http2: Use HTTP/2 where the server offers it over TLS. One connection then carries many
            requests, which costs throughput on most object stores.
        hedge: Send a second request when an answer is later than 95 % of those before, for at most
            5 % more requests; the first answer counts.
        connect_timeout_s: Seconds to connect.
        stall_timeout_s: Seconds without a byte after which an attempt is given up.
        deadline_s: Seconds for one read with all its attempts. Default: none.
        retries: Attempts for one read in all.
        retry_timeout_s: Seconds after which no new attempt is made.
        checksums: Ask S3 for the checksum (CRC-32, CRC-32C, CRC-64/NVME) that it keeps of each
            object, and compare arrays that are loaded whole; what differs is read again, once.
        cache: Where to keep what was read. Default: nowhere.

    Raises:
        ValueError: An option is wrong; the message names it and what is allowed.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        addressing: Literal["auto", "path", "virtual"] = "auto",
        credentials: Literal["auto", "anonymous"] | Callable[[], Any] = "auto",
        headers: Mapping[str, str] | None = None,
        requester_pays: bool = False,
        ca_bundle: str | os.PathLike[str] | None = None,
        verify_tls: bool = True,
        proxy: str | None = None,
        max_in_flight: int = 64,
        io_threads: int = 2,
        part_nbytes: int = 8 << 20,
        coalesce_nbytes: int | None = None,
        http2: bool = False,
        hedge: bool = False,
        connect_timeout_s: float = 5,
        stall_timeout_s: float = 30,
        deadline_s: float | None = None,
        retries: int = 10,
        retry_timeout_s: float = 180,
        checksums: bool = False,
        cache: Cache | None = None,
    ) -> None:
        if addressing not in ("auto", "path", "virtual"):
            raise ValueError(
                f"addressing: expected 'auto', 'path' or 'virtual' but found {addressing!r}"
            )
        if credentials not in ("auto", "anonymous") and not callable(credentials):
            # Not shown: it may be a secret.
            raise ValueError(
                "credentials: expected 'auto', 'anonymous' or a callable but found "
                + (repr(credentials) if credentials in (None, "") else type(credentials).__name__)
            )
        self._options: dict[str, Any] = {
            "endpoint": endpoint,
            "region": region,
            "profile": profile,
            "addressing": addressing,
            "credentials": credentials,
            "headers": None if headers is None else dict(headers),
            "requester_pays": requester_pays,
            "ca_bundle": None if ca_bundle is None else os.fspath(ca_bundle),
            "verify_tls": verify_tls,
            "proxy": proxy,
            "max_in_flight": max_in_flight,
            "io_threads": io_threads,
            "part_nbytes": part_nbytes,
            "coalesce_nbytes": coalesce_nbytes,
            "http2": http2,
            "hedge": hedge,
            "connect_timeout_s": connect_timeout_s,
            "stall_timeout_s": stall_timeout_s,
            "deadline_s": deadline_s,
            "retries": retries,
            "retry_timeout_s": retry_timeout_s,
            "checksums": checksums,
            "cache": cache,
        }
        native = {name: value for name, value in self._options.items() if value is not None}
        native["addressing"] = getattr(_C.Addressing, addressing)
        native["anonymous"] = credentials == "anonymous"
        if not callable(native["credentials"]):
            del native["credentials"]
        native["headers"] = list((headers or {}).items())
        if (kept := native.pop("cache", None)) is not None:
            native |= _cache_options(kept)
        self._native = _C.Client(**native)

    def list(self, prefix: str, *, suffix: str = "") -> Iterator[ObjectInfo]:
        """The objects whose URL begins with ``prefix`` and ends with ``suffix``.

        In the store's order (S3: of the keys' bytes), by ListObjectsV2, a page at a time.

        Raises:
            UnsupportedError: ``prefix`` is not an ``s3://`` URL.
            TransportError: The store refused, or could not be reached.
        """
        refresh()
        encoded = prefix.encode("utf-8", "surrogateescape")
        # The first page now, so that what is wrong raises here and not where it is consumed.
        first = self._native.list(encoded, "")

        def pages() -> Iterator[ObjectInfo]:
            page, continuation = first
            while True:
                for entry in page:
                    if entry[0].endswith(suffix):
                        yield ObjectInfo(*entry)
                if not continuation:
                    return
                page, continuation = self._native.list(encoded, continuation)

        return pages()

    def metrics(self) -> dict[str, int | float]:
        """What this client did since it was made, in this process.

        A forked process goes on from its parent's counts. A read is a range of an object that was
        asked for. It takes one request if all goes well, and one more for each retry, redirect and
        hedge; none if the cache or another read's request answers.

        Returns:
            Counts (int) and seconds (float; their names end in ``_s``) by name.

            =========================  =======================================================
            ``reads``                  that have ended, well or not
            ``requests``               sent
            ``retries``                attempts after the first of a read or of what is sent; by
                                       reason:
            ``retries_status``         500, 503, SlowDown...
            ``retries_connection``     not resolved, refused, lost, cut short
            ``retries_timeout``        no connection or no byte in time
            ``retries_changed``        the object changed while it was read
            ``retries_checksum``       what came does not match the store's checksum, and new
                                       reads begin
            ``retries_learnt``         S3 told the region or the time, or credentials are new
            ``redirects``              followed
            ``errors``                 reads that failed, and what was sent in vain
            ``bytes_received``         bytes of bodies
            ``bytes_sent``             the same
            ``connections_opened``     connections
            ``connections_reused``     answers over a connection that was there
            ``hedges``                 second requests for the slow tail
            ``hedges_won``             of them, that answered first
            ``reads_shared``           that another read's request answered
            ``cache_hits``             reads that the cache answered
            ``cache_misses``           reads that the store answered
            ``cache_revalidations``    answers that what is cached is still right (304)
            ``cache_ram_nbytes``       bytes that the cache takes in this process's memory now
            ``cache_disk_nbytes``      bytes that it takes on disk now, of all processes
            ``credentials_refreshes``  credentials that were fetched anew
            ``in_flight``              requests on the wire now
            ``in_flight_max``          the most at once
            ``first_byte_s``           seconds from a request to its first byte, summed
            ``first_byte_pNN_s``       seconds that 50, 95, 99 % of them did not exceed
            ``total_pNN_s``            the same of reads, from their start to their end, with
                                       waiting for a slot and all attempts
            =========================  =======================================================

            Percentiles are rounded up, by 12.5 % at most.
        """
        return {
            name: value if name.endswith("_s") else int(value)
            for name, value in self._native.metrics().items()
        }

    def __repr__(self) -> str:
        # Headers and proxies may hold secrets.
        shown = {
            name: value
            for name, value in self._options.items()
            if value is not None and name not in ("headers", "proxy")
        }
        if callable(shown["credentials"]):
            # A bound method's repr shows what it is bound to.
            name = getattr(
                shown["credentials"], "__qualname__", type(shown["credentials"]).__name__
            )
            shown["credentials"] = f"<{name}>"
        return f"Client({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_client, (self._options,)


def _cache_options(cache: Cache) -> dict[str, Any]:
    if not isinstance(cache, Cache):
        raise TypeError(f"cache: expected a torchnpy.Cache but found {type(cache).__name__}")
    if cache.dir is None or cache.dir == "":
        if cache.disk_nbytes:
            raise ValueError(
                f"cache.dir: expected a folder for disk_nbytes={cache.disk_nbytes} but found none"
            )
    elif not cache.disk_nbytes:
        raise ValueError(
            "cache.disk_nbytes: expected the bytes that cache.dir may take but found 0"
        )
    return {
        "cache.ram_nbytes": cache.ram_nbytes,
        "cache.dir": os.fspath(cache.dir or ""),
        "cache.disk_nbytes": cache.disk_nbytes,
        "cache.fresh_s": cache.fresh_s,
    }


def _make_client(options: dict[str, Any]) -> Client:
    return Client(**options)


_default: Client | None = None


def default_client() -> Client:
    """The client that is used where none is given, also by ``torch.ops.npy``; made at first use."""
    global _default
    if _default is None:
        client = Client()
        client._native = _C.default_client()  # the ops may have made it already
        _default = client
    return _default


def set_default_client(client: Client) -> None:
    """Makes ``client`` the one that is used where none is given, also by ``torch.ops.npy``."""
    global _default
    _C.set_default_client(client._native)
    _default = client

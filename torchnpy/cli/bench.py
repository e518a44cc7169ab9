"""``bench``: how fast objects load from where they are."""

from __future__ import annotations

import threading
import time
from typing import Any

import click
import torch

import torchnpy
from torchnpy._ops import _C
from torchnpy.cli.app import Session, command
from torchnpy.cli.objects import expand, path_of
from torchnpy.cli.output import format_nbytes, print_json, print_table
from torchnpy.cli.parallel import Stop, for_each
from torchnpy.errors import FormatError
from torchnpy.sources import encode

_SUFFIXES = (".npy", ".npz")
_LATENCIES = [f"{what}_p{share}_s" for what in ("first_byte", "total") for share in (50, 95, 99)]


@command(short_help="Load objects again and again, and tell the rate.")
@click.argument("name", metavar="URL")
@click.option("--recursive", "-r", is_flag=True, help="The name is a prefix.")
@click.option(
    "--seconds", "-s", type=click.FloatRange(0, min_open=True), default=10.0, help="How long (10)."
)
@click.option("--count", "-n", type=click.IntRange(1), help="Objects; then the time is no limit.")
@click.option("--batch", "-b", type=click.IntRange(1), default=64, help="Loaded together (64).")
@click.option("--threads", "-t", type=click.IntRange(1, 64), default=2, help="Of batches (2).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def bench(
    session: Session,
    name: str,
    recursive: bool,
    seconds: float,
    count: int | None,
    batch: int,
    threads: int,
    as_json: bool,
) -> None:
    """Load an object, or what is below a prefix or folder, again and again, and tell the rate.

    Latencies are of the reads of remote objects: from their start to the first byte of the answer,
    and to their end with all retries.
    """
    urls = [
        entry.url for entry in expand(session.client, name, recursive=recursive, suffixes=_SUFFIXES)
    ]
    if not urls:
        raise FormatError(f"{name}: expected objects that end in .npy or .npz but found none")
    before = session.client.metrics()
    run = _Run(session, urls, count, batch)
    started = time.perf_counter()
    run.until = started + seconds
    for_each(run.batches(), run.load, run.add, jobs=threads, stop=Stop())
    elapsed_s = time.perf_counter() - started
    values = _values(run, elapsed_s, before, session.client.metrics())
    if as_json:
        print_json({"name": _C.display_name(encode(name)), **values})
    else:
        print_table(("", ""), _rows(values))


class _Run:
    """Batches of URLs, one round after the other."""

    def __init__(self, session: Session, urls: list[str], count: int | None, batch: int) -> None:
        self._session, self._urls, self._count, self._batch = session, urls, count, batch
        self.until = 0.0
        self.objects = 0
        self.nbytes = 0
        self._lock = threading.Lock()

    def batches(self) -> Any:
        given = 0
        while given < self._count if self._count else time.perf_counter() < self.until:
            size = min(self._batch, self._count - given) if self._count else self._batch
            yield [self._urls[(given + i) % len(self._urls)] for i in range(size)]
            given += size

    def load(self, urls: list[str]) -> int:
        """Bytes of the arrays."""
        client = self._session.client
        archives = [url for url in urls if path_of(url).endswith(".npz")]
        arrays = [url for url in urls if not path_of(url).endswith(".npz")]
        nbytes = sum(map(_nbytes_of, torchnpy.load_many(arrays, client=client)))
        for url in archives:
            with torchnpy.open_npz(url, client=client) as archive:
                nbytes += sum(map(_nbytes_of, archive.read().values()))
        return nbytes

    def add(self, urls: list[str], nbytes: int | Exception) -> None:
        if isinstance(nbytes, Exception):
            raise nbytes
        self.objects += len(urls)
        self.nbytes += nbytes


def _nbytes_of(array: torch.Tensor | dict[str, torch.Tensor]) -> int:
    tensors = array.values() if isinstance(array, dict) else [array]
    return sum(tensor.nbytes for tensor in tensors)


def _values(
    run: _Run, elapsed_s: float, before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    counts = ("requests", "retries", "errors", "bytes_received", "connections_opened")
    is_remote = after["requests"] > before["requests"]
    return {
        "objects": run.objects,
        "nbytes": run.nbytes,
        "elapsed_s": elapsed_s,
        "objects_per_s": run.objects / elapsed_s,
        "mb_per_s": run.nbytes / elapsed_s / 1e6,
        **{key: int(after[key] - before[key]) for key in counts},
        "in_flight_max": after["in_flight_max"],
        **{key: after[key] if is_remote else None for key in _LATENCIES},
    }


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    def latency(key: str) -> str:
        return "-" if values[key] is None else f"{values[key] * 1e3:.1f} ms"

    return [
        ("objects", f"{values['objects']} ({values['objects_per_s']:.1f}/s)"),
        ("arrays", f"{format_nbytes(values['nbytes'])} ({values['mb_per_s']:.1f} MB/s)"),
        ("time", f"{values['elapsed_s']:.2f} s"),
        ("requests", f"{values['requests']}, {values['in_flight_max']} at once at most"),
        ("retries", f"{values['retries']}, errors {values['errors']}"),
        ("first byte p50, p95, p99", ", ".join(map(latency, _LATENCIES[:3]))),
        ("whole read p50, p95, p99", ", ".join(map(latency, _LATENCIES[3:]))),
    ]

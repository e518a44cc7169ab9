"""What the commands print: text that no terminal can be tricked by, tables, JSON, progress.

Names of objects come from strangers: everything that is printed goes through printable(), or is
JSON in ASCII.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text


def printable(text: str) -> str:
    """``text`` with what is no visible character or space as an escape: one line."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def print_line(text: str) -> None:
    print(printable(text), file=sys.stdout)


def print_error(text: str) -> None:
    print(f"torchnpy: {printable(text)}", file=sys.stderr, flush=True)


def print_json(value: dict[str, Any]) -> None:
    """One line. Numbers that JSON lacks are the texts "nan", "inf" and "-inf"."""
    print(json.dumps(_plain(value), allow_nan=False), file=sys.stdout)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, complex):
        return [_plain(value.real), _plain(value.imag)]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def print_table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for people; where stdout is no terminal, lines of cells with tabs between them."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(printable(_text(cell)) for cell in row), file=sys.stdout)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in heading:
        table.add_column(name, overflow="fold")
    for row in rows:
        # Text: names hold no markup.
        table.add_row(*(Text(printable(_text(cell))) for cell in row))
    Console(file=sys.stdout, highlight=False).print(table)


def _text(cell: object) -> str:
    return "" if cell is None else str(cell)


def format_nbytes(nbytes: float) -> str:
    """For people: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


class Bar:
    """Bytes and their rate on stderr, where that is a terminal. Any thread may advance it."""

    def __init__(self, title: str, total_nbytes: int | None, *, wanted: bool = True) -> None:
        self._progress: Progress | None = None
        if wanted and sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr),
                transient=True,
            )
            self._task = self._progress.add_task(printable(title), total=total_nbytes)

    def advance(self, nbytes: int) -> None:
        if self._progress:
            self._progress.advance(self._task, nbytes)

    def __enter__(self) -> Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.stop()

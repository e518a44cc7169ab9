"""``append`` and ``recover``: files that grow."""

from __future__ import annotations

import os
from typing import Any

import click
import torch

import torchnpy
from torchnpy.append import (
    NpyAppendArray,
    ensure_appendable,
    is_appendable,
    needs_recovery,
)
from torchnpy.append import recover as recover_file
from torchnpy.cli.app import Session, command
from torchnpy.cli.objects import is_remote, local_path
from torchnpy.cli.output import print_json, print_line
from torchnpy.errors import UnsupportedError
from torchnpy.npz import NpzFile

_CASTING = click.Choice(["no", "equiv", "safe", "same_kind", "unsafe"])


@command(short_help="Add rows to a .npy file.")
@click.argument("target", metavar="FILE")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--new", is_flag=True, help="Begin a new file.")
@click.option("--prepare", is_flag=True, help="First give FILE's header the room that it needs.")
@click.option("--casting", type=_CASTING, default="same_kind", help="To FILE's dtype (same_kind).")
@click.option(
    "--fsync",
    type=click.Choice(["never", "header", "always"]),
    default="header",
    help="What is on the disk when it returns (header: all rows).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def append(
    session: Session,
    target: str,
    sources: tuple[str, ...],
    new: bool,
    prepare: bool,
    casting: Any,
    fsync: Any,
    as_json: bool,
) -> None:
    """Add the rows of arrays to a .npy file, which is made when there is none.

    Each source is read whole before its rows are added, all or none of them.
    """
    path = _local(target)
    if new and any(_is_same_file(source, path) for source in sources):
        raise click.UsageError(f"{target}: expected other arrays for the new file but found it")
    first = _load_rows(session, sources[0])  # before anything is changed
    if prepare and not new:
        ensure_appendable(path)
    count = 0
    with NpyAppendArray(path, new, fsync=fsync, casting=casting) as file:
        for i, source in enumerate(sources):
            rows = _load_rows(session, source) if i else first
            file.append(rows)
            count += rows.shape[-1 if file.fortran_order else 0]
        shape = file.shape
    if as_json:
        print_json({"name": path, "appended": count, "shape": shape})
    else:
        print_line(f"{path}: {count} rows appended, shape {shape}")


@command(short_help="Count rows that a crash left.")
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@click.option("--check", is_flag=True, help="Only tell; status 1 if one needs it.")
@click.option("--zero-fill", is_flag=True, help="Keep an incomplete last row, filled with zeros.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def recover(
    session: Session, names: tuple[str, ...], check: bool, zero_fill: bool, as_json: bool
) -> None:
    """Make headers count the rows that are there, after a crash or a broken download."""
    for name in names:
        with session.reporting():
            path = _local(name)
            needed = needs_recovery(path)
            if needed and not check:
                recover_file(path, zero_fill)
            if needed and check:
                session.failed = True
            values = {
                "name": path,
                "needed": needed,
                "recovered": needed and not check,
                "appendable": is_appendable(path),
                "shape": torchnpy.header(path).shape,
            }
            if as_json:
                print_json(values)
                continue
            states = {(True, False): "recovered", (True, True): "needs recovery"}
            print_line(f"{path}: {states.get((needed, check), 'whole')}, shape {values['shape']}")


def _load_rows(session: Session, source: str) -> torch.Tensor:
    rows = torchnpy.load(source, client=session.client)
    if isinstance(rows, (dict, NpzFile)):
        found = "an archive" if isinstance(rows, NpzFile) else "fields"
        raise UnsupportedError(
            f"{source}: expected an array of one dtype to append but found {found}; "
            "torchnpy convert takes it apart"
        )
    if not rows.dim():
        raise ValueError(f"{source}: expected an array with rows to append but found shape ()")
    return rows


def _is_same_file(source: str, path: str) -> bool:
    try:
        return not is_remote(source) and os.path.samefile(local_path(source), path)
    except OSError:
        return False


def _local(name: str) -> str:
    if is_remote(name):
        raise UnsupportedError(f"{name}: expected a file but found a URL; objects cannot grow")
    return local_path(name)

"""``convert``: from one of npy, npz and text to another, or to the same in another form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import click
import torch

import torchnpy
from torchnpy._ops import _C
from torchnpy.cli.app import Session, command
from torchnpy.cli.objects import Array, base_name, identify, members_of, path_of
from torchnpy.cli.output import print_json
from torchnpy.cli.text import write_text
from torchnpy.destinations import destination
from torchnpy.errors import UnsupportedError
from torchnpy.npz import NpzFile
from torchnpy.sources import Array as Loaded
from torchnpy.text import loadtxt
from torchnpy.write import view_array

_COMPRESSED = (".gz", ".bz2", ".xz", ".lzma")
_DELIMITERS = {".txt": " ", ".csv": ",", ".tsv": "\t"}
_FORMATS = ("npy", "npz", "txt")


class DtypeType(click.ParamType[torch.dtype]):
    """A torch.dtype by its name."""

    name = "dtype"

    def convert(self, value: Any, param: Any, context: Any) -> torch.dtype:
        found = value if isinstance(value, torch.dtype) else getattr(torch, str(value), None)
        if not isinstance(found, torch.dtype):
            self.fail(f"expected a dtype of torch, such as float32, but found {value!r}")
        return found


class _Text(NamedTuple):
    """How text is read and written."""

    delimiter: str | None
    format: str | None
    skip: int


class _Named(NamedTuple):
    name: str  # of a member
    array: Loaded


@command(short_help="Rewrite arrays as npy, npz or text.")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.argument("target", metavar="TARGET")
@click.option("--to", type=click.Choice(_FORMATS), help="Default: as TARGET's name ends.")
@click.option("--member", "-m", "members", multiple=True, help="These members; of a .npy its name.")
@click.option("--dtype", type=DtypeType(), metavar="DTYPE", help="Cast to it.")
@click.option("--bits", type=DtypeType(), metavar="DTYPE", help="What V1 and V2 (bfloat16) are.")
@click.option("--compress", "-c", is_flag=True, help="Compress the members of an archive.")
@click.option("--level", type=click.IntRange(0, 9), help="1 (fastest) to 9 (smallest).")
@click.option("--delimiter", help="Of text. Default: as its name ends: comma, tab, blanks.")
@click.option("--format", "fmt", metavar="FMT", help="Of numbers as text (%.18e, %d).")
@click.option("--skip", type=click.IntRange(0), default=0, help="Lines of text to skip first.")
@click.option("--no-clobber", "-n", is_flag=True, help="Never replace what is there.")
@click.option("--sync", is_flag=True, help="A file is on the disk when it returns.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def convert(
    session: Session,
    sources: tuple[str, ...],
    target: str,
    to: str | None,
    members: tuple[str, ...],
    dtype: torch.dtype | None,
    bits: torch.dtype | None,
    compress: bool,
    level: int | None,
    delimiter: str | None,
    fmt: str | None,
    skip: int,
    no_clobber: bool,
    sync: bool,
    as_json: bool,
) -> None:
    """Rewrite arrays: npy, npz or text (.txt, .csv, .tsv, also .gz), as the names tell.

    Stored members of an archive that is written begin at a multiple of 64, so that it can be
    mapped. Several sources become one archive.
    """
    kind = to or _format_of(target)
    if kind is None:
        raise click.UsageError(f"{target}: expected .npy, .npz, .txt, .csv or .tsv, or --to")
    if kind == "txt" and (no_clobber or sync):
        raise click.UsageError("--no-clobber, --sync: expected an archive or .npy to be written")
    text = _Text(delimiter, fmt, skip)
    where = destination(target, sync=sync, if_none_match=no_clobber, client=session.client)
    arrays = [
        _Named(item.name, _cast(item.array, dtype, source))
        for source in sources
        for item in _read(session, source, members, bits, text, dtype)
    ]
    if kind == "txt":
        write_text(
            target,
            _only(arrays, where.name),
            delimiter=_delimiter(target, delimiter) or " ",
            fmt=fmt,
            client=session.client,
        )
    elif kind == "npy":
        _C.save(where, view_array(_only(arrays, where.name), where.name))
    else:
        views = [
            (item.name.encode(), view_array(item.array, f"{where.name}[{item.name}]"))
            for item in arrays
        ]
        _C.savez(where, views, (level if level is not None else 2) if compress else 0)
    if as_json:
        print_json({"name": where.name, "format": kind, "arrays": [a.name for a in arrays]})


def _only(arrays: list[_Named], target: str) -> Loaded:
    if len(arrays) != 1:
        raise ValueError(
            f"{target}: expected one array to write but found {len(arrays)}; choose one with "
            "--member, or write an archive"
        )
    return arrays[0].array


def _format_of(name: str) -> str | None:
    """By how the name ends; None where that says nothing."""
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    suffix = os.path.splitext(path_of(name))[1]
    if suffix in _DELIMITERS:
        return "txt"
    return suffix[1:] if suffix in (".npy", ".npz") else None


def _delimiter(name: str, wanted: str | None) -> str | None:
    """Of text; None: any blanks."""
    if wanted is not None:
        return wanted
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return _DELIMITERS.get(os.path.splitext(path_of(name))[1])


def _read(
    session: Session,
    source: str,
    members: tuple[str, ...],
    bits: torch.dtype | None,
    text: _Text,
    dtype: torch.dtype | None,
) -> Iterator[_Named]:
    if _format_of(source) == "txt":
        loaded = loadtxt(
            source,
            dtype or torch.float64,
            delimiter=_delimiter(source, text.delimiter),
            skiprows=text.skip,
            encoding="utf-8",
            client=session.client,
        )
        yield _Named(members[0] if members else _stem(source), loaded)
        return
    found = identify(session.client, source)
    if isinstance(found, Array):
        array = torchnpy.load(source, dtype=bits, client=session.client)
        assert not isinstance(array, NpzFile)
        yield _Named(members[0] if members else _stem(source), array)
        return
    for member in members_of(found):
        if members and not {member.key, member.name} & set(members):
            continue
        if not member.name.endswith(".npy"):
            raise UnsupportedError(
                f"{found.name}[{member.name}]: expected an array but found other bytes; name the "
                "arrays with --member"
            )
        yield _Named(member.key, found.read([member.key], dtype=bits)[member.key])
    for name in members:
        found.header(name)  # raises where there is none


def _stem(name: str) -> str:
    base = base_name(name)
    for suffix in (*_COMPRESSED, *_DELIMITERS, ".npy"):
        base = base.removesuffix(suffix)
    return base or "arr_0"


def _cast(array: Loaded, dtype: torch.dtype | None, name: str) -> Loaded:
    if dtype is None:
        return array
    if isinstance(array, dict):
        raise UnsupportedError(f"{name}: expected an array of one dtype to cast but found fields")
    if array.dtype.is_complex and not dtype.is_complex:
        raise ValueError(
            f"{name}: expected a complex dtype to cast to but found {dtype}, which has no "
            "imaginary part"
        )
    return array.to(dtype)

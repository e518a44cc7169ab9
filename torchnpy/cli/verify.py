"""``verify``: are objects whole, and what they say they are?"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import click

from torchnpy._ops import _C
from torchnpy.cli.app import Session, command, describe
from torchnpy.cli.objects import Array, Entry, Member, expand, identify, members_of
from torchnpy.cli.output import Bar, print_json, print_line
from torchnpy.cli.parallel import Stop, for_each
from torchnpy.errors import FormatError
from torchnpy.npz import NpzFile
from torchnpy.sources import NpyHeader

_SUFFIXES = (".npy", ".npz")


class Verdict(NamedTuple):
    """What was found of one object that is whole."""

    format: str
    nbytes: int
    members: int | None  # of an archive


@command(short_help="Check that arrays and archives are whole.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--recursive", "-r", is_flag=True, help="S3 names are prefixes.")
@click.option("--allow-trailing", is_flag=True, help="Bytes after the data are no failure.")
@click.option("--quiet", "-q", is_flag=True, help="Only failures.")
@click.option("--jobs", "-j", type=click.IntRange(1, 256), default=16, help="At once (16).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def verify(
    session: Session,
    names: tuple[str, ...],
    recursive: bool,
    allow_trailing: bool,
    quiet: bool,
    jobs: int,
    as_json: bool,
) -> None:
    """Check that arrays and archives are whole: header, length, and each member's CRC-32.

    Of folders and prefixes what ends in .npy and .npz. Of arrays only the header is fetched, of
    archives everything.
    """
    client, stop = session.client, Stop()
    entries = itertools.chain.from_iterable(
        expand(client, name, recursive=recursive, suffixes=_SUFFIXES) for name in names
    )
    count = 0

    def check(entry: Entry) -> Verdict:
        return _check(identify(client, entry.url), allow_trailing)

    def tell(entry: Entry, result: Verdict | Exception) -> None:
        nonlocal count
        count += 1
        bar.advance(entry.nbytes or 0)
        if as_json and not (quiet and isinstance(result, Verdict)):
            print_json(_values(entry, result))
        if isinstance(result, Exception):
            session.fail(result)
        elif not quiet and not as_json:
            members = "" if result.members is None else f", {result.members} members"
            print_line(f"ok  {entry.url}  {result.format} of {result.nbytes} bytes{members}")

    with Bar("verifying", None, wanted=quiet) as bar:
        for_each(entries, check, tell, jobs=jobs, stop=stop)
    if not count:
        raise FormatError(
            f"{' '.join(names)}: expected objects that end in .npy or .npz but found none"
        )


def _values(entry: Entry, result: Verdict | Exception) -> dict[str, object]:
    failed = isinstance(result, Exception)
    return {
        "name": entry.url,
        "ok": not failed,
        "format": None if isinstance(result, Exception) else result.format,
        "nbytes": entry.nbytes if isinstance(result, Exception) else result.nbytes,
        "members": None if isinstance(result, Exception) else result.members,
        "error": describe(result) if isinstance(result, Exception) else None,
    }


def _check(found: Array | NpzFile, allow_trailing: bool) -> Verdict:
    if isinstance(found, Array):
        _check_length(found.name, found.header, found.nbytes, allow_trailing)
        return Verdict("npy", found.nbytes, None)
    with found as archive:
        members = members_of(archive)
        for member in members:
            _check_member(archive, member, allow_trailing)
        return Verdict("npz", archive._open().nbytes or 0, len(members))


def _check_member(archive: NpzFile, member: Member, allow_trailing: bool) -> None:
    data = _C.read_npz_bytes(archive._open(), member.key)  # compares the CRC-32
    if not member.name.endswith(".npy"):
        return
    name = f"{archive.name}[{member.key}]"
    header = NpyHeader(*_C.parse_header(memoryview(data), name))
    _check_length(name, header, member.nbytes, allow_trailing)


def _check_length(name: str, header: NpyHeader, nbytes: int, allow_trailing: bool) -> None:
    end = header.data_offset + header.nbytes
    if nbytes < end and not _is_pickle(header):
        raise FormatError(
            f"{name}: expected {header.nbytes} bytes of data ({header.descr}, shape "
            f"{header.shape}) but found {max(0, nbytes - header.data_offset)}; it is truncated"
        )
    if nbytes > end and not allow_trailing and not _is_pickle(header):
        raise FormatError(
            f"{name}: expected the end at byte {end} but found {nbytes - end} more bytes; "
            "--allow-trailing allows them"
        )


def _is_pickle(header: NpyHeader) -> bool:
    """Its data has no length that the header tells."""
    return header.descr.endswith("O") or "'O'" in header.descr or "|O" in header.descr

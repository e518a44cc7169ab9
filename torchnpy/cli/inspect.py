"""``info``, ``head`` and ``cat``: what an object is, and what it holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click
import torch

import torchnpy
from torchnpy._ops import _C
from torchnpy.cli.app import Session, command
from torchnpy.cli.objects import Array, Member, identify, members_of
from torchnpy.cli.output import print_json, print_line, print_table
from torchnpy.cli.text import write_text
from torchnpy.errors import FormatError, UnsupportedError
from torchnpy.npz import NpzFile
from torchnpy.sources import Array as Loaded
from torchnpy.sources import NpyHeader, encode, native

# Of a raw object, at a time.
_PIECE_NBYTES = 16 << 20
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
_MEMBER = click.option("--member", "-m", metavar="NAME", help="One member of an archive.")


@command(short_help="Tell dtype, shape, order and sizes.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_AS_JSON
@click.pass_obj
def info(session: Session, names: tuple[str, ...], as_json: bool) -> None:
    """Tell dtype, shape, order and sizes; of an archive those of its members.

    Only headers and directories are fetched.
    """
    for name in names:
        with session.reporting():
            found = identify(session.client, name)
            if as_json:
                print_json(_describe(found))
            elif isinstance(found, Array):
                _print_array(found)
            else:
                _print_archive(found)


def dtype_name(header: NpyHeader) -> str | None:
    """As torch calls it; None where it has none."""
    if header.dtype is None:
        return None
    return "struct" if isinstance(header.dtype, dict) else str(header.dtype).removeprefix("torch.")


def _header_values(header: NpyHeader) -> dict[str, Any]:
    return {
        "descr": header.descr,
        "dtype": dtype_name(header),
        "unit": header.unit,
        "shape": header.shape,
        "fortran_order": header.fortran_order,
        "version": ".".join(map(str, header.version)),
        "data_offset": header.data_offset,
        "data_nbytes": header.nbytes,
    }


def _describe(found: Array | NpzFile) -> dict[str, Any]:
    if isinstance(found, Array):
        return {
            "name": found.name,
            "format": "npy",
            "nbytes": found.nbytes,
            **_header_values(found.header),
            "missing_nbytes": max(0, found.end - found.nbytes),
            "trailing_nbytes": max(0, found.nbytes - found.end),
        }
    return {
        "name": found.name,
        "format": "npz",
        "nbytes": found._open().nbytes,
        "members": [
            {
                "key": member.key,
                "name": member.name,
                "method": member.method_name,
                "nbytes": member.nbytes,
                "compressed_nbytes": member.compressed_nbytes,
                "crc32": f"{member.crc32:08x}",
                "array": _header_values(header) if isinstance(header, NpyHeader) else None,
                "error": header if isinstance(header, str) else None,
            }
            for member, header in read_headers(found)
        ],
    }


def read_headers(archive: NpzFile) -> Iterator[tuple[Member, NpyHeader | str | None]]:
    """Each member and its header, all of them fetched together; why it has none that is readable;
    None where it is no array."""
    members = members_of(archive)
    arrays = [member.key for member in members if member.name.endswith(".npy")]
    headers: dict[str, NpyHeader | str] = {}
    try:
        found = _C.read_npz_headers(archive._open(), arrays)
        headers |= {key: NpyHeader(*values) for key, values in zip(arrays, found, strict=True)}
    except (FormatError, UnsupportedError):
        for key in arrays:  # the others have theirs
            try:
                headers[key] = archive.header(key)
            except (FormatError, UnsupportedError) as error:
                headers[key] = str(error)
    for member in members:
        yield member, headers.get(member.key)


def _print_array(array: Array) -> None:
    header = array.header
    rows: list[tuple[str, object]] = [
        ("name", array.name),
        ("format", "npy " + ".".join(map(str, header.version))),
        ("dtype", _dtype_text(header)),
        ("shape", header.shape),
        ("order", "Fortran" if header.fortran_order else "C"),
        ("data", f"{header.nbytes} bytes at byte {header.data_offset}"),
        ("nbytes", array.nbytes),
    ]
    if array.nbytes < array.end:
        rows.append(("missing", f"{array.end - array.nbytes} bytes of data"))
    elif array.nbytes > array.end:
        rows.append(("trailing", f"{array.nbytes - array.end} bytes after the data"))
    print_table(("", ""), rows)


def _print_archive(archive: NpzFile) -> None:
    print_line(f"{archive.name}: npz of {archive._open().nbytes} bytes, {len(archive)} members")
    heading = ("member", "dtype", "shape", "nbytes", "compressed", "method")
    rows = []
    for member, header in read_headers(archive):
        dtype, shape = "bytes", ""
        if isinstance(header, str):
            dtype = header
        elif header:
            dtype, shape = _dtype_text(header), str(header.shape)
        sizes = member.nbytes, member.compressed_nbytes, member.method_name
        rows.append((member.key, dtype, shape, *sizes))
    print_table(heading, rows)


def _dtype_text(header: NpyHeader) -> str:
    dtype = dtype_name(header)
    if dtype in (None, "struct"):
        return header.descr
    return f"{dtype} [{header.unit}]" if header.unit else f"{dtype} ({header.descr})"


@command(short_help="Show the first rows.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--rows", "-n", type=click.IntRange(0), default=10, help="How many (10).")
@_MEMBER
@_AS_JSON
@click.pass_obj
def head(
    session: Session, names: tuple[str, ...], rows: int, member: str | None, as_json: bool
) -> None:
    """Show the first rows.

    Of an array in C order only their bytes are fetched; members of archives, and arrays in Fortran
    order, are read whole.
    """
    for name in names:
        with session.reporting():
            for key, header, array in _read_heads(session, name, rows, member):
                if as_json:
                    print_json(_head_values(name, key, header, array))
                else:
                    _print_head(name, key, header, array)


def _read_heads(
    session: Session, name: str, rows: int, member: str | None
) -> Iterator[tuple[str | None, NpyHeader, Loaded]]:
    found = identify(session.client, name)
    if isinstance(found, Array):
        if member is not None:
            raise ValueError(f"{found.name}: expected an archive for --member but found an array")
        yield None, found.header, _load_head(session, name, found.header, rows)
        return
    for key in found.files if member is None else [member]:
        with session.reporting():
            header = found.header(key)
            yield key, header, cut(found[key], header.shape, rows)


def _load_head(session: Session, name: str, header: NpyHeader, rows: int) -> Loaded:
    is_sliceable = len(header.shape) > 0 and not (header.fortran_order and len(header.shape) > 1)
    if is_sliceable:
        return torchnpy.load_rows(name, 0, rows, client=session.client)
    whole = torchnpy.load(name, client=session.client)
    assert not isinstance(whole, NpzFile)
    return cut(whole, header.shape, rows)


def cut(array: Loaded, shape: tuple[int, ...], rows: int) -> Loaded:
    """Its first rows; a single value as it is."""
    if not shape:
        return array
    if isinstance(array, dict):
        return {name: field[:rows] for name, field in array.items()}
    return array[:rows]


def _head_values(name: str, key: str | None, header: NpyHeader, array: Loaded) -> dict[str, Any]:
    return {
        "name": _C.display_name(encode(name)),
        "member": key,
        "dtype": dtype_name(header),
        "unit": header.unit,
        "shape": header.shape,
        "rows": {field: to_list(values) for field, values in array.items()}
        if isinstance(array, dict)
        else to_list(array),
    }


def to_list(array: torch.Tensor) -> Any:
    """Nested lists of Python's numbers."""
    if array.dtype.is_floating_point and array.element_size() < 2:
        array = array.float()  # float8
    return array.tolist()


def _print_head(name: str, key: str | None, header: NpyHeader, array: Loaded) -> None:
    title = _C.display_name(encode(name)) + (f"[{key}]" if key is not None else "")
    print_line(f"{title}  {_dtype_text(header)}  {header.shape}")
    for field, values in array.items() if isinstance(array, dict) else [("", array)]:
        if field:
            print_line(f"{field}:")
        for line in str(values).splitlines():
            print_line(line)


@command(short_help="Write an array as text, or raw bytes.")
@click.argument("name", metavar="NAME")
@_MEMBER
@click.option("--raw", is_flag=True, help="The object's bytes, whatever they are.")
@click.option("--delimiter", default=" ", help="Between the values of a row (a space).")
@click.option("--format", "fmt", metavar="FMT", help="Of each number: %d, %.9g or %.17g.")
@click.pass_obj
def cat(
    session: Session, name: str, member: str | None, raw: bool, delimiter: str, fmt: str | None
) -> None:
    """Write an array as text to stdout: the values of the last axis on a line.

    With --raw the object as it is, or the bytes of one member.
    """
    if raw and member is None:
        _copy_out(session, name)
        return
    found = identify(session.client, name)
    if isinstance(found, Array):
        if member is not None:
            raise ValueError(f"{found.name}: expected an archive for --member but found an array")
        array = torchnpy.load(name, client=session.client)
        assert not isinstance(array, NpzFile)
        write_text(sys.stdout.buffer, array, delimiter=delimiter, fmt=fmt)
        return
    if member is None:
        if len(found) != 1:
            raise ValueError(
                f"{found.name}: expected one array but found an archive of {len(found)} members; "
                "choose one with --member"
            )
        member = found.files[0]
    if raw:
        _write_out(memoryview(_C.read_npz_bytes(found._open(), member)))
    else:
        write_text(sys.stdout.buffer, found[member], delimiter=delimiter, fmt=fmt)


def _copy_out(session: Session, name: str) -> None:
    reader, offset = _C.ObjectReader(native(session.client), encode(name)), 0
    while True:
        piece = bytearray(_PIECE_NBYTES)
        nbytes = reader.read(offset, piece)
        _write_out(memoryview(piece)[:nbytes])
        offset += nbytes
        if nbytes < len(piece):
            return


def _write_out(data: memoryview) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

"""``ls``: what is below a prefix, in a folder or in an archive."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import click

from torchnpy.cli.app import Session, command
from torchnpy.cli.objects import (
    Entry,
    describe_file,
    is_remote,
    is_s3,
    list_below,
    local_path,
    members_of,
    open_archive,
    path_of,
)
from torchnpy.cli.output import print_json, print_line


@command(short_help="List objects, files or members.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--recursive", "-r", is_flag=True, help="Objects of all depths, no folders.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def ls(session: Session, names: tuple[str, ...], recursive: bool, as_json: bool) -> None:
    """List the objects whose URL begins with s3://bucket/prefix, the files of a folder, or the
    members of an archive (a name that ends in .npz).
    """
    for name in names:
        with session.reporting():
            if path_of(name).endswith(".npz") and not _is_folder(name):
                _list_archive(session, name, as_json)
                continue
            for entry in _entries(session, name, recursive):
                _print_entry(entry, as_json)


def _is_folder(name: str) -> bool:
    return not is_remote(name) and os.path.isdir(local_path(name))


def _entries(session: Session, name: str, recursive: bool) -> Iterable[Entry]:
    if is_remote(name):
        found = (Entry(*item) for item in session.client.list(name))
        return found if recursive else _group(found, len(name) if is_s3(name) else 0)
    path = local_path(name)
    if not _is_folder(name):
        return [describe_file(path, os.stat(path))]
    return list_below(session.client, name) if recursive else _scan(path)


def _group(objects: Iterable[Entry], prefix_length: int) -> Iterator[Entry]:
    """Those with a slash behind the prefix as one folder."""
    last = None
    for entry in objects:
        slash = entry.url.find("/", prefix_length)
        if slash < 0 or slash == len(entry.url) - 1:
            yield entry
            continue
        folder = entry.url[: slash + 1]
        if folder != last:
            yield Entry(folder)
        last = folder


def _scan(folder: str) -> Iterator[Entry]:
    with os.scandir(folder) as listing:
        found = sorted(listing, key=lambda entry: os.fsencode(entry.name))
    for entry in found:
        if entry.is_dir():
            yield Entry(entry.path + "/")
        else:
            yield describe_file(entry.path, entry.stat(follow_symlinks=False))


def _print_entry(entry: Entry, as_json: bool) -> None:
    is_folder = entry.nbytes is None
    if as_json:
        print_json(
            {
                "name": entry.url,
                "type": "folder" if is_folder else "object",
                "nbytes": entry.nbytes,
                "modified": entry.modified or None,
                "etag": entry.etag or None,
            }
        )
    else:
        nbytes = "-" if is_folder else str(entry.nbytes)
        print_line(f"{nbytes:>15}  {entry.modified[:19]:19}  {entry.url}")


def _list_archive(session: Session, name: str, as_json: bool) -> None:
    with open_archive(session.client, name) as archive:
        for member in members_of(archive):
            if as_json:
                print_json(
                    {
                        "name": member.key,
                        "type": "member",
                        "nbytes": member.nbytes,
                        "compressed_nbytes": member.compressed_nbytes,
                        "method": member.method_name,
                        "crc32": f"{member.crc32:08x}",
                    }
                )
            else:
                print_line(f"{member.nbytes:>15}  {member.method_name:19}  {member.key}")

"""Bytes of ZIP archives, good and bad: each field is as the test says, or follows from the data."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

STORED = 0
DEFLATED = 8
ONES_16 = 0xFFFF
ONES_32 = 0xFFFFFFFF
JANUARY_1980 = 0x21 << 16  # the first day that there is
NUMBERED = b"m%07d"  # names of many members

# Field: its format, in the order of the file.
LOCAL = {
    "signature": "4s",
    "version": "H",
    "flags": "H",
    "method": "H",
    "datetime": "I",
    "crc32": "I",
    "compressed_nbytes": "I",
    "nbytes": "I",
    "name_nbytes": "H",
    "extra_nbytes": "H",
}
CENTRAL = {
    "signature": "4s",
    "writer_version": "H",
    "version": "H",
    "flags": "H",
    "method": "H",
    "datetime": "I",
    "crc32": "I",
    "compressed_nbytes": "I",
    "nbytes": "I",
    "name_nbytes": "H",
    "extra_nbytes": "H",
    "comment_nbytes": "H",
    "disk": "H",
    "attributes": "H",
    "more_attributes": "I",
    "local_offset": "I",
}
END = {
    "signature": "4s",
    "disk": "H",
    "directory_disk": "H",
    "disk_member_count": "H",
    "member_count": "H",
    "directory_nbytes": "I",
    "directory_offset": "I",
    "comment_nbytes": "H",
}
END_64 = {
    "signature": "4s",
    "record_nbytes": "Q",
    "writer_version": "H",
    "version": "H",
    "disk": "I",
    "directory_disk": "I",
    "disk_member_count": "Q",
    "member_count": "Q",
    "directory_nbytes": "Q",
    "directory_offset": "Q",
}
LOCATOR_64 = {"signature": "4s", "disk": "I", "record_offset": "Q", "disk_count": "I"}

ALL_ONES = {
    "disk_member_count": ONES_16,
    "member_count": ONES_16,
    "directory_nbytes": ONES_32,
    "directory_offset": ONES_32,
}
ALL_ONES_SIZES = {"compressed_nbytes": ONES_32, "nbytes": ONES_32}


def layout_format(layout: Mapping[str, str]) -> str:
    return "<" + "".join(layout.values())


def pack(layout: Mapping[str, str], *values: Mapping[str, Any]) -> bytes:
    """Later values override earlier ones; what is in none is 0."""
    merged: dict[str, Any] = {}
    for some in values:
        merged |= some
    assert merged.keys() <= layout.keys(), merged.keys() - layout.keys()
    return struct.pack(layout_format(layout), *(merged.get(name, 0) for name in layout))


def extra_field(identifier: int, data: bytes) -> bytes:
    return struct.pack("<HH", identifier, len(data)) + data


def zip64_extra(*values: int) -> bytes:
    return extra_field(1, struct.pack(f"<{len(values)}Q", *values))


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    return compressor.compress(data) + compressor.flush()


def encoded(name: str | bytes) -> bytes:
    return name.encode() if isinstance(name, str) else name


@dataclass(frozen=True)
class Member:
    name: str | bytes
    data: bytes = b""
    method: int = STORED
    compressed: bytes | None = None  # overrides what the data gives by the method
    fields: Mapping[str, Any] = field(default_factory=dict)  # of both headers
    local: Mapping[str, Any] = field(default_factory=dict)  # of the local header only
    central: Mapping[str, Any] = field(default_factory=dict)  # of the directory's entry only
    local_name: str | bytes | None = None  # overrides the name
    local_extra: bytes = b""
    extra: bytes = b""
    comment: bytes = b""
    descriptor: bytes = b""  # after the data
    zip64: bool = False  # sizes and offset are in an extra field, and so may be of 64 bits

    @property
    def packed(self) -> bytes:
        if self.compressed is not None:
            return self.compressed
        return deflate(self.data) if self.method == DEFLATED else self.data

    def saying(self, **fields: Any) -> Member:
        """With these fields in both headers."""
        return replace(self, fields={**self.fields, **fields})

    def _common(self, packed: bytes) -> dict[str, Any]:
        return {
            "version": 45,
            "method": self.method,
            "datetime": JANUARY_1980,
            "crc32": zlib.crc32(self.data),
            "compressed_nbytes": len(packed),
            "nbytes": len(self.data),
            **self.fields,
        }

    def _local_header(self, packed: bytes) -> bytes:
        name = encoded(self.name if self.local_name is None else self.local_name)
        common = self._common(packed)
        extra = self.local_extra
        if self.zip64:
            extra = zip64_extra(common["nbytes"], common["compressed_nbytes"]) + extra
            common |= ALL_ONES_SIZES
        own = {
            "signature": b"PK\3\4",
            "name_nbytes": len(name),
            "extra_nbytes": len(extra),
        }
        return pack(LOCAL, common, own, self.local) + name + extra

    def local_header(self) -> bytes:
        return self._local_header(self.packed)

    def local_bytes(self) -> bytes:
        """The local header and what follows it."""
        packed = self.packed
        return self._local_header(packed) + packed + self.descriptor

    def central_bytes(self, local_offset: int) -> bytes:
        """The directory's entry."""
        name = encoded(self.name)
        common = self._common(self.packed)
        extra = self.extra
        if self.zip64:
            sizes = common["nbytes"], common["compressed_nbytes"]
            extra = zip64_extra(*sizes, local_offset) + extra
            common |= ALL_ONES_SIZES
        own = {
            "signature": b"PK\1\2",
            "writer_version": 45,
            "name_nbytes": len(name),
            "extra_nbytes": len(extra),
            "comment_nbytes": len(self.comment),
            "local_offset": ONES_32 if self.zip64 else local_offset,
        }
        return pack(CENTRAL, common, own, self.central) + name + extra + self.comment


def stored(data: bytes, name: str = "x.npy", **says: Any) -> Member:
    """With ZIP64's extra fields; its headers say what they are told to say."""
    return Member(name, data, fields=says, zip64=True)


def deflated(data: bytes, name: str = "x.npy", **says: Any) -> Member:
    """The same, compressed once however often its headers are asked for."""
    fields = {"nbytes": len(data), "crc32": zlib.crc32(data), **says}
    return Member(name, method=DEFLATED, compressed=deflate(data), fields=fields, zip64=True)


def end_bytes(comment: bytes = b"", **fields: Any) -> bytes:
    own = {"signature": b"PK\5\6", "comment_nbytes": len(comment)}
    return pack(END, own, fields) + comment


def end_place(count: int, directory_nbytes: int, directory_offset: int) -> dict[str, int]:
    """What an end record says of the directory."""
    return {
        "disk_member_count": count,
        "member_count": count,
        "directory_nbytes": directory_nbytes,
        "directory_offset": directory_offset,
    }


def end64_bytes(
    count: int,
    directory_nbytes: int,
    directory_offset: int,
    *,
    comment: bytes = b"",
    end: Mapping[str, Any] | None = None,
    end64: Mapping[str, Any] | None = None,
    locator: Mapping[str, Any] | None = None,
) -> bytes:
    """ZIP64's two records and the end record, which are to follow the directory."""
    own = {"signature": b"PK\6\6", "record_nbytes": 44, "writer_version": 45, "version": 45}
    place = end_place(count, directory_nbytes, directory_offset)
    record_offset = (directory_offset + directory_nbytes) % 2**64
    own_locator = {"signature": b"PK\6\7", "record_offset": record_offset, "disk_count": 1}
    return (
        pack(END_64, own, place, end64 or {})
        + pack(LOCATOR_64, own_locator, locator or {})
        + end_bytes(comment, **{**ALL_ONES, **(end or {})})
    )


def zip_bytes(
    members: Iterable[Member],
    *,
    comment: bytes = b"",
    end: Mapping[str, Any] | None = None,
    end64: Mapping[str, Any] | None = None,
    locator: Mapping[str, Any] | None = None,
) -> bytes:
    """An archive; `end`, `end64` and `locator` override fields of these records.

    With `end64`, which may be empty, it has the ZIP64 records.
    """
    body = b""
    listed = []
    for member in members:
        listed.append(member.central_bytes(len(body)))
        body += member.local_bytes()
    directory = b"".join(listed)
    place = len(listed), len(directory), len(body)
    if end64 is None:
        last = end_bytes(comment, **{**end_place(*place), **(end or {})})
    else:
        last = end64_bytes(*place, comment=comment, end=end, end64=end64, locator=locator)
    return body + directory + last


def archive(*members: Member) -> bytes:
    """With the ZIP64 records."""
    return zip_bytes(members, end64={})


def with_directory(directory: bytes, count: int) -> bytes:
    """An archive of nothing but a directory, which is said to have so many entries."""
    return directory + end64_bytes(count, len(directory), 0)


def entries(count: int) -> bytes:
    """Of empty members, `m0000000` and so on, whose local headers would follow one another.

    Built from the first one, of which all but the offset and the name is the same in a million.
    """
    first = Member(NUMBERED % 0)
    local_nbytes = len(first.local_bytes())
    # The offset is the last field before the name.
    start = first.central_bytes(0)[: struct.calcsize(layout_format(CENTRAL)) - 4]
    offset = struct.Struct("<I").pack
    return b"".join(start + offset(local_nbytes * i) + NUMBERED % i for i in range(count))


def honest(count: int) -> bytes:
    """An archive of so many empty members."""
    start = Member(NUMBERED % 0).local_bytes()[: struct.calcsize(layout_format(LOCAL))]
    body = b"".join(start + NUMBERED % i for i in range(count))
    directory = entries(count)
    return body + directory + end64_bytes(count, len(directory), len(body))

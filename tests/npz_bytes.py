"""Bytes of ZIP archives, good and bad: each field is as the test says, or follows from the data."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STORED = 0
DEFLATED = 8
ONES_16 = 0xFFFF
ONES_32 = 0xFFFFFFFF

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


def pack(layout: Mapping[str, str], *values: Mapping[str, Any]) -> bytes:
    """Later values override earlier ones; what is in none is 0."""
    merged: dict[str, Any] = {}
    for some in values:
        merged |= some
    assert merged.keys() <= layout.keys(), merged.keys() - layout.keys()
    return b"".join(struct.pack("<" + code, merged.get(name, 0)) for name, code in layout.items())


def extra_field(identifier: int, data: bytes) -> bytes:
    return struct.pack("<HH", identifier, len(data)) + data


def zip64_extra(*values: int) -> bytes:
    return extra_field(1, struct.pack(f"<{len(values)}Q", *values))


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


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

    @property
    def stored(self) -> bytes:
        if self.compressed is not None:
            return self.compressed
        return deflated(self.data) if self.method == DEFLATED else self.data

    @property
    def _common(self) -> dict[str, Any]:
        return {
            "version": 45,
            "method": self.method,
            "crc32": zlib.crc32(self.data),
            "compressed_nbytes": len(self.stored),
            "nbytes": len(self.data),
            **self.fields,
        }

    def local_bytes(self) -> bytes:
        name = encoded(self.name if self.local_name is None else self.local_name)
        own = {
            "signature": b"PK\3\4",
            "name_nbytes": len(name),
            "extra_nbytes": len(self.local_extra),
        }
        header = pack(LOCAL, self._common, own, self.local)
        return header + name + self.local_extra + self.stored + self.descriptor

    def central_bytes(self, local_offset: int) -> bytes:
        name = encoded(self.name)
        own = {
            "signature": b"PK\1\2",
            "name_nbytes": len(name),
            "extra_nbytes": len(self.extra),
            "comment_nbytes": len(self.comment),
            "local_offset": local_offset,
        }
        header = pack(CENTRAL, self._common, own, self.central)
        return header + name + self.extra + self.comment


def encoded(name: str | bytes) -> bytes:
    return name.encode() if isinstance(name, str) else name


def end_bytes(comment: bytes = b"", **fields: Any) -> bytes:
    own = {"signature": b"PK\5\6", "comment_nbytes": len(comment)}
    return pack(END, own, fields) + comment


def zip_bytes(
    members: Sequence[Member],
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
    directory = b""
    for member in members:
        directory += member.central_bytes(len(body))
        body += member.local_bytes()
    place = {
        "disk_member_count": len(members),
        "member_count": len(members),
        "directory_nbytes": len(directory),
        "directory_offset": len(body),
    }
    object_bytes = body + directory
    if end64 is None:
        return object_bytes + end_bytes(comment, **{**place, **(end or {})})
    own = {"signature": b"PK\6\6", "record_nbytes": 44, "writer_version": 45, "version": 45}
    own_locator = {"signature": b"PK\6\7", "record_offset": len(object_bytes), "disk_count": 1}
    return (
        object_bytes
        + pack(END_64, own, place, end64)
        + pack(LOCATOR_64, own_locator, locator or {})
        + end_bytes(comment, **{**ALL_ONES, **(end or {})})
    )

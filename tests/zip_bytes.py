"""ZIP archives, member by member: their headers say what they are told to say."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any


@dataclass
class Member:
    """What the directory and the local header say, whatever `data` is."""

    data: bytes
    nbytes: int
    method: int = 8
    compressed_nbytes: int = -1  # as it is
    crc32: int = 0
    name: str = "x.npy"


def deflated(data: bytes, **says: Any) -> Member:
    compressor = zlib.compressobj(9, wbits=-15)
    packed = compressor.compress(data) + compressor.flush()
    return replace(Member(packed, len(data), crc32=zlib.crc32(data)), **says)


def stored(data: bytes, **says: Any) -> Member:
    return replace(Member(data, len(data), 0, crc32=zlib.crc32(data)), **says)


def local_header(member: Member) -> bytes:
    """With ZIP64's sizes."""
    name = member.name.encode()
    sizes = struct.pack("<HHQQ", 1, 16, member.nbytes, _compressed_nbytes(member))
    fields = (45, 0, member.method, 0, 0x21, member.crc32, 0xFFFFFFFF, 0xFFFFFFFF)
    fixed = struct.pack("<4s5H3I2H", b"PK\x03\x04", *fields, len(name), len(sizes))
    return fixed + name + sizes


def directory_entry(member: Member, offset: int) -> bytes:
    """With all of ZIP64."""
    name = member.name.encode()
    sizes = struct.pack("<HHQQQ", 1, 24, member.nbytes, _compressed_nbytes(member), offset)
    fields = (45, 45, 0, member.method, 0, 0x21, member.crc32, 0xFFFFFFFF, 0xFFFFFFFF)
    rest = (len(name), len(sizes), 0, 0, 0, 0, 0xFFFFFFFF)
    return struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *fields, *rest) + name + sizes


def _compressed_nbytes(member: Member) -> int:
    return len(member.data) if member.compressed_nbytes < 0 else member.compressed_nbytes


def end_record(count: int, directory_nbytes: int, directory_offset: int) -> bytes:
    """With all of ZIP64."""
    end = directory_offset + directory_nbytes
    numbers = struct.pack("<4Q", count, count, directory_nbytes, directory_offset)
    zip64 = struct.pack("<4sQ2H2I", b"PK\x06\x06", 44, 45, 45, 0, 0) + numbers
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end % 2**64, 1)
    ones = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    return zip64 + locator + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, *ones, 0)


def archive(*members: Member) -> bytes:
    body, directory = b"", b""
    for member in members:
        directory += directory_entry(member, len(body))
        body += local_header(member) + member.data
    return body + directory + end_record(len(members), len(directory), len(body))


def with_directory(directory: bytes, count: int) -> bytes:
    return directory + end_record(count, len(directory), 0)


def entries(count: int, first: int = 0) -> bytes:
    """Of empty members, `m0000000` and so on, whose local headers would follow one another."""
    name = b"m%07d"
    empty = struct.pack("<4s6H3I5H", b"PK\x01\x02", 20, 20, 0, 0, 0, 0x21, 0, 0, 0, 8, 0, 0, 0, 0)
    attributes = bytes(4)
    return b"".join(
        empty + attributes + struct.pack("<I", 38 * i) + name % i
        for i in range(first, first + count)
    )


def honest(count: int) -> bytes:
    """An archive of so many empty members."""
    start = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0x21, 0, 0, 0, 8, 0)
    body = b"".join(start + b"m%07d" % i for i in range(count))
    directory = entries(count)
    return body + directory + end_record(count, len(directory), len(body))

"""The corpus: each way in which an archive can be odd or wrong, with what comes of it."""

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from npy_bytes import header_text, npy_bytes, saved
from zip_bytes import (
    DEFLATED,
    ONES_16,
    ONES_32,
    Member,
    deflate,
    end_bytes,
    extra_field,
    zip64_extra,
    zip_bytes,
)

import torchnpy as tnp

CORRUPT = "the archive is corrupt"
SPLIT = "the archive is split: join its parts"
OVERLAP = "members overlap: the archive is corrupt or hostile"

SIX = np.arange(6, dtype="<f4").reshape(2, 3)
TENSOR = torch.arange(6, dtype=torch.float32).reshape(2, 3)
NPY = saved(SIX)
ONE = torch.tensor(1, dtype=torch.int8)
NPY_ONE = saved(np.int8(1))
TEXT = b"12345"
BYTES = torch.tensor(list(TEXT), dtype=torch.uint8)

# One member that is not an array, so that places are easy to tell: the directory begins at byte
# 36, the name in it at 82, the end record at 83.
X = Member("x", TEXT)


def x(**kwargs: Any) -> bytes:
    return zip_bytes([Member("x", TEXT, **kwargs)])


@dataclass(frozen=True)
class Bad:
    id: str
    data: bytes
    message: str
    member: str | None = None  # the one that is asked for; None: the archive does not open
    error: type[Exception] = tnp.FormatError
    limits: tnp.NpzLimits | None = None


@dataclass(frozen=True)
class Good:
    id: str
    data: bytes
    value: Mapping[str, torch.Tensor] = field(default_factory=lambda: {"x": TENSOR})


BAD = [
    Bad(
        "0-nothing",
        b"",
        "expected a ZIP archive but found no end record in its last 0 bytes; "
        "it is truncated, or no archive",
    ),
    Bad(
        "0-an-array",
        NPY,
        "expected a ZIP archive but found no end record in its last 152 bytes; "
        "it is truncated, or no archive",
    ),
    Bad(
        "0-front-missing",
        zip_bytes([X])[1:],
        "expected a directory of 47 bytes at byte 35 or before but found the offset 36 at byte 82; "
        "the front of the archive is missing, or it is corrupt",
    ),
    Bad(
        "0-split",
        zip_bytes([X], end={"disk": 1, "directory_disk": 1}),
        f"expected an archive in one file but found part 2 of several at byte 83; {SPLIT}",
    ),
    Bad(
        "0-split-member",
        x(central={"disk": 1}),
        f"expected an archive in one file but found a member in part 2 at byte 36; {SPLIT}",
    ),
    Bad(
        "0-split-zip64",
        zip_bytes([X], end64={}, locator={"disk_count": 2}),
        f"expected an archive in one file but found one of 2 parts at byte 139; {SPLIT}",
    ),
    Bad(
        "0-directory-signature",
        x(central={"signature": b"XK\1\2"}),
        "expected the directory's `PK\\x01\\x02` but found `XK\\x01\\x02` at byte 36; " + CORRUPT,
    ),
    Bad(
        "0-entry-signature",
        zip_bytes([X, Member("y", b"", central={"signature": b"XK\1\2"})]),
        "expected the directory entry's `PK\\x01\\x02` but found `XK\\x01\\x02` at byte 114; "
        + CORRUPT,
    ),
    Bad(
        "0-local-signature",
        x(local={"signature": b"PK\1\2"}),
        "expected the local header's `PK\\x03\\x04` but found `PK\\x01\\x02` at byte 0; " + CORRUPT,
        "x",
    ),
    Bad(
        "52-empty-archive-after-other-bytes",
        b"other bytes" + zip_bytes([]),
        "expected an archive without members to begin at byte 0 but found 11 bytes before its end "
        f"record at byte 11; {CORRUPT}",
    ),
    Bad(
        "56-zip64-extra-too-short",
        x(central={"nbytes": ONES_32, "compressed_nbytes": ONES_32}, extra=extra_field(1, b"15")),
        f"expected a ZIP64 extra field of 16 bytes but found 2 at byte 83; {CORRUPT}",
    ),
    Bad(
        "56-zip64-extra-past-the-extra-fields",
        x(central={"nbytes": ONES_32}, extra=struct.pack("<HHI", 1, 8, 5)),
        f"expected an extra field of at most 4 bytes but found 8 at byte 83; {CORRUPT}",
    ),
    Bad(
        "57-zip64-record-signature",
        zip_bytes([X], end64={"signature": b"XK\6\6"}),
        "expected the ZIP64 end record's `PK\\x06\\x06` but found `XK\\x06\\x06` at byte 83; "
        + CORRUPT,
    ),
    Bad(
        "57-zip64-record-length",
        zip_bytes([X], end64={"record_nbytes": 2**64 - 1}),
        "expected a ZIP64 end record of 44 bytes up to its locator but found 18446744073709551615 "
        f"at byte 83; {CORRUPT}",
    ),
    Bad(
        "57-zip64-record-elsewhere",
        zip_bytes([X], end64={"signature": b"XK\6\6"}, locator={"record_offset": ONES_32}),
        "expected a ZIP64 end record just before its locator but found the place 4294967295 at "
        f"byte 139; {CORRUPT}",
    ),
    Bad(
        "57-zip64-record-contradicts",
        zip_bytes([X], end64={}, end={"directory_nbytes": 48}),
        "expected the directory size 48 of the end record but found 47 in the ZIP64 end record at "
        f"byte 83; {CORRUPT}",
    ),
    Bad(
        "59-archive-in-the-comment",
        zip_bytes([X], comment=zip_bytes([Member("fake", b"1")])),
        "expected one end record but found two, at bytes 83 and 190; one may be part of a comment, "
        "and nothing tells which",
    ),
    Bad(
        "62-local-offset",
        x(central={"local_offset": 0xFFFFFFF0}),
        "expected `x` to end before the directory at byte 36 but found a header and 5 bytes of "
        f"data at byte 4294967280; {OVERLAP}",
    ),
    Bad(
        "62-local-offset-wraps",
        b"prefix" + x(central={"local_offset": ONES_32}, extra=zip64_extra(2**64 - 1)),
        "expected a local header in the archive but found the offset 18446744073709551615 at byte "
        f"42; {CORRUPT}",
    ),
    Bad(
        "63-directory-offset",
        zip_bytes([X], end={"directory_offset": 0xFFFFFFF0}),
        "expected a directory of 47 bytes at byte 36 or before but found the offset 4294967280 at "
        "byte 83; the front of the archive is missing, or it is corrupt",
    ),
    Bad(
        "63-directory-offset-wraps",
        zip_bytes([X], end64={"directory_offset": 2**64 - 47}),
        "expected a directory of 47 bytes at byte 36 or before but found the offset "
        "18446744073709551569 at byte 159; the front of the archive is missing, or it is corrupt",
    ),
    Bad(
        "63-directory-size",
        zip_bytes([X], end={"directory_nbytes": 0xFFFFFFF0}),
        f"expected a directory of at most 83 bytes but found 4294967280 at byte 83; {CORRUPT}",
    ),
    Bad(
        "64-extra-length",
        x(central={"extra_nbytes": 65535}),
        "expected at most 1 bytes of name, extra fields and comment but found 65536 at byte 36; "
        + CORRUPT,
    ),
    Bad(
        "64-local-extra-length",
        x(local={"extra_nbytes": 65535}),
        f"expected a local header of at most 31 bytes but found 65566 at byte 0; {CORRUPT}",
        "x",
    ),
    Bad(
        "65-compressed-size",
        x(central={"compressed_nbytes": 6}),
        "expected `x` to end before the directory at byte 36 but found a header and 6 bytes of "
        f"data at byte 0; {OVERLAP}",
    ),
    Bad(
        "65-compressed-size-wraps",
        x(central={"compressed_nbytes": ONES_32}, extra=zip64_extra(2**64 - 1)),
        "expected `x` to end before the directory at byte 36 but found a header and "
        f"18446744073709551615 bytes of data at byte 0; {OVERLAP}",
    ),
    Bad(
        "66-local-name",
        x(local_name="y"),
        "expected the directory's name `x` in the local header but found `y` at byte 0; " + CORRUPT,
        "x",
    ),
    Bad(
        "67-local-method",
        x(local={"method": DEFLATED}),
        f"expected the directory's method 0 in the local header but found 8 at byte 0; {CORRUPT}",
        "x",
    ),
    Bad(
        "68-stored-size",
        x(central={"nbytes": 6}),
        f"expected 6 bytes of a stored member but found 5; {CORRUPT}",
        "x",
    ),
    Bad(
        "68-size-too-small",
        x(method=DEFLATED, fields={"nbytes": 4}),
        "expected 4 bytes of inflated data but found more; the data is corrupt",
        "x",
    ),
    Bad(
        "68-size-too-large",
        x(method=DEFLATED, fields={"nbytes": 6}),
        "expected 6 bytes of inflated data but found 5; the data is corrupt",
        "x",
    ),
    Bad(
        "69-expansion",
        x(method=DEFLATED, fields={"nbytes": ONES_32}),
        "expected at most 8256 bytes inflated of 7 compressed ones (limits.expansion is 1032) but "
        "found 4294967295; the archive is corrupt or hostile",
        "x",
    ),
    Bad(
        "69-expansion-limit",
        x(method=DEFLATED, fields={"nbytes": 1047}),
        "expected at most 1046 bytes inflated of 7 compressed ones (limits.expansion is 2) but "
        "found 1047; the archive is corrupt or hostile",
        "x",
        limits=tnp.NpzLimits(expansion=2),
    ),
    Bad(
        "69-total",
        x(method=DEFLATED, central={"nbytes": ONES_32}, extra=zip64_extra(70 << 30)),
        "expected members that inflate to at most 68719476736 bytes but found more up to `x`, of "
        "75161927680 bytes; raise limits.total_nbytes if you trust the archive",
    ),
    Bad(
        "69-members",
        zip_bytes([X, Member("y")]),
        "expected at most 1 members but found 2; raise limits.members if you trust the archive",
        limits=tnp.NpzLimits(members=1),
    ),
    Bad(
        "70-garbage-after-the-stream",
        x(method=DEFLATED, compressed=deflate(TEXT) + b"junk"),
        "expected the compressed data to end at byte 7 but found 4 more bytes; the data is corrupt",
        "x",
    ),
    Bad(
        "70-cut-stream",
        x(method=DEFLATED, compressed=deflate(TEXT)[:-2]),
        "expected 5 bytes of inflated data but found 4 before the compressed data ended, at byte 5 "
        "of it; the data is truncated",
        "x",
    ),
    Bad(
        "70-garbage",
        x(method=DEFLATED, compressed=b"\xff" * 9),
        "expected DEFLATE data but found a broken stream (invalid block type) at byte 1 of it; "
        "the data is corrupt",
        "x",
    ),
    Bad(
        "71-crc",
        x(fields={"crc32": 0x1234ABCD}),
        "expected CRC-32 0x1234abcd but found 0xcbf53a1c; the data is corrupt",
        "x",
    ),
    Bad(
        "71-crc-deflated",
        x(method=DEFLATED, fields={"crc32": 0}),
        "expected CRC-32 0x00000000 but found 0xcbf53a1c; the data is corrupt",
        "x",
    ),
    Bad(
        "72-encrypted",
        x(fields={"flags": 1}),
        "expected a member as it is but found an encrypted one; decrypt the archive first",
        "x",
        tnp.UnsupportedError,
    ),
    Bad(
        "72-encrypted-says-the-local-header",
        x(local={"flags": 1}),
        "expected the directory's flag for encryption in the local header but found the opposite "
        f"at byte 0; {CORRUPT}",
        "x",
    ),
    Bad(
        "73-method",
        x(method=99),
        "expected a stored (0) or deflated (8) member but found method 99; save the archive again "
        "with numpy.savez or numpy.savez_compressed",
        "x",
        tnp.UnsupportedError,
    ),
    Bad(
        "74-overlap",
        zip_bytes([Member("a", TEXT, fields={"compressed_nbytes": 6, "nbytes": 6}), X]),
        "expected `a` to end before `x` at byte 36 but found a header and 6 bytes of data at byte "
        f"0; {OVERLAP}",
    ),
    Bad(
        "74-two-names-of-one-member",
        zip_bytes([X, Member("y", TEXT, central={"local_offset": 0})]),
        "expected `x` to end before `y` at byte 0 but found a header and 5 bytes of data at byte "
        f"0; {OVERLAP}",
    ),
    Bad(
        "77-named-npy-but-none",
        zip_bytes([Member("x.npy", TEXT)]),
        "expected the magic `\\x93NUMPY` but found `12345` at byte 0; this is not an NPY file",
        "x.npy",
    ),
    Bad(
        "77-cut-array",
        zip_bytes([Member("x.npy", NPY[:-1])]),
        "expected 24 bytes of data (float32, shape (2, 3)) but found 23; the file is truncated",
        "x.npy",
    ),
    Bad(
        "77-objects",
        zip_bytes([Member("x.npy", npy_bytes(header_text("'|O'", shape="(1,)"), b"pickle"))]),
        "expected a dtype that torch has but found object; it is a pickle, which can run code when "
        "it is read, and is never loaded: save the values with a numeric dtype",
        "x.npy",
        tnp.UnsupportedError,
    ),
    Bad(
        "79-nul-in-a-name",
        zip_bytes([Member("x\0y", TEXT)]),
        f"expected a name without NUL but found `x\\x00y` at byte 85; {CORRUPT}",
    ),
    Bad(
        "79-name-not-utf8",
        zip_bytes([Member(b"x\xff", TEXT, fields={"flags": 0x800})]),
        f"expected a name in UTF-8 but found `\\xff` at byte 84; {CORRUPT}",
    ),
    Bad(
        "80-count-0",
        zip_bytes([X], end={"member_count": 0, "disk_member_count": 0}),
        "expected an archive without members to begin at byte 0 but found 83 bytes before its end "
        f"record at byte 83; {CORRUPT}",
    ),
    Bad(
        "80-count-too-large",
        zip_bytes([X], end={"member_count": 2, "disk_member_count": 2}),
        "expected at most 1 members in a directory of 47 bytes but found 2 at byte 83; " + CORRUPT,
    ),
    Bad(
        "80-count-too-large-for-the-entries",
        zip_bytes(
            [Member("x", TEXT, comment=bytes(60))], end={"member_count": 2, "disk_member_count": 2}
        ),
        "expected a directory of 2 members but found 0 bytes for one that takes 46 at byte 143; "
        + CORRUPT,
    ),
    Bad(
        "80-count-too-small",
        zip_bytes([X, Member("y")], end={"member_count": 1, "disk_member_count": 1}),
        "expected the directory to end after 1 members but found 47 more bytes at byte 114; "
        + CORRUPT,
    ),
]


def one(**kwargs: Any) -> bytes:
    return zip_bytes([Member("x.npy", NPY, **kwargs)])


def written_by_numpy(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def unicode_path(raw_name: bytes, name: str) -> bytes:
    return extra_field(0x7075, struct.pack("<BI", 1, zlib.crc32(raw_name)) + name.encode())


SIZES = {"nbytes": len(NPY), "compressed_nbytes": len(NPY)}
ONES = {"nbytes": ONES_32, "compressed_nbytes": ONES_32}
NO_SIZES = {"nbytes": 0, "compressed_nbytes": 0, "crc32": 0}
DESCRIPTOR = b"PK\7\x08" + struct.pack("<IQQ", zlib.crc32(NPY), len(NPY), len(NPY))

GOOD = [
    Good("52-empty", zip_bytes([]), {}),
    Good("52-empty-by-numpy", written_by_numpy(), {}),
    Good("52-empty-zip64", zip_bytes([], end64={}), {}),
    Good("53-numpy", written_by_numpy(x=SIX)),
    Good("53-python-3.10", one(local=SIZES, local_extra=zip64_extra(len(NPY), len(NPY)))),
    Good("53-python-3.13", one(local=ONES, local_extra=zip64_extra(len(NPY), len(NPY)))),
    Good("54-data-descriptor", one(fields={"flags": 8}, local=NO_SIZES, descriptor=DESCRIPTOR)),
    Good("54-deflated", one(method=DEFLATED, fields={"flags": 8}, local=NO_SIZES)),
    Good("55-zip64-end", zip_bytes([Member("x.npy", NPY)], end64={})),
    Good(
        "55-zip64-entry",
        one(
            central={**ONES, "local_offset": ONES_32, "disk": ONES_16},
            extra=extra_field(1, struct.pack("<QQQI", len(NPY), len(NPY), 0, 0)),
        ),
    ),
    Good("55-zip64-of-one-field", one(central={"local_offset": ONES_32}, extra=zip64_extra(0))),
    Good("55-other-extra-fields", one(extra=extra_field(0xCAFE, b"?") + b"\0\0\0")),
    *(
        Good(f"58-comment-of-{n}", zip_bytes([Member("x.npy", NPY)], comment=b"c" * n))
        for n in (*range(1, 8), ONES_16)
    ),
    Good("59-fake-empty-end", zip_bytes([Member("x.npy", NPY)], comment=end_bytes())),
    Good("59-fake-end", zip_bytes([Member("x.npy", NPY)], comment=b"PK\5\6 is how it ends" * 3)),
    Good("60-prefix", b"#!/bin/sh\n" + one()),
    Good("60-prefix-zip64", b"#!/bin/sh\n" + zip_bytes([Member("x.npy", NPY)], end64={})),
    Good("61-trailing-junk", one() + b"junk"),
    Good("61-cut-comment", zip_bytes([Member("x.npy", NPY)], comment=b"a comment")[:-3]),
    Good(
        "75-duplicates",
        zip_bytes([Member("x.npy", NPY), Member("y.npy", NPY), Member("x.npy", NPY_ONE)]),
        {"y": TENSOR, "x": ONE},
    ),
    Good(
        "76-a-and-a.npy",
        zip_bytes([Member("a.npy", NPY), Member("a", TEXT)]),
        {"a.npy": TENSOR, "a": BYTES},
    ),
    Good("77-not-an-array", zip_bytes([X, Member("sub/")]), {"x": BYTES, "sub/": BYTES[:0]}),
    Good("77-array-by-its-content", zip_bytes([Member("x", NPY)])),
    Good("78-parent-folder", zip_bytes([Member("../x.npy", NPY)]), {"../x": TENSOR}),
    Good("78-root", zip_bytes([Member("/etc/x.npy", NPY)]), {"/etc/x": TENSOR}),
    Good("79-utf8", zip_bytes([Member("é中.npy", NPY, fields={"flags": 0x800})]), {"é中": TENSOR}),
    Good("79-cp437", zip_bytes([Member("éß.npy".encode("cp437"), NPY)]), {"éß": TENSOR}),
    Good(
        "79-unicode-path",
        zip_bytes([Member("u.npy", NPY, extra=unicode_path(b"u.npy", "中.npy"))]),
        {"中": TENSOR},
    ),
    Good("79-unicode-path-of-another-name", one(extra=unicode_path(b"u.npy", "中.npy"))),
]


@pytest.mark.parametrize("row", BAD, ids=lambda row: row.id)
def test_bad_archive_is_refused_with_this_message(row: Bad) -> None:
    if row.member is None:
        with pytest.raises((tnp.FormatError, tnp.UnsupportedError)) as caught:
            tnp.load_npz(row.data, limits=row.limits)
        assert str(caught.value) == f"<bytes>: {row.message}"
    else:
        npz = tnp.load_npz(row.data, limits=row.limits)
        with pytest.raises((tnp.FormatError, tnp.UnsupportedError)) as caught:
            npz[row.member]
        assert str(caught.value) == f"<bytes>[{row.member}]: {row.message}"
    assert type(caught.value) is row.error


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.id)
def test_odd_archive_is_read(row: Good) -> None:
    npz = tnp.load_npz(row.data)
    assert list(npz) == list(row.value)
    for key, expected in row.value.items():
        found = npz[key]
        assert isinstance(found, torch.Tensor)
        assert found.dtype is expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("end64", [None, {}], ids=["zip", "zip64"])
def test_archive_cut_anywhere_is_refused(end64: Mapping[str, Any] | None) -> None:
    data = zip_bytes([Member("x.npy", NPY), X], end64=end64)
    for nbytes in range(len(data)):
        with pytest.raises(tnp.FormatError):
            tnp.load_npz(data[:nbytes])


def test_bad_member_leaves_the_others_readable() -> None:
    npz = tnp.load_npz(zip_bytes([Member("bad", TEXT, method=99), Member("x.npy", NPY)]))
    assert list(npz) == ["bad", "x"]
    assert torch.equal(npz["x"], TENSOR)
    with pytest.raises(tnp.UnsupportedError):
        npz.read()

"""Archives that claim more than they hold: refused without the memory that they claim."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from npy_bytes import header_text, npy_bytes
from support import noise, npy, run_script
from zip_bytes import (
    DEFLATED,
    STORED,
    Member,
    archive,
    deflated,
    end64_bytes,
    entries,
    honest,
    stored,
    with_directory,
)

import torchnpy as tnp

GIB = 1 << 30


def overlapping_bomb() -> bytes:
    """Many entries for one member: each is within every ratio, their sum is not."""
    kernel = deflated(bytes(1 << 20))
    body = kernel.local_bytes()
    directory = b"".join(replace(kernel, name=f"m{i:05}").central_bytes(0) for i in range(50_000))
    return body + directory + end64_bytes(50_000, len(directory), len(body))


def nested_bomb() -> bytes:
    """Quoted local headers: each member begins inside of the one before."""
    kernel = deflated(bytes(1 << 20), compressed_nbytes=0)
    members = [replace(kernel, name=f"m{i:03}") for i in range(100)]
    headers = [member.local_header() for member in members]
    body, directory = b"", b""
    total = sum(map(len, headers)) + len(kernel.packed)
    for member, header in zip(members, headers, strict=True):
        reach = total - len(body) - len(header)
        directory += member.saying(compressed_nbytes=reach).central_bytes(len(body))
        body += header
    body += kernel.packed
    return body + directory + end64_bytes(len(headers), len(directory), len(body))


SHAPE_OF_A_TIB = npy_bytes(header_text("'<f4'", shape="(262144, 1048576)"), bytes(48))
TEN = b"0123456789"


def ten(nbytes: int, method: int = DEFLATED, name: str = "x.npy") -> Member:
    """Ten bytes that are said to be so many when they are inflated."""
    return Member(name, method=method, compressed=TEN, fields={"nbytes": nbytes}, zip64=True)


MANY = 1_000_000
EXPANSION = r"\[x\.npy\].*1032.*limit|\[x\.npy\].*limit.*1032"

# What is refused, and the message that says so.
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "deflated: 4 GiB over 10 bytes": (lambda: archive(ten(4 * GIB)), EXPANSION),
    "deflated: 2^63 bytes over 10": (lambda: archive(ten(1 << 63)), "total|limit"),
    "deflated: all ones": (lambda: archive(ten(2**64 - 1)), "total|limit"),
    "deflated: sizes that wrap": (
        lambda: archive(*(ten(1 << 62, name=f"m{i}") for i in range(4))),
        "total|limit",
    ),
    "stored: 4 GiB over 10 bytes": (
        lambda: archive(ten(4 * GIB, STORED)),
        r"\[x\.npy\]: expected .*found",
    ),
    "stored: beyond the archive": (
        lambda: archive(stored(TEN, nbytes=4 * GIB, compressed_nbytes=4 * GIB)),
        r"expected .*found",
    ),
    "deflated: beyond the archive": (
        lambda: archive(deflated(TEN, compressed_nbytes=4 * GIB)),
        r"expected .*found",
    ),
    "stored: almost 2^64 bytes": (
        lambda: archive(stored(TEN, nbytes=2**64 - 20, compressed_nbytes=2**64 - 20)),
        r"expected .*found",
    ),
    "a bomb that claims little": (
        lambda: archive(deflated(npy(np.zeros(GIB // 64)), nbytes=1000)),
        r"\[x\.npy\]: expected .*found",
    ),
    "a bomb that claims its prefix": (
        lambda: archive(deflated(bytes(GIB // 8), nbytes=1 << 16)),
        r"\[x\.npy\]",
    ),
    "an array of a TiB, stored": (
        lambda: archive(stored(SHAPE_OF_A_TIB)),
        rf"\[x\.npy\].*{1 << 40}.*48",
    ),
    "an array of a TiB, deflated": (
        lambda: archive(deflated(SHAPE_OF_A_TIB)),
        rf"\[x\.npy\].*{1 << 40}.*48",
    ),
    "one member under 50 000 names": (overlapping_bomb, r"expected .*found"),
    "members inside of members": (nested_bomb, r"expected .*found"),
    "a million entries": (
        lambda: with_directory(entries(MANY), MANY),
        r"500000 members.*1000000.*limit|limit.*500000.*1000000",
    ),
    "a million entries that claim to be 10": (
        lambda: with_directory(entries(MANY), 10),
        r"expected .*found",
    ),
    "a million entries that claim to be 499 999": (
        lambda: with_directory(entries(MANY), 499_999),
        r"expected .*found",
    ),
    "ten entries that claim to be a million": (
        lambda: with_directory(entries(10), MANY),
        r"expected .*found",
    ),
    "ten entries that claim to be 499 999": (
        lambda: with_directory(entries(10), 499_999),
        r"expected .*found",
    ),
    "ten entries that claim to be 2^64 - 1": (
        lambda: with_directory(entries(10), 2**64 - 1),
        r"expected .*found",
    ),
    "a directory of 4 GiB": (
        lambda: entries(10) + end64_bytes(10, 4 * GIB, 0),
        r"expected .*found",
    ),
    "a directory far away": (
        lambda: entries(10) + end64_bytes(10, len(entries(10)), 2**64 - 100),
        r"expected .*found",
    ),
}

# Enough for what is really there, far too little for the claims.
GROWTH_MIB = 64
# Half a million entries that are there are members until it turns out that there are more.
GROWTHS_MIB = {"a million entries that claim to be 499 999": 256}
SCRIPT = """
import io, resource, sys, numpy as np, torchnpy as tnp

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

small = io.BytesIO()
np.savez_compressed(small, x=np.arange(10), y=np.zeros(3))
tnp.load_npz(small.getvalue()).read()  # threads are made, code is paged in

path, growth_mib = sys.argv[1], float(sys.argv[2])
data = open(path, "rb").read()
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for source in (data, path):
    before = peak_mib()
    for ask in (lambda a: a.read(), lambda a: a[a.files[0]], lambda a: a.header(a.files[-1]), repr):
        try:
            ask(tnp.open_npz(source))
        except (tnp.FormatError, tnp.UnsupportedError) as error:
            print(type(error).__name__, error)
    # A file that is mapped or read is in memory too.
    growth = peak_mib() - before - (0 if source is data else len(data) / (1 << 20))
    assert growth < growth_mib, f"{growth} MiB more"
"""


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_without_the_memory_that_it_claims(
    tmp_path: Path, kind: str
) -> None:
    build, message = HOSTILE[kind]
    path = tmp_path / "hostile.npz"
    path.write_bytes(build())
    out = run_script(SCRIPT, path, GROWTHS_MIB.get(kind, GROWTH_MIB))
    errors = out.splitlines()
    for source in ("<bytes>", str(path)):
        mine = [error for error in errors if source in error]
        assert mine, out
        assert re.search(message, mine[0]), out


def test_a_bomb_within_the_ratio_is_refused_by_the_callers_limits(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    path.write_bytes(archive(deflated(npy(np.zeros(GIB // 64)))))
    for limits in ("expansion=100", "total_nbytes=1 << 20"):
        out = run_script(
            f"""
            import resource, sys, torchnpy as tnp
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                tnp.load(sys.argv[1], limits=tnp.NpzLimits({limits})).read()
            except tnp.FormatError as error:
                print("limit" in str(error))
            growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert growth < 64 << 10, growth
            """,
            path,
        )
        assert out == "True\n"


def test_what_expands_as_far_as_deflate_can_is_read() -> None:
    member = deflated(npy(np.zeros(4 << 20, np.uint8)))
    assert len(member.packed) < (4 << 20) / 1000
    assert not tnp.load_npz(archive(member))["x"].any()


@pytest.mark.parametrize("nbytes", [0, 1, 10, 100, 1000])
def test_the_ratio_of_a_short_member_is_not_too_strict(nbytes: int) -> None:
    member = deflated(npy(np.zeros(nbytes, np.uint8)))
    assert tnp.load_npz(archive(member))["x"].shape == (nbytes,)
    empty = deflated(b"", "empty")
    assert tnp.load_npz(archive(empty))["empty"].shape == (0,)


def test_many_honest_members_are_read() -> None:
    loaded = tnp.load_npz(honest(100_000))
    assert len(loaded) == 100_000
    assert loaded.files[::33_333] == ["m0000000", "m0033333", "m0066666", "m0099999"]
    assert loaded["m0077777"].shape == (0,)


def test_the_callers_limit_admits_what_the_default_refuses() -> None:
    data = honest(500_001)
    with pytest.raises(tnp.FormatError, match="500001"):
        tnp.load_npz(data)
    assert len(tnp.load_npz(data, limits=tnp.NpzLimits(members=500_001))) == 500_001


def test_the_archives_of_this_file_are_right_where_they_do_not_lie() -> None:
    """Else they would be refused for another reason."""
    array = noise(100)
    loaded = tnp.load_npz(archive(deflated(npy(array)), stored(b"text", "text")))
    assert bytes(loaded["x"].tolist()) == array.tobytes()
    assert bytes(loaded["text"].tolist()) == b"text"

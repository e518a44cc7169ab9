"""NPZ to torch tensors: stored and deflated, on one CPU and more, of many threads and members.

The sample is the one that SPDL measures itself with: an image, uint8 (3, 640, 480), and its mask,
(640, 480). The data is made to compress as its kind does. The limit is a C++ library that only
inflates and takes checksums (raw_inflate.cpp).
"""

import argparse
import ctypes
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from _harness import Contender, Row, compile_cpp, parse_args, run
from _server import BUCKET, serve_bucket, use_credentials
from remote import boto3_client, obstore_store

IMAGE_SHAPE = (3, 640, 480)
MASK_SHAPE = (640, 480)
MEMBER_NBYTES = 64 << 10  # of the remote archive
ARCHIVE_KEY = "archive.npz"

Arrays = Mapping[str, np.ndarray]
Load = Callable[[bytes], Any]
Work = Callable[[], object]


def main() -> None:
    args = parse_args(__doc__.split("\n")[0], "npz")
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    use_credentials()
    remote_count = 100 if args.quick else 1000
    remote_archive = save(
        {name_of(i): noise(i, MEMBER_NBYTES) for i in range(remote_count)}, np.savez
    )
    with serve_bucket({ARCHIVE_KEY: remote_archive}) as server:
        rows = [*sample_rows(args), images_row(args), tokens_row(args)]
        rows += [threads_row(args, count) for count in (1, 2, 4, 8)]
        rows += [open_row(args), remote_row(server.port, remote_count, len(remote_archive))]
        run(rows, args)


def sample_rows(args: argparse.Namespace) -> list[Row]:
    """One CPU: all that numpy and SPDL use."""
    arrays = sample()
    stored, deflated = save(arrays, np.savez), save(arrays, np.savez_compressed)
    calls_s = 0.02 if args.quick else 0.2
    unverified = Contender(
        "torchnpy, verify=False", "ours", lambda: partial(load_ours, stored, verify=False), cpus=1
    )
    title = "`load_npz`, 1.2 MB"
    rows = [
        ("npz_stored", f"{title}, stored", loaders(stored), [limit("C++ CRC-32", stored)]),
        (
            "npz_stored_unverified",
            f"{title}, stored, unverified",
            [unverified, *loaders(stored)[1:]],
            [],
        ),
        (
            "npz_deflated",
            f"{title}, deflated, one CPU",
            loaders(deflated),
            [limit("libdeflate", deflated)],
        ),
    ]
    return [
        Row(name, text, "us", [*contenders, *limits], check=holds(arrays), calls_s=calls_s)
        for name, text, contenders, limits in rows
    ]


def images_row(args: argparse.Namespace) -> Row:
    arrays = {f"image_{i}": image_like(IMAGE_SHAPE, seed=i) for i in range(4)}
    data = save(arrays, np.savez_compressed)
    contenders = [
        Contender("torchnpy", "ours", lambda: partial(load_ours, data)),
        Contender("torchnpy, one CPU", "ours", lambda: partial(load_ours, data), cpus=1),
        *loaders(data)[1:],
        limit("libdeflate, 1 thread", data),
        limit("libdeflate, 2 threads", data, threads=2),
    ]
    title = "`load_npz`, 4 deflated images of 0.9 MB"
    calls_s = 0.05 if args.quick else 0.2
    return Row("npz_images", title, "ms", contenders, check=holds(arrays), calls_s=calls_s)


def tokens_row(args: argparse.Namespace) -> Row:
    count = (1 if args.quick else 32) * (1 << 20) // 8
    # Of a vocabulary of 50 257; numpy's file has 0.35 of their bytes.
    arrays = {"tokens": np.random.default_rng(0).integers(0, 50_257, count)}
    data = save(arrays, np.savez_compressed)
    contenders = [*loaders(data), limit("libdeflate", data)]
    title = f"`load_npz`, {count * 8 >> 20} MB of tokens, deflated, one CPU"
    return Row("npz_tokens", title, "ms", contenders, check=holds(arrays))


def threads_row(args: argparse.Namespace, threads: int) -> Row:
    arrays = sample()
    data = save(arrays, np.savez)
    calls = 10 if args.quick else 100  # of each thread

    def in_threads(load: Load) -> Work:
        pool = ThreadPoolExecutor(threads)

        def repeat(_: int) -> Any:
            for _ in range(calls - 1):
                load(data)
            return load(data)

        return lambda: list(pool.map(repeat, range(threads)))

    def check(outcome: object) -> None:
        assert isinstance(outcome, list)
        for loaded in outcome:
            holds(arrays)(loaded)

    loads = {"torchnpy": load_ours, "spdl": load_spdl, "np.load": load_numpy}
    contenders = [
        Contender(name, "ours" if load is load_ours else "peer", partial(in_threads, load))
        for name, load in loads.items()
    ]
    plural = "" if threads == 1 else "s"
    title = f"`load_npz`, 1.2 MB stored, in {threads} Python thread{plural}"
    amount = threads * calls
    return Row(
        f"npz_threads_{threads}", title, "archives/s", contenders, amount=amount, check=check
    )


def open_row(args: argparse.Namespace) -> Row:
    count = 10_000 if args.quick else 100_000
    file = io.BytesIO()
    member = npy(np.zeros(1))
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(count):
            archive.writestr(f"{name_of(i)}.npy", member)
    data = file.getvalue()

    def ours() -> Work:
        return lambda: torchnpy().load_npz(data).files

    def spdl() -> Work:
        import spdl.io

        return lambda: spdl.io.load_npz(data).files

    def numpy() -> Work:
        return lambda: np.load(io.BytesIO(data)).files

    def check(names: object) -> None:
        assert names == [name_of(i) for i in range(count)]

    contenders = [
        Contender("torchnpy", "ours", ours),
        Contender("spdl", "peer", spdl),
        Contender("np.load", "peer", numpy),
    ]
    title = f"opening an archive of {count:,} members".replace(",", " ")
    return Row("npz_open", title, "ms", contenders, check=check)


def remote_row(port: int, count: int, nbytes: int) -> Row:
    middle = count // 2
    name = name_of(middle)
    expected = noise(middle, MEMBER_NBYTES)
    client = torchnpy().Client(endpoint=f"http://127.0.0.1:{port}")

    def one_member() -> torch.Tensor:
        with torchnpy().open_npz(f"s3://{BUCKET}/{ARCHIVE_KEY}", client=client) as archive:
            return archive[name]

    def pick(data: Any) -> torch.Tensor:
        return torch.from_numpy(np.load(io.BytesIO(data))[name])

    def whole_by_boto3() -> Work:
        s3 = boto3_client(port)
        return lambda: pick(s3.get_object(Bucket=BUCKET, Key=ARCHIVE_KEY)["Body"].read())

    def whole_by_obstore() -> Work:
        store = obstore_store(port)
        return lambda: pick(store.get(ARCHIVE_KEY).bytes())

    def parts_by_obstore() -> Work:
        import obstore

        store = obstore_store(port)

        def work() -> torch.Tensor:
            file = obstore.open_reader(store, ARCHIVE_KEY, buffer_size=MEMBER_NBYTES)
            return torch.from_numpy(np.load(ReaderFile(file))[name])

        return work

    def check(tensor: object) -> None:
        assert isinstance(tensor, torch.Tensor)
        assert np.array_equal(tensor.numpy(), expected)

    before = client.metrics()["bytes_received"]
    one_member()
    fetched_nbytes = client.metrics()["bytes_received"] - before
    contenders = [
        Contender("torchnpy", "ours", lambda: one_member),
        Contender("obstore's reader, np.load", "peer", parts_by_obstore),
        Contender("obstore whole, np.load", "peer", whole_by_obstore),
        Contender("boto3 whole, np.load", "peer", whole_by_boto3),
    ]
    fetched = f"{fetched_nbytes / 1e3:.0f} kB of {nbytes / 1e6:.0f} MB"
    title = f"a 64 KiB member of {count} in S3: {fetched}"
    return Row("npz_remote", title, "ms", contenders, check=check)


class ReaderFile(io.RawIOBase):
    """obstore's reader as a file, whose read() gives bytes."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._reader.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._reader.seek(offset, whence)

    def read(self, nbytes: int = -1) -> bytes:
        return bytes(self._reader.read(nbytes if nbytes >= 0 else None))


def loaders(data: bytes) -> list[Contender]:
    """Each on one CPU; ours is the first."""
    return [
        Contender("torchnpy", "ours", lambda: partial(load_ours, data), cpus=1),
        Contender("spdl", "peer", lambda: partial(load_spdl, data), cpus=1),
        Contender("np.load", "peer", lambda: partial(load_numpy, data), cpus=1),
    ]


def load_ours(data: bytes, *, verify: bool = True) -> dict[str, torch.Tensor]:
    return torchnpy().load_npz(data, verify=verify).read()


def load_spdl(data: bytes) -> dict[str, torch.Tensor]:
    import spdl.io

    archive = spdl.io.load_npz(data)
    return {name: torch.from_numpy(archive[name]) for name in archive.files}


def load_numpy(data: bytes) -> dict[str, torch.Tensor]:
    archive = np.load(io.BytesIO(data))
    return {name: torch.from_numpy(archive[name]) for name in archive.files}


def limit(name: str, data: bytes, threads: int = 1) -> Contender:
    def make() -> Work:
        library = raw_inflate()
        members, owners = locate_members(data)

        def work() -> None:
            if not library.read_members(members, len(members), threads):
                raise RuntimeError("libdeflate failed")
            assert owners

        work()
        for info, out in zip(zipfile.ZipFile(io.BytesIO(data)).infolist(), owners[1:], strict=True):
            assert zipfile.crc32(out) == info.CRC or info.compress_type == zipfile.ZIP_STORED
        return work

    return Contender(name, "limit", make)


class Member(ctypes.Structure):
    """As raw_inflate.cpp has it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("compressed_nbytes", ctypes.c_uint64),
        ("out", ctypes.c_void_p),
        ("nbytes", ctypes.c_uint64),
    )


def locate_members(data: bytes) -> tuple[Any, list[np.ndarray]]:
    """The members, and the arrays that they point into: the archive, then one for each."""
    archive = np.frombuffer(data, np.uint8)
    infos = zipfile.ZipFile(io.BytesIO(data)).infolist()
    outs = [np.zeros(info.file_size, np.uint8) for info in infos]
    members = (Member * len(infos))()
    for member, info, out in zip(members, infos, outs, strict=True):
        header = data[info.header_offset : info.header_offset + 30]
        extra_nbytes = int.from_bytes(header[26:28], "little") + int.from_bytes(
            header[28:30], "little"
        )
        stored = info.compress_type == zipfile.ZIP_STORED
        member.data = archive.ctypes.data + info.header_offset + 30 + extra_nbytes
        member.compressed_nbytes, member.nbytes = info.compress_size, info.file_size
        member.out = None if stored else out.ctypes.data
    return members, [archive, *outs]


@cache
def raw_inflate() -> ctypes.CDLL:
    flags = ["-shared", "-fPIC", "-pthread", "-ldeflate"]
    library = ctypes.CDLL(str(compile_cpp("raw_inflate.cpp", flags, suffix=".so")))
    library.read_members.argtypes = [ctypes.POINTER(Member), ctypes.c_uint64, ctypes.c_int]
    library.read_members.restype = ctypes.c_bool
    return library


def holds(arrays: Arrays) -> Callable[[object], None]:
    def is_right(loaded: object) -> None:
        if loaded is None:  # of the limit, which has checked itself
            return
        assert isinstance(loaded, dict)
        assert list(loaded) == list(arrays)
        for name, array in arrays.items():
            # Not torch.equal, whose threads a forked process lacks.
            assert np.array_equal(loaded[name].numpy(), array)

    return is_right


@cache
def sample() -> Arrays:
    return {"image": image_like(IMAGE_SHAPE, seed=0), "mask": image_like(MASK_SHAPE, seed=1)}


def image_like(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth planes with a sensor's noise; numpy's file has 0.79 of their bytes."""
    random = np.random.default_rng(seed)
    *_, height, width = shape
    y, x = np.mgrid[:height, :width]
    image = random.normal(128, 3.6, shape)
    for plane in image.reshape(-1, height, width):
        for a, b, phase in random.uniform(0, 3, (4, 3)):
            plane += 25 * np.sin(2 * np.pi * (a * x / width + b * y / height + phase))
    return image.clip(0, 255).astype(np.uint8)


def noise(seed: int, nbytes: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def name_of(index: int) -> str:
    return f"member_{index:06}"


def save(arrays: Arrays, savez: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    savez(file, **arrays)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@cache
def torchnpy() -> ModuleType:
    import torchnpy

    return torchnpy


if __name__ == "__main__":
    main()

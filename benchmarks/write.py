"""Tensors and arrays to files; archives, stored and compressed, on one CPU and two; to S3.

Everything goes into files of one folder, over and over, so into the page cache. The limit of
compressing is a C++ library that only compresses and takes checksums (raw_deflate.cpp).
"""

import argparse
import ctypes
import io
import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
from _harness import Contender, Row, compile_cpp, parse_args, run
from _uploads import take_uploads, upload_row
from npz import IMAGE_SHAPE, Arrays, image_like, noise, torchnpy

Savez = Callable[..., None]


def main() -> None:
    args = parse_args(__doc__.split("\n")[0], "write", rounds=3)
    with (
        tempfile.TemporaryDirectory(prefix="torchnpy-benchmark-") as folder,
        take_uploads() as port,
    ):
        rows = [
            *save_rows(args, Path(folder)),
            *compressed_rows(args, Path(folder)),
            *stored_rows(args, Path(folder)),
        ]
        rows.append(upload_row(port, (32 if args.quick else 512) << 20))
        run(rows, args)


def save_rows(args: argparse.Namespace, folder: Path) -> list[Row]:
    side = 256 if args.quick else 2048
    array = np.random.default_rng(0).random((4, side, side), "f4")
    views = {
        "save": ("contiguous", array),
        "save_strided": ("every second of", array[..., ::2]),
        "save_transposed": ("transposed", array.transpose(1, 2, 0)),
        "save_small": ("small", array[0, :10, :10].copy()),
    }
    return [save_row(name, what, view, folder) for name, (what, view) in views.items()]


def save_row(name: str, what: str, array: np.ndarray, folder: Path) -> Row:
    def saving(function: Callable[[], Callable[..., None]]) -> Callable[[], Callable[[], Path]]:
        def make() -> Callable[[], Path]:
            save = function()
            path = folder / f"{name}-{save.__module__.partition('.')[0]}.npy"

            def work() -> Path:
                path.unlink(missing_ok=True)  # where there was one, its blocks may be waited for
                save(path, array)
                return path

            return work

        return make

    def limit() -> Callable[[], None]:
        path = folder / f"{name}-limit.npy"
        header, data = io.BytesIO(), np.ascontiguousarray(array).reshape(-1).view("u1").data
        np.save(header, array[:0])
        head = header.getvalue()

        def work() -> None:
            path.unlink(missing_ok=True)
            with open(path, "wb", buffering=0) as file:
                file.write(head)
                file.write(data)

        return work

    def is_right(saved: object) -> None:
        if isinstance(saved, os.PathLike):
            assert np.array_equal(np.load(saved), array)

    contenders = [
        Contender("torchnpy.save", "ours", saving(lambda: torchnpy().save)),
        Contender("np.save", "peer", saving(lambda: np.save)),
        Contender("open, write, close of contiguous bytes", "limit", limit),
    ]
    nbytes = f"{array.nbytes >> 20} MB" if array.nbytes >> 20 else f"{array.nbytes} bytes"
    unit = "ms" if array.nbytes >> 20 else "us"
    return Row(name, f"`save`, {what}, {nbytes}", unit, contenders, check=is_right, calls_s=0.05)


def compressed_rows(args: argparse.Namespace, folder: Path) -> list[Row]:
    count = (1 if args.quick else 32) * (1 << 20) // 8
    # Of a vocabulary of 50 257.
    tokens = {"tokens": np.random.default_rng(0).integers(0, 50_257, count)}
    images = {f"image_{i}": image_like(IMAGE_SHAPE, seed=i) for i in range(2 if args.quick else 16)}
    return [
        compressed_row("savez_tokens", "int64 tokens", tokens, folder, most=1.02),
        compressed_row("savez_images", "image-like bytes", images, folder, most=1.08),
    ]


def compressed_row(name: str, what: str, arrays: Arrays, folder: Path, most: float) -> Row:
    """`most`: times numpy's size that our file may have."""
    nbytes = sum(array.nbytes for array in arrays.values())
    path = folder / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    numpys = path.stat().st_size
    torchnpy().savez_compressed(path, **arrays)
    ours = path.stat().st_size
    assert ours <= most * numpys
    save = partial(contender, path=path, arrays=arrays)
    contenders = [
        save("torchnpy, two CPUs", "ours", lambda: torchnpy().savez_compressed),
        save("torchnpy, one CPU", "ours", lambda: torchnpy().savez_compressed, cpus=1),
        save("np.savez_compressed", "peer", lambda: np.savez_compressed),
        limit("ISA-L, 2 threads", arrays, 2),
        limit("ISA-L, 1 thread", arrays, 1),
    ]
    title = f"`savez_compressed`, {nbytes >> 20} MB of {what}, {ours / numpys:.2f}x numpy's size"
    return Row(name, title, "MB/s", contenders, amount=nbytes / 1e6, check=holds(arrays))


def stored_rows(args: argparse.Namespace, folder: Path) -> list[Row]:
    large = {f"m{i}": noise(i, (1 if args.quick else 32) << 20) for i in range(8)}
    small = {f"m{i}": noise(i, 100) for i in range(500 if args.quick else 10_000)}
    rows = [
        ("savez_stored", "`savez`, {} arrays of 32 MB", large, "savez"),
        ("savez_small", "`savez`, {} arrays of 100 bytes", small, "savez"),
        (
            "savez_compressed_small",
            "`savez_compressed`, {} arrays of 100 bytes",
            small,
            "savez_compressed",
        ),
    ]
    return [stored_row(*row, folder) for row in rows]


def stored_row(name: str, title: str, arrays: Arrays, function: str, folder: Path) -> Row:
    save = partial(contender, path=folder / f"{name}.npz", arrays=arrays)
    contenders = [
        save("torchnpy", "ours", lambda: getattr(torchnpy(), function)),
        save(f"np.{function}", "peer", lambda: getattr(np, function)),
    ]
    return Row(name, title.format(len(arrays)), "ms", contenders, check=holds(arrays))


def contender(
    name: str,
    role: str,
    function: Callable[[], Savez],
    path: Path,
    arrays: Arrays,
    cpus: int | None = None,
) -> Contender:
    own = path.with_suffix(f".{name.replace(' ', '-')}.npz")

    def make() -> Callable[[], Path]:
        savez = function()

        def work() -> Path:
            savez(own, **arrays)
            return own

        return work

    return Contender(name, role, make, cpus=cpus)


def limit(name: str, arrays: Arrays, threads: int) -> Contender:
    def make() -> Callable[[], object]:
        library = raw_deflate()
        data = np.concatenate([array.reshape(-1).view("u1") for array in arrays.values()])

        def work() -> None:
            if not library.deflate_blocks(data.ctypes.data, data.nbytes, threads):
                raise RuntimeError("ISA-L failed")

        return work

    return Contender(name, "limit", make)


@cache
def raw_deflate() -> ctypes.CDLL:
    flags = ["-shared", "-fPIC", "-pthread", "-lisal"]
    library = ctypes.CDLL(str(compile_cpp("raw_deflate.cpp", flags, suffix=".so")))
    library.deflate_blocks.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
    library.deflate_blocks.restype = ctypes.c_uint64
    return library


def holds(arrays: Arrays) -> Callable[[object], None]:
    def is_right(saved: object) -> None:
        if saved is None:  # of the limit, which writes nothing
            return
        assert isinstance(saved, os.PathLike)
        with np.load(saved) as archive:
            assert archive.files == list(arrays)
            for name, array in arrays.items():
                assert np.array_equal(archive[name], array)

    return is_right


if __name__ == "__main__":
    main()

"""The second epoch over a store: objects that are in the cache, by now, against local files.

The server is nginx on this machine, so what a cache saves is less than it is in life. The limit is
`torchnpy.load` of copies of the objects: a cache cannot be faster than files are.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import Contender, Row, parse_args, run
from _server import BUCKET, LARGE_KEY, SMALL_SHAPE, serve_objects, small_key, use_credentials

Work = Callable[[], object]


def main() -> None:
    args = parse_args(__doc__.split("\n")[0], "cache")
    count, large_nbytes = (200, 32 << 20) if args.quick else (2000, 512 << 20)
    use_credentials()
    with (
        serve_objects(count, large_nbytes) as server,
        tempfile.TemporaryDirectory(dir="/var/tmp") as folder,  # /tmp may be memory
    ):
        objects = Objects(server.port, Path(folder), 2 * (count * 40_000 + large_nbytes))
        run([small_row(objects, count), large_row(objects, large_nbytes)], args)


class Objects:
    """What the contenders load: from the server, or from copies below `folder`."""

    def __init__(self, port: int, folder: Path, cache_nbytes: int) -> None:
        self.port = port
        self.folder = folder
        self.cache_nbytes = cache_nbytes

    def store(self, keys: list[str], **cache: Any) -> Work:
        """All from the store, with such a cache, which has them when it is timed."""
        import torchnpy

        kept = torchnpy.Cache(**cache) if cache else None
        client = torchnpy.Client(endpoint=f"http://127.0.0.1:{self.port}", cache=kept)
        urls = [f"s3://{BUCKET}/{key}" for key in keys]
        return lambda: torchnpy.load_many(urls, client=client)

    def contenders(self, keys: list[str]) -> list[Contender]:
        disk = {"dir": self.folder / "cache", "disk_nbytes": self.cache_nbytes}
        ram = {"ram_nbytes": self.cache_nbytes}
        fresh = {"fresh_s": 86400}
        variants = {
            "torchnpy, disk cache, asks each time": disk,
            "torchnpy, RAM cache": ram | fresh,
            "torchnpy, RAM cache, asks each time": ram,
            "torchnpy, no cache": {},
        }
        return [
            Contender("torchnpy, disk cache", "ours", partial(self.store, keys, **disk, **fresh)),
            *(
                Contender(name, "variant", partial(self.store, keys, **cache))
                for name, cache in variants.items()
            ),
            Contender("np.load(mmap) of files", "peer", partial(self.numpy, keys)),
            Contender("torchnpy.load of files", "limit", partial(self.files, keys)),
        ]

    def copies(self, keys: list[str]) -> list[Path]:
        """As local files; they are read from the store, and written once."""
        paths = [self.folder / key for key in keys]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        arrays: Any = self.store([keys[i] for i in missing])() if missing else []
        for i, array in zip(missing, arrays, strict=True):
            np.save(paths[i], array.numpy())
        return paths

    def numpy(self, keys: list[str]) -> Work:
        paths = self.copies(keys)
        # Copy-on-write, as ours are: tensors over read-only memory are a warning.
        return lambda: [torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths]

    def files(self, keys: list[str]) -> Work:
        import torchnpy

        paths = self.copies(keys)
        return lambda: torchnpy.load_many(paths)


def small_row(objects: Objects, count: int) -> Row:
    def check(tensors: object) -> None:
        assert isinstance(tensors, list)
        assert len(tensors) == count
        assert all(tensor.shape == SMALL_SHAPE for tensor in tensors)

    contenders = objects.contenders([small_key(i) for i in range(count)])
    title = f"{count} objects of 30 kB, again, from a cache"
    return Row("cache_small", title, "objects/s", contenders, amount=count, check=check)


def large_row(objects: Objects, nbytes: int) -> Row:
    """Every byte is used: a mapping alone takes no time."""

    def summed(make: Callable[[], Work]) -> Work:
        load = make()

        def work() -> object:
            (tensor,) = load()  # type: ignore[misc]
            return tensor, tensor.view(torch.int64).sum()

        return work

    def check(outcome: object) -> None:
        assert isinstance(outcome, tuple)
        assert outcome[0].numel() == nbytes

    contenders = [
        Contender(contender.name, contender.role, partial(summed, contender.make))
        for contender in objects.contenders([LARGE_KEY])
    ]
    title = f"one object of {nbytes >> 20} MiB, again, from a cache, and its sum"
    return Row("cache_large", title, "MB/s", contenders, amount=nbytes / 1e6, check=check)


if __name__ == "__main__":
    main()

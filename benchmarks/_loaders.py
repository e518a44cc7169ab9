"""The datasets of the DataLoader benchmark: ours, and what one writes with the other libraries.

Each is made in the process that uses it, and opens nothing before its first sample, so that
workers can be forked.
"""

import asyncio
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _server import BUCKET
from remote import NPY_HEADER_NBYTES, obstore_store
from torch.utils.data import Dataset

Decode = Callable[[Any], Any]


@dataclass(frozen=True)
class Objects:
    """Objects of the bucket, behind a port of this machine, one a sample."""

    port: int
    keys: Sequence[str]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def urls(self) -> list[str]:
        return [f"s3://{BUCKET}/{key}" for key in self.keys]

    def first(self, count: int) -> "Objects":
        return Objects(self.port, self.keys[:count])


def decode_npy(data: Any) -> torch.Tensor:
    return torch.from_numpy(np.load(io.BytesIO(data)))


def decode_npz(data: Any) -> dict[str, torch.Tensor]:
    with np.load(io.BytesIO(data)) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def torchnpy_npy(objects: Objects, **options: Any) -> Dataset[Any]:
    import torchnpy
    from torchnpy.data import NpyDataset

    return NpyDataset(objects.urls, client=torchnpy.Client(endpoint=objects.endpoint), **options)


def torchnpy_npz(objects: Objects) -> Dataset[Any]:
    import torchnpy
    from torchnpy.data import NpzDataset

    return NpzDataset(objects.urls, client=torchnpy.Client(endpoint=objects.endpoint))


def torchnpy_rows(port: int, key: str) -> Dataset[Any]:
    import torchnpy
    import torchnpy.data

    client = torchnpy.Client(endpoint=f"http://127.0.0.1:{port}")
    return torchnpy.data.NpyRowDataset(f"s3://{BUCKET}/{key}", client=client)


def torchnpy_files(paths: Sequence[Path]) -> Dataset[Any]:
    from torchnpy.data import NpyDataset

    return NpyDataset([str(path) for path in paths])


def s3torchconnector_objects(objects: Objects, decode: Decode) -> Dataset[Any]:
    from s3torchconnector import S3ClientConfig, S3MapDataset

    return S3MapDataset.from_objects(
        objects.urls,
        region="us-east-1",
        endpoint=objects.endpoint,
        transform=lambda reader: decode(reader.read()),
        s3client_config=S3ClientConfig(force_path_style=True),
    )


def webdataset_shards(port: int, shards: Sequence[str]) -> Dataset[Any]:
    """Of `.npy` in tar archives, read one after another over plain HTTP."""
    import webdataset

    urls = [f"http://127.0.0.1:{port}/{BUCKET}/{shard}" for shard in shards]
    samples = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    return samples.decode().to_tuple("npy").map(lambda sample: torch.from_numpy(sample[0]))


class ObstoreObjects(Dataset[Any]):
    """A batch is fetched at once, by obstore's asynchronous functions."""

    def __init__(self, objects: Objects, decode: Decode) -> None:
        self._objects = objects
        self._decode = decode

    @cached_property
    def _store(self) -> Any:
        return obstore_store(self._objects.port)

    def __len__(self) -> int:
        return len(self._objects.keys)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return asyncio.run(self._fetch([self._objects.keys[index] for index in indices]))

    async def _fetch(self, keys: Sequence[str]) -> list[Any]:
        async def fetch(key: str) -> Any:
            answer = await self._store.get_async(key)
            return self._decode(memoryview(await answer.bytes_async()))

        return await asyncio.gather(*map(fetch, keys))


class NumpyFiles(Dataset[torch.Tensor]):
    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.load(self._paths[index]))


@dataclass(frozen=True)
class RowFile:
    """An array of the bucket whose header the peers are told instead of reading it."""

    port: int
    key: str
    count: int
    columns: int
    dtype: type[np.generic]

    @property
    def row_nbytes(self) -> int:
        return self.columns * np.dtype(self.dtype).itemsize

    def offset(self, row: int) -> int:
        return NPY_HEADER_NBYTES + row * self.row_nbytes


class ObstoreRows(Dataset[torch.Tensor]):
    """Rows by ranges, those of a batch at once."""

    def __init__(self, file: RowFile) -> None:
        self._file = file

    @cached_property
    def _store(self) -> Any:
        return obstore_store(self._file.port)

    def __len__(self) -> int:
        return self._file.count

    def __getitems__(self, indices: Sequence[int]) -> list[torch.Tensor]:
        starts = [self._file.offset(index) for index in indices]
        lengths = [self._file.row_nbytes] * len(starts)
        rows = self._store.get_ranges(self._file.key, starts=starts, lengths=lengths)
        return [torch.from_numpy(np.frombuffer(row, self._file.dtype)) for row in rows]

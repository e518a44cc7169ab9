"""Batches from a DataLoader: epochs over small objects, archives, rows and files, and its edges.

All is on this machine: nginx with a bucket (S3 with path-style addresses), a proxy that adds
latency, and a folder. An epoch is timed when the workers run and the connections are open; what
the start costs is a row of its own. Samples come in their order, in batches of 64.

- A peer that fetches one object after another is timed over the first objects only where they are
  20 ms away; its rate stands for all.
- webdataset reads the same arrays from tar archives, over HTTP, one after another: it cannot fetch
  a sample by index.
- The remote array of 4 GiB is sparse on the disk. The rows that are asked for, at random places,
  hold random bytes; only what lies between them is a hole, which nginx serves as zeros.
- Each contender has a process of its own, which nothing has used before.
"""

import argparse
import os
import resource
import tarfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _harness import (
    Contender,
    Entry,
    Result,
    Row,
    Sample,
    describe_machine,
    measure_all,
    parse_args,
    print_result,
    write,
)
from _loaders import (
    NumpyFiles,
    Objects,
    ObstoreObjects,
    ObstoreRows,
    RowFile,
    decode_npy,
    decode_npz,
    s3torchconnector_objects,
    torchnpy_files,
    torchnpy_npy,
    torchnpy_npz,
    torchnpy_rows,
    webdataset_shards,
)
from _server import SMALL_SHAPE, delayed, serve, small_key, use_credentials
from npz import IMAGE_SHAPE, MASK_SHAPE, image_like
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

import torchnpy.data

BATCH = 64
SHARD = 100  # samples in a tar archive
ROW_BATCH = 256
ROW_COLUMNS = 1024  # of int32: 4 kB
HANDOVER_BATCH = 16
HANDOVER_MIB = (1, 8, 64)
CPUS = len(os.sched_getaffinity(0))

Work = Callable[[], object]
MakeDataset = Callable[[], Dataset[Any]]


def main() -> None:
    args = parse_args(__doc__.split("\n")[0], "dataloader", rounds=3)
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # of more workers
    use_credentials()
    machine = describe_machine()
    content = Content(args.quick)
    with serve(content.fill) as server, delayed(server.port, 10) as slow_port:
        bench = Bench(content, server.port, slow_port)
        results = measure_all(bench.rows(), args)
        results += bench.measure_batches(args)
    write(results, args, machine)


class Content:
    """What the bucket holds. Its folder is also the local folder."""

    def __init__(self, quick: bool) -> None:
        self.count = 192 if quick else 2000
        self.archive_count = 32 if quick else 96
        self.url_count = 20_000 if quick else 1_000_000
        self.row_count = (1 << 24 if quick else 4 << 30) // (4 * ROW_COLUMNS)
        random = np.random.default_rng(0)
        batches = 4 if quick else 32
        self.rows: list[int] = random.permutation(self.row_count)[: batches * ROW_BATCH].tolist()
        self.keys = [small_key(i) for i in range(self.count)]
        self.shards = [f"{i:03}.tar" for i in range(-(-self.count // SHARD))]
        self.archives = {
            kind: [f"{kind}_{i:04}.npz" for i in range(self.archive_count)]
            for kind in ("stored", "deflated")
        }
        self.handover = {
            mib: [f"{mib}_mib_{i:02}.npy" for i in range(HANDOVER_BATCH)] for mib in HANDOVER_MIB
        }
        self.folder = Path()
        # Of the samples, by key, and of the rows; as Epoch.fingerprints() makes them.
        self.fingerprints: dict[str, int] = {}
        self.row_fingerprints: list[int] = []

    def fill(self, folder: Path) -> None:
        self.folder = folder
        random = np.random.default_rng(1)
        with tqdm(total=self.count + 2 * self.archive_count, leave=False) as progress:
            for key in self.keys:
                self._put(key, np.save, random.integers(0, 256, SMALL_SHAPE, np.uint8))
                progress.update()
            # Few, as they take long to make; shifted, so that no two samples are the same.
            images = [image_like(IMAGE_SHAPE, seed) for seed in range(4)]
            mask = image_like(MASK_SHAPE, seed=4)
            for kind, save in (("stored", np.savez), ("deflated", np.savez_compressed)):
                for i, key in enumerate(self.archives[kind]):
                    image = np.roll(images[i % 4], i, 1)
                    self._put(key, save, image=image, mask=np.roll(mask, i, 0))
                    progress.update()
        for mib, keys in self.handover.items():
            for key in keys:
                array = random.integers(0, 256, (mib << 20) // HANDOVER_BATCH, np.uint8)
                self._put(key, np.save, array)
        self._fill_shards()
        self._fill_rows(random)

    def _put(self, key: str, save: Callable[..., None], *arrays: Any, **named: Any) -> None:
        with open(self.folder / key, "wb") as file:
            save(file, *arrays, **named)
        self.fingerprints[key] = fingerprint([*arrays, *named.values()])

    def _fill_shards(self) -> None:
        for number, shard in enumerate(self.shards):
            with tarfile.open(self.folder / shard, "w") as archive:
                for key in self.keys[number * SHARD : (number + 1) * SHARD]:
                    archive.add(self.folder / key, key)

    def _fill_rows(self, random: np.random.Generator) -> None:
        shape = (self.row_count, ROW_COLUMNS)
        path = self.folder / "rows.npy"
        array = np.lib.format.open_memmap(path, "w+", np.int32, shape)
        for row in self.rows:
            array[row] = random.integers(1 << 31, size=ROW_COLUMNS)
            self.row_fingerprints.append(fingerprint([array[row]]))
        array.flush()


def fingerprint(arrays: Iterable[np.ndarray]) -> int:
    found = 0
    for array in arrays:
        found = zlib.crc32(np.ascontiguousarray(array), found)
    return found


@dataclass(frozen=True)
class Epoch:
    """How a loader is made, and what its samples have to be."""

    fingerprints: Sequence[int]  # one a sample
    workers: int
    batch: int = BATCH
    sampler: Sequence[int] | None = None
    count: int = 0  # samples that the row counts; 0: those of the epoch

    def work(self, make: MakeDataset) -> Work:
        """One epoch, whose first is checked. Workers run on from epoch to epoch."""
        loader = self.loader(make(), persistent_workers=self.workers > 0)
        self.check(loader)

        def work() -> Sample:
            cpu, start = cpu_of_all(), time.perf_counter()
            for _ in loader:
                pass
            seconds, cpu_s = time.perf_counter() - start, cpu_of_all() - cpu
            scale = self.count / len(self.fingerprints) if self.count else 1
            return Sample(seconds * scale, cpu_s * scale)

        return work

    def first_batch(self, make: MakeDataset, **options: Any) -> Work:
        """From iter() to the first batch, with new workers and connections that are open."""
        dataset = make()

        def work() -> Sample:
            cpu, start = cpu_of_all(), time.perf_counter()
            batches = iter(self.loader(dataset, **options))
            next(batches)
            return Sample(time.perf_counter() - start, cpu_of_all() - cpu)

        return work

    def loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset, self.batch, sampler=self.sampler, num_workers=self.workers, **options
        )

    def check(self, loader: DataLoader[Any]) -> None:
        """Each sample came, once. Their order differs where archives are spread over workers."""
        found = Counter(value for batch in loader for value in batch_fingerprints(batch))
        assert found == Counter(self.fingerprints), "the samples differ from those in the bucket"


def batch_fingerprints(batch: Any) -> Iterator[int]:
    columns = batch.values() if isinstance(batch, dict) else [batch]
    for arrays in zip(*(column.numpy() for column in columns), strict=True):
        yield fingerprint(arrays)


def cpu_of_all() -> float:
    """Seconds of CPU of this process and its children."""
    process = psutil.Process()
    return sum(sum(one.cpu_times()[:4]) for one in [process, *process.children()])


def apart(name: str, role: str, make: Callable[[], Work]) -> Contender:
    return Contender(name, role, make, cpus=CPUS)


class Bench:
    def __init__(self, content: Content, port: int, slow_port: int) -> None:
        self._content = content
        self._port = port
        self._slow_port = slow_port

    def rows(self) -> list[Row]:
        both = (0, 2)
        rows = [self._epoch_row(workers, self._port, "") for workers in both]
        rows += [self._epoch_row(workers, self._slow_port, "_20ms") for workers in both]
        for kind in ("stored", "deflated"):
            rows += [self._npz_row(kind, workers) for workers in both]
        rows += [self._files_row(workers) for workers in both]
        if hasattr(torchnpy.data, "NpyRowDataset"):
            rows += [self._random_rows_row(workers) for workers in both]
        rows += [self._scaling_row(), *(self._first_batch_row(workers) for workers in both)]
        rows += [self._urls_row(), *(self._start_row(context) for context in ("fork", "spawn"))]
        rows += [self._handover_row(mib) for mib in HANDOVER_MIB]
        return rows

    def _small(self, port: int) -> tuple[Objects, list[int]]:
        keys = self._content.keys
        return Objects(port, keys), [self._content.fingerprints[key] for key in keys]

    def _peers(
        self, objects: Objects, decode: Callable[[Any], Any]
    ) -> Iterator[tuple[str, MakeDataset]]:
        yield "s3torchconnector", partial(s3torchconnector_objects, objects, decode)
        yield "obstore", partial(ObstoreObjects, objects, decode)

    def _epoch_row(self, workers: int, port: int, suffix: str) -> Row:
        objects, fingerprints = self._small(port)
        epoch = Epoch(fingerprints, workers)
        makes = dict(self._peers(objects, decode_npy))
        makes["webdataset"] = partial(webdataset_shards, port, self._content.shards)
        peers = {name: partial(epoch.work, make) for name, make in makes.items()}
        if suffix:
            part = BATCH * max(1, workers)
            short = Epoch(fingerprints[:part], workers, count=len(fingerprints))
            make = partial(s3torchconnector_objects, objects.first(part), decode_npy)
            peers["s3torchconnector"] = partial(short.work, make)
        contenders = [
            apart("torchnpy", "ours", partial(epoch.work, partial(torchnpy_npy, objects))),
            *(apart(name, "peer", make) for name, make in peers.items()),
        ]
        distance = ", 20 ms away" if suffix else ""
        title = f"DataLoader, {len(fingerprints)} objects of 30 kB{distance}, {words(workers)}"
        name = f"loader_{workers}{suffix}"
        return Row(name, title, "samples/s", contenders, amount=len(fingerprints))

    def _npz_row(self, kind: str, workers: int) -> Row:
        keys = self._content.archives[kind]
        objects = Objects(self._port, keys)
        epoch = Epoch([self._content.fingerprints[key] for key in keys], workers, batch=16)
        contenders = [
            apart("torchnpy", "ours", partial(epoch.work, partial(torchnpy_npz, objects))),
            *(
                apart(name, "peer", partial(epoch.work, make))
                for name, make in self._peers(objects, decode_npz)
            ),
        ]
        title = f"DataLoader, image and mask in {kind} `.npz` of 1.2 MB, {words(workers)}"
        name = f"loader_npz_{kind}_{workers}"
        return Row(name, title, "samples/s", contenders, amount=len(keys))

    def _files_row(self, workers: int) -> Row:
        objects, fingerprints = self._small(self._port)
        epoch = Epoch(fingerprints, workers)
        paths = [self._content.folder / key for key in objects.keys]
        contenders = [
            apart("torchnpy", "ours", partial(epoch.work, partial(torchnpy_files, paths))),
            apart("np.load", "peer", partial(epoch.work, partial(NumpyFiles, paths))),
        ]
        title = f"DataLoader, a folder of {len(paths)} files of 30 kB, {words(workers)}"
        name = f"loader_files_{workers}"
        return Row(name, title, "samples/s", contenders, amount=len(paths))

    def _random_rows_row(self, workers: int) -> Row:
        content = self._content
        epoch = Epoch(content.row_fingerprints, workers, ROW_BATCH, content.rows)
        file = RowFile(self._port, "rows.npy", content.row_count, ROW_COLUMNS, np.int32)
        contenders = [
            apart(
                "torchnpy",
                "ours",
                partial(epoch.work, partial(torchnpy_rows, file.port, file.key)),
            ),
            apart("obstore get_ranges", "peer", partial(epoch.work, partial(ObstoreRows, file))),
        ]
        size = f"{content.row_count * file.row_nbytes / 2**30:.3g} GiB"
        title = f"DataLoader, random rows of 4 kB of {size} in S3, {words(workers)}"
        name = f"loader_rows_{workers}"
        return Row(name, title, "rows/s", contenders, amount=len(content.rows))

    def _scaling_row(self) -> Row:
        objects, fingerprints = self._small(self._port)
        contenders = []
        for workers in range(5):
            epoch = Epoch(fingerprints, workers)
            ours = partial(epoch.work, partial(torchnpy_npy, objects))
            contenders.append(apart(f"torchnpy, {words(workers)}", "ours", ours))
            if workers % 2 == 0:
                make = partial(s3torchconnector_objects, objects, decode_npy)
                name = f"s3torchconnector, {words(workers)}"
                contenders.append(apart(name, "peer", partial(epoch.work, make)))
        title = f"DataLoader, {len(fingerprints)} objects of 30 kB, the best of 0 to 4 workers"
        return Row("loader_scaling", title, "samples/s", contenders, amount=len(fingerprints))

    def _first_batch_row(self, workers: int) -> Row:
        objects, fingerprints = self._small(self._port)
        epoch = Epoch(fingerprints, workers)
        makes = dict(self._peers(objects, decode_npy))
        makes["webdataset"] = partial(webdataset_shards, self._port, self._content.shards)
        ours = partial(epoch.first_batch, partial(torchnpy_npy, objects))
        contenders = [
            apart("torchnpy", "ours", ours),
            *(
                apart(name, "peer", partial(epoch.first_batch, make))
                for name, make in makes.items()
            ),
        ]
        title = f"DataLoader, from `iter()` to the first batch, {words(workers)}"
        return Row(f"loader_first_{workers}", title, "ms", contenders)

    def _names(self, count: int) -> list[str]:
        """Paths of the local folder, over and over."""
        names = [str(self._content.folder / key) for key in self._content.keys]
        return [names[i % len(names)] for i in range(count)]

    def _urls_row(self) -> Row:
        count = self._content.url_count
        contenders = [
            apart("torchnpy", "ours", lambda: partial(torchnpy_files, self._names(count)))
        ]
        return Row("loader_urls", f"A dataset of {count} URLs is made", "ms", contenders)

    def _start_row(self, context: str) -> Row:
        """What the number of URLs costs where workers start."""
        few, many = 10, self._content.url_count
        epoch = Epoch([], 2, batch=few // 2, sampler=range(few))

        def first_batch(make: Callable[[Sequence[Any]], Dataset[Any]], count: int) -> Work:
            dataset = partial(make, self._names(count))
            return epoch.first_batch(dataset, multiprocessing_context=context)

        contenders = [
            apart("torchnpy", "ours", partial(first_batch, torchnpy_files, many)),
            apart("torchnpy, ten URLs", "variant", partial(first_batch, torchnpy_files, few)),
            apart("a list of paths", "peer", partial(first_batch, NumpyFiles, many)),
        ]
        how = f"2 workers of {context}, {many} URLs"
        title = f"DataLoader, from `iter()` to the first batch, {how}"
        return Row(f"loader_start_{context}", title, "ms", contenders)

    def _handover_row(self, mib: int) -> Row:
        contenders = [
            apart(name, role, partial(handover, make))
            for name, (role, make) in self._batch_makers(mib).items()
        ]
        title = f"DataLoader, taking a batch of {mib} MiB that a worker has made"
        return Row(f"loader_handover_{mib}", title, "us", contenders)

    def _batch_makers(self, mib: int) -> dict[str, tuple[str, MakeDataset]]:
        """Those who make large batches: by rows of the batch, or by the default collate's copy."""
        objects = Objects(self._port, self._content.handover[mib] * 8)
        return {
            "torchnpy": ("ours", partial(torchnpy_npy, objects)),
            "torchnpy, with a transform": (
                "variant",
                partial(torchnpy_npy, objects, transform=as_it_is),
            ),
            "obstore": ("peer", partial(ObstoreObjects, objects, decode_npy)),
        }

    def measure_batches(self, args: argparse.Namespace) -> list[Result]:
        """What a worker does for one large batch: time, and memory that it touches first."""
        name = "loader_worker"
        if args.rows and name not in args.rows:
            return []
        mib = HANDOVER_MIB[-1]
        title = f"DataLoader, making a batch of {mib} MiB in a worker"
        took = Result(name, title, "ms", higher_is_better=False)
        touched = Result(f"{name}_faults", f"{title}: memory touched first", "MiB", False)
        makers = self._batch_makers(mib)
        usages: dict[str, list[Usage]] = {label: [] for label in makers}
        for _ in range(args.rounds):
            for label, (_, make) in makers.items():
                usages[label].append(watch_batches(make))
        for label, (role, _) in makers.items():
            best = min(usages[label], key=lambda one: one.seconds)
            times = [one.seconds * 1e3 for one in usages[label]]
            took.entries.append(Entry(label, role, min(times), times, best.cpu_s))
            sizes = [one.faults * resource.getpagesize() / 2**20 for one in usages[label]]
            touched.entries.append(Entry(label, role, min(sizes), sizes, best.cpu_s))
        print_result(took)
        print_result(touched)
        return [took, touched]


def words(workers: int) -> str:
    return f"{workers} worker{'' if workers == 1 else 's'}"


def as_it_is(array: Any) -> Any:
    return array


def handover(make: MakeDataset) -> Work:
    """next() of a loader whose worker has batches ready and waits: the median over some batches."""
    ahead = 2
    loader = DataLoader(
        make(), HANDOVER_BATCH, num_workers=1, persistent_workers=True, prefetch_factor=ahead
    )

    def work() -> Sample:
        seconds = []
        batches = iter(loader)
        for _ in range(len(loader) - ahead):
            while batches._data_queue.qsize() < ahead:
                time.sleep(0.001)
            time.sleep(0.02)  # it still lets go of its own mapping
            start = time.perf_counter()
            batch = next(batches)
            seconds.append(time.perf_counter() - start)
            del batch
        for _ in batches:
            pass
        return Sample(float(np.median(seconds)), 0)

    return work


@dataclass(frozen=True)
class Usage:
    """Of one batch, in a worker."""

    seconds: float
    cpu_s: float
    faults: int


class Watched(Dataset[Any]):
    """Notes when a batch begins; `collate` says what it took."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._begin = Usage(0, 0, 0)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self._begin = usage()
        return self._dataset.__getitems__(indices)

    def collate(self, samples: list[Any]) -> Usage:
        batch = default_collate(samples)
        end, begin = usage(), self._begin
        del batch
        return Usage(
            end.seconds - begin.seconds, end.cpu_s - begin.cpu_s, end.faults - begin.faults
        )


def usage() -> Usage:
    now = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(time.perf_counter(), now.ru_utime + now.ru_stime, now.ru_minflt)


def watch_batches(make: MakeDataset) -> Usage:
    """The median batch of a worker."""
    watched = Watched(make())
    loader = DataLoader(watched, HANDOVER_BATCH, num_workers=1, collate_fn=watched.collate)
    batches = sorted(loader, key=lambda batch: batch.seconds)
    return batches[len(batches) // 2]


if __name__ == "__main__":
    main()

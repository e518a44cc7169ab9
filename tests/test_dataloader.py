"""What a DataLoader yields of our datasets: what one over numpy does, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import ObjectServer
from support import as_list, error_of, name_in, noise, npy, npz
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

from torchnpy.data import NpyDataset, NpyRowDataset, NpzDataset, concat

COUNT = 13


def make_array(position: int) -> np.ndarray:
    """Floats of any bits: NaNs with a payload, infinities, denormals."""
    return noise(3, 4, 20, seed=position).view(np.float32)


def make_members(position: int) -> dict[str, np.ndarray]:
    return {
        "image": noise(5, 7, 3, seed=position),
        "mask": noise(5, 7, seed=position) > 127,
        "box": np.asfortranarray(np.arange(4, dtype=">i2").reshape(2, 2) + position),
        "index": np.array(position),
    }


def ragged_array(position: int) -> np.ndarray:
    return np.arange(position % 5 + 1, dtype=np.int32)


def native_order(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="))


class HandWritten(Dataset[Any]):
    """What a user writes without this library."""

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Callable[[int], Any] | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self.paths))[index]
        loaded = np.load(self.paths[index])
        if isinstance(loaded, np.ndarray):
            sample: Any = torch.from_numpy(native_order(loaded))
        else:
            with loaded:
                sample = {k: torch.from_numpy(native_order(loaded[k])) for k in loaded.files}
        if self.transform is not None:
            sample = self.transform(sample)
        return sample if self.labels is None else (sample, self.labels(index))


@dataclass
class Files:
    """The same objects on a disk and on a server."""

    paths: list[Path]
    urls: list[str]


@pytest.fixture(scope="module")
def running() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        yield server


@pytest.fixture(scope="module")
def put(running: ObjectServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Files]:
    folder = tmp_path_factory.mktemp("objects")

    def put_all(suffix: str, make: Callable[[int], bytes]) -> Files:
        files = Files([], [])
        for i in range(COUNT):
            path = folder / f"{i:02}{suffix}"
            path.write_bytes(make(i))
            files.paths.append(path)
            files.urls.append(running.put(f"/{path.name}", path.read_bytes()))
        return files

    return put_all


@pytest.fixture(scope="module")
def arrays(put: Callable[..., Files]) -> Files:
    return put(".npy", lambda i: npy(make_array(i)))


@pytest.fixture(scope="module")
def archives(put: Callable[..., Files]) -> Files:
    return put(".npz", lambda i: npz(deflate=i % 2 == 0, **make_members(i)))


@pytest.fixture(scope="module")
def ragged(put: Callable[..., Files]) -> Files:
    return put(".ragged.npy", lambda i: npy(ragged_array(i)))


def assert_same(ours: Any, theirs: Any, *, exact_type: bool = True) -> None:
    """Types, shapes, strides and bits."""
    if isinstance(theirs, torch.Tensor):
        # Before collation a row may be of a subclass.
        assert type(ours) is torch.Tensor if exact_type else isinstance(ours, torch.Tensor)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        # Those of no elements address nothing.
        assert ours.stride() == theirs.stride() or not ours.numel()
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()
        return
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, exact_type=exact_type)
    else:
        assert ours == theirs


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


# Made anew for each loader, because generators go on. The length is that of the dataset.
ORDERS: dict[str, Callable[[int], dict[str, Any]]] = {
    "batches of 1": lambda n: {"batch_size": 1},
    "batches that do not divide": lambda n: {"batch_size": 5},
    "drop_last": lambda n: {"batch_size": 5, "drop_last": True},
    "one batch": lambda n: {"batch_size": 64},
    "shuffled": lambda n: {"batch_size": 4, "shuffle": True, "generator": seeded()},
    "a list as sampler": lambda n: {"batch_size": 3, "sampler": [n - 1, 0, 0, -1, 1, -n, 2]},
    "drawn with replacement": lambda n: {
        "batch_size": 4,
        "sampler": RandomSampler(range(n), True, 18, generator=seeded()),
    },
    "weighted": lambda n: {
        "batch_size": 6,
        "sampler": WeightedRandomSampler([1.0] * (n - 1) + [n], 20, generator=seeded()),
    },
    "a batch sampler": lambda n: {
        "batch_sampler": BatchSampler(SequentialSampler(range(n)), 4, True)
    },
    "batches of all sizes": lambda n: {
        "batch_sampler": [[n - 1], [2, 0, 1], [1, 1], [-1, 0, 2, 1]]
    },
    "a rank's share": lambda n: {
        "batch_size": 2,
        "sampler": DistributedSampler(range(n), num_replicas=3, rank=1, seed=3),
    },
    "positions in an array": lambda n: {"batch_size": 2, "sampler": np.array([n - 1, 0, -2, 0])},
    "positions in a tensor": lambda n: {"batch_size": 2, "sampler": torch.tensor([2, n - 1, 0])},
    "no batches": lambda n: {"batch_size": None},
    "single samples in an order": lambda n: {"batch_size": None, "sampler": [2, 0, n - 1, -1]},
}


def chain(dataset: Any, parts: list[Any]) -> ConcatDataset[Any]:
    """Of our datasets by our means, of numpy's by torch's."""
    return ConcatDataset(parts) if isinstance(dataset, HandWritten) else concat(parts)


SHAPES: dict[str, Callable[[Any], Any]] = {
    "the dataset": lambda d: d,
    "a subset": lambda d: Subset(d, [11, 0, 7, 3, -1, 3]),
    "a subset of a subset": lambda d: Subset(Subset(d, range(2, 12)), [9, 0, 4]),
    "a random part": lambda d: random_split(d, [0.4, 0.6], seeded())[1],
    "a concatenation": lambda d: ConcatDataset([Subset(d, [1, 2]), d, Subset(d, [0, 12])]),
    "our concatenation": lambda d: chain(d, [d, d]),
    "our concatenation of parts": lambda d: chain(d, [Subset(d, [1, 2]), d, Subset(d, [0, 12])]),
    "a stack": lambda d: StackDataset(d, d),
    "a named stack": lambda d: StackDataset(first=d, second=Subset(d, range(COUNT))),
}


def assert_loads_the_same(
    ours: Dataset[Any],
    theirs: Dataset[Any],
    order: str = "batches that do not divide",
    *,
    epochs: int = 1,
    exact_type: bool = True,
    **options: Any,
) -> None:
    """`options` are of both loaders, but for those of workers, which only ours has."""
    workers = {
        name: options.pop(name)
        for name in ("num_workers", "multiprocessing_context", "persistent_workers", "pin_memory")
        if name in options
    }
    expected = DataLoader(theirs, **ORDERS[order](len(theirs)), **options)  # type: ignore[arg-type]
    loader = DataLoader(ours, **ORDERS[order](len(ours)), **options, **workers)  # type: ignore[arg-type]
    assert len(loader) == len(expected)
    for _ in range(epochs):
        assert_same(list(loader), list(expected), exact_type=exact_type)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_in_any_order_are_numpys(arrays: Files, shape: str, order: str) -> None:
    make = SHAPES[shape]
    ours, theirs = NpyDataset(arrays.urls), HandWritten(arrays.paths)
    assert_loads_the_same(make(ours), make(theirs), order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_archives_in_any_order_are_numpys(archives: Files, shape: str, order: str) -> None:
    make = SHAPES[shape]
    ours, theirs = NpzDataset(archives.urls), HandWritten(archives.paths)
    assert_loads_the_same(make(ours), make(theirs), order)


def both(arrays: Files, archives: Files) -> tuple[Dataset[Any], Dataset[Any]]:
    """Arrays with labels, and archives, in one loader: workers take long to start."""
    ours = StackDataset(
        array=NpyDataset(arrays.urls, labels=list(range(COUNT))), archive=NpzDataset(archives.urls)
    )
    theirs = StackDataset(array=HandWritten(arrays.paths, int), archive=HandWritten(archives.paths))
    return ours, theirs


class HandWrittenRows(Dataset[Any]):
    """The same of rows: two arrays in memory."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.columns = {"x": torch.from_numpy(x), "y": torch.from_numpy(y)}

    def __len__(self) -> int:
        return len(self.columns["y"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


@pytest.fixture(scope="module")
def table(
    arrays: Files, archives: Files, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Dataset[Any], Dataset[Any]]]:
    """All that the datasets are made into: ours, of files and URLs, and the hand-written ones."""
    mixed = [*arrays.paths[::2], *arrays.urls[1::2]]
    ours = NpyDataset(mixed, labels=list(range(COUNT)))
    theirs = HandWritten([*arrays.paths[::2], *arrays.paths[1::2]], int)
    made = {name: (make(ours), make(theirs)) for name, make in SHAPES.items()}
    made["archives"] = (NpzDataset(archives.paths), HandWritten(archives.paths))
    x, y = noise(2 * COUNT, 3, 5), np.arange(2 * COUNT)
    folder = tmp_path_factory.mktemp("rows")
    columns = {}
    for name, column in ("x", x), ("y", y):
        columns[name] = [folder / f"{name}{i}.npy" for i in range(2)]
        for path, part in zip(columns[name], np.split(column, 2), strict=True):
            np.save(path, part)
    rows: tuple[Dataset[Any], Dataset[Any]] = NpyRowDataset(columns), HandWrittenRows(x, y)
    return {**made, "rows": rows, "a subset of rows": tuple(SHAPES["a subset"](d) for d in rows)}  # type: ignore[dict-item]


class OneOf(Dataset[Any]):
    """Several datasets: an index is the name of one and an index of it, in a batch one name.

    Workers take long to start: so they do it once for all datasets.
    """

    def __init__(self, datasets: dict[str, Any]) -> None:
        self.datasets = datasets

    def __getitems__(self, indices: Sequence[tuple[str, int]]) -> list[Any]:
        """As torch asks each of them."""
        dataset = self.datasets[indices[0][0]]
        positions = [position for _, position in indices]
        if callable(getattr(dataset, "__getitems__", None)):
            return list(dataset.__getitems__(positions))
        return [dataset[position] for position in positions]


def batches_in_all_orders(datasets: dict[str, Any]) -> list[list[tuple[str, int]]]:
    """Those that the loader of each dataset would ask for in each order that has batches."""
    batches = []
    for name, dataset in datasets.items():
        for order in ORDERS.values():
            sampler = DataLoader(dataset, **order(len(dataset))).batch_sampler
            batches += [[(name, index) for index in batch] for batch in sampler or ()]
    return batches


START_METHODS = ["fork", "spawn", "forkserver"]


@pytest.mark.parametrize(
    ("workers", "context"), [(0, None), *itertools.product([1, 2, 5], START_METHODS)]
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch's, of so few cores
def test_workers_of_each_start_method_load_the_same_in_any_order(
    table: dict[str, tuple[Dataset[Any], Dataset[Any]]], workers: int, context: str | None
) -> None:
    ours = OneOf({name: one for name, (one, _) in table.items()})
    theirs = OneOf({name: other for name, (_, other) in table.items()})
    batches = batches_in_all_orders(theirs.datasets)
    assert batches == batches_in_all_orders(ours.datasets)
    loader = DataLoader(
        ours, batch_sampler=batches, num_workers=workers, multiprocessing_context=context
    )
    for found, batch in zip(loader, batches, strict=True):
        assert_same(found, default_collate(theirs.__getitems__(batch)))


@pytest.mark.parametrize("order", ["no batches", "single samples in an order"])
def test_workers_load_single_samples(arrays: Files, archives: Files, order: str) -> None:
    assert_loads_the_same(*both(arrays, archives), order, num_workers=2)


@pytest.mark.parametrize("context", START_METHODS)
def test_each_start_method_loads_the_same_in_each_epoch(
    arrays: Files, archives: Files, context: str
) -> None:
    assert_loads_the_same(
        *both(arrays, archives),
        "drawn with replacement",
        epochs=3,
        num_workers=2 if context == "fork" else 1,
        multiprocessing_context=context,
        persistent_workers=True,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_pinning_on_a_machine_without_an_accelerator_changes_nothing(
    arrays: Files, archives: Files, workers: int
) -> None:
    if torch.accelerator.is_available():
        assert_loads_the_same(*both(arrays, archives), num_workers=workers, pin_memory=True)
        return
    with pytest.warns(UserWarning, match="no accelerator is found"):
        assert_loads_the_same(*both(arrays, archives), num_workers=workers, pin_memory=True)


NUMBERS = [3 * i for i in range(COUNT)]
ROWS = noise(COUNT, 2).view(np.float16)

LABELS: dict[str, tuple[Any, Callable[[int], Any]]] = {
    "integers": (NUMBERS, NUMBERS.__getitem__),
    "a tuple of floats": (tuple(i / 3 for i in range(COUNT)), lambda i: i / 3),
    "strings": ([f"class {i}" for i in range(COUNT)], lambda i: f"class {i}"),
    "dicts": ([{"a": i} for i in range(COUNT)], lambda i: {"a": i}),
    "a tensor": (torch.from_numpy(ROWS), lambda i: torch.from_numpy(ROWS)[i]),
    "a numpy array": (np.array(NUMBERS, np.int16), lambda i: np.array(NUMBERS, np.int16)[i]),
    "a range": (range(COUNT), int),
    "a function": (name_in, lambda i: f"{i:02}.npy"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_each_kind_are_collated_as_numpys(arrays: Files, kind: str, workers: int) -> None:
    labels, oracle = LABELS[kind]
    assert_loads_the_same(
        NpyDataset(arrays.urls, labels=labels),
        HandWritten(arrays.paths, oracle),
        "shuffled",
        num_workers=workers,
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["url", "path"])
def test_labels_in_an_array_are_its_rows(
    running: ObjectServer, archives: Files, tmp_path: Path, where: str, workers: int
) -> None:
    path = tmp_path / "labels.npy"
    np.save(path, ROWS)
    labels = path if where == "path" else running.put("/labels.npy", path.read_bytes())
    assert_loads_the_same(
        NpzDataset(archives.urls, labels=labels),
        HandWritten(archives.paths, torch.from_numpy(ROWS).__getitem__),
        num_workers=workers,
    )


def to_dict(x: torch.Tensor) -> dict[str, Any]:
    return {"half": x.half(), "count": x.numel(), "name": "x", "pair": (1.5, x[0])}


def flat_image(members: dict[str, torch.Tensor]) -> torch.Tensor:
    return members["image"].permute(2, 0, 1)[:, members["index"] % 3]


def to_numpy(x: torch.Tensor) -> np.ndarray:
    return x.numpy()[1:, ::2]


def noisy(x: torch.Tensor) -> torch.Tensor:
    """Random as augmentations are: a library that draws numbers of its own would shift them."""
    return x.nan_to_num(0, 0, 0) + torch.rand(x.shape)


def sum_of(x: torch.Tensor) -> int:
    return int(x.view(torch.uint8).sum())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("transform", [to_dict, to_numpy, sum_of, torch.nn.Flatten(0)])
def test_transforms_of_arrays_give_what_they_give_of_numpys(
    arrays: Files, transform: Callable[[Any], Any], workers: int
) -> None:
    assert_loads_the_same(
        NpyDataset(arrays.urls, transform=transform, labels=NUMBERS),
        HandWritten(arrays.paths, NUMBERS.__getitem__, transform),
        num_workers=workers,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_transforms_of_archives_give_what_they_give_of_numpys(
    archives: Files, workers: int
) -> None:
    assert_loads_the_same(
        NpzDataset(archives.urls, transform=flat_image),
        HandWritten(archives.paths, transform=flat_image),
        num_workers=workers,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_random_transform_draws_the_same_numbers(arrays: Files, workers: int) -> None:
    batches = []
    for dataset in (
        NpyDataset(arrays.urls, transform=noisy),
        HandWritten(arrays.paths, transform=noisy),
    ):
        torch.manual_seed(5)
        loader = DataLoader(dataset, 4, shuffle=True, num_workers=workers, generator=seeded())
        batches.append(list(loader))
    assert_same(*batches)


def pad(samples: list[torch.Tensor]) -> torch.Tensor:
    return pad_sequence(samples, batch_first=True, padding_value=-1)


def lengths(samples: list[tuple[torch.Tensor, int]]) -> dict[str, Any]:
    return {"n": [len(x) for x, _ in samples], "y": [y for _, y in samples]}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", [as_list, pad])
def test_ragged_samples_reach_a_collate_function(
    ragged: Files, collate: Callable[..., Any], workers: int
) -> None:
    assert_loads_the_same(
        NpyDataset(ragged.urls),
        HandWritten(ragged.paths),
        collate_fn=collate,
        num_workers=workers,
        exact_type=collate is pad,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_function_sees_what_the_dataset_gives(
    arrays: Files, archives: Files, workers: int
) -> None:
    assert_loads_the_same(
        *both(arrays, archives), collate_fn=as_list, num_workers=workers, exact_type=False
    )
    assert_loads_the_same(
        NpyDataset(arrays.urls, labels=NUMBERS),
        HandWritten(arrays.paths, NUMBERS.__getitem__),
        collate_fn=lengths,
        num_workers=workers,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_ragged_samples_under_the_default_collate_fail_as_numpys_do(
    ragged: Files, workers: int
) -> None:
    for dataset in (NpyDataset(ragged.urls), HandWritten(ragged.paths)):
        assert "size" in error_of(DataLoader(dataset, 5, num_workers=workers), RuntimeError)


def test_ragged_samples_of_batches_that_agree_collate(ragged: Files) -> None:
    # Positions that differ by 5 have one length.
    same = [[0, 5, 10], [1, 6], [4, 9]]
    options: dict[str, Any] = {"batch_sampler": same}
    ours = list(DataLoader(NpyDataset(ragged.urls), **options))
    assert_same(ours, list(DataLoader(HandWritten(ragged.paths), **options)))


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_and_changed_batches_leave_the_others_alone(arrays: Files, workers: int) -> None:
    loader = DataLoader(NpyDataset(arrays.urls), 5, num_workers=workers)
    kept = []
    for batch in loader:
        kept.append(batch.clone())
        batch.fill_(1)
    assert_same(kept, list(DataLoader(HandWritten(arrays.paths), 5)))
    assert_same(list(loader), kept)


DTYPES = ["?", "<u1", "<i1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
ARRAYS: dict[str, list[np.ndarray]] = {
    **{dtype: [noise(3, 8, seed=i).astype(dtype) for i in range(5)] for dtype in DTYPES},
    "complex": [noise(3, 16, seed=i).view(np.complex64) for i in range(5)],
    "big-endian": [noise(3, 8, seed=i).view(">f4") for i in range(5)],
    "in Fortran order": [np.asfortranarray(noise(3, 8, seed=i)) for i in range(5)],
    "in both orders": [noise(4, 4, seed=i).copy("CF"[i % 2]) for i in range(5)],
    "in both byte orders": [np.arange(4).astype(["<i4", ">i4"][i % 2]) + i for i in range(5)],
    "scalars": [np.array(i / 3) for i in range(5)],
    "empty": [np.zeros((2, 0, 3)) for _ in range(5)],
    "large": [noise(300_000, seed=i) for i in range(5)],
    "of two dtypes": [np.arange(3).astype(["i2", "f4"][i % 2]) for i in range(5)],
    "that broadcast": [np.ones([(1, 3), (2, 3)][i % 2]) for i in range(5)],
    "one and scalars": [np.ones([(1,), ()][i % 2]) for i in range(5)],
}


def outcome(dataset: Any, batch_size: int | None, workers: int) -> Any:
    """Batches, or the type of the error instead of them."""
    try:
        return list(DataLoader(dataset, batch_size, num_workers=workers))
    except (RuntimeError, TypeError) as error:
        error.__traceback__ = None
        return str(type(error))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_any_kind_collate_as_numpys(
    running: ObjectServer, tmp_path: Path, kind: str, workers: int
) -> None:
    paths, members = [], []
    for i, array in enumerate(ARRAYS[kind]):
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], array)
        members.append(tmp_path / f"{i}.npz")
        np.savez(members[-1], x=array, n=i)
    # Local files, which may be mapped, and remote ones.
    for made, files in ((NpyDataset, paths), (NpzDataset, members)):
        urls = [running.put(f"/any/{path.name}", path.read_bytes()) for path in files]
        for batch_size in (2, None) if workers == 0 else (5,):
            expected = outcome(HandWritten(files), batch_size, workers)
            assert_same(outcome(made(files), batch_size, workers), expected)
            assert_same(outcome(made(urls), batch_size, workers), expected)


def test_torchs_other_way_of_sharing_changes_nothing(arrays: Files, archives: Files) -> None:
    # What users set who keep more batches than they may have descriptors.
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        assert_loads_the_same(*both(arrays, archives), num_workers=2)
        assert_loads_the_same(
            *both(arrays, archives), num_workers=1, multiprocessing_context="spawn"
        )
    finally:
        torch.multiprocessing.set_sharing_strategy(before)

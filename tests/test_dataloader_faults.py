"""What a DataLoader does when objects, workers and users fail: with two workers, and without."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import Fault, ObjectServer, cut, status
from support import noise, npy, npz, run_script, start_script
from torch.utils.data import DataLoader

import torchnpy as tnp
from torchnpy.data import NpyDataset, NpyRowDataset, NpzDataset

COUNT = 12
BATCH_SIZE = 3
BAD = 7  # in the third batch of four
WORKERS = [0, 2]
# Far beyond what a prompt end may take, and far below what the stalls here last.
PROMPT_S = 30
PACKAGE = Path(tnp.__file__).parent


def make_array(position: int) -> np.ndarray:
    return noise(4, 50, seed=position)


@dataclass
class Bad:
    """How an object is bad, and what comes of it."""

    kind: type[Exception]
    body: bytes | None = None
    fault: Fault | None = None


ARRAY = npy(make_array(BAD))
ARCHIVE = npz(x=make_array(BAD), y=np.arange(3))

BAD_ARRAYS = {
    "missing": Bad(FileNotFoundError, fault=status(404)),
    "forbidden": Bad(PermissionError, fault=status(403)),
    "broken server": Bad(tnp.TransportError, fault=status(500)),
    "stalled": Bad(TimeoutError, fault=cut(100, "stall")),
    "no array": Bad(tnp.FormatError, body=b"<html>not found</html>"),
    "truncated": Bad(tnp.FormatError, body=ARRAY[:-1]),
    "empty": Bad(tnp.FormatError, body=b""),
    "text": Bad(tnp.UnsupportedError, body=npy(np.array(["a", "b"]))),
}
BAD_ARCHIVES = {
    "missing": Bad(FileNotFoundError, fault=status(404)),
    "damaged": Bad(
        tnp.FormatError, body=ARCHIVE.replace(make_array(BAD).tobytes()[:64], bytes(64))
    ),
    "truncated": Bad(tnp.FormatError, body=ARCHIVE[:-30]),
    "without a member": Bad(KeyError, body=npz(x=make_array(BAD))),
}


def epoch(loader: DataLoader[Any]) -> tuple[list[Any], list[tuple[int, Exception]]]:
    """The batches of an epoch that goes on after errors; the errors with the batches' numbers."""
    batches: list[Any] = []
    errors: list[tuple[int, Exception]] = []
    iterator = iter(loader)
    for number in range(len(loader)):
        try:
            batches.append(next(iterator))
        except Exception as error:
            # It and torch's frames hold each other; workers that the collector ends take 5 s.
            error.__traceback__ = None
            errors.append((number, error))
    return batches, errors


def assert_only_the_bad_batch_fails(
    server: ObjectServer,
    bad: Bad,
    urls: list[str],
    make: Callable[..., Any],
    rows_of: Callable[[Any], torch.Tensor],
    workers: int,
) -> None:
    path = urls[BAD].removeprefix(server.url)
    if bad.body is not None:
        server.put(path, bad.body)
    if bad.fault is not None:
        server.always(path, bad.fault)
    client = tnp.Client(retries=1, stall_timeout_s=0.5)
    dataset = make([f"{url}?key=secret" for url in urls], client=client)
    batches, errors = epoch(DataLoader(dataset, BATCH_SIZE, num_workers=workers))
    ((number, error),) = errors
    assert number == BAD // BATCH_SIZE
    assert isinstance(error, bad.kind)
    if issubclass(bad.kind, OSError):
        assert isinstance(error, tnp.TransportError)
    assert urls[BAD] in str(error)
    assert "secret" not in str(error)
    assert ("worker process" in str(error)) == (workers > 0)
    good = [i for i in range(COUNT) if i // BATCH_SIZE != number]
    expected = torch.from_numpy(np.stack([make_array(i) for i in good]))
    assert torch.equal(torch.cat([rows_of(batch) for batch in batches]), expected)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("how", BAD_ARRAYS)
def test_a_bad_array_fails_its_batch_with_its_name_and_type(
    server: ObjectServer, how: str, workers: int
) -> None:
    urls = [server.put(f"/{i:02}.npy", npy(make_array(i))) for i in range(COUNT)]
    assert_only_the_bad_batch_fails(
        server, BAD_ARRAYS[how], urls, NpyDataset, lambda batch: batch, workers
    )


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("how", BAD_ARCHIVES)
def test_a_bad_archive_fails_its_batch_with_its_name_and_type(
    server: ObjectServer, how: str, workers: int
) -> None:
    def make(urls: list[str], **options: Any) -> NpzDataset:
        return NpzDataset(urls, ["y", "x"], **options)

    urls = [server.put(f"/{i:02}.npz", npz(x=make_array(i), y=np.arange(3))) for i in range(COUNT)]
    assert_only_the_bad_batch_fails(
        server, BAD_ARCHIVES[how], urls, make, lambda batch: batch["x"], workers
    )


@pytest.mark.parametrize("workers", WORKERS)
def test_a_local_file_that_is_gone_fails_its_batch(tmp_path: Path, workers: int) -> None:
    paths = [tmp_path / f"{i}.npy" for i in range(COUNT)]
    for i, path in enumerate(paths):
        np.save(path, make_array(i))
    paths[BAD].unlink()
    batches, errors = epoch(DataLoader(NpyDataset(paths), BATCH_SIZE, num_workers=workers))
    ((number, error),) = errors
    assert (number, len(batches)) == (BAD // BATCH_SIZE, 3)
    assert isinstance(error, FileNotFoundError)
    assert str(paths[BAD]) in str(error)


@pytest.mark.parametrize("workers", WORKERS)
def test_rows_of_a_bad_array_fail_their_batch_with_its_name_and_type(
    server: ObjectServer, workers: int
) -> None:
    urls = [server.put(f"/{i:02}.npy", npy(noise(BATCH_SIZE, 20_000, seed=i))) for i in range(4)]
    dataset = NpyRowDataset(urls, client=tnp.Client(retries=1))
    len(dataset)
    server.always("/02.npy", status(403))
    batches, errors = epoch(DataLoader(dataset, BATCH_SIZE, num_workers=workers))
    ((number, error),) = errors
    assert number == 2
    assert isinstance(error, PermissionError)
    assert urls[2] in str(error)
    expected = np.concatenate([noise(BATCH_SIZE, 20_000, seed=i) for i in (0, 1, 3)])
    assert np.array_equal(torch.cat(batches), expected)


def fail_on_seven(x: torch.Tensor) -> torch.Tensor:
    if torch.equal(x, torch.from_numpy(make_array(BAD))):
        raise ZeroDivisionError("from the transform")
    return x


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_of_a_transform_is_that_error(server: ObjectServer, workers: int) -> None:
    urls = [server.put(f"/{i:02}.npy", npy(make_array(i))) for i in range(COUNT)]
    dataset = NpyDataset(urls, transform=fail_on_seven)
    batches, errors = epoch(DataLoader(dataset, BATCH_SIZE, num_workers=workers))
    ((number, error),) = errors
    assert (number, len(batches)) == (BAD // BATCH_SIZE, 3)
    assert isinstance(error, ZeroDivisionError)
    assert "from the transform" in str(error)


DYING = """
import os, signal, sys, torch
from torch.utils.data import DataLoader
from torchnpy.data import NpyDataset

def die(x):
    if x[0] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

seen = 0
try:
    for batch in DataLoader(NpyDataset(sys.argv[1:], transform=die), 2, num_workers=2):
        seen += len(batch)
except RuntimeError as error:
    said = "killed by signal: Killed" in str(error) or "exited unexpectedly" in str(error)
    print(seen <= 10, said)
"""


def test_a_worker_that_is_killed_is_an_error_in_the_parent(server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npy", npy(np.full(10, i))) for i in range(COUNT)]
    with start_script(DYING, *urls) as script:
        assert script.finish(PROMPT_S) == (0, "True True\n", "")


def test_a_worker_that_is_killed_in_a_transfer_is_an_error_in_the_parent(
    server: ObjectServer,
) -> None:
    url = server.put("/x.npy", npy(noise(100, 1000)))
    server.always("/x.npy", cut(100, "stall"))
    code = """
        import sys, torchnpy as tnp
        from torch.utils.data import DataLoader
        from torchnpy.data import NpyDataset
        client = tnp.Client(stall_timeout_s=600)
        iterator = iter(DataLoader(NpyDataset([sys.argv[1]], client=client), num_workers=1))
        print(iterator._workers[0].pid, flush=True)
        try:
            next(iterator)
        except RuntimeError as error:
            print("killed by signal: Killed" in str(error) or "exited unexpectedly" in str(error))
        """
    with start_script(code, url) as script:
        worker = int(script.stdout.readline())
        assert server.stalled.wait(60)
        os.kill(worker, signal.SIGKILL)
        assert script.finish(PROMPT_S) == (0, "True\n", "")


FLAT = """
import gc, os, sys
from torch.utils.data import DataLoader, StackDataset
from torchnpy.data import NpyDataset, NpyRowDataset, NpyStream, NpzDataset

what, urls, persistent = sys.argv[1], sys.argv[3:], sys.argv[2] == "persistent"
arrays = [url for url in urls if url.endswith(".npy")]
archives = [url for url in urls if url.endswith(".npz")]
datasets = {
    "samples": lambda: StackDataset(
        NpyDataset(arrays, labels=[str(i) for i in range(len(arrays))]), NpzDataset(archives)),
    "rows": lambda: NpyRowDataset({"x": arrays, "y": arrays}),
    "a stream": lambda: NpyStream(arrays, shuffle=True, shuffle_rows=100),
}
loader = DataLoader(datasets[what](), batch_size=4 if what == "samples" else 100,
                    shuffle=what != "a stream", num_workers=2, persistent_workers=persistent)

def measure(pid):
    # As MB of memory in use, and descriptors but for connections: those are kept for the next.
    lines = open(f"/proc/{pid}/smaps_rollup").read().splitlines()
    pss = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return pss // 1024, sum(not is_connection(f"/proc/{pid}/fd/{fd}")
                            for fd in os.listdir(f"/proc/{pid}/fd"))

def is_connection(fd):
    try:
        return os.readlink(fd).startswith("socket:")
    except FileNotFoundError:  # that of the listing itself
        return True

def left_in_shm():
    return [name for name in os.listdir("/dev/shm") if f"_{os.getpid()}_" in name]

measured = []
for epoch in range(20):
    for batch in loader:
        pass
    if epoch in (4, 19):
        gc.collect()
        workers = [worker.pid for worker in loader._iterator._workers] if persistent else []
        measured.append([measure(pid) for pid in [os.getpid(), *workers]])
    del batch
for before, after in zip(*measured):
    print(after[0] - before[0], after[1] - before[1])
print(len(left_in_shm()))
"""


@pytest.mark.parametrize(
    ("what", "lifetime"),
    [
        ("samples", "persistent"),
        ("samples", "an epoch"),
        ("rows", "persistent"),
        ("a stream", "persistent"),
    ],
)
def test_memory_and_descriptors_are_flat_over_20_epochs(
    server: ObjectServer, what: str, lifetime: str
) -> None:
    urls = []
    for i in range(24):
        x = noise(50, 1000, seed=i)
        urls += [server.put(f"/{i}.npy", npy(x)), server.put(f"/{i}.npz", npz(deflate=True, x=x))]
    *growths, left = run_script(FLAT, what, lifetime, *urls).splitlines()
    assert len(growths) == (3 if lifetime == "persistent" else 1)
    for growth in growths:
        memory_mb, descriptors = map(int, growth.split())
        # An epoch has 1.2 MB or more, of which 15 epochs would leave 18.
        assert memory_mb <= 8
        # Batches that wait to be taken come and go.
        assert descriptors <= 8
    assert left == "0"


INTERRUPTED = """
import sys, torchnpy as tnp, torch.utils.data
from torch.utils.data import DataLoader
from torchnpy.data import NpyDataset
client = tnp.Client(stall_timeout_s=600)
dataset = NpyDataset(sys.argv[1:], client=client)
iterator = iter(DataLoader(dataset, 2, num_workers=2))
print(*(worker.pid for worker in iterator._workers), flush=True)
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5  # that torch waits before it kills
try:
    for batch in iterator:
        pass
except KeyboardInterrupt:
    print("interrupted")
del iterator
"""


@pytest.mark.parametrize("who", ["the parent", "all, as a terminal does"])
def test_ctrl_c_in_mid_epoch_ends_parent_and_workers(server: ObjectServer, who: str) -> None:
    urls = [server.put(f"/{i}.npy", npy(make_array(i))) for i in range(COUNT)]
    server.always(f"/{BAD}.npy", cut(100, "stall"))
    with start_script(INTERRUPTED, *urls) as script:
        workers = [os.pidfd_open(int(pid)) for pid in script.stdout.readline().split()]
        assert server.stalled.wait(60)
        script.send_signal(signal.SIGINT)
        if who != "the parent":
            for worker in workers:
                signal.pidfd_send_signal(worker, signal.SIGINT)
        status, out, err = script.finish(PROMPT_S)
        assert (status, out) == (0, "interrupted\n")
        # A worker may say that its parent went away while it took a batch's descriptor.
        assert err == "" or ("resource_sharer.py" in err and str(PACKAGE) not in err)
        for worker in workers:
            assert ends(worker)


def ends(process: int) -> bool:
    """Whether the process behind the descriptor ends: soon after its parent."""
    readable, _, _ = select.select([process], [], [], PROMPT_S)
    os.close(process)
    return bool(readable)

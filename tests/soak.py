"""Loads for a minute while faults hit one request in ten: python tests/soak.py [SECONDS].

Every array must be right, nothing may leak, and the metrics must add up with what the server saw.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import threading
import time
from itertools import count

import numpy as np
from servers.faulty import FaultyServer
from support import npy

import torchnpy as tnp

THREADS = 8
SMALL = [np.full((10 + i, 100), i, np.uint8) for i in range(THREADS * 32)]
LARGE = [np.full((900, 1000), i, np.uint8) for i in range(THREADS)]
PART_NBYTES = 200_000
# libcurl keeps so many connections, on each of two I/O threads.
MAX_CONNECTIONS = 2 * 64
MAX_GROWTH_NBYTES = 32 << 20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_nbytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Soak:
    def __init__(self) -> None:
        self.files_before = open_files()
        self.server = FaultyServer([npy(array) for array in SMALL + LARGE])
        self.client = tnp.Client(part_nbytes=PART_NBYTES)
        self.loads = 0
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def _work(self, thread: int) -> None:
        # Each thread has objects of its own: a request for two reads would fail for both.
        own = [*range(thread, len(SMALL), THREADS), len(SMALL) + thread]
        arrays = SMALL + LARGE
        try:
            for turn in count():
                if self._stop.is_set():
                    return
                wanted = own if turn % 4 == 0 else own[:-1]
                urls = [self.server.urls[i] for i in wanted]
                for i, tensor in zip(wanted, tnp.load_many(urls, client=self.client), strict=True):
                    np.testing.assert_array_equal(tensor.numpy(), arrays[i])
                with self._lock:
                    self.loads += len(urls)
        except BaseException as error:
            self.failures.append(error)

    def run(self, seconds: float) -> dict[str, float]:
        threads = [threading.Thread(target=self._work, args=(i,)) for i in range(THREADS)]
        end = time.monotonic() + seconds
        for thread in threads:
            thread.start()
        sizes: list[int] = []
        files: list[int] = []
        while time.monotonic() < end and not self.failures:
            time.sleep(seconds / 40)
            sizes.append(resident_nbytes())
            files.append(open_files())
        self._stop.set()
        for thread in threads:
            thread.join()
        return self._check(sizes, files)

    def _check(self, sizes: list[int], files: list[int]) -> dict[str, float]:
        if self.failures:
            raise self.failures[0]
        gc.collect()
        metrics, seen = self.client.metrics(), self.server.count()
        # Each fault costs one more request, so the others are the reads.
        assert metrics["reads"] == metrics["requests"] - metrics["retries"], metrics
        assert metrics["reads"] == seen["requests"] - seen["faults"], (metrics, seen)
        # When an old connection dies of a request without an answer, libcurl mostly repeats it
        # by itself.
        assert seen["faults"] - seen["unanswered"] <= metrics["retries"] <= seen["faults"], seen
        assert metrics["retries"] == metrics["retries_status"] + metrics["retries_connection"]
        assert metrics["errors"] == metrics["in_flight"] == 0, metrics
        assert seen["connections"] <= MAX_CONNECTIONS, seen
        ours = 4  # the server's pipes, /proc/self/fd, one to spare
        engine = 2 * 4  # each I/O thread's
        assert max(files) <= self.files_before + MAX_CONNECTIONS + ours + engine, files
        # The first quarter warms up: threads, connections, the allocator's arenas.
        quarter = len(sizes) // 4
        growth = statistics.median(sizes[-quarter:]) - statistics.median(
            sizes[quarter : 2 * quarter]
        )
        assert growth <= MAX_GROWTH_NBYTES, sizes
        return {"loads": self.loads, "growth_mib": growth / (1 << 20), "files": files[-1], **seen}


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    soak = Soak()
    try:
        report = soak.run(seconds)
    finally:
        soak.server.close()
    print(f"{seconds:g} s: " + ", ".join(f"{name} {value:g}" for name, value in report.items()))


if __name__ == "__main__":
    main()

"""Loads while faults hit every tenth request: right bytes, no leak, counts that add up.

    python tests/soak.py [--seconds 60] [--loads 20000]

pytest runs a short one (test_soak.py).
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from servers.http import Answer, Fault, ObjectServer, Request, cut, s3_error, status
from support import noise, npy

import torchnpy as tnp

FAULT_SHARE = 0.1
# What ends an exchange so that the next attempt heals it; none waits for long.
FAULTS: list[Fault] = [
    status(500),
    status(502),
    s3_error(503, "SlowDown"),
    status(503, Retry_After="0"),
    status(504),
    status(429),
    cut(None),
    cut(None, "close"),
    cut(0),
    cut(1),
    cut(5_000),
    cut(5_000, "close"),
]


class FaultyServer(ObjectServer):
    """Spoils every tenth answer, at random."""

    def __init__(self) -> None:
        self.faults_hit = 0
        self._random = random.Random(0)
        self._count_lock = threading.Lock()
        super().__init__()

    def _next_fault(self, path: str) -> Fault | None:
        if self._random.random() >= FAULT_SHARE:
            return None
        fault = self._random.choice(FAULTS)

        def counted(request: Request, answer: Answer) -> Answer:
            with self._count_lock:
                self.faults_hit += 1
            return fault(request, answer)

        return counted


@dataclass
class Usage:
    """What the process holds."""

    descriptors: int
    threads: int
    rss_nbytes: int

    @classmethod
    def now(cls) -> Usage:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
            pages * os.sysconf("SC_PAGE_SIZE"),
        )


@dataclass
class Outcome:
    loads: int = 0
    wrong: list[str] = field(default_factory=list)
    faults: int = 0
    metrics: dict[str, int | float] = field(default_factory=dict)
    server_requests: int = 0
    warm: Usage | None = None
    end: Usage | None = None


@contextmanager
def served() -> Iterator[tuple[FaultyServer, list[tuple[str, np.ndarray]]]]:
    """Small arrays mostly, and a few of many parts."""
    with FaultyServer() as server:
        sizes = [100, 3_000, 20_000, 60_000] * 12 + [300_000] * 4
        arrays = [noise(size, seed=i) for i, size in enumerate(sizes)]
        yield server, [(server.put(f"/{i}.npy", npy(a)), a) for i, a in enumerate(arrays)]


def run(seconds: float, loads: int, threads: int = 8) -> Outcome:
    """Loads until both are reached; `threads` share one client."""
    outcome = Outcome()
    with served() as (server, objects):
        # Enough attempts that no object meets a fault in all of them.
        client = tnp.Client(retries=30, part_nbytes=64 << 10, max_in_flight=32)
        lock = threading.Lock()
        until = time.monotonic() + seconds

        def work(seed: int) -> None:
            order = random.Random(seed)
            while True:
                with lock:
                    done = outcome.loads >= loads and time.monotonic() >= until
                    outcome.loads += 16
                if done or outcome.wrong:
                    with lock:
                        outcome.loads -= 16
                    return
                batch = order.choices(objects, k=16)
                try:
                    tensors = tnp.load_many([url for url, _ in batch], client=client)
                except Exception as error:
                    outcome.wrong.append(repr(error))
                    return
                for tensor, (url, array) in zip(tensors, batch, strict=True):
                    if not np.array_equal(tensor, array):
                        outcome.wrong.append(url)

        def work_all(count: int) -> None:
            workers = [threading.Thread(target=work, args=(seed,)) for seed in range(count)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        goal, loads = loads, min(loads // 10, 500)
        until, end = time.monotonic(), until
        work_all(threads)  # connections, threads and caches of allocators come to stay
        server.requests, kept = [], len(server.requests)
        outcome.warm = Usage.now()
        loads, until = goal, end
        work_all(threads)
        outcome.server_requests = kept + len(server.requests)
        server.requests = []
        outcome.end = Usage.now()
        outcome.metrics = client.metrics()
        outcome.faults = server.faults_hit
    return outcome


def check(outcome: Outcome) -> None:
    assert not outcome.wrong, outcome.wrong[:3]
    metrics = outcome.metrics
    retries = ("status", "connection", "timeout", "changed", "checksum", "learnt")
    assert metrics["retries"] == sum(metrics[f"retries_{reason}"] for reason in retries)
    assert metrics["errors"] == metrics["in_flight"] == 0
    assert metrics["requests"] + metrics["reads_shared"] == metrics["reads"] + metrics["retries"]
    # libcurl itself sends once more what a server closes a kept connection on.
    assert metrics["requests"] <= outcome.server_requests
    assert 0.05 * outcome.server_requests < outcome.faults < 0.2 * outcome.server_requests
    assert outcome.warm
    assert outcome.end
    # The server's own connections are among them: one for each of ours.
    assert outcome.end.descriptors <= outcome.warm.descriptors + 64
    assert outcome.end.threads <= outcome.warm.threads + 64
    assert outcome.end.rss_nbytes <= outcome.warm.rss_nbytes + (64 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--loads", type=int, default=20_000)
    args = parser.parse_args()
    outcome = run(args.seconds, args.loads)
    print(f"{outcome.loads} loads, {outcome.server_requests} requests, {outcome.faults} faults")
    print(f"after the warm-up {outcome.warm}, at the end {outcome.end}")
    check(outcome)
    print("every tensor right, nothing leaked, the counts add up")


if __name__ == "__main__":
    main()

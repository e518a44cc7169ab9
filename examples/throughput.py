"""Watch a data set load: MB/s, requests in flight and retries over time, as a picture.

A thread reads `Client.metrics()` ten times a second, which costs the loading nothing: it may
as well run beside a training. Each process counts what it does itself, so the loading is done here
and not in DataLoader workers.

Usage:
    python examples/throughput.py                                     # with a local S3 server
    python examples/throughput.py --bucket my-bucket --prefix arrays  # with a real store
"""

import argparse
import threading
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from store import add_store_options, open_store, parse_args, upload
from tqdm import tqdm

from torchnpy import Client
from torchnpy.data import NpyDataset

INTERVAL_S = 0.1


class Recorder:
    """Samples a client's metrics on a thread of its own while it is entered."""

    def __init__(self, client: Client) -> None:
        self.times: list[float] = []
        self.samples: list[dict[str, int | float]] = []
        self._client = client
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._take()

    def _take(self) -> None:
        self.times.append(time.perf_counter())
        self.samples.append(self._client.metrics())

    def __enter__(self) -> "Recorder":
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._take()


def main() -> None:
    args = parse_args(make_parser())
    with open_store(args) as (store, folder):
        print(f"[1/3] Using the S3 store at {store}")
        nbytes = upload_arrays(folder, args.count, args.kilobytes)
        print(f"[2/3] Uploaded {args.count} arrays, {nbytes / 1e6:.1f} MB, to {folder}/")

        client = Client()
        dataset = NpyDataset.from_prefix(f"{folder}/", client=client)
        with Recorder(client) as recorder:
            for _ in tqdm(range(args.epochs), "      load", unit="epoch", leave=False):
                for begin in range(0, len(dataset), args.batch):
                    # One call, many requests at once.
                    dataset.__getitems__(range(begin, min(begin + args.batch, len(dataset))))

    args.output.mkdir(parents=True, exist_ok=True)
    picture = args.output / "throughput.png"
    draw(recorder, picture)
    first, last = recorder.samples[0], recorder.samples[-1]
    seconds = recorder.times[-1] - recorder.times[0]
    megabytes = (last["bytes_received"] - first["bytes_received"]) / 1e6
    print(
        f"[3/3] Loaded {megabytes:.1f} MB in {seconds:.1f} s with "
        f"{last['requests'] - first['requests']} requests, at most {last['in_flight_max']} at "
        f"once, and {last['retries']} retries; half of the reads took at most "
        f"{last['total_p50_s'] * 1e3:.1f} ms, 99 % {last['total_p99_s'] * 1e3:.1f} ms\n"
        f"      see {picture}"
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_store_options(parser, "throughput")
    parser.add_argument("--count", type=int, default=200, help="arrays [%(default)s]")
    parser.add_argument("--kilobytes", type=int, default=500, help="of each [%(default)s]")
    parser.add_argument("--batch", type=int, default=32, help="arrays at once [%(default)s]")
    parser.add_argument("--epochs", type=int, default=5, help="times [%(default)s]")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder [%(default)s]")
    return parser


def upload_arrays(folder: str, count: int, kilobytes: int) -> int:
    noise = np.random.default_rng(0)
    arrays = [noise.integers(0, 256, kilobytes * 1000, np.uint8) for _ in range(count)]
    return upload([f"{folder}/{i:04}.npy" for i in range(count)], arrays)


def draw(recorder: Recorder, path: Path) -> None:
    times = np.array(recorder.times) - recorder.times[0]

    def values(name: str) -> np.ndarray:
        return np.array([sample[name] for sample in recorder.samples], float)

    figure = Figure((8, 6), layout="constrained")
    speed, flight, retries = figure.subplots(3, 1, sharex=True)
    speed.stairs(np.diff(values("bytes_received")) / np.diff(times) / 1e6, times)
    speed.set_ylabel("MB/s")
    flight.step(times, values("in_flight"), where="post")
    flight.set_ylabel("requests in flight")
    retries.step(times, values("retries"), where="post")
    retries.set_ylabel("retries so far")
    retries.set_xlabel("seconds")
    for axes in (speed, flight, retries):
        axes.set_ylim(0, max(1, axes.get_ylim()[1]))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

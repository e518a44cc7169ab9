"""What the benchmarks share: fair timing, the machine's description, the JSON of results.

A row is one piece of work, done by several contenders in turn: us, the peers, and the limit, a
program written by hand that does only that work. Rounds are interleaved, so that a disturbance
hits all; the best round counts.
"""

import argparse
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "benchmarks"
PACKAGES = (
    "torchnpy",
    "torch",
    "numpy",
    "spdl_io",
    "safetensors",
    "tensorstore",
    "obstore",
    "s3torchconnector",
    "boto3",
    "webdataset",
    "npy_append_array",
)


@dataclass(frozen=True)
class Sample:
    """One round. A contender that is a program of its own returns what it measured itself."""

    seconds: float
    cpu_s: float  # of all threads


@dataclass(frozen=True)
class Contender:
    name: str
    role: str  # "ours", "variant" (ours with other options), "peer" or "limit"
    # Imports and connects, and returns the function that does the work once. What it raises
    # makes a peer or a limit absent, with that reason; of us it is an error.
    make: Callable[[], Callable[[], object]]
    cpus: int | None = None  # it runs in a process of its own that may use only so many


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    unit: str  # "us", "ms": time of one call; else a rate, `amount` of it in one call
    contenders: Sequence[Contender]
    amount: float = 1
    check: Callable[[object], None] | None = None  # raises when the work was done wrong
    calls_s: float = 0  # calls are repeated within a round until it takes so long


@dataclass
class Entry:
    name: str
    role: str
    value: float  # of the best round, in the row's unit
    values: list[float]
    cpu_s: float  # for one call, in the best round


@dataclass
class Result:
    name: str
    title: str
    unit: str
    higher_is_better: bool
    entries: list[Entry] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


def parse_args(description: str, name: str, rounds: int = 7) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, help=f"the best counts [{rounds}; with --quick 2]")
    parser.add_argument("--quick", action="store_true", help="less work: does it run at all?")
    parser.add_argument("--rows", nargs="*", metavar="ROW", help="only these rows")
    parser.add_argument("--output", type=Path, help="[benchmarks/results; with --quick build]")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else rounds)
    args.name = name
    if args.output is None:
        folder = BUILD if args.quick else ROOT / "benchmarks" / "results"
        args.output = folder / f"{name}.json"
    return args


def run(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Measures the rows, prints them, and writes the JSON."""
    machine = describe_machine()
    write(measure_all(rows, args), args, machine)


def measure_all(rows: Sequence[Row], args: argparse.Namespace) -> list[Result]:
    results = []
    for row in rows:
        if args.rows and row.name not in args.rows:
            continue
        results.append(measure(row, args.rounds))
        print_result(results[-1])
    return results


def write(
    results: Sequence[Result], args: argparse.Namespace, machine: dict[str, object] | None = None
) -> None:
    document = {"benchmark": args.name, "quick": args.quick, "rounds": args.rounds}
    document |= {"machine": machine or describe_machine(), "rows": [asdict(r) for r in results]}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {args.output}")


def measure(row: Row, rounds: int) -> Result:
    with ExitStack() as apart:
        return _measure(row, rounds, apart)


def _measure(row: Row, rounds: int, apart: ExitStack) -> Result:
    result = Result(row.name, row.title, row.unit, higher_is_better=row.unit not in ("us", "ms"))
    ready: list[tuple[Contender, Callable[[], object], int]] = []
    for contender in row.contenders:
        try:
            if contender.cpus:
                ready.append((contender, run_apart(row, contender, apart), 1))
            else:
                work = contender.make()
                ready.append((contender, work, prepare(row, work)))
        except Exception as error:
            if contender.role == "ours":
                raise
            result.absent[contender.name] = f"{type(error).__name__}: {error}"[:300]

    samples: dict[str, list[Sample]] = {contender.name: [] for contender, _, _ in ready}
    with tqdm(total=rounds * len(ready), desc=row.name, leave=False) as progress:
        for _ in range(rounds):
            for contender, work, calls in ready:
                progress.set_postfix_str(contender.name)
                samples[contender.name].append(time_calls(work, calls))
                progress.update()
    for contender, _, _ in ready:
        taken = samples[contender.name]
        best = min(taken, key=lambda sample: sample.seconds)
        values = [in_unit(row, sample.seconds) for sample in taken]
        entry = Entry(
            contender.name, contender.role, in_unit(row, best.seconds), values, best.cpu_s
        )
        result.entries.append(entry)
    return result


def prepare(row: Row, work: Callable[[], object]) -> int:
    """Warms up, checks what the work returns, and says how many calls make a round."""
    outcome = work()
    if isinstance(outcome, Sample):
        return 1
    if row.check:
        row.check(outcome)
    del outcome
    calls = 1
    while row.calls_s and (sample := time_calls(work, calls)).seconds * calls < row.calls_s / 2:
        calls = max(calls * 2, int(row.calls_s / sample.seconds))
    return calls


def run_apart(row: Row, contender: Contender, apart: ExitStack) -> Callable[[], Sample]:
    """Makes the contender in a child process with `contender.cpus` CPUs, which does the rounds.

    The child may have children; it ends with `apart`.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def serve() -> None:
        try:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: contender.cpus])
            work = contender.make()
            calls = prepare(row, work)
            theirs.send(None)
            while theirs.recv():
                theirs.send(time_calls(work, calls))
        except Exception as error:
            theirs.send(RuntimeError(f"{type(error).__name__}: {error}"))

    process = context.Process(target=serve)
    process.start()
    theirs.close()  # so that its end is an error here
    apart.callback(process.join)
    apart.callback(stop, ours)

    def work() -> Sample:
        ours.send(True)
        sample = ours.recv()
        if isinstance(sample, Exception):
            raise sample
        return sample

    failure = ours.recv()
    if failure:
        raise failure
    return work


def stop(pipe: Connection) -> None:
    with suppress(OSError), pipe:  # it may have ended
        pipe.send(False)


def time_calls(work: Callable[[], object], calls: int) -> Sample:
    """Of one call, on average. What the work returns is freed after the clock has stopped."""
    repeats = range(calls - 1)
    gc.collect()
    gc.disable()
    try:
        cpu, start = cpu_seconds(), time.perf_counter()
        for _ in repeats:
            work()
        outcome = work()
        seconds, cpu_s = time.perf_counter() - start, cpu_seconds() - cpu
    finally:
        gc.enable()
    return outcome if isinstance(outcome, Sample) else Sample(seconds / calls, cpu_s / calls)


def in_unit(row: Row, seconds: float) -> float:
    if row.unit == "us":
        return seconds * 1e6
    if row.unit == "ms":
        return seconds * 1e3
    return row.amount / seconds


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def print_result(result: Result) -> None:
    print(f"\n{result.title}")
    for entry in sorted(result.entries, key=lambda e: e.value, reverse=result.higher_is_better):
        line = f"  {entry.role:5}  {entry.name:34} {entry.value:12.4g} {result.unit}"
        print(line + f"   CPU {entry.cpu_s:.3g} s")
    for name, reason in result.absent.items():
        print(f"  absent {name}: {reason}")


def describe_machine() -> dict[str, object]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libcurl": first_line(["curl-config", "--version"]),
        "nginx": first_line(["nginx", "-v"]),
        "versions": versions,
        "load_average_before": os.getloadavg()[0],
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "absent"
    return (done.stdout or done.stderr).splitlines()[0]


def compile_cpp(source: str, flags: Sequence[str] = (), *, suffix: str = "") -> Path:
    """Compiles benchmarks/`source` when it is newer than its program; returns the program."""
    path = Path(__file__).parent / source
    program = BUILD / (path.stem + suffix)
    if not program.exists() or program.stat().st_mtime < path.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        print(f"compiling {source}", file=sys.stderr)
        command = ["g++", "-std=c++20", "-O2", str(path), "-o", str(program), *flags]
        subprocess.run(command, check=True)
    return program

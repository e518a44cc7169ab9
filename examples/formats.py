"""Compare the formats that a table of numbers can be kept in: size, time to write, time to read.

Text, text in gzip, `.npy`, `.npz`, compressed `.npz` and pickle, written and read by torchnpy and
by NumPy, each in a file of its own; pickle is Python's alone, and not for files of others: it can
run code. The best of some rounds counts, of files that are in memory.

Usage:
    python examples/formats.py                        # 20 000 x 10 doubles
    python examples/formats.py --rows 100000 --rounds 5
"""

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

import torchnpy as tnp

Save = Callable[[Path, Any], object]
Load = Callable[[Path], Any]


@dataclass(frozen=True)
class Library:
    """How a library writes a file, and how it reads all of it."""

    name: str
    save: Save
    load: Load


@dataclass
class Format:
    name: str
    suffix: str
    libraries: list[Library]
    nbytes: int = 0
    # The best of the rounds, in seconds, by library.
    writing: dict[str, float] = field(default_factory=dict)
    reading: dict[str, float] = field(default_factory=dict)


def main() -> None:
    args = make_parser().parse_args()
    table = make_table(args.rows, args.columns)
    print(
        f"[1/3] Made a table of {args.rows} x {args.columns} doubles, {table.nbytes / 1e6:.1f} MB"
    )
    formats = make_formats()
    with tempfile.TemporaryDirectory() as folder:
        measure(formats, table, Path(folder), args.rounds)
    print(f"[2/3] Wrote and read it {args.rounds} times in {len(formats)} formats; milliseconds:\n")
    print("\n".join(format_table(formats)))
    args.output.mkdir(parents=True, exist_ok=True)
    picture = args.output / "formats.png"
    draw(formats, table.nbytes, picture)
    print(f"\n[3/3] Drew {picture}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000, help="of the table [%(default)s]")
    parser.add_argument("--columns", type=int, default=10, help="of the table [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts [%(default)s]")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder [%(default)s]")
    return parser


def make_table(rows: int, columns: int) -> np.ndarray:
    """Readings that wander and have three decimals, as those of instruments do."""
    steps = np.random.default_rng(0).standard_normal((rows, columns))
    return steps.cumsum(axis=0).round(3)


def make_formats() -> list[Format]:
    text = [
        Library("torchnpy", tnp.savetxt, tnp.loadtxt),
        Library("numpy", np.savetxt, np.loadtxt),
    ]
    npy = [
        # In memory, not mapped: else nothing is read.
        Library("torchnpy", tnp.save, lambda path: tnp.load(path, mmap=False)),
        Library("numpy", np.save, np.load),
    ]
    npz = [
        Library("torchnpy", lambda path, x: tnp.savez(path, x=x), read_archive),
        Library("numpy", lambda path, x: np.savez(path, x=x), lambda path: np.load(path)["x"]),
    ]
    compressed = [
        Library("torchnpy", lambda path, x: tnp.savez_compressed(path, x=x), read_archive),
        Library(
            "numpy",
            lambda path, x: np.savez_compressed(path, x=x),
            lambda path: np.load(path)["x"],
        ),
    ]
    return [
        Format("text", ".txt", text),
        Format("gzip text", ".txt.gz", text),
        Format("npy", ".npy", npy),
        Format("npz", ".npz", npz),
        Format("compressed npz", ".npz", compressed),
        Format("pickle", ".pickle", [Library("Python", save_pickle, load_pickle)]),
    ]


def read_archive(path: Path) -> torch.Tensor:
    archive = tnp.load(path, mmap=False)
    assert isinstance(archive, tnp.NpzFile)
    return archive.read()["x"]  # type: ignore[return-value]


def save_pickle(path: Path, table: np.ndarray) -> None:
    path.write_bytes(pickle.dumps(table))


def load_pickle(path: Path) -> np.ndarray:
    return pickle.loads(path.read_bytes())


def measure(formats: list[Format], table: np.ndarray, folder: Path, rounds: int) -> None:
    """All formats in each round, so that a disturbance hits all."""
    work = [(kept, library) for kept in formats for library in kept.libraries]
    with tqdm(total=rounds * len(work), leave=False) as progress:
        for _ in range(rounds):
            for kept, library in work:
                progress.set_description(f"      {kept.name}, {library.name}")
                path = folder / f"{library.name} {kept.name}{kept.suffix}"
                start = time.perf_counter()
                library.save(path, table)
                written = time.perf_counter() - start
                start = time.perf_counter()
                found = library.load(path)
                read = time.perf_counter() - start
                check(found, table)
                kept.writing[library.name] = min(written, kept.writing.get(library.name, written))
                kept.reading[library.name] = min(read, kept.reading.get(library.name, read))
                if library is kept.libraries[0]:
                    kept.nbytes = path.stat().st_size
                progress.update()


def check(found: Any, table: np.ndarray) -> None:
    if not np.array_equal(np.asarray(found), table):
        raise SystemExit("what was read is not what was written")


def format_table(formats: list[Format]) -> list[str]:
    lines = [f"{'':16}{'':>9}   {'write':^19}   {'read':^19}"]
    lines.append(f"{'format':16}{'MB':>9}" + f"   {'torchnpy':>9}{'numpy':>10}" * 2)
    for kept in formats:
        cells = [f"{kept.name:16}{kept.nbytes / 1e6:9.2f}"]
        for times in (kept.writing, kept.reading):
            # Pickle's are nobody's: shown once.
            ours, numpys = times.get("torchnpy"), times.get("numpy", times.get("Python"))
            cells.append(f"   {milliseconds(ours):>9}{milliseconds(numpys):>10}")
        lines.append("".join(cells))
    return lines


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def draw(formats: list[Format], table_nbytes: int, path: Path) -> None:
    colors = {"torchnpy": "#d9480f", "numpy": "#868e96", "Python": "#ced4da"}
    figure = Figure((11, 4), layout="constrained")
    size, writing, reading = figure.subplots(1, 3, sharey=True)
    names = [kept.name for kept in formats]
    bars = size.barh(names, [kept.nbytes / 1e6 for kept in formats], color="#4c6ef5")
    size.bar_label(bars, fmt="%.1f", padding=3)
    size.axvline(table_nbytes / 1e6, color="black", linewidth=0.8, linestyle=":")
    size.set_title("size, MB (dotted: in memory)")
    for axes, title in ((writing, "writing, ms"), (reading, "reading, ms")):
        labelled = set()
        for row, kept in enumerate(formats):
            times = kept.writing if axes is writing else kept.reading
            height = 0.8 / len(times)
            for i, (library, seconds) in enumerate(times.items()):
                place = row - 0.4 + height * (i + 0.5)
                label = None if library in labelled else library
                labelled.add(library)
                bar = axes.barh(place, seconds * 1e3, height, color=colors[library], label=label)
                axes.bar_label(bar, [milliseconds(seconds)], padding=3, fontsize=8)
        axes.set_xscale("log")
        axes.set_title(f"{title} (log scale)")
        axes.margins(x=0.2)
    writing.legend(fontsize=8)
    size.margins(x=0.2)
    size.invert_yaxis()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

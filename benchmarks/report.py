"""README's table and docs/benchmarks.png, made from the JSON of the benchmarks."""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
BENCHMARKS = (
    *("decode", "npz", "remote", "memory", "cache", "dataloader"),
    *("write", "append", "text", "import_time"),
)


@dataclass(frozen=True)
class Goal:
    """We are at least `factor` times as good as `against`: a contender's name, or "limit"."""

    text: str
    against: str
    factor: float
    field: str = "value"  # or "cpu_s"


@dataclass(frozen=True)
class Ceiling:
    text: str
    value: float


# What each row has to reach. A row without goals is only shown.
GOALS: dict[str, list[Goal | Ceiling]] = {
    "bytes": [
        Goal("faster than torch.frombuffer", "torch.frombuffer", 1),
        Goal("8x spdl", "spdl", 8),
    ],
    "small_file": [Goal("5x np.load", "np.load", 5)],
    "large_file": [Goal("faster than safetensors", "safetensors", 1)],
    "npz_stored": [Goal("2.5x spdl", "spdl", 2.5)],
    "npz_stored_unverified": [Goal("20x spdl", "spdl", 20)],
    "npz_deflated": [Goal("1.7x spdl", "spdl", 1.7)],
    "npz_images": [Goal("1.8x itself on one CPU", "torchnpy, one CPU", 1.8)],
    "npz_tokens": [Goal("1.5x spdl", "spdl", 1.5)],
    "npz_open": [Goal("5x np.load", "np.load", 5)],
    "savez_tokens": [
        Goal("20x numpy", "np.savez_compressed", 20),
        Goal("1.8x itself on one CPU", "torchnpy, one CPU", 1.8),
    ],
    "savez_images": [
        Goal("8x numpy", "np.savez_compressed", 8),
        Goal("1.8x itself on one CPU", "torchnpy, one CPU", 1.8),
    ],
    "savez_stored": [Goal("np.savez within noise", "np.savez", 0.95)],
    "small": [
        Goal("4x tensorstore", "tensorstore", 4),
        Goal("0.85x the limit", "limit", 0.85),
        Goal("a quarter of tensorstore's CPU", "tensorstore", 4, "cpu_s"),
    ],
    "small_20ms": [Goal("0.95x the limit", "limit", 0.95)],
    "large": [
        Goal("1.4x boto3", "boto3", 1.4),
        Goal("0.9x the limit", "limit", 0.9),
        # 40 % more CPU than the limit, that is.
        Goal("0.71x the limit's CPU", "limit", 1 / 1.4, "cpu_s"),
    ],
    "large_https": [Goal("0.8x the limit", "limit", 0.8)],
    "cache_large": [Goal("0.8x local files", "limit", 0.8)],
    "loader_0": [Goal("8x s3torchconnector", "s3torchconnector", 8)],
    "loader_2": [Goal("6x s3torchconnector", "s3torchconnector", 6)],
    "loader_0_20ms": [Goal("8x s3torchconnector", "s3torchconnector", 8)],
    "loader_2_20ms": [Goal("6x s3torchconnector", "s3torchconnector", 6)],
    "loader_urls": [Ceiling("1 s", 1000)],
    "loader_start_fork": [Goal("0.9x itself with ten URLs", "torchnpy, ten URLs", 0.9)],
    "loader_start_spawn": [Goal("0.9x itself with ten URLs", "torchnpy, ten URLs", 0.9)],
    "save": [Goal("np.save within noise", "np.save", 0.95)],
    "save_strided": [Goal("np.save within noise", "np.save", 0.95)],
    "save_transposed": [Goal("np.save within noise", "np.save", 0.95)],
    "upload": [Goal("0.9x the limit", "limit", 0.9)],
    "savetxt": [Goal("5x numpy", "numpy", 5)],
    "loadtxt": [Goal("4x numpy", "numpy", 4)],
    "append_row": [Goal("10x npy-append-array", "npy-append-array", 10)],
    "append_batch": [Goal("0.9x the limit", "limit", 0.9)],
    "memory": [Ceiling("32 MiB", 32)],
    "import": [Ceiling("30 ms", 30)],
}


class Measured:
    """One row of a benchmark's JSON."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.name, self.title, self.unit = row["name"], row["title"], row["unit"]
        self.higher_is_better: bool = row["higher_is_better"]
        self.entries: list[dict[str, Any]] = row["entries"]
        self.ours = self.best("ours")

    def best(self, role: str) -> dict[str, Any] | None:
        entries = [entry for entry in self.entries if entry["role"] == role]
        choose = max if self.higher_is_better else min
        return choose(entries, key=lambda entry: entry["value"], default=None)

    def find(self, name: str) -> dict[str, Any] | None:
        if name == "limit":
            return self.best("limit")
        return next((entry for entry in self.entries if entry["name"] == name), None)

    def times_as_good(self, other: dict[str, Any], field: str = "value") -> float:
        ratio = self.ours[field] / other[field]
        return ratio if self.higher_is_better and field == "value" else 1 / ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "benchmarks.png")
    args = parser.parse_args()
    paths = [args.results / f"{name}.json" for name in BENCHMARKS]
    documents = [json.loads(path.read_text()) for path in paths if path.exists()]
    if not documents:
        sys.exit(f"no results in {args.results}; run benchmarks/decode.py and its kin first")
    rows = [Measured(row) for document in documents for row in document["rows"]]
    text = "\n".join([*format_table(rows), "", format_machine(documents)])
    print(text)
    write_between_markers(args.readme, text)
    write_plot(rows, args.plot)
    print(f"wrote {args.readme} and {args.plot}")


def format_table(rows: list[Measured]) -> list[str]:
    lines = ["| work | torchnpy | best peer | | limit | goals |", "|---|---|---|---|---|---|"]
    for row in rows:
        peer, limit = row.best("peer"), row.best("limit")
        cells = [row.title, f"**{format_value(row, row.ours)}**"]
        cells += [f"{format_value(row, peer)} ({peer['name']})" if peer else ""]
        cells += [f"{row.times_as_good(peer):.2g}x" if peer else ""]
        cells += [format_value(row, limit) if limit else ""]
        cells += ["<br>".join(judge(row, goal) for goal in GOALS.get(row.name, []))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def judge(row: Measured, goal: Goal | Ceiling) -> str:
    if isinstance(goal, Ceiling):
        return f"{'✓' if row.ours['value'] <= goal.value else '✗'} {goal.text}"
    other = row.find(goal.against)
    if other is None:
        return f"? {goal.text}: not measured"
    ratio = row.times_as_good(other, goal.field)
    return f"{'✓' if ratio >= goal.factor else '✗'} {goal.text}: {ratio:.2f}x"


def format_value(row: Measured, entry: dict[str, Any]) -> str:
    value, unit = entry["value"], row.unit
    if unit == "us" and value >= 1000:
        value, unit = value / 1000, "ms"
    digits = f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return f"{digits} {unit}"


def format_machine(documents: list[dict[str, Any]]) -> str:
    machine = documents[0]["machine"]
    versions = {}
    for document in documents:
        versions |= document["machine"]["versions"]
    rounds = min(document["rounds"] for document in documents)
    load = max(document["machine"]["load_average_before"] for document in documents)
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    doubts = ""
    if load > machine["cores"] / 2:
        doubts += f" The machine was not idle: its load average was {load:.1f}."
    if any(document["quick"] for document in documents):
        doubts += " Some rows did less work than they should (--quick)."
    return (
        f"Best of {rounds} rounds, all contenders in turn, on {machine['cores']} "
        f"cores of an {machine['cpu']}, Linux {machine['kernel']}, servers on the same machine. "
        f"Versions: {packages}, {machine['libcurl']}. The limit is a C++ program that does only "
        "this work. `make bench` measures yours." + doubts
    )


def write_between_markers(path: Path, text: str) -> None:
    readme = path.read_text()
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{path} lacks the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def write_plot(rows: list[Measured], path: Path) -> None:
    colors = {"ours": "#d9480f", "variant": "#f4a259", "peer": "#868e96", "limit": "#ced4da"}
    columns = 2
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(11, 2.1 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows, strict=False):
        axes.set_visible(True)
        entries = sorted(row.entries, key=lambda e: e["value"], reverse=not row.higher_is_better)
        bars = axes.barh(
            [entry["name"] for entry in entries],
            [entry["value"] for entry in entries],
            color=[colors[entry["role"]] for entry in entries],
        )
        axes.bar_label(bars, [format_value(row, entry) for entry in entries], padding=3, size=8)
        scale = "" if row.higher_is_better else " (log scale)"
        axes.set_title(row.title.replace("`", "") + scale, size=10, loc="left")
        if not row.higher_is_better:
            axes.set_xscale("log")
        axes.margins(x=0.2)
        axes.tick_params(labelsize=8)
        axes.set_xticks([])
        axes.minorticks_off()
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle("torchnpy (orange), its peers, and the limit (light)", size=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

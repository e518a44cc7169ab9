"""Tables of numbers as text, to a file and back.

The limit is C++'s to_chars and from_chars, in memory (raw_text.cpp).
"""

import ctypes
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import numpy as np
from _harness import Contender, Row, compile_cpp, parse_args, run

ROWS, COLUMNS = 20_000, 10

Work = Callable[[], object]


def main() -> None:
    args = parse_args(__doc__.split("\n")[0], "text")
    rows = 1000 if args.quick else ROWS
    table = np.random.default_rng(0).standard_normal((rows, COLUMNS))
    integers = np.random.default_rng(0).integers(-(10**6), 10**6, (rows, COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        path, gz_path = Path(folder, "x.txt"), Path(folder, "x.txt.gz")
        files = {"floats": path.with_stem("floats"), "integers": path.with_stem("integers")}
        np.savetxt(files["floats"], table)
        np.savetxt(files["integers"], integers, fmt="%d", delimiter=",")
        size = f"{rows} x {COLUMNS}"
        run(
            [
                save_row("savetxt", f"`savetxt`, {size} doubles", path, table, limit_of_saving),
                save_row("savetxt_gz", f"`savetxt` to `.gz`, {size} doubles", gz_path, table),
                load_row("loadtxt", f"`loadtxt`, {size} doubles", files["floats"], table),
                save_row(
                    "savetxt_g", f"`savetxt` as `%.6g`, {size} doubles", path, table, fmt="%.6g"
                ),
                load_row(
                    "loadtxt_integers",
                    f"`loadtxt`, {size} integers",
                    files["integers"],
                    integers,
                    dtype="int64",
                    delimiter=",",
                ),
            ],
            args,
        )


def save_row(
    name: str,
    title: str,
    path: Path,
    table: np.ndarray,
    limit: Callable[[np.ndarray], Work] | None = None,
    **options: str,
) -> Row:
    def ours() -> None:
        torchnpy().savetxt(path, table, **options)

    def numpys() -> None:
        np.savetxt(path, table, **options)

    def is_right(_: object) -> None:
        assert np.allclose(np.loadtxt(path), table, rtol=1e-5)

    contenders = [
        Contender("torchnpy", "ours", lambda: ours),
        Contender("numpy", "peer", lambda: numpys),
    ]
    if limit:
        contenders.append(Contender("C++ to_chars", "limit", partial(limit, table)))
    return Row(name, title, "ms", contenders, check=is_right)


def load_row(name: str, title: str, path: Path, table: np.ndarray, **options: str) -> Row:
    def is_right(found: object) -> None:
        assert np.array_equal(np.asarray(found), table)

    contenders = [
        Contender("torchnpy", "ours", lambda: lambda: torchnpy().loadtxt(path, **options)),
        Contender("numpy", "peer", lambda: lambda: np.loadtxt(path, **options)),
    ]
    if not options:
        contenders.append(
            Contender("C++ from_chars", "limit", partial(limit_of_loading, path, table))
        )
    return Row(name, title, "ms", contenders, check=is_right)


def limit_of_saving(table: np.ndarray) -> Work:
    text = ctypes.create_string_buffer(32 * table.size)
    values = table.ctypes.data_as(ctypes.c_void_p)
    return lambda: raw_text().print_numbers(
        values,
        ctypes.c_uint64(table.size),
        ctypes.c_uint64(COLUMNS),
        text,
        ctypes.c_uint64(len(text)),
    )


def limit_of_loading(path: Path, table: np.ndarray) -> Work:
    text, values = path.read_bytes(), np.empty_like(table)
    address = values.ctypes.data_as(ctypes.c_void_p)

    def work() -> np.ndarray:
        count = ctypes.c_uint64(values.size)
        raw_text().parse_numbers(text, ctypes.c_uint64(len(text)), address, count)
        return values

    return work


@cache
def raw_text() -> ctypes.CDLL:
    library = ctypes.CDLL(str(compile_cpp("raw_text.cpp", ["-shared", "-fPIC"], suffix=".so")))
    library.print_numbers.restype = ctypes.c_uint64
    library.parse_numbers.restype = None
    return library


@cache
def torchnpy() -> ModuleType:
    import torchnpy

    return torchnpy


if __name__ == "__main__":
    main()

"""docs/pickle.md: its ways to convert old files are run."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchnpy as tnp

DOC = (Path(__file__).parents[1] / "docs" / "pickle.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", DOC, re.S)
LOAD, RAGGED, TEXT = BLOCKS


def table_code(row: str) -> str:
    """The first code of the table's row that begins so."""
    line = next(line for line in DOC.splitlines() if line.startswith(f"| {row}"))
    return line.split(" | ", 1)[1].split("`")[1]


def objects(*values: Any) -> np.ndarray:
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value  # all at once would stack arrays of one shape
    return array


ONE, TWO = np.arange(3.0), np.arange(3.0, 6.0)


@pytest.mark.parametrize(
    ("code", "old", "expected"),
    [
        (table_code("numbers"), objects(1, 2.5), np.array([1, 2.5], "f4")),
        (table_code("arrays of one shape"), objects(ONE, TWO), np.stack([ONE, TWO])),
        (table_code("arrays of different"), objects(ONE, TWO[:1]), {"arr_0": ONE, "arr_1": [3]}),
        (table_code("text"), objects("a", "bcd"), np.array(["a", "bcd"])),
        (table_code("a dict"), np.array({"x": ONE}, object), {"x": ONE}),
        (RAGGED, objects(ONE, TWO[:1]), {"values": [0, 1, 2, 3], "offsets": [0, 3, 4]}),
        (TEXT, objects("a", "\u00e4"), {"utf8": [97, 195, 164], "offsets": [0, 1, 3]}),
    ],
)
def test_an_old_file_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, old: np.ndarray, expected: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("old.npy", old, allow_pickle=True)
    with pytest.raises(tnp.UnsupportedError):
        tnp.load("old.npy")
    exec(LOAD + code, {})
    if isinstance(expected, dict):
        with np.load("new.npz") as new:
            assert new.files == list(expected)
            for name, values in expected.items():
                assert np.array_equal(new[name], values)
    else:
        assert np.array_equal(np.load("new.npy"), expected)

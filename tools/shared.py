"""What several programs of this folder need."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
DOCUMENT = SOURCE / "docs" / "install.md"


def require_root() -> None:
    if os.geteuid() != 0:
        raise SystemExit(f"expected root but found uid {os.geteuid()}; run with sudo")


def only_wheel(folder: Path, pattern: str, advice: str) -> Path:
    """Returns the one file in `folder` that fits; `advice` says what helps if it is not one."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder}: expected one {pattern} but found {len(found)}; {advice}")
    return found[0]


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def minor_of(version: str) -> str:
    """Returns 2.13 for 2.13.0+cpu."""
    return ".".join(version.split(".")[:2])


def documented_packages() -> list[str]:
    """Returns the packages of the system that README.md lists for a build from source."""
    readme = SOURCE / "README.md"
    found = re.search(
        r"<!-- packages -->.*?apt-get install -y (.*?)\n```", readme.read_text(), re.DOTALL
    )
    if found is None:
        raise SystemExit(f"{readme}: expected the comment <!-- packages --> and a list")
    return found[1].replace("\\\n", " ").split()


def format_outcomes(counts: Mapping[str, int]) -> str:
    """Returns such as: 12, 1 skipped."""
    others = [f"{counts[each]} {each}" for each in ("skipped", "failed") if counts[each]]
    return ", ".join([str(counts["passed"]), *others])


def format_table(lines: list[list[str]]) -> str:
    """Returns a table of Markdown; the first line has the titles."""
    rule = ["---"] * len(lines[0])
    return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], rule, *lines[1:]])


def replace_table(text: str, name: str, table: str) -> str:
    """Returns the document with this table between the comments for it."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{DOCUMENT}: expected the comments {begin.strip()} and {end}")
    return f"{before}{begin}{table}{end}{after}"

"""``cp``: objects and files, both ways and from store to store."""

from __future__ import annotations

import enum

import click

from torchnpy._ops import _C
from torchnpy.cli.app import Session, command, describe
from torchnpy.cli.output import Bar, format_nbytes, print_json, print_line
from torchnpy.cli.parallel import Stop, for_each
from torchnpy.cli.plan import Copy, Target, find_copies, make_target
from torchnpy.cli.transfer import Transfer
from torchnpy.sources import encode


class Outcome(enum.Enum):
    COPIED = "copied"
    SKIPPED = "skipped"
    FAILED = "failed"


@command(short_help="Copy objects and files, all ways.")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.argument("target", metavar="TARGET")
@click.option("--recursive", "-r", is_flag=True, help="What is below folders and prefixes.")
@click.option("--force", "-f", is_flag=True, help="Also what is there already, and equal.")
@click.option("--fail-fast", is_flag=True, help="End with the first failure.")
@click.option("--sync", is_flag=True, help="Files are on the disk when it returns.")
@click.option("--jobs", "-j", type=click.IntRange(1, 256), default=16, help="At once (16).")
@click.option("--quiet", "-q", is_flag=True, help="Only failures.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each object.")
@click.pass_obj
def cp(
    session: Session,
    sources: tuple[str, ...],
    target: str,
    recursive: bool,
    force: bool,
    fail_fast: bool,
    sync: bool,
    jobs: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Copy objects and files; what is there already, as long and no older, is left alone.

    A copy that was interrupted goes on where it stopped. Nothing appears before it is whole, and
    nothing outside of TARGET is written.
    """
    there = make_target(session.client, sources, target, recursive)
    run = _Run(session, there, force=force, fail_fast=fail_fast, as_json=as_json)
    try:
        copies = there.check(find_copies(session.client, sources, there, recursive), run.refuse)
        if not force:
            there.find(copies)
        total = sum(copy.source.nbytes or 0 for copy in copies) or None
        with Bar("copying", total, wanted=not quiet) as bar:
            run.transfer = Transfer(session.client, run.stop, bar.advance, sync=sync)
            for_each(copies, run.copy, run.tell, jobs=jobs, stop=run.stop)
        if not (quiet or as_json):
            print_line(run.summary())
    finally:
        run.tell_failures()
        there.close()


class _Run:
    """The copies of one command, and what came of them."""

    transfer: Transfer

    def __init__(
        self, session: Session, target: Target, *, force: bool, fail_fast: bool, as_json: bool
    ) -> None:
        self._session, self._target = session, target
        self._force, self._fail_fast, self._as_json = force, fail_fast, as_json
        self.stop = Stop()
        self._counts = dict.fromkeys(Outcome, 0)
        self._nbytes = 0
        self._failures: list[Exception] = []

    def refuse(self, error: Exception) -> None:
        """Counts a copy that cannot be."""
        self._counts[Outcome.FAILED] += 1
        self._failures.append(error)
        if self._fail_fast:
            self.stop.set()

    def copy(self, copy: Copy) -> tuple[Outcome, int]:
        """On any thread."""
        if not self._force:
            if copy.source.nbytes is None:
                copy = copy._replace(source=self.transfer.look(copy.source))
            if self._target.is_current(copy):
                return Outcome.SKIPPED, 0
        return Outcome.COPIED, self._target.put(self.transfer, copy)

    def tell(self, copy: Copy, result: tuple[Outcome, int] | Exception) -> None:
        error = result if isinstance(result, Exception) else None
        outcome, nbytes = (Outcome.FAILED, 0) if isinstance(result, Exception) else result
        if error:
            self.refuse(error)
        else:
            self._counts[outcome] += 1
        self._nbytes += nbytes
        if self._as_json:
            print_json(
                {
                    "source": _C.display_name(encode(copy.source.url)),
                    "target": _C.display_name(encode(self._target.url(copy))),
                    "outcome": outcome.value,
                    "nbytes": nbytes,
                    "error": describe(error) if error else None,
                }
            )

    def tell_failures(self) -> None:
        """At the end: lines between would tear the bar."""
        for error in self._failures:
            self._session.fail(error)

    def summary(self) -> str:
        copied, skipped, failed = self._counts.values()
        return (
            f"{copied} copied ({format_nbytes(self._nbytes)}), {skipped} were there already, "
            f"{failed} failed"
        )

"""The command ``torchnpy`` (docs/cli.md). Its libraries come with ``pip install torchnpy[cli]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with ``arguments``, by default those of the process.

    Returns:
        The exit status: 0, all was done; 1, something failed, which stderr names; 2, the arguments
        are wrong; 130 and 141, as shells have them: ended by Ctrl-C, or by who no longer reads.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    from torchnpy.cli import plain

    status = plain.answer(given)
    if status is not None:
        return status
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        print(
            f"torchnpy: expected the package {error.name} for the command line but found none; "
            "pip install 'torchnpy[cli]'",
            file=sys.stderr,
        )
        return 1
    # Each adds its commands to the frame.
    from torchnpy.cli import bench, convert, copy, grow, inspect, listing, verify  # noqa: F401
    from torchnpy.cli.app import run

    return run(given)

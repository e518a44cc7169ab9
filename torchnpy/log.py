"""What the library tells Python's ``logging``: each request, and what the user should know.

The logger is "torchnpy": requests are of level DEBUG, one line each, and are made only while that
level is enabled. Lines hold no secret and no query string.
"""

from __future__ import annotations

import logging

from torchnpy._ops import _C

logger = logging.getLogger("torchnpy")

_is_wanted = False


def refresh() -> None:
    """Tells the library whether requests shall be logged; before each call that may send some."""
    global _is_wanted
    if logger.isEnabledFor(logging.DEBUG) is not _is_wanted:
        _is_wanted = not _is_wanted
        _C.log_requests(_is_wanted)


def emit(lines: list[tuple[int, float, str]]) -> None:
    """Gives lines (1: a warning, seconds since 1970, text) to the handlers; called by the library,
    on a thread that waits for a load or has done one."""
    for is_warning, created, text in lines:
        level = logging.WARNING if is_warning else logging.DEBUG
        if not logger.isEnabledFor(level):
            continue
        record = logger.makeRecord(logger.name, level, "torchnpy", 0, text, (), None)
        record.relativeCreated += (created - record.created) * 1000
        record.created = created
        record.msecs = int(created % 1 * 1000)
        logger.handle(record)

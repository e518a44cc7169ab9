"""Many objects at once, on threads that wait for the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from torchnpy._ops import _C

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Stop:
    """Ends what other threads wait for, and keeps them from beginning anything."""

    def __init__(self) -> None:
        self._flag = _C.StopFlag()
        self.wanted = False

    def set(self) -> None:
        self.wanted = True
        self._flag.set()

    def call(self, work: Callable[[], _Result]) -> _Result:
        """What ``work`` returns; KeyboardInterrupt out of a wait once it is set."""
        return _C.call_until(self._flag, work)


def for_each(
    items: Iterable[_Item],
    work: Callable[[_Item], _Result],
    done: Callable[[_Item, _Result | Exception], None],
    *,
    jobs: int,
    stop: Stop,
) -> None:
    """Calls ``work`` on each item on ``jobs`` threads, and ``done`` with what came of it, on one
    thread at a time, in the order in which they end.

    Returns when all threads have ended: all items are done, or ``stop`` is set. Ctrl-C, and what
    ``items`` and ``done`` raise, sets it and is raised here.
    """
    taking, telling = threading.Lock(), threading.Lock()
    iterator = iter(items)
    broken: list[BaseException] = []
    ended = threading.Semaphore(0)

    def run() -> None:
        try:
            stop.call(run_all)
        except KeyboardInterrupt:
            assert stop.wanted  # how a wait ends that was stopped
        except BaseException as error:
            broken.append(error)
            stop.set()
        finally:
            ended.release()

    def run_all() -> None:
        while True:
            with taking:
                if stop.wanted:
                    return
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            result: _Result | Exception
            try:
                result = work(item)
            except Exception as error:
                result = error
            with telling:
                if not broken:
                    done(item, result)

    _run_threads(run, jobs, ended, stop)
    if broken:
        raise broken[0]


def _run_threads(
    run: Callable[[], None], count: int, ended: threading.Semaphore, stop: Stop
) -> None:
    """Returns, or raises what interrupts it, when each thread has released ``ended``."""
    # Not join(): a thread whose join() Ctrl-C ended passes for one that has ended (bpo-45274).
    started = 0
    try:
        for _ in range(count):
            threading.Thread(target=run, name="torchnpy-cli", daemon=True).start()
            started += 1
        while started:
            ended.acquire()
            started -= 1
    except BaseException:
        stop.set()
        for _ in range(started):
            ended.acquire()
        raise

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
        self.flag = _C.StopFlag()
        self.wanted = False

    def set(self) -> None:
        self.wanted = True
        self.flag.set()


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

    def run() -> None:
        try:
            while not stop.wanted:
                with taking:
                    if stop.wanted:
                        return
                    item = next(iterator)
                result: _Result | Exception
                try:
                    result = work(item)
                except Exception as error:
                    result = error
                with telling:
                    if not broken:
                        done(item, result)
        except StopIteration:
            pass
        except KeyboardInterrupt:
            assert stop.wanted  # how a wait ends that was stopped
        except BaseException as error:
            broken.append(error)
            stop.set()

    threads = [threading.Thread(target=run, name="torchnpy-cli") for _ in range(jobs)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        if any(thread.is_alive() for thread in threads):
            stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if broken:
        raise broken[0]

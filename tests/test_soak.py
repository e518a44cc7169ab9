"""A short soak; `make soak` runs a long one."""

from __future__ import annotations

from soak import check, run


def test_loads_under_faults_are_right_leak_nothing_and_add_up() -> None:
    outcome = run(seconds=4, loads=500)
    check(outcome)
    assert outcome.loads >= 500

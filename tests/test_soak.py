"""The short form of `make soak`."""

from __future__ import annotations

from support import run_script


def test_faults_in_a_tenth_of_the_requests_lose_nothing_leak_nothing_and_are_counted() -> None:
    out = run_script("import sys, soak; sys.argv[1:] = ['4']; soak.main()")
    assert out.startswith("4 s: loads ")

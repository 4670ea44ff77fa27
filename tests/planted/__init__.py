"""Mistakes of one line, planted one at a time, and the tests that must go red on each.

    python -m tests.planted kernels [another room ...] [--only TEXT]

A room is a module beside this one with a list PLANTS; __main__.py works through it in a copy of the tree. A plant that
survives is a test that is missing. The suite itself only holds the lists to the sources (tests/test_planted.py).
"""

from typing import NamedTuple


class Plant(NamedTuple):
    """`old` stands exactly once in `file`, paths from the root; with `new` in its place the tests `red` must fail."""

    file: str
    mistake: str  # what is wrong then, in a few words
    old: str
    new: str
    red: str  # arguments of pytest: files, ids, -k

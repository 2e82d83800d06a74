"""Errors for people: each names the setting, what was expected, what came, and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FedgenError(Exception):
    """Any failure that fedgen explains in one paragraph instead of a traceback."""


class SettingError(FedgenError, ValueError):
    """A setting, an argument or a file that the user can put right (exit code 2)."""


def suggest(word: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown word: the nearest known one, or all of them.

    >>> suggest("flagg", ["flag", "mean"])
    "did you mean 'flag'?"
    >>> suggest("xyz", ["flag", "mean"])
    'choose from flag, mean'
    """
    names = sorted(known)
    if not names:
        return "there is none"
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"

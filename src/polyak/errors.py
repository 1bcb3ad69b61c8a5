"""The errors a user meets: one sentence each, with an exit code for the shell."""

import difflib
from collections.abc import Iterable


class PolyakError(Exception):
    """A mistake or a fault described in one sentence: what was wrong, where, and what to do.

    Attributes:
        exit_code: what the command line exits with (2: bad input, 3: an environment failed, 4: a run's files).
    """

    exit_code: int = 2


class EnvError(PolyakError):
    """An environment raised, hung, or broke its contract; the message names env, seed, episode and step."""

    exit_code: int = 3


class RunError(PolyakError):
    """A run folder is missing, damaged, foreign, in use, or cannot be written."""

    exit_code: int = 4


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint to append to a sentence: "; did you mean 'gamma'?", or "" where nothing is close."""
    known = sorted(names)
    found = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    if not found:
        return ""
    return f"; did you mean {next(k for k in known if k.lower() == found[0])!r}?"

"""The one exception that a user's mistake or a user's machine may cause."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """Say in one line what is wrong, where, and how to mend it.

    The command line prints the line and exits with status 2; a notebook shows it
    as the last line of the traceback.
    """

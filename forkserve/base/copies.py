"""Copies: what happens when code of the application returns in a process that it has forked itself. Pure.

Such a process is no worker, and must end where it comes back to the server's code. Code that does no input or output calls
`end_returned` as well: hooks, and callbacks of commands. What ends the process does input and output, so `system.forks` gives it.
"""

from __future__ import annotations

from collections.abc import Callable

_ends: list[Callable[[BaseException | None], object]] = []


def end_by(end: Callable[[BaseException | None], object]) -> None:
    """Say how this process ends, which the application has just forked."""
    _ends[:] = [end]


def end_returned(error: BaseException | None = None) -> None:
    """End this process if the application has forked it. Called wherever the application's code may return to the server's.

    Args:
        error: What the application's code has raised.
    """
    for end in _ends:
        end(error)

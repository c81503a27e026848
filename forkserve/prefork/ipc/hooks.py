"""Hooks: how functions of the user are called, and what hooks of a worker class get in the master. Pure, but it logs failures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass

from forkserve.base.copies import end_returned

Hooks = Mapping[str, Callable[..., object]]


@dataclass(frozen=True, slots=True)
class WorkerHandle:
    """A worker as the master knows it: its slot, its own TCP port if it has one, and its process if there is one."""

    id: int
    port: int | None
    generation: int
    pid: int | None = None


def run_hook(hooks: Hooks, name: str, *arguments: object, keep: bool = False) -> None:
    """Call a hook if the user has defined it. An exception is logged, and the server goes on.

    Args:
        hooks: The user's hooks.
        name: The name of the hook.
        arguments: Its arguments.
        keep: Whether the context variables that it sets (PEP 567) stay set in this context, as agents need it; else they hold
            only within the hook.
    """
    hook = hooks.get(name)
    if hook is not None:
        call_hook(f"hook {name}", hook, *arguments, keep=keep)


def call_hook(what: str, hook: Callable[..., object], *arguments: object, keep: bool = False) -> None:
    """Call a function of the user as `run_hook` does; `what` names it in the log."""
    try:
        if keep:
            hook(*arguments)
        else:
            copy_context().run(hook, *arguments)
    except Exception:
        logging.getLogger("forkserve").exception("%s failed", what)
    end_returned()

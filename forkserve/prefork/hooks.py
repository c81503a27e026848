"""gunicorn's hook functions, called in whichever process gunicorn calls them in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

Hooks = Mapping[str, Callable[..., object]]


def run_hook(hooks: Hooks, name: str, *arguments: object) -> None:
    """Call a hook if the user wrote it. One that raises is logged, and the server goes on."""
    hook = hooks.get(name)
    if hook is None:
        return
    try:
        hook(*arguments)
    except Exception:
        logging.getLogger("forkserve").exception("hook %s failed", name)

"""How WSGI applications called on the loop's thread are kept from seeing that a loop runs there: see `Service.start_up`."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context
    from typing import Any

PER_CALL = sys.version_info >= (3, 14)
"""Whether the loop can be hidden during calls only: from Python 3.14 on, tasks go on only where their loop is the running one."""


@contextmanager
def hidden_loop() -> Iterator[None]:
    """Let no loop seem to run on this thread, for other code of the application than calls for requests."""
    loop = asyncio._get_running_loop()  # noqa: SLF001 - the public function raises where there is none
    asyncio._set_running_loop(None)  # noqa: SLF001 - made for those that run a loop
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)  # noqa: SLF001


class HiddenLoop:
    """A context (PEP 567) in which no loop seems to run. It costs half a microsecond a call.

    Args:
        context: The context.
    """

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call in the context."""
        loop = asyncio._get_running_loop()  # noqa: SLF001 - the public function raises where there is none
        asyncio._set_running_loop(None)  # noqa: SLF001 - made for those that run a loop
        try:
            return self._context.run(call, *args)
        finally:
            asyncio._set_running_loop(loop)  # noqa: SLF001

    def copy(self) -> HiddenLoop:
        """Copy the context."""
        return HiddenLoop(self._context.copy())

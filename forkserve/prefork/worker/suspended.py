"""Suspended tasks of asyncio: what each of them waits for, as a chain of awaits. In the worker; for a signal handler.

The stack of a thread shows only the task that runs. Nothing here imports asyncio or calls code of the app.
"""

from __future__ import annotations

import gc
import itertools
import sys
import types
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from forkserve.base.stacktext import is_own

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_MANY_TASKS: Final = 10_000
_MANY_CHAINS: Final = 200
_MANY_AWAITS: Final = 100  # of one task, the innermost, as of a thread
_LONGEST_CHAIN: Final = 10_000


def chains() -> Iterator[str]:
    """Yield lines that describe the suspended tasks of this thread's event loop, without those of forkserve.

    Tasks that wait at the same places are described once.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for task in itertools.islice(_tasks(), _MANY_TASKS):
        frames = deque(itertools.islice(_awaits(task.get_coro()), _LONGEST_CHAIN), _MANY_AWAITS)
        if frames and not is_own(one.f_code.co_filename for one in frames):
            chain = [f'  File "{one.f_code.co_filename}", line {one.f_lineno} in {one.f_code.co_qualname}' for one in frames]
            found.setdefault(tuple(reversed(chain)), []).append(str(task.get_name()))
    for lines, names in itertools.islice(found.items(), _MANY_CHAINS):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"Task {names[0]!r:.80}{more} (suspended, most recent await first):"
        yield from lines
    if len(found) > _MANY_CHAINS:
        yield f"and {len(found) - _MANY_CHAINS} more"


def _tasks() -> Iterator[Any]:
    asyncio: Any = sys.modules.get("asyncio")
    loop = None if asyncio is None else asyncio._get_running_loop()  # noqa: SLF001 - documented: it does not raise
    return iter(()) if loop is None else iter(asyncio.all_tasks(loop))


def _awaits(one: Any) -> Iterator[FrameType]:
    """Yield the frames of a suspended coroutine and of what it awaits, the outermost first; none if it runs."""
    while one is not None:
        match one:
            case types.CoroutineType():
                running, frame, awaited = one.cr_running, one.cr_frame, one.cr_await
            case types.GeneratorType():
                running, frame, awaited = one.gi_running, one.gi_frame, one.gi_yieldfrom
            case types.AsyncGeneratorType():
                running, frame, awaited = False, one.ag_frame, one.ag_await
            case _:  # `anext` of an async generator, `__await__` of a coroutine: they refer to it
                held = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)
                one = next((held_one for held_one in gc.get_referents(one) if isinstance(held_one, held)), None)
                continue
        if running or frame is None:
            return
        yield frame
        one = awaited

"""Poller: what the master's loop waits for: descriptors and times."""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LONGEST = 3600.0  # seconds in one go: epoll takes no more than 24 days, and none that are not finite
READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


@dataclass(order=True, slots=True)
class Timer:
    """Something to do at a time; `cancel` it, and it will not be done."""

    when: float
    order: int
    call: Callable[[], object] | None = field(compare=False)
    every: float | None = field(default=None, compare=False)

    def cancel(self) -> None:
        """Do not do it, or not again."""
        self.call = None

    def ring(self) -> None:
        """Do it, unless what was called just before has cancelled it."""
        if self.call is not None:
            self.call()


class Poller:
    """Descriptors and timers, each with what to call. For the master; nothing in it blocks but `wait`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._order = itertools.count()

    def watch(self, fileobj: Any, events: int, call: Callable[[int], object]) -> None:
        """Call with the events (READ, WRITE or both) when they come; instead of what was asked for this object before.

        Raises ValueError or OSError for an object that cannot be waited for.
        """
        try:
            known = self._selector.get_key(fileobj)
        except KeyError:
            self._selector.register(fileobj, events, call)
            return
        if known.fileobj == fileobj:
            self._selector.modify(fileobj, events, call)
        else:  # another one had this descriptor, and was closed without a word
            self._selector.unregister(known.fileobj)
            self._selector.register(fileobj, events, call)

    def unwatch(self, fileobj: Any) -> None:
        """Wait for it no longer. Twice does no harm; before it is closed."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fileobj)

    def at(self, when: float, call: Callable[[], object]) -> Timer:
        """Call once, when the monotonic clock says so."""
        timer = Timer(when, next(self._order), call)
        heapq.heappush(self._timers, timer)
        return timer

    def every(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call again and again; what a late master missed is not made up for. Raises ValueError for 0 seconds or less."""
        if not seconds > 0:
            raise ValueError(f"every {seconds} seconds: a number above 0 is needed")
        timer = Timer(time.monotonic() + seconds, next(self._order), call, seconds)
        heapq.heappush(self._timers, timer)
        return timer

    def wait(self, deadline: float | None) -> list[Callable[[], object]]:
        """Wait for something to happen, until the deadline at most; return what to call."""
        while self._timers and self._timers[0].call is None:
            heapq.heappop(self._timers)
        if self._timers:
            deadline = min(self._timers[0].when, deadline if deadline is not None else self._timers[0].when)
        timeout = None if deadline is None else min(max(0.0, deadline - time.monotonic()), LONGEST)
        ready = self._selector.select(timeout)
        # Looked at again when its turn comes: what is called before it may have closed it.
        return [functools.partial(self._dispatch, key, events) for key, events in ready] + self._due(time.monotonic())

    def _dispatch(self, key: selectors.SelectorKey, events: int) -> None:
        now = self._selector.get_map().get(key.fd)
        if now is not None and now.fileobj is key.fileobj:
            now.data(events)

    def _due(self, now: float) -> list[Callable[[], object]]:
        calls: list[Callable[[], object]] = []
        again: list[Timer] = []
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            if timer.call is None:
                continue
            calls.append(timer.ring)
            if timer.every is not None:
                timer.when += timer.every
                if timer.when <= now:
                    timer.when = now + timer.every
                again.append(timer)
        for timer in again:
            heapq.heappush(self._timers, timer)
        return calls

    def close(self) -> None:
        """Close what belongs to the poller itself; a child does so just after the fork."""
        self._selector.close()

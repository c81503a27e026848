"""Poller: descriptors and timers, which the master's loop waits for."""

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

LONGEST = 3600.0  # seconds of one wait: epoll takes at most 24 days, and only finite numbers
READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


@dataclass(order=True, slots=True)
class Timer:
    """A call at a time, until it is cancelled."""

    when: float
    order: int
    call: Callable[[], object] | None = field(compare=False)
    every: float | None = field(default=None, compare=False)

    def cancel(self) -> None:
        """Do not call, or not again."""
        self.call = None

    def ring(self) -> None:
        """Call, unless a call just before has cancelled it."""
        if self.call is not None:
            self.call()


class Poller:
    """Descriptors and timers, each with its callback. For the master; only `wait` blocks."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._order = itertools.count()

    def watch(self, fileobj: Any, events: int, call: Callable[[int], object]) -> None:
        """Call with the events (READ, WRITE or both) when they occur; replaces an earlier `watch` of this object.

        Raises ValueError or OSError for an object that cannot be watched.
        """
        try:
            known = self._selector.get_key(fileobj)
        except KeyError:
            self._selector.register(fileobj, events, call)
            return
        if known.fileobj == fileobj:
            self._selector.modify(fileobj, events, call)
        else:  # an object with this descriptor was closed without `unwatch`
            self._selector.unregister(known.fileobj)
            self._selector.register(fileobj, events, call)

    def unwatch(self, fileobj: Any) -> None:
        """Stop watching an object, before it is closed. Doing it twice is harmless."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fileobj)

    def at(self, when: float, call: Callable[[], object]) -> Timer:
        """Call once, at a time of the monotonic clock."""
        timer = Timer(when, next(self._order), call)
        heapq.heappush(self._timers, timer)
        return timer

    def every(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call every `seconds`; missed calls of a late master are skipped. Raises ValueError for 0 seconds or less."""
        if not seconds > 0:
            raise ValueError(f"every {seconds} seconds: a number above 0 is needed")
        timer = Timer(time.monotonic() + seconds, next(self._order), call, seconds)
        heapq.heappush(self._timers, timer)
        return timer

    def wait(self, deadline: float | None) -> list[Callable[[], object]]:
        """Wait for events, until the deadline at most; return the callbacks."""
        while self._timers and self._timers[0].call is None:
            heapq.heappop(self._timers)
        if self._timers:
            deadline = min(self._timers[0].when, deadline if deadline is not None else self._timers[0].when)
        timeout = None if deadline is None else min(max(0.0, deadline - time.monotonic()), LONGEST)
        ready = self._selector.select(timeout)
        # Checked again when its turn comes: an earlier callback may have closed it.
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
        """Close the poller's own descriptor; a child does so just after the fork."""
        self._selector.close()

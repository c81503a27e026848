"""What a process that the application has forked must not keep of a worker: connections, and the loop. In that process."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

from forkserve.http.app.exchange import Exchange
from forkserve.http.app.threads import ThreadedExchange
from forkserve.prefork.system import forks

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Iterator


def connections(names: Collection[Any]) -> Iterator[int]:
    """Yield the descriptors of listeners with these addresses, and of the connections that they have accepted."""
    for descriptor in forks.open_descriptors():
        with contextlib.suppress(OSError), _borrowed(descriptor) as sock:
            if any(_is_accepted_by(name, sock.getsockname()) for name in names):
                yield descriptor


def end_where_it_returns(loop: asyncio.AbstractEventLoop) -> None:
    """Have this process end where it returns from the application, and leave the parent's epoll set alone."""
    epoll = getattr(loop, "_get_backend_id", None) or getattr(getattr(loop, "_selector", None), "fileno", None)
    if epoll is not None:
        forks.separate_epoll(epoll())
    # It leaves the application's call with an exception, or with a result for the loop, or by returning to the loop.
    setattr(Exchange, "fail", lambda exchange, error, what: forks.end(error))  # noqa: B010 - of a class, in this process alone
    setattr(ThreadedExchange, "_hand_over", _end_thread)  # noqa: B010 - as above
    setattr(ThreadedExchange, "discard_input", lambda exchange: forks.end())  # noqa: B010 - as above; each call in a thread ends so
    loop.call_soon(forks.end)
    # From Python 3.14 on no loop runs in a process that was forked: a task that returns to this one raises an error there.
    loop.set_exception_handler(lambda *_: forks.end())


def _end_thread(exchange: Exchange, call: object, *arguments: object) -> None:
    forks.end(next((one for one in arguments if isinstance(one, BaseException)), None))


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Use a descriptor as a socket for a moment. Raises OSError if it is none."""
    sock = socket.socket(fileno=descriptor)
    try:
        yield sock
    finally:
        sock.detach()


def _is_accepted_by(listener: Any, name: Any) -> bool:
    """Return whether a socket with address `name` is a listener with address `listener`, or was accepted by it."""
    if not (isinstance(listener, tuple) and isinstance(name, tuple)):
        return bool(name) and name == listener
    return len(name) == len(listener) and name[1] == listener[1] and listener[0] in (name[0], "0.0.0.0", "::")  # noqa: S104

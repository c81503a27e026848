"""Messages between the master and the admin process (--admin). They do not outlive an upgrade. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from forkserve.prefork.ipc.messages import Message, _message
from forkserve.prefork.ipc.pending import JSON

PIECE = 100_000
"""Characters of a text in one message: escaped once more, it is far from the limit of a frame."""


@_message("request", "admin process", "master")
class Request(Message):
    """The admin process requests a command of the master for somebody who asks it. The master answers with `Response`.

    Attributes:
        number: The number for the answer.
        name: A command of `forkserve ctl`; or "ping", which is answered at once.
        args: Its arguments.
    """

    number: int
    name: str
    args: Sequence[JSON] = field(default_factory=list)


@_message("response", "master", "admin process")
class Response(Message):
    """A part of the answer to a `Request`.

    Attributes:
        number: The number of the request.
        more: Whether another part follows.
        text: JSON with `ok`, `error` and `result`, as clients of the control socket get it.
    """

    number: int
    more: bool
    text: str

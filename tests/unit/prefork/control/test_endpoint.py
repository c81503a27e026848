"""A control session on an endpoint that is no unix socket."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

from forkserve.base.handover import InheritedFd
from forkserve.prefork.control.command import commands_of
from forkserve.prefork.control.server import Control
from forkserve.prefork.ipc.pending import Pending
from forkserve.prefork.master.commands import MasterCommands
from forkserve.prefork.system.poller import Poller
from tests.unit.prefork.control.control_helpers import request

if TYPE_CHECKING:
    from forkserve.base.handover import Exported


class LoopbackEndpoint:
    """Listens on a loopback port and allows clients by their port, which only a test may do."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.allowed: set[int] = set()

    def refusal(self, client: socket.socket) -> str | None:
        return None if client.getpeername()[1] in self.allowed else "this port may not send commands"

    def export(self) -> Exported:
        return {"socket": InheritedFd(self.sock.fileno())}

    def remove(self) -> None:
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


def test_a_session_works_over_tcp() -> None:
    poller, endpoint = Poller(), LoopbackEndpoint()
    control = Control(poller, commands_of(MasterCommands), lambda name, *_, **__: Pending.of([name]), lambda: "at work")
    control.listen(endpoint)
    answers = []
    with socket.socket() as friend, socket.socket() as stranger:
        for client in (friend, stranger):
            client.bind(("127.0.0.1", 0))
        endpoint.allowed.add(friend.getsockname()[1])
        for client in (friend, stranger):
            client.connect(endpoint.sock.getsockname())
            client.sendall(request("status"))
            client.setblocking(False)
            end, data = time.monotonic() + 20, b""
            while not data.endswith(b"\n"):
                assert time.monotonic() < end
                for call in poller.wait(time.monotonic() + 0.01):
                    call()
                try:
                    data += client.recv(1000)
                except BlockingIOError:
                    continue
            answers.append(json.loads(data))
    control.close()
    poller.close()

    assert [one["ok"] for one in answers] == [True, False]
    assert answers[0]["result"] == ["status"]
    assert answers[1]["error"] == {"code": "refused", "message": "this port may not send commands"}

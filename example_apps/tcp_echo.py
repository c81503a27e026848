"""The prefork TCP echo server: many workers accept on one socket, and each serves one client at a time.

Run it: `python example_apps/tcp_echo.py 127.0.0.1:7000`. Then connect: `nc 127.0.0.1 7000`.
"""

from __future__ import annotations

import contextlib
import socket
import sys

from forkserve import Server, Worker


class Echo(Worker):
    """Sends back the bytes that it receives."""

    def run(self) -> None:
        """Accept connections; the kernel gives each one to one worker."""
        while self.alive():
            for listener in self.wait():
                with contextlib.suppress(OSError):  # another worker was faster, or the client has disconnected
                    self.echo(listener.sock.accept()[0])

    def echo(self, client: socket.socket) -> None:
        """Serve one client until it disconnects, is silent for 5 seconds, or this worker stops."""
        client.settimeout(5)  # less than --timeout, after which this worker would count as stuck
        with client:
            while data := client.recv(65536):
                client.sendall(data)
                if not self.alive():
                    break


if __name__ == "__main__":
    sys.exit(Server(worker=Echo, workers=4, bind=sys.argv[1:] or ["127.0.0.1:7000"]).run())

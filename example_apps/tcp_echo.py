"""The prefork TCP echo server: many workers accept on one socket, and each serves one client at a time.

Run it: `python example_apps/tcp_echo.py 127.0.0.1:7000`, and talk to it: `nc 127.0.0.1 7000`.
"""

from __future__ import annotations

import contextlib
import socket
import sys

from forkserve import Server, Worker


class Echo(Worker):
    """Sends back what it gets."""

    def run(self) -> None:
        """Accept whenever somebody has come; the kernel gives each client to one worker."""
        while self.alive():
            for listener in self.wait():
                with contextlib.suppress(OSError):  # another worker was faster, or the client has gone
                    self.echo(listener.sock.accept()[0])

    def echo(self, client: socket.socket) -> None:
        """Serve one client until it leaves, is silent for long, or this worker is to end."""
        client.settimeout(5)  # less than `timeout`: who waits for a silent client for longer is taken for stuck
        with client:
            while data := client.recv(65536):
                client.sendall(data)
                if not self.alive():
                    break


if __name__ == "__main__":
    sys.exit(Server(worker=Echo, workers=4, bind=sys.argv[1:] or ["127.0.0.1:7000"]).run())

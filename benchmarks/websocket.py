"""Frames and handshakes of a WebSocket client, and a client that measures echoes.

The client, `python -m benchmarks.websocket PORT CONNECTIONS SIZE SECONDS`, keeps one text message of SIZE bytes in flight on each
connection. When all connections are open, it prints `ready` and waits for a line. At the end it prints the number of echoes as a
line of JSON, as load.lua does. It ends if an echo differs from its message.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import socket
import struct
import sys
import time

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
PATIENCE = 10.0  # seconds


def header(opcode: int, size: int, *, fin: bool = True, rsv: int = 0, masked: bool = False) -> bytes:
    """Return the head of a frame, without its mask."""
    first, mask = (0x80 if fin else 0) | rsv << 4 | opcode, 0x80 if masked else 0
    if size < 126:
        return bytes([first, mask | size])
    if size < 1 << 16:
        return struct.pack("!BBH", first, mask | 126, size)
    return struct.pack("!BBQ", first, mask | 127, size)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes = bytes(4)) -> bytes:
    """Return a frame of a client."""
    size = len(payload)
    if any(mask):
        stream = int.from_bytes((mask * (size // 4 + 1))[:size])
        payload = (int.from_bytes(payload) ^ stream).to_bytes(size)
    return header(opcode, size, fin=fin, rsv=rsv, masked=True) + mask + payload


def upgrade(client: socket.socket, path: str, *fields: str) -> None:
    """Do the handshake. Raises ConnectionError if the server refuses it or sends more than its head."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [f"GET {path} HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    client.sendall("\r\n".join([*lines, f"Sec-WebSocket-Key: {key}", *fields, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        data = client.recv(4096)
        if not data:
            raise ConnectionError("the server closed the connection in the handshake")
        head += data
    if not head.startswith(b"HTTP/1.1 101 ") or not head.endswith(b"\r\n\r\n"):
        raise ConnectionError(f"the server refused the handshake: {head!r}")


class Echoes:
    """Connections to an echoing server, each with one message in flight."""

    def __init__(self, port: int, connections: int, size: int, stack: contextlib.ExitStack) -> None:
        payload = b"x" * size
        self._expected = header(TEXT, size) + payload
        self._poll = select.epoll()
        stack.callback(self._poll.close)
        self._clients: dict[int, tuple[socket.socket, bytes]] = {}
        self._received: dict[int, bytes] = {}
        for _ in range(connections):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            upgrade(client, "/")
            self._clients[client.fileno()] = client, frame(TEXT, payload, mask=os.urandom(4))
            self._poll.register(client.fileno(), select.EPOLLIN)

    def run(self, seconds: float) -> tuple[int, float]:
        """Echo for a time; return the number of echoes and the seconds that they took."""
        expected, clients, received = self._expected, self._clients, self._received
        length, count, began = len(expected), 0, time.perf_counter()
        end = began + seconds
        for client, message in clients.values():
            client.sendall(message)
        while time.perf_counter() < end:
            ready = self._poll.poll(PATIENCE)
            if not ready:
                raise TimeoutError(f"no echo in {PATIENCE:g} s")
            for descriptor, _ in ready:
                client, message = clients[descriptor]
                data = received.pop(descriptor, b"") + client.recv(length + 1)
                if data == expected:
                    count += 1
                    client.sendall(message)
                elif data and expected.startswith(data):
                    received[descriptor] = data  # the rest will come
                else:
                    raise ConnectionError(f"the echo differs, or the server has closed the connection: {data[:80]!r}")
        return count, time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    port, connections, size = map(int, sys.argv[1:4])
    with contextlib.ExitStack() as stack:
        echoes = Echoes(port, connections, size, stack)
        print("ready", flush=True)
        sys.stdin.readline()
        count, seconds = echoes.run(float(sys.argv[4]))
    print(json.dumps({"requests": count, "bytes": count * size, "failed": 0, "seconds": seconds}))


if __name__ == "__main__":
    main()

"""A pool of interchangeable workers: each message goes to an idle worker, never to one that is stopping.

Run it: `python example_apps/pool.py /tmp/pool.sock`. A client connects and writes one line; the first
idle worker takes it: `echo hello | nc -NU /tmp/pool.sock`. Or through the master: `forkserve ctl call work hello --to any`.
"""

from __future__ import annotations

import contextlib
import sys
import time

from forkserve import Server, Worker


class Pooled(Worker):
    """Takes one message at a time."""

    def run(self) -> None:
        """Take messages while idle. If all workers are busy, messages wait in the queue of the socket, which is the master's."""
        while self.alive():
            for listener in self.wait():
                with contextlib.suppress(OSError):  # another worker was faster, or the client has disconnected
                    sender, _ = listener.sock.accept()
                    sender.settimeout(5)
                    with sender, sender.makefile("rw", encoding="utf-8", errors="replace") as line:
                        line.write(self.child_work(line.readline(65536).strip()) + "\n")

    def child_work(self, message: str) -> str:
        """Process a message: `sleep 2` takes two seconds, any other takes none."""
        word, _, seconds = message.partition(" ")
        if word == "sleep" and seconds.isdecimal():
            time.sleep(int(seconds))
        return f"{message}: done by worker {self.id}"


if __name__ == "__main__":
    sys.exit(Server(worker=Pooled, workers=4, bind=[f"unix:{sys.argv[1]}"]).run())

"""Workers that print a line each second.

Run it: `python example_apps/say.py 4`. Then kill a worker and see it replaced, or change what all of
them print: `forkserve ctl call say "good bye"`.
"""

from __future__ import annotations

import os
import sys

from forkserve import Server, Worker

MASTER = os.getpid()  # runs once, in the master; every worker inherits the value


class Say(Worker):
    """Prints the same words until a command changes them."""

    words = "hello"

    def run(self) -> None:
        """Print; `alive` sends the heartbeat and says whether to go on."""
        while self.alive():
            print(f"worker {self.id} ({self.pid}), child of {MASTER}: {self.words}", flush=True)
            self.wait(1)  # or until a command arrives

    def child_say(self, words: str) -> str:
        """Print other words from now on."""
        before, self.words = self.words, words
        return f"no more {before}"


if __name__ == "__main__":
    sys.exit(Server(worker=Say, workers=int(sys.argv[1]) if sys.argv[1:] else 4).run())

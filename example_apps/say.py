"""Workers that say something each second: the first example of preforker.

Run it: `python example_apps/say.py 4`. Then kill a worker, and see it replaced; or have all of them say
something else, with `forkserve ctl call say "good bye"`.
"""

from __future__ import annotations

import os
import sys

from forkserve import Server, Worker

MASTER = os.getpid()  # what stands here runs once, in the master, and every worker has it


class Say(Worker):
    """Says the same until it is told otherwise."""

    words = "hello"

    def run(self) -> None:
        """Speak; `alive` shows that this worker is not stuck, and asks whether to go on."""
        while self.alive():
            print(f"worker {self.id} ({self.pid}), child of {MASTER}: {self.words}", flush=True)
            self.wait(1)  # or until a command comes

    def child_say(self, words: str) -> str:
        """Say something else from now on."""
        before, self.words = self.words, words
        return f"no more {before}"


if __name__ == "__main__":
    sys.exit(Server(worker=Say, workers=int(sys.argv[1]) if sys.argv[1:] else 4).run())

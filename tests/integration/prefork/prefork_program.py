"""A server for the tests: `prefork_program.py WORKER SETTINGS`, with the settings as a Python literal.

The text that a worker receives over its port decides what the worker does.
"""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import sys
import time

from forkserve.base import logs
from forkserve.base.errors import AppLoadError, BootError, ForkserveError
from forkserve.config import load as config
from forkserve.prefork.ipc.frames import encode
from forkserve.prefork.ipc.messages import Ready
from forkserve.prefork.master.commands import MasterCommands
from forkserve.prefork.master.master import Master
from forkserve.prefork.worker.worker import Worker


class Echo(Worker):
    """Answers each text, and executes it as a command."""

    def run(self) -> None:
        while self.alive():
            for listener in self.wait():
                try:
                    client, _ = listener.sock.accept()
                except BlockingIOError:
                    continue
                with client:
                    client.settimeout(10)
                    client.sendall(self.answer(client.recv(1000).decode()).encode())

    def answer(self, text: str) -> str:
        match text.split():
            case ["pid"]:
                return str(self.pid)
            case ["whoami"]:
                names = ("FORKSERVE_WORKER_ID", "FORKSERVE_GENERATION", "LISTEN_FDS", "NOTIFY_SOCKET")
                return repr([os.environ.get(name) for name in names])
            case ["variable", name]:
                return str(os.environ.get(name))
            case ["exit", code]:
                os._exit(int(code))
            case ["raise"]:
                raise ValueError("out of the blue")
            case ["stick"]:
                self.row.begin(b"GET /stick\x1b[0m HTTP/1.1")
                a_deep_function()
            case ["garbage"]:
                os.write(self.channel.fileno(), b"\xff" * 100)
            case ["ready"]:
                self.channel.send(Ready())
            case ["unknown"]:
                self.channel.send_frame(encode({"type": "what?"}))
        return text

    def on_stop(self) -> None:
        self.log.info("on_stop")


def a_deep_function() -> None:
    time.sleep(1000)


class Plain(Worker):
    """The smallest possible worker."""

    def run(self) -> None:
        while self.alive():
            time.sleep(0.01)


class NoModule(Worker):
    """Fails like an app that cannot be imported."""

    def run(self) -> None:
        raise AppLoadError("no module named 'nothing'", "Traceback of the app\n")


class NoLifespan(Worker):
    """Fails like an app whose startup fails."""

    def run(self) -> None:
        raise BootError("lifespan start-up failed: no database")


class Raises(Worker):
    """Raises an exception of its own."""

    def run(self) -> None:
        self.deeper()

    def deeper(self) -> None:
        raise ZeroDivisionError("in the app")


class SaysMuch(Worker):
    """Fails for a reason that is larger than a message may be."""

    def run(self) -> None:
        raise ValueError("much " * 1_000_000)


class Dies(Worker):
    """Dies while it boots."""

    def run(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Returns(Worker):
    """Returns before it is ready."""

    def run(self) -> None:
        pass


class Leaves(Worker):
    """Calls sys.exit before it is ready."""

    def run(self) -> None:
        sys.exit("enough")


class Slow(Worker):
    """Never becomes ready."""

    def run(self) -> None:
        self.log.info("booting")
        a_deep_function()


class Stubborn(Worker):
    """Catches the exception that ends its boot, once."""

    def run(self) -> None:
        self.log.info("booting")
        with contextlib.suppress(BaseException):
            a_deep_function()
        a_deep_function()


class SecondFails(Plain):
    """Only worker 2 fails, after worker 1 is ready."""

    def run(self) -> None:
        if self.id == 2:
            while not self.scoreboard.siblings(self.row):
                time.sleep(0.01)
            raise ZeroDivisionError("in the app")
        super().run()


class FailsLater(Echo):
    """Boots unless a file exists."""

    def run(self) -> None:
        if os.path.exists(os.environ["BROKEN"]):
            raise AppLoadError("no module named 'nothing'", "Traceback of the app\n")
        super().run()


class Lingers(Echo):
    """Keeps running after the order to drain while a file exists."""

    def run(self) -> None:
        super().run()
        self.log.info("draining")
        while os.path.exists(os.environ["BUSY"]):
            time.sleep(0.01)


class HasChild(Plain):
    """The caller of the master has forked its own child before."""


def main() -> int:
    _, worker, text = sys.argv
    settings = ast.literal_eval(text)
    if worker == "HasChild" and os.fork() == 0:
        time.sleep(0.3)
        os._exit(9)
    try:
        made = config.from_keywords(needs_app=False, worker=f"program:{worker}", **settings)
        logs.configure(made.settings)
        return Master(MasterCommands(globals()[worker], made)).run()
    except ForkserveError as error:
        print(f"forkserve: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

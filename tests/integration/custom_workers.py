"""Worker classes of users, for the tests."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from pathlib import Path

from forkserve import Worker, WouldDeadlock, current_worker
from forkserve.prefork.ipc.hooks import WorkerHandle


class Idle(Worker):
    """Runs commands only."""

    def run(self) -> None:
        while self.alive():
            self.wait()

    def child_hello(self, who: str) -> str:
        return f"hello {who} from {self.id}"

    async def child_nap(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return self.id

    def child_square(self, number: int) -> int:
        return number * number

    def child_hold(self, path: str) -> int:
        """Run until the file exists; another file shows that the command has begun."""
        Path(f"{path}.{self.id}").touch()
        while not os.path.exists(path):
            time.sleep(0.002)
        return self.id

    def child_die(self, always: bool) -> int:  # noqa: FBT001
        """Exit; with `always` false only if no worker has exited before."""
        marker = Path(os.environ.get("NOTES", ""), "died")
        if always or not marker.exists():
            marker.touch()
            os._exit(9)
        return self.id

    def child_fail(self, _: object) -> None:
        raise ValueError("not this one")

    def child_stick(self) -> None:
        a_deep_function()

    def child_forbidden(self) -> str:
        return "never"

    def child_ask_others(self, path: str) -> str:
        """Call the other workers; write the values of their replies to the file."""
        call = current_worker().call("hello", "you")
        try:
            call.result(1)
        except WouldDeadlock as error:
            problem = str(error)
        call.then(lambda replies: Path(path).write_text(json.dumps([one.value for one in replies])))
        return problem

    def child_ask_others_in_a_thread(self, path: str) -> None:
        def wait() -> None:
            Path(path).write_text(json.dumps([one.value for one in self.call("hello", "you").result(20)]))

        threading.Thread(target=wait).start()


def a_deep_function() -> None:
    time.sleep(1000)


class Busy(Worker):
    """Works for short moments, and prints its id each time."""

    def run(self) -> None:
        while self.alive():
            print(f"{self.id}", flush=True)
            time.sleep(0.05)


class Patient(Worker):
    """Waits as long as `wait` lets it, and prints a line each time."""

    def run(self) -> None:
        while self.alive():
            print(os.getpid(), flush=True)
            self.wait(1000)


class Echo(Idle):
    """Echoes on its listener."""

    def run(self) -> None:
        while self.alive():
            for listener in self.wait():
                try:
                    client, _ = listener.sock.accept()
                except BlockingIOError:
                    continue
                with client:
                    client.settimeout(10)
                    client.sendall(b"%d " % self.id + client.recv(1000))


class Silent(Worker):
    """Reports that it is ready, and then never calls `alive`."""

    def run(self) -> None:
        self.ready()
        a_deep_function()


class NeverReady(Worker):
    """Never reports that it is ready."""

    def run(self) -> None:
        a_deep_function()


class Returns(Worker):
    """Returns when a file exists."""

    def run(self) -> None:
        path = Path(os.environ["NOTES"], "done")
        while self.alive() and not path.exists():
            time.sleep(0.01)
        path.unlink(missing_ok=True)


class Hooked(Idle):
    """Records each of its hooks: name, process, arguments. `RAISE` names the hooks that raise."""

    @staticmethod
    def note(name: str, *arguments: object) -> None:
        with Path(os.environ["NOTES"], "hooks").open("a") as notes:
            notes.write(json.dumps([name, os.getpid(), *arguments]) + "\n")
        if name in os.environ.get("RAISE", "").split():
            raise RuntimeError(f"{name} does not work")

    @staticmethod
    def on_register(worker: WorkerHandle) -> None:
        Hooked.note("register", worker.id, worker.port, worker.generation, worker.pid)

    @staticmethod
    def on_timeout(worker: WorkerHandle) -> None:
        Hooked.note("timeout", worker.id, worker.port, worker.generation, worker.pid)

    @staticmethod
    def on_exit(worker: WorkerHandle, status: int) -> None:
        Hooked.note("exit", worker.id, worker.port, worker.generation, worker.pid, status)

    @staticmethod
    def on_unregister(worker: WorkerHandle) -> None:
        Hooked.note("unregister", worker.id, worker.port, worker.generation, worker.pid)

    def on_start(self) -> None:
        self.note("start", self.id, self.booted)

    def on_ready(self) -> None:
        self.note("ready", self.id)

    def on_stop(self) -> None:
        self.note("stop", self.id)


class Lingering(Idle):
    """Acts as if it had a long response in hand at its stop: exits when a file exists. With `ANNOUNCES` it reports that only this is left."""

    def run(self) -> None:
        super().run()
        if "ANNOUNCES" in os.environ:
            self.lingering()
        while not Path(os.environ["NOTES"], "end").exists():
            time.sleep(0.01)


class SlowToBoot(Idle):
    """Is ready when a file exists."""

    def run(self) -> None:
        while not Path(os.environ["NOTES"], "go").exists():
            time.sleep(0.01)
        super().run()


class NoWorker:
    """Not a worker."""


class BadCommand(Idle):
    """Has a command with an invalid name."""

    def child_Big(self) -> None:  # noqa: N802
        pass

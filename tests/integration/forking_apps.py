"""Apps that fork, in every place from which an app's code is run. What a view forks depends on the path."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from forkserve import Worker, current_worker

FORK = multiprocessing.get_context("fork")
SHOW = "ls -l /proc/self/fd; cat /proc/self/status"
FOREVER = 1000


def keep(place: str) -> int:
    """Fork a process that stays, and note its pid, if this is the place that the test wants to fork in."""
    if os.environ.get("FORK_IN") != place:
        return 0
    pid = os.fork()
    if pid == 0:
        time.sleep(FOREVER)
        os._exit(0)
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{pid}\n")
    return pid


def square(number: int) -> int:
    return number * number


def stay() -> None:
    time.sleep(FOREVER)


def result(pid: int) -> str:
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def run(what: str) -> str:
    """Do what a request wants, and say what came of it."""
    match what:
        case "exit":  # the usual way, but for the parent's objects
            pid = os.fork()
            if pid == 0:
                gc.collect()
                sys.exit(7)
            return result(pid)
        case "raise":
            pid = os.fork()
            if pid == 0:
                raise ValueError("in the child")
            return result(pid)
        case "return":
            pid = os.fork()
            return result(pid) if pid else "never sent"
        case "reuse":  # descriptors that the child opens are not closed by what the collector finds
            pid = os.fork()
            if pid == 0:
                files = [open(os.devnull) for _ in range(50)]  # noqa: SIM115
                gc.collect()
                os._exit(sum(os.fstat(file.fileno()).st_rdev == 0 for file in files))
            return result(pid)
        case "loop":  # a loop of its own
            pid = os.fork()
            if pid == 0:
                os._exit(asyncio.run(asyncio.sleep(0.01, 9)))
            return result(pid)
        case "worker":
            pid = os.fork()
            if pid == 0:
                try:
                    current_worker()
                except RuntimeError:
                    os._exit(5)
                os._exit(6)
            return result(pid)
        case "handlers":
            pid = os.fork()
            if pid == 0:
                default = (signal.SIG_DFL, signal.default_int_handler, signal.SIG_IGN)
                wrong = [one for one in signal.valid_signals() if signal.getsignal(one) not in default]
                os._exit(len(wrong) + len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
            return result(pid)
        case "terminate":
            process = FORK.Process(target=stay)
            process.start()
            process.terminate()
            process.join(10)
            return str(process.exitcode)
        case "pool":
            with FORK.Pool(2) as pool:
                found = pool.map(square, range(3))
            pool.join()
            return str(found)
        case "manager":
            with FORK.Manager() as manager:
                return str(list(manager.list([1, 2])))
        case "executor":
            with ProcessPoolExecutor(1, mp_context=FORK) as executor:
                return str(executor.submit(square, 3).result())
        case "forkserver":
            with multiprocessing.get_context("forkserver").Pool(1) as pool:
                return str(pool.apply(square, (4,)))
        case "pty":
            pid, terminal = pty.fork()
            if pid == 0:
                time.sleep(FOREVER)
            os.kill(pid, signal.SIGTERM)
            found = result(pid)
            os.close(terminal)
            return found
        case "keep":
            return str(keep("view"))
        case "program":
            return subprocess.run(SHOW, shell=True, close_fds=False, capture_output=True, text=True, check=False).stdout
    return "nothing"


def wsgi(environ, start_response):
    """Fork in the view."""
    text = f"{os.getpid()} {run(environ['PATH_INFO'][1:])}".encode()
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]


async def asgi(scope, receive, send):
    """Fork in the view, on the loop."""
    if scope["type"] == "lifespan":
        await receive()
        keep("lifespan")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    text = f"{os.getpid()} {run(scope['path'][1:])}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


class Hooks:
    """A mixin that forks in the hooks of a worker."""

    def on_start(self) -> None:
        keep("on_start")

    def on_ready(self) -> None:
        keep("on_ready")

    def child_fork(self) -> int:
        return keep("command")


class Custom(Worker):
    """Answers each connection in a process of its own, as servers have always done, and has a child that comes back."""

    def run(self) -> None:
        while self.alive():
            for listener in self.wait():
                try:
                    client, _ = listener.sock.accept()
                except BlockingIOError:
                    continue
                pid = os.fork()
                if pid == 0:
                    client.setblocking(True)
                    client.sendall(b"%d %s" % (os.getppid(), client.recv(100)))
                    client.close()
                    continue  # it is no worker, and ends in `alive` or `wait`
                client.close()
                with open(os.environ["NOTES"], "a") as notes:
                    notes.write(f"{result(pid)}\n")


keep("import")

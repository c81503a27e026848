"""Apps that fork in every place where code of an app runs. The path decides what a view forks."""

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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from forkserve import Worker, current_worker

FORK = multiprocessing.get_context("fork")
SHOW = "ls -l /proc/self/fd; cat /proc/self/status"
FOREVER = 1000


def keep(place: str) -> int:
    """Fork a process that stays, and record its pid, if the test wants a fork in this place."""
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


def forked(act: Callable[[], object]) -> str:
    """Fork, call `act` in the child, and return the child's exit code; `act` may return in the child."""
    pid = os.fork()
    if pid == 0:
        act()
        return "never sent"
    return result(pid)


def leave() -> None:
    gc.collect()
    sys.exit(7)


def fail() -> None:
    raise ValueError("in the child")


def reuse() -> None:
    """Open descriptors; garbage collection must not close them."""
    files = [open(os.devnull) for _ in range(50)]  # noqa: SIM115
    gc.collect()
    os._exit(sum(os.fstat(file.fileno()).st_rdev == 0 for file in files))


def loop() -> None:
    os._exit(asyncio.run(asyncio.sleep(0.01, 9)))


def ask_for_worker() -> None:
    try:
        current_worker()
    except RuntimeError:
        os._exit(5)
    os._exit(6)


def count_handlers() -> None:
    default = (signal.SIG_DFL, signal.default_int_handler, signal.SIG_IGN)
    wrong = [one for one in signal.valid_signals() if signal.getsignal(one) not in default]
    os._exit(len(wrong) + len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def terminate() -> str:
    process = FORK.Process(target=stay)
    process.start()
    process.terminate()
    process.join(10)
    return str(process.exitcode)


def pool() -> str:
    with FORK.Pool(2) as pool:
        found = pool.map(square, range(3))
    pool.join()
    return str(found)


def manager() -> str:
    with FORK.Manager() as manager:
        return str(list(manager.list([1, 2])))


def executor() -> str:
    with ProcessPoolExecutor(1, mp_context=FORK) as executor:
        return str(executor.submit(square, 3).result())


def forkserver() -> str:
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        return str(pool.apply(square, (4,)))


def in_terminal() -> str:
    pid, terminal = pty.fork()
    if pid == 0:
        stay()
    os.kill(pid, signal.SIGTERM)
    found = result(pid)
    os.close(terminal)
    return found


def program() -> str:
    return subprocess.run(SHOW, shell=True, close_fds=False, capture_output=True, text=True, check=False).stdout


WHAT: dict[str, Callable[[], object]] = {
    "": lambda: "nothing",
    "exit": partial(forked, leave),
    "raise": partial(forked, fail),
    "return": partial(forked, int),
    "reuse": partial(forked, reuse),
    "loop": partial(forked, loop),
    "worker": partial(forked, ask_for_worker),
    "handlers": partial(forked, count_handlers),
    "terminate": terminate,
    "pool": pool,
    "manager": manager,
    "executor": executor,
    "forkserver": forkserver,
    "pty": in_terminal,
    "keep": partial(keep, "view"),
    "program": program,
}


def wsgi(environ, start_response):
    """Fork in the view."""
    text = f"{os.getpid()} {WHAT[environ['PATH_INFO'][1:]]()}".encode()
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]


async def asgi(scope, receive, send):
    """Fork in the view, on the event loop."""
    if scope["type"] == "lifespan":
        await receive()
        keep("lifespan")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    text = f"{os.getpid()} {WHAT[scope['path'][1:]]()}".encode()
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
    """Answers each connection in a new process, as servers have always done; the child returns into the loop of the worker."""

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
                    continue  # the child is not a worker, and exits in `alive` or `wait`
                client.close()
                with open(os.environ["NOTES"], "a") as notes:
                    notes.write(f"{result(pid)}\n")


keep("import")

"""One run: check the file for nginx, write it, run the reload command. A process of its own, started by upstream.py.

The order comes on stdin and what went wrong goes to stdout, both as JSON; null if nothing did. A blank before that says, before
the reload command is begun, that the file is written: the server is ready then. It does not wait for the command, which may
wait for the server: nginx's unit is ordered after ours, and `systemctl reload nginx` waits until nginx has been started.

TERM ends it with all that it has started, and the master's death is such a TERM.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time

from forkserve.base import files
from forkserve.base.libc import PDEATHSIG, prctl
from forkserve.frontend.check import CheckError, told
from forkserve.frontend.trial import check_upstream

TAIL = 4096  # bytes of what the command prints, whose last line is told;
LONGEST = 300  # so many characters of it
SETTLING = 0.5
"""Seconds until what the command asked for is done: `nginx -s reload` only sends a signal, and nginx's old processes go on
choosing among the old workers until they get theirs. Without it, requests met three ports in a row that had just been
closed, and were answered with 502 (one in forty, as four workers of six went, under load); with 0.3 s none was."""


class _TooLateError(Exception):
    """It takes too long."""


def main() -> None:
    """Do what the order says, and tell what went wrong."""
    signal.signal(signal.SIGTERM, _too_late)
    prctl(PDEATHSIG, signal.SIGTERM)
    doing = "--nginx-upstream: reading the order"
    late = False
    try:
        order = json.load(sys.stdin)
        if os.getppid() != order["master"]:  # it died before the line above
            return
        doing = f"--nginx-upstream: the check and the writing of {order['path']}"
        said = _write(order["path"], order["text"])
        if said is None and order["reload"] is not None:
            os.write(1, b"\n")
            doing = f"--nginx-reload: {order['reload']!r}"
            said = _reload(order["reload"])
    except _TooLateError:
        late, said = True, f"{doing} was ended before it was done ({order['limit']:g} s are allowed)"
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(said).encode())
    if late:
        os.killpg(0, signal.SIGKILL)


def _too_late(*_: object) -> None:
    raise _TooLateError


def _write(path: str, text: str) -> str | None:
    """Replace the file by one that nginx takes; return what went wrong."""
    try:
        check_upstream(text)
        files.write_whole(path, text)
    except CheckError as error:
        return f"--nginx-upstream: {path} stays as it was: {error}"
    except OSError as error:
        return f"--nginx-upstream: cannot write {path}: {error.strerror}"
    return None


def _reload(command: str) -> str | None:
    """Run the command; return what went wrong."""
    with tempfile.TemporaryFile() as output:  # no pipe, which a daemon that it starts would hold open
        words = shlex.split(command)
        try:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False)  # noqa: S603 - the user's own
        except OSError as error:
            return f"--nginx-reload: cannot run {words[0]!r}: {error.strerror}"
        if done.returncode == 0:
            time.sleep(SETTLING)
            return None
        output.seek(max(0, output.seek(0, os.SEEK_END) - TAIL))
        lines = output.read().decode("utf-8", "replace").strip().splitlines() or [""]
    line = told(lines[-1])
    how = f"exited with code {done.returncode}" if done.returncode > 0 else f"was killed by signal {-done.returncode}"
    return f"--nginx-reload: {command!r} {how}" + (f": {line[:LONGEST]}{'...' * (len(line) > LONGEST)}" if line else "")

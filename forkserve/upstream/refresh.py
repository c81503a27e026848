"""One run: check the file for nginx, write it, run the reload command. A process of its own, started by upstream.py.

The order is read from stdin; the error is written to stdout, as JSON, null if there is none. A newline before it reports that the
file is written, before the reload command starts: then the server is ready. The server must not wait for the command, which may
wait for the server: nginx's unit is ordered after it, and `systemctl reload nginx` waits until nginx is started.

TERM ends this process and everything that it has started; the master's death causes a TERM.
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
from forkserve.frontend.check import CheckError, without_prefix
from forkserve.frontend.trial import check_upstream

TAIL = 4096  # bytes of the command's output to read for its last line
LONGEST = 300  # characters of that line in a message
SETTLING = 0.5
"""Seconds until the command has taken effect: `nginx -s reload` only sends a signal, and nginx's old processes keep using the old
workers until it arrives. Without the wait, requests met three just closed ports in a row and were answered with 502 (one in
forty, when four workers of six were removed under load); with 0.3 s none was."""


class _TooLateError(Exception):
    """The run takes too long."""


def main() -> None:
    """Carry out the order, and report the error."""
    signal.signal(signal.SIGTERM, _too_late)
    prctl(PDEATHSIG, signal.SIGTERM)
    doing = "--nginx-upstream: reading the order"
    late = False
    try:
        order = json.load(sys.stdin)
        if os.getppid() != order["master"]:  # the master died before the line above
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
    """Replace the file, if nginx accepts the new one; return the error."""
    try:
        check_upstream(text)
        files.write_whole(path, text)
    except CheckError as error:
        return f"--nginx-upstream: {path} stays as it was: {error}"
    except OSError as error:
        return f"--nginx-upstream: cannot write {path}: {error.strerror}"
    return None


def _reload(command: str) -> str | None:
    """Run the command; return the error."""
    with tempfile.TemporaryFile() as output:  # not a pipe, which a daemon started by it would hold open
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
    line = without_prefix(lines[-1])
    how = f"exited with code {done.returncode}" if done.returncode > 0 else f"was killed by signal {-done.returncode}"
    return f"--nginx-reload: {command!r} {how}" + (f": {line[:LONGEST]}{'...' * (len(line) > LONGEST)}" if line else "")
